"""A reason why a lake is unhealthy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why the lake is unhealthy: a stable name, a description, and the remedy."""

    name: str
    text: str
    remedy: str
