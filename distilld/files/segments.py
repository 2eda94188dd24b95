"""Digests of a file by segments of equal length, so that a change in one place costs no reading of the rest.

Anybody can compute the digest of a file: see :class:`distilld.core.model.Committed`. A line belongs to the segment in
which its line feed stands.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Self

BLOCK_BYTES: Final = 1 << 17
SHA_BYTES: Final = 32


class Segment(NamedTuple):
    """One segment of an export: its digest, the marks of the lines that end in it, in order, and its white space.

    A mark is the beginning of a line's digest; a line is looked for only in segments that have its mark.
    """

    number: int
    sha256: bytes
    marks: bytes
    spaces: int = 0


class Span(NamedTuple):
    """Some bytes of a file."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The place behind the last byte."""
        return self.start + self.length


class SegmentHash:
    """The running digest of a file."""

    def __init__(self, segment_bytes: int) -> None:
        self.segment_bytes = segment_bytes
        self.size = 0
        self._full = bytearray()
        """The digests of the segments that are full."""
        self._last = hashlib.sha256()

    @classmethod
    def of(cls, digests: bytes, size: int, last: bytes, segment_bytes: int) -> Self:
        """That of a file whose segments have these digests; ``last`` are the bytes behind the full ones."""
        made = cls(segment_bytes)
        made.size = size
        made._full += digests[: size // segment_bytes * SHA_BYTES]
        made._last.update(last)
        return made

    def update(self, block: bytes) -> None:
        """Take the next bytes of the file."""
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
        """Another content of a segment, of the same length."""
        if len(content) == self.segment_bytes:
            start = number * SHA_BYTES
            self._full[start : start + SHA_BYTES] = hashlib.sha256(content).digest()
        else:
            self._last = hashlib.sha256(content)

    def cut(self, size: int, last: bytes) -> None:
        """The file ends earlier; ``last`` are the bytes behind the segments that are full."""
        del self._full[size // self.segment_bytes * SHA_BYTES :]
        self.size = size
        self._last = hashlib.sha256(last)

    def copy(self) -> SegmentHash:
        """One that can go on by itself."""
        made = SegmentHash(self.segment_bytes)
        made.size, made._full, made._last = self.size, self._full[:], self._last.copy()
        return made

    def digests(self) -> bytes:
        """The digests of all segments, one behind the other; of an empty file, that of its empty segment."""
        ends_within = self.size % self.segment_bytes or not self.size
        return bytes(self._full) + (self._last.digest() if ends_within else b"")

    def digest_of(self, number: int) -> bytes:
        """The digest of one segment."""
        start = number * SHA_BYTES
        return bytes(self._full[start : start + SHA_BYTES]) or self._last.digest()

    def hexdigest(self) -> str:
        """The digest of the file."""
        digests = self.digests()
        return digests.hex() if len(digests) == SHA_BYTES else hashlib.sha256(digests).hexdigest()


def hash_of(descriptor: int, size: int, segment_bytes: int, pulse: Callable[[], None] = lambda: None) -> SegmentHash:
    """The digest of the first ``size`` bytes of an open file; of what there is of them, if it is shorter."""
    found = SegmentHash(segment_bytes)
    for block in blocks_of(descriptor, size):
        pulse()
        found.update(block)
    return found


def blocks_of(descriptor: int, size: int, start: int = 0) -> Iterator[bytes]:
    """The bytes of an open file from ``start`` up to ``size``, in blocks."""
    position = start
    while position < size:
        block = os.pread(descriptor, min(BLOCK_BYTES, size - position), position)
        if not block:
            return
        position += len(block)
        yield block


def read_span(descriptor: int, span: Span) -> bytes:
    """The bytes of a span of an open file; fewer, if it ends within."""
    return b"".join(blocks_of(descriptor, span.end, span.start))
