"""Digests of a file by segments of equal length, so that after a change in one place the rest need not be read.

The digest of a file needs only its bytes: see :class:`distilld.core.model.Committed`. A line belongs to the segment
that contains its line feed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Self

from distilld.core.model import Committed

BLOCK_BYTES: Final = 1 << 17
SHA_BYTES: Final = 32


class Segment(NamedTuple):
    """One segment of an export: its digest, the marks of the lines that end in it in order, and its count of spaces.

    A mark is the beginning of a line's digest; a line is searched only in segments that have its mark.
    """

    number: int
    sha256: bytes
    marks: bytes
    spaces: int = 0


class Span(NamedTuple):
    """A range of bytes of a file."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """Return the offset after the last byte."""
        return self.start + self.length


class SegmentHash:
    """The running digest of a file."""

    def __init__(self, segment_bytes: int) -> None:
        self.segment_bytes = segment_bytes
        self.size = 0
        self._full = bytearray()
        """The concatenated digests of the full segments."""
        self._last = hashlib.sha256()

    @classmethod
    def of(cls, digests: bytes, size: int, last: bytes, segment_bytes: int) -> Self:
        """Make the hash of a file from the digests of its segments; ``last`` are the bytes after the full segments."""
        made = cls(segment_bytes)
        made.size = size
        made._full += digests[: size // segment_bytes * SHA_BYTES]
        made._last.update(last)
        return made

    def update(self, block: bytes) -> None:
        """Add the next bytes of the file."""
        view = memoryview(block)
        while view:
            part = view[: self.segment_bytes - self.size % self.segment_bytes]
            self._last.update(part)
            self.size += len(part)
            if self.size % self.segment_bytes == 0:
                self._full += self._last.digest()
                self._last = hashlib.sha256()
            view = view[len(part) :]

    def replace(self, number: int, content: bytes) -> None:
        """Replace the content of a segment with another of the same length."""
        if len(content) == self.segment_bytes:
            start = number * SHA_BYTES
            self._full[start : start + SHA_BYTES] = hashlib.sha256(content).digest()
        else:
            self._last = hashlib.sha256(content)

    def cut(self, size: int, last: bytes) -> None:
        """Shorten the file to ``size`` bytes; ``last`` are its bytes after the full segments."""
        del self._full[size // self.segment_bytes * SHA_BYTES :]
        self.size = size
        self._last = hashlib.sha256(last)

    def copy(self) -> SegmentHash:
        """Return an independent copy."""
        made = SegmentHash(self.segment_bytes)
        made.size, made._full, made._last = self.size, self._full[:], self._last.copy()
        return made

    def digests(self) -> bytes:
        """Return the concatenated digests of all segments; an empty file has one empty segment."""
        ends_within = self.size % self.segment_bytes or not self.size
        return bytes(self._full) + (self._last.digest() if ends_within else b"")

    def digest_of(self, number: int) -> bytes:
        """Return the digest of one segment."""
        start = number * SHA_BYTES
        return bytes(self._full[start : start + SHA_BYTES]) or self._last.digest()

    def hexdigest(self) -> str:
        """Return the digest of the file in hex."""
        digests = self.digests()
        return digests.hex() if len(digests) == SHA_BYTES else hashlib.sha256(digests).hexdigest()


def hash_of(descriptor: int, committed: Committed, pulse: Callable[[], None] = lambda: None) -> SegmentHash:
    """Hash as many bytes of an open file as are committed, or the whole file if it is shorter."""
    found = SegmentHash(committed.segment_bytes)
    for block in blocks_of(descriptor, committed.size):
        pulse()
        found.update(block)
    return found


def blocks_of(descriptor: int, size: int, start: int = 0) -> Iterator[bytes]:
    """Read the bytes of an open file from ``start`` up to offset ``size``, in blocks."""
    position = start
    while position < size:
        block = os.pread(descriptor, min(BLOCK_BYTES, size - position), position)
        if not block:
            return
        position += len(block)
        yield block


def read_span(descriptor: int, span: Span) -> bytes:
    """Read a span of an open file; return fewer bytes if the file ends within it."""
    blocks, position = list[bytes](), span.start
    while position < span.end and (block := os.pread(descriptor, span.end - position, position)):
        blocks.append(block)
        position += len(block)
    return b"".join(blocks)


def read_segment(descriptor: int, committed: Committed, number: int) -> bytes:
    """Read a segment of an open export."""
    start = number * committed.segment_bytes
    return read_span(descriptor, Span(start, min(committed.segment_bytes, committed.size - start)))
