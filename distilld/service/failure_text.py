"""What a failure is called, in the log, in the store and by ``health`` (SPEC 6)."""

from __future__ import annotations

import os

from distilld.core.model import DistilldError
from distilld.core.remedies import remedy_of


def explain_failure(error: Exception) -> tuple[str, str]:
    """Return what failed, and what to do about it.

    Only messages of our own and of the system are repeated: any other may hold the value of a row.
    """
    if isinstance(error, DistilldError):
        return str(error), error.hint
    if isinstance(error, OSError):
        at = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        return f"{at}{error.strerror or type(error).__name__}", remedy_of(error)
    return f"an unexpected {type(error).__name__}", "see the log; it is tried again, and please report it"
