"""A reason why a lake is unhealthy."""

from __future__ import annotations

from dataclasses import dataclass

from distilld.service.failure_text import explain_failure


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why the lake is unhealthy: a stable name, a description, and the remedy."""

    name: str
    text: str
    remedy: str


def not_known(error: Exception) -> Problem:
    """Return the problem that an error keeps everything else about the lake from being known."""
    return Problem("not_known", *explain_failure(error))
