"""The console script, and ``python -m distilld``: quick to be interruptible, for importing takes a moment too."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

INTERRUPTED: Final = 130
"""As in :mod:`distilld.cli.exit_codes`, which cannot be asked while it is being imported."""


def main() -> NoReturn:
    """Run the command line; who interrupts it before it has begun gets the exit code of that, and no traceback."""
    try:
        from distilld.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
