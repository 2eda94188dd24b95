"""Lines of the exports without a batch's timestamps, so that lines of different batches can be compared."""

from __future__ import annotations

import json
from typing import Final

STAMP: Final = "-"
"""Replaces every timestamp that a batch writes."""


def unstamped_sample(line: bytes) -> bytes:
    """Return a dataset line with :data:`STAMP` in place of its two timestamps, and any other text unchanged."""
    head, created, rest = line.partition(b',"created_at":"')
    middle, recorded, end = rest.rpartition(b',"recorded_at":"')
    if not created or not recorded or not end.endswith(b'"}}\n') or b'"' in end[:-4]:
        return line
    time, quote, between = middle.partition(b'"')
    return (
        b"".join((head, created, STAMP.encode(), quote, between, recorded, STAMP.encode(), b'"}}\n')) if time else line
    )


def unstamped_quarantine(line: bytes) -> bytes:
    """Return a quarantine line with :data:`STAMP` in place of its timestamp, and any other text unchanged.

    The producer's own JSON before the timestamp is decoded and skipped, since a search could match a text in it.
    """
    try:
        text = line.decode()
        _, at = _value_after(text, '"source_record":', text.index('"source_record":'))
        _, at = _value_after(text, ',"errors":', at)
        start = at
        _, at = _value_after(text, ',"recorded_at":', at)
    except ValueError:
        return line
    return f'{text[:start]},"recorded_at":"{STAMP}"{text[at:]}'.encode()


def _value_after(text: str, key: str, at: int) -> tuple[object, int]:
    if not text.startswith(key, at):
        raise ValueError(key)
    value: tuple[object, int] = _DECODER.raw_decode(text, at + len(key))
    return value


_DECODER: Final = json.JSONDecoder()
