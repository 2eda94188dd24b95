"""The exit codes of commands (SPEC 5; docs/cli.md)."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """All exit codes of distilld."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    BUSY = 75
    INTERRUPTED = 130
