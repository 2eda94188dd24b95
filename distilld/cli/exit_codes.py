"""What a command's exit code says (SPEC 5; docs/cli.md)."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The closed list of exit codes."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    BUSY = 75
    INTERRUPTED = 130
