"""Pass many texts to one SQL statement of constant form, so that SQLite prepares it only once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ASKED_AT_ONCE: Final = 200
"""The most texts that one statement takes."""
ASKED: Final = f"WITH asked (value) AS (VALUES {', '.join(['(?)'] * ASKED_AT_ONCE)})"


def asked(texts: Sequence[str]) -> list[str | None]:
    """Return texts padded with None, as a statement takes them. SQLite's JSON would cut a text at a NUL."""
    return [*texts, *[None] * (ASKED_AT_ONCE - len(texts))]
