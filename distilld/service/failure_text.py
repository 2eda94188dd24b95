"""What a failure is called: at the end of a command, in the log, in the store and by ``health`` (SPEC 6)."""

from __future__ import annotations

import os
import sqlite3

from distilld.core.model import DistilldError
from distilld.core.remedies import remedy_of


def explain_failure(error: Exception) -> tuple[str, str]:
    """Return what failed, and what to do about it.

    Only messages of our own, of the system and of SQLite are repeated: any other may hold the value of a row.
    """
    if isinstance(error, DistilldError):
        return str(error), error.hint
    if isinstance(error, sqlite3.Error):
        return f"the state store failed: {error}", f"what was committed stands; {remedy_of(error)}"
    if isinstance(error, OSError):
        at = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        # Our own messages ('is no regular file') already say what to do.
        is_the_systems = error.errno is not None and error.strerror == os.strerror(error.errno)
        return f"{at}{error.strerror or error}", remedy_of(error) if is_the_systems else ""
    return f"an unexpected {type(error).__name__}", "see the log; it is tried again, and please report it"
