"""Split a span of a partition into complete lines with their offsets (SPEC 2).

The bytes that are hashed are exactly the bytes that become lines. Memory is bounded by one block and one line of
``max_line_bytes``; of a longer line only the first bytes and the digest are kept. Holes of sparse files are not read.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Final, NamedTuple

from distilld.core.json_text import ParsedLine, parse_object
from distilld.core.line_facts import TOO_LONG, Content
from distilld.core.model import InputChanged, UnreadableError
from distilld.core.unreadable_verdict import UnreadableVerdict, VerdictSearch, unreadable_verdict
from distilld.lake.content_hash import ContentHash

BLOCK_BYTES: Final = 1 << 17
HEAD_BYTES: Final = 1024
"""How many bytes of an over-long line are kept: enough for the 200 UTF-16 units in its quarantine row."""
DIGEST_BYTES: Final = 16


_sha256: Final = hashlib.sha256
_make: Final = tuple.__new__
"""The same as a NamedTuple's constructor, but faster, for code that runs for each line."""


def digest_of(raw: bytes | memoryview) -> bytes:
    """Return the digest that identifies a line: the first 16 bytes of its sha256."""
    return _sha256(raw).digest()[:DIGEST_BYTES]


class Line(NamedTuple):
    """A non-empty line without its line feed. If it is longer than allowed, ``raw`` is None and ``head`` is its start.

    ``search`` is the search for a verdict in such a line.
    """

    start: int
    length: int
    raw: bytes | None
    head: bytes
    digest: bytes
    search: VerdictSearch | None = None


class End(NamedTuple):
    """The bytes after a file's last line feed (SPEC 2), as stored; None, 0 and None if there are none.

    ``state`` is 'provisional' for a complete JSON object, which counts as a line, else 'pending'. A pending end has no
    ``digest``.
    """

    state: str | None
    length: int
    digest: bytes | None


class Rest(NamedTuple):
    """The unterminated end of a scored file that forbids runs: its digest and its verdict (SPEC 2)."""

    digest: bytes
    verdict: UnreadableVerdict


def rest_of(tail: Line | None) -> Rest | None:
    """Search the unterminated end of a scored file for a verdict, unless it counts as a line."""
    if tail is None or parse_line(tail).value is not None:
        return None
    verdict = verdict_in(tail)
    return None if verdict is None else Rest(tail.digest, verdict)


def parse_line(line: Line) -> ParsedLine:
    """Parse a line; a line whose length exceeded the limit is malformed as too long."""
    return TOO_LONG if line.raw is None else parse_object(line.raw)


def verdict_in(line: Line) -> UnreadableVerdict | None:
    """Return the verdict of a malformed line that still forbids runs, or None (SPEC 2)."""
    if line.raw is not None:
        return unreadable_verdict(line.raw)
    return line.search.found() if line.search is not None else None


def end_of(tail: Line | None) -> End:
    """Classify the unterminated end of a file: a complete object counts as a line, anything else is pending."""
    if tail is None:
        return End(None, 0, None)
    if parse_line(tail).value is None:
        return End("pending", tail.length, None)
    return End("provisional", tail.length, tail.digest)


class PartitionReader:
    """Reads one open partition once, from its start, up to the size that it had when it was opened."""

    def __init__(self, descriptor: int, size: int, max_line_bytes: int, shown: str) -> None:
        self._descriptor = descriptor
        self._size = size
        self._max = max_line_bytes
        self._shown = shown
        self._sha = ContentHash()
        self.consumed = 0
        """The offset behind the last complete line that was given out, or proven."""
        self.bytes_read = 0
        self.tail: Line | None = None
        """The bytes after the last line feed, set when :meth:`blocks` has ended; None if there are none."""
        self.end = end_of(None)
        """What they are, set when :meth:`blocks_with_end` has ended."""

    @property
    def sha256(self) -> str:
        """Return the content hash of the bytes up to ``consumed``, in hex."""
        return self._sha.digest().hex()

    def content(self, lines: int) -> Content:
        """Return what was read, which has so many lines."""
        return Content(self.consumed, self.sha256, lines, *self.end)

    def proof(self, length: int, sha256: str) -> Generator[None, None, bool]:
        """Return whether the file begins with exactly what was consumed before; yield after each block.

        Afterwards :meth:`blocks` goes on behind it; if it does not, the reader stands at the start of the file again.
        """
        if length <= self._size:
            sha = ContentHash()
            for piece in self._pieces(0, length):
                sha.update(piece)
                yield
            if sha.digest().hex() == sha256:
                self._sha, self.consumed = sha, length
                return True
        return False

    def rewind(self) -> None:
        """Go back to the start of the file, as if nothing had been read."""
        self._sha, self.consumed, self.tail = ContentHash(), 0, None

    def blocks(self) -> Iterator[list[Line]]:
        """Yield the complete non-empty lines after ``consumed``, in order, one list for each read; then set ``tail``.

        While a block is out, ``consumed`` and ``sha256`` stand behind its last line. A read within a line gives none.
        """
        start, ahead = self.consumed, self._sha.copy()
        rest: list[bytes] = []
        rest_bytes = 0
        long: _LongLine | None = None
        for piece in self._pieces(start, self._size):
            found = []
            last = 0 if isinstance(piece, int) else piece.rfind(b"\n") + 1
            if not isinstance(piece, int) and last:
                whole, piece = piece[:last], piece[last:]  # noqa: PLW2901  the rest of the piece
                ahead.update(whole)
                self._sha = ahead.copy()
                if long is not None:
                    end = whole.find(b"\n")
                    long.add(whole[:end])
                    found.append(long.line())
                    start, whole, long = start + long.length + 1, whole[end + 1 :], None
                lines = whole.split(b"\n")[:-1]
                if rest:
                    lines[0], rest, rest_bytes = b"".join((*rest, lines[0])), [], 0
                for raw in lines:
                    if raw:
                        found.append(self._line(start, raw))
                    start += len(raw) + 1
                self.consumed = start
            ahead.update(piece)
            if long is not None:
                long.add(piece)
            elif rest_bytes + (piece if isinstance(piece, int) else len(piece)) > self._max:
                long, rest, rest_bytes = _LongLine(start, b"".join(rest)), [], 0
                long.add(piece)
            elif piece:
                rest.append(bytes(piece))
                rest_bytes += len(rest[-1])
            yield found
        self.tail = long.line() if long is not None else self._line(start, b"".join(rest)) if rest else None

    def blocks_with_end(self) -> Iterator[list[Line]]:
        """Yield the same, and then the unterminated end if it counts as a line (SPEC 2)."""
        yield from self.blocks()
        self.end = end_of(self.tail)
        if self.tail is not None and self.end.digest is not None:
            yield [self.tail]

    def _line(self, start: int, raw: bytes) -> Line:
        if len(raw) > self._max:
            return _LongLine(start, raw).line()
        return _make(Line, (start, len(raw), raw, b"", _sha256(raw).digest()[:DIGEST_BYTES], None))

    def _pieces(self, start: int, end: int) -> Iterator[bytes | int]:
        for piece in _pieces(self._descriptor, start, end, self._shown):
            self.bytes_read += 0 if isinstance(piece, int) else len(piece)
            yield piece


