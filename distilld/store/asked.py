"""Many texts as the values of one statement, whose form is always the same, so that SQLite prepares it once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ASKED_AT_ONCE: Final = 200
"""Texts that one statement asks for."""
ASKED: Final = f"WITH asked (value) AS (VALUES {', '.join(['(?)'] * ASKED_AT_ONCE)})"


def asked(texts: Sequence[str]) -> list[str | None]:
    """The values of a statement that asks for some texts; SQLite's JSON would cut a text at a NUL."""
    return [*texts, *[None] * (ASKED_AT_ONCE - len(texts))]
