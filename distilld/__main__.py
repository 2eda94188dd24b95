"""The console script, and ``python -m distilld``: it imports late, so that an interrupt is handled early."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

INTERRUPTED: Final = 130
"""The exit code as in :mod:`distilld.cli.commands`, which may not be imported yet when it is needed."""


def main() -> NoReturn:
    """Run the command line; an interrupt before it starts gives the exit code of an interrupt, and no traceback."""
    try:
        from distilld.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
