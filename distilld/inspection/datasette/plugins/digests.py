"""Datasette shows digests as hex digits; without this it offers them for download, and fails in views."""

from __future__ import annotations

from datasette import hookimpl


@hookimpl
def render_cell(value: object) -> str | None:
    """A cell that holds bytes, as hex digits."""
    return value.hex() if isinstance(value, bytes) else None
