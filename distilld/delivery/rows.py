"""Rows of a dataset as bytes: their id, their key, and a digest that no timestamp changes; nothing is parsed.

Every row of ours begins with its schema version and its id, and ends with its two timestamps and its provenance.
"""

from __future__ import annotations

import hashlib
from typing import Final

_ID_AT: Final = len(b'{"schema_version":1,"id":"')
CREATED: Final = b'"created_at":"'
"""A quote in a text is escaped, so this stands in a row but once."""
_RECORDED: Final = b'"recorded_at":"'


def id_of_line(line: bytes) -> str:
    """The id of a row."""
    return line[_ID_AT : line.index(b'"', _ID_AT)].decode()


def content_sha256(line: bytes) -> str:
    """The sha256 of a row without the values of its two timestamps; with them, if it was not printed as ours are."""
    start, last = line.rfind(CREATED), line.rfind(_RECORDED)
    if start < 0 or last < 0:
        return hashlib.sha256(line).hexdigest()
    start, last = start + len(CREATED), last + len(_RECORDED)
    kept = line[:start] + line[line.index(b'"', start) : last] + line[line.index(b'"', last) :]
    return hashlib.sha256(kept).hexdigest()
