"""A reason why a lake is unhealthy."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from distilld.core.model import DistilldError
from distilld.service.failure_text import explain_failure


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why the lake is unhealthy: a stable name, a description, and the remedy."""

    name: str
    text: str
    remedy: str


UNKNOWN: Final = (DistilldError, OSError, sqlite3.Error)
"""The errors that keep a lake from being looked at; their messages say what to do."""


def not_known(error: Exception) -> Problem:
    """Return the problem that an error keeps everything else about the lake from being known."""
    return Problem("not_known", *explain_failure(error))
