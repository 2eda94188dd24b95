"""Rows of a dataset as bytes: their id, their key, and a digest that no timestamp changes; nothing is parsed.

Every row of ours begins with its schema version and its id, and ends with its two timestamps and its provenance.
"""

from __future__ import annotations

import hashlib
from typing import Final

_ID_AT: Final = len(b'{"schema_version":1,"id":"')
_CREATED: Final = b'"created_at":"'
_RECORDED: Final = b'"recorded_at":"'


def id_of_line(line: bytes) -> str:
    """The id of a row."""
    return line[_ID_AT : line.index(b'"', _ID_AT)].decode()


def created_at(line: bytes) -> bytes:
    """The time of the batch that wrote a row. A quote in a text is escaped, so the key stands there but once."""
    start = line.rindex(_CREATED) + len(_CREATED)
    return line[start : line.index(b'"', start)]


def content_sha256(line: bytes) -> str:
    """The sha256 of a row without its line feed and the values of its two timestamps."""
    start = line.rindex(_CREATED) + len(_CREATED)
    sha = hashlib.sha256(line[:start])
    end = line.index(b'"', start)
    last = line.rindex(_RECORDED) + len(_RECORDED)
    sha.update(line[end:last])
    sha.update(line[line.index(b'"', last) :].rstrip(b"\n"))
    return sha.hexdigest()