def _pieces(descriptor: int, start: int, end: int, shown: str) -> Iterator[bytes | int]:
    """Yield the bytes from ``start`` to ``end`` in blocks; a number stands for so many NULs in a hole of the file.

    Raises:
        InputChanged: The file is shorter.
        UnreadableError: The read failed.
    """
    while start < end:
        block = _read_block(descriptor, start, min(end - start, BLOCK_BYTES), shown)
        yield block
        start += len(block)
        if block[-1] == 0 and start < end and not block.strip(b"\0"):
            hole = hole_bytes(descriptor, start, end, shown)
            if hole >= BLOCK_BYTES:
                yield hole
                start += hole


def hole_bytes(descriptor: int, start: int, end: int, shown: str) -> int:
    """Return how many bytes from ``start`` on, up to ``end``, are a hole, as far as the file system reports it."""
    try:
        data = os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            return 0
        # All the rest is a hole, or the file is shorter now.
        data = os.fstat(descriptor).st_size
        if data < end:
            raise InputChanged(shown) from error
    return min(data, end) - start


def _read_block(descriptor: int, start: int, length: int, shown: str) -> bytes:
    try:
        block = os.pread(descriptor, length, start)
    except OSError as error:
        raise UnreadableError(shown, error) from error
    if not block:
        raise InputChanged(shown)
    return block


class _LongLine:
    """A line that is too long for memory: its head, its length, its digest, and the search for a verdict in it."""

    def __init__(self, start: int, first: bytes) -> None:
        self.start = start
        self.head = b""
        self.length = 0
        self.sha = ContentHash()
        self.search = VerdictSearch()
        self.add(first)

    def add(self, part: bytes | int) -> None:
        """Add the next bytes; a number stands for so many NULs, which contain no verdict, but separate UTF-16 text."""
        self.sha.update(part)
        if isinstance(part, int):
            self.length += part
            self.search.add(bytes(min(part, 2 + part % 2)))
        else:
            self.head += part[: HEAD_BYTES - len(self.head)]
            self.length += len(part)
            self.search.add(part)

    def line(self) -> Line:
        return Line(self.start, self.length, None, self.head, self.sha.digest()[:DIGEST_BYTES], self.search)


NEIGHBOURS_BYTES: Final = 1 << 17
_GAP: Final = 1 << 10
"""The maximum gap in bytes between lines that are read in one call."""


def read_neighbours(descriptor: int, spans: Sequence[tuple[int, int]], shown: str) -> Iterator[bytes]:
    """Yield the bytes of each (start, length), in ascending order; neighbours share a read, a cut-off line is short.

    Raises:
        UnreadableError: The read failed.
    """
    at = 0
    while at < len(spans):
        start, length = spans[at]
        end, behind = start + length, at + 1
        while behind < len(spans):
            next_start, next_length = spans[behind]
            if next_start > end + _GAP or next_start + next_length - start > NEIGHBOURS_BYTES:
                break
            end, behind = max(end, next_start + next_length), behind + 1
        try:
            block = os.pread(descriptor, end - start, start)
        except OSError as error:
            raise UnreadableError(shown, error) from error
        for each_start, each_length in spans[at:behind]:
            yield block[each_start - start : each_start - start + each_length]
        at = behind


def read_head(descriptor: int, start: int, length: int, digest: bytes, shown: str) -> bytes:
    """Return the first bytes of an over-long line; all of it is read, block by block, to check its digest.

    Raises:
        InputChanged: The bytes are not those that were indexed.
        UnreadableError: The read failed.
    """
    head, sha = b"", ContentHash()
    for piece in _pieces(descriptor, start, start + length, shown):
        sha.update(piece)
        head += b"" if isinstance(piece, int) else piece[: HEAD_BYTES - len(head)]
    if sha.digest()[:DIGEST_BYTES] != digest:
        raise InputChanged(shown)
    return head
