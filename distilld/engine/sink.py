"""Hand over finished lines, until their batch is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from distilld.core.model import Marks
from distilld.engine.spans import FailedRow, JudgedRow, Part

FLUSH_BYTES: Final = 1 << 20
"""Bytes of gathered lines from which they are handed over."""

RAG_EXPORTED: Final = 0
RAG_QUARANTINED: Final = 1
SFT_EXPORTED: Final = 2
SFT_QUARANTINED: Final = 3


class Sink:
    """Hands over finished lines: in a file that the other side has open too, or with the answer.

    ``write`` appends to this file, and returns where the bytes begin.
    """

    def __init__(self, write: Callable[[bytes], int] | None) -> None:
        self._write = write
        self._gathered = 0
        self._lines: tuple[list[bytes], ...] = ([], [], [], [])
        self._digests: tuple[list[bytes], ...] = ([], [], [], [])
        self._items: list[Part | JudgedRow | FailedRow] = []

    def add(self, stream: int, line: bytes, digest: bytes) -> None:
        """Add a line to a stream; hand over the lines so far if they are many."""
        self._lines[stream].append(line)
        self._digests[stream].append(digest)
        self._gathered += len(line)
        if self._gathered > FLUSH_BYTES:
            self._flush()

    def put(self, item: JudgedRow | FailedRow) -> None:
        """Hand over a row after the lines so far."""
        self._flush()
        self._items.append(item)

    def end(self) -> list[Part | JudgedRow | FailedRow]:
        """Return what was handed over since the last call."""
        self._flush()
        items, self._items = self._items, []
        return items

    def _flush(self) -> None:
        self._gathered = 0
        for stream, (lines, digests) in enumerate(zip(self._lines, self._digests, strict=True)):
            if not lines:
                continue
            marks = Marks.of(lines, digests)
            block = b"".join(lines)
            lines.clear()
            digests.clear()
            if self._write is None:
                self._items.append(Part(stream, 0, block, marks))
            else:
                self._items.append(Part(stream, self._write(block), len(block), marks))
