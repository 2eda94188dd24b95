"""Finds the id of a row in its bytes, and a digest that does not depend on timestamps, without parsing JSON.

Each row begins with its schema version and its id, and ends with ``created_at`` and its provenance.
"""

from __future__ import annotations

import hashlib
from typing import Final

_ID_AT: Final = len(b'{"schema_version":1,"id":"')
CREATED: Final = b'"created_at":"'
"""Quotes in a text are escaped, so this occurs once in a row."""
_RECORDED: Final = b'"recorded_at":"'


def id_of_line(line: bytes) -> str:
    """Return the id of a row."""
    return line[_ID_AT : line.index(b'"', _ID_AT)].decode()


def content_sha256(line: bytes) -> str:
    """Return the sha256 of a row without the values of its two timestamps; of all of a row that lacks them."""
    start, last = line.rfind(CREATED), line.rfind(_RECORDED)
    if start < 0 or last < 0:
        return hashlib.sha256(line).hexdigest()
    start, last = start + len(CREATED), last + len(_RECORDED)
    sha = hashlib.sha256(memoryview(line)[:start])
    sha.update(line[line.index(b'"', start) : last] + line[line.index(b'"', last) :])
    return sha.hexdigest()
