"""How Datasette shows cells: digests as hex digits, and words for the codes of categories and outcomes."""

from __future__ import annotations

from datasette import hookimpl

from distilld.core.line_facts import REASONS, SHIPPED, VERDICTS

_OUTCOMES = {SHIPPED: "exported", **{code: reason.value for code, reason in REASONS.items()}}
_WORDS = {
    "category": {code: category.value for code, category in VERDICTS.items()},
    **dict.fromkeys(("rag", "sft", "outcome"), _OUTCOMES),
}
_WITH_CODES = {"scored_rows", "row_places", "frozen_rows", "pairs"}


@hookimpl
def render_cell(value: object, column: str, table: str | None) -> str | None:
    """A cell that holds bytes, which would be offered for download and fail in views; or a code."""
    if isinstance(value, bytes):
        return value.hex()
    return _WORDS.get(column, {}).get(value) if table in _WITH_CODES and isinstance(value, int) else None
