"""A partition's bytes become lines, however the reads cut them; nothing is held that need not be."""

from __future__ import annotations

import codecs
import hashlib
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilld.core.model import InputChanged, UnreadableError
from distilld.lake import lines as tail
from distilld.lake.lines import (
    BLOCK_BYTES,
    HEAD_BYTES,
    Line,
    PartitionReader,
    digest_of,
    read_head,
    read_neighbours,
    verdict_in,
)
from tests.support.builders import PROPERTY
from tests.support.copied import Copied, long_line
from tests.support.deaths import in_child

MANY = 1 << 20


@contextmanager
def reading(content: bytes, max_line_bytes: int = MANY) -> Iterator[PartitionReader]:
    """A reader of a file with this content."""
    descriptor = os.memfd_create("partition")
    try:
        os.write(descriptor, content)
        yield PartitionReader(descriptor, len(content), max_line_bytes, "data/x.jsonl")
    finally:
        os.close(descriptor)


class Seen(NamedTuple):
    """What is known of a line."""

    start: int
    length: int
    raw: bytes | None
    digest: bytes


def seen(line: Line | None) -> Seen | None:
    """A line as the reader gave it out."""
    return Seen(line.start, line.length, line.raw, line.digest) if line else None


def naive(content: bytes, max_line_bytes: int) -> tuple[list[Seen], Seen | None]:
    """The lines and the tail of a file, by splitting it."""
    found = []
    start = 0
    for raw in content.split(b"\n"):
        found.append(Seen(start, len(raw), raw if len(raw) <= max_line_bytes else None, digest_of(raw)))
        start += len(raw) + 1
    last = found.pop()
    return [line for line in found if line.length], last if last.length else None


def bytes_with_lines() -> st.SearchStrategy[bytes]:
    """Bytes in which line feeds, NUL bytes and carriage returns are frequent, and lines of many lengths."""
    piece = st.sampled_from([b"\n", b"\n\n", b"\r\n", b"a", b"\0", b"{}", b"x" * 7, b"y" * 40, "é".encode(), b"\xff"])
    return st.lists(piece, max_size=40).map(b"".join)


@PROPERTY
@given(bytes_with_lines(), st.integers(1, 60), st.integers(0, 50))
def test_lines_are_those_of_a_plain_split(content: bytes, block_bytes: int, max_line_bytes: int) -> None:
    """Whatever the size of a read and the limit of a line: each line, offset, digest and the tail as by splitting."""
    with pytest.MonkeyPatch.context() as patch, reading(content, max_line_bytes) as reader:
        patch.setattr(tail, "BLOCK_BYTES", block_bytes)
        given_out = []
        for block in reader.blocks():
            given_out += block
            assert reader.sha256 == hashlib.sha256(content[: reader.consumed]).hexdigest()
            assert reader.consumed == 0 or content[: reader.consumed].endswith(b"\n")
        lines, rest = naive(content, max_line_bytes)
        assert list(map(seen, given_out)) == lines
        assert seen(reader.tail) == rest
        assert reader.consumed == content.rfind(b"\n") + 1
        assert reader.bytes_read == len(content)


def proven(reader: PartitionReader, length: int, sha256: str) -> bool:
    """Let the reader prove a prefix to its end."""
    steps = reader.proof(length, sha256)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return bool(end.value)


@PROPERTY
@given(bytes_with_lines(), bytes_with_lines(), st.integers(1, 60), st.integers(0, 50))
def test_reading_goes_on_behind_a_proven_prefix(before: bytes, after: bytes, block: int, max_line_bytes: int) -> None:
    """A file that grew is read on from where it was consumed; what comes out is what one reading would have given."""
    consumed = before.rfind(b"\n") + 1
    digest = hashlib.sha256(before[:consumed]).hexdigest()
    with pytest.MonkeyPatch.context() as patch, reading(before + after, max_line_bytes) as reader:
        patch.setattr(tail, "BLOCK_BYTES", block)
        assert proven(reader, consumed, digest)
        found = [line for each in reader.blocks() for line in each]
        lines, rest = naive(before + after, max_line_bytes)
        assert list(map(seen, found)) == [line for line in lines if line.start >= consumed]
        assert seen(reader.tail) == rest
        assert reader.sha256 == hashlib.sha256((before + after)[: reader.consumed]).hexdigest()
        assert reader.bytes_read == len(before + after)


@pytest.mark.parametrize("block_bytes", range(1, 30))
def test_every_cut_of_two_lines(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    """A line feed may stand first, last or alone in a read."""
    monkeypatch.setattr(tail, "BLOCK_BYTES", block_bytes)
    with reading(b'{"a":1}\n\n{"b":22}\n{"c"') as reader:
        found = [(line.start, line.raw) for block in reader.blocks() for line in block]
        assert found == [(0, b'{"a":1}'), (9, b'{"b":22}')]
        assert reader.tail is not None
        assert (reader.tail.start, reader.tail.raw) == (18, b'{"c"')


@pytest.mark.parametrize(
    ("content", "lines", "rest"),
    [
        (b"", [], None),
        (b"\n", [], None),
        (b"\n\n\n", [], None),
        (b"{}", [], b"{}"),
        (b"{}\n", [b"{}"], None),
        (b"{}\r\n\r\n", [b"{}\r", b"\r"], None),
        (b"  \n\t\n", [b"  ", b"\t"], None),
        (b"{}\n\0\0\0\0", [b"{}"], b"\0\0\0\0"),
        (b"\0\n", [b"\0"], None),
        (b"a\rb\x0bc\x0cd\x85e\xe2\x80\xa8f\n", [b"a\rb\x0bc\x0cd\x85e\xe2\x80\xa8f"], None),
    ],
)
def test_only_a_line_feed_ends_a_line(content: bytes, lines: list[bytes], rest: bytes | None) -> None:
    """Empty lines are passed over, white space is a line, a carriage return belongs to its line, NULs are a tail."""
    with reading(content) as reader:
        assert [line.raw for block in reader.blocks() for line in block] == lines
        assert (reader.tail.raw if reader.tail else None) == rest


def test_a_line_of_just_the_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is the longest line that is read; one byte more is too long, in the middle and at the end."""
    for block_bytes in (1, 3, 4, 5, 100):
        monkeypatch.setattr(tail, "BLOCK_BYTES", block_bytes)
        with reading(b"abcd\nabcde\nabcd", 4) as reader:
            assert [line.raw for block in reader.blocks() for line in block] == [b"abcd", None]
            assert reader.tail is not None
            assert reader.tail.raw == b"abcd"
        with reading(b"abcde", 4) as reader:
            assert list(reader.blocks()) == [[]] * -(-5 // block_bytes)
            assert reader.tail is not None
            assert (reader.tail.raw, reader.tail.length) == (None, 5)


class TestPrefix:
    """A change is never trusted to be an append (SPEC 4)."""

    ROWS = b'{"category":"accepted"}\n{"category":"rejected"}\n'

    def digest(self, content: bytes) -> str:
        """The digest of what was consumed."""
        return hashlib.sha256(content).hexdigest()

    @pytest.mark.parametrize(
        "now",
        [
            ROWS.replace(b"accepted", b"rejected"),
            ROWS[:-1] + b" ",
            ROWS[1:] + b"\n",
            ROWS[:-1],
            b"",
            b"\0" * len(ROWS),
        ],
        ids=["same length", "last byte", "shifted", "shorter", "empty", "NUL"],
    )
    def test_other_bytes_are_no_prefix(self, now: bytes) -> None:
        """Also where length, first and last bytes are the same; the reader then stands at the start."""
        with reading(now) as reader:
            assert not proven(reader, len(self.ROWS), self.digest(self.ROWS))
            found = [line.raw for block in reader.blocks() for line in block]
            assert found == [line.raw for line in naive(now, MANY)[0]]

    def test_rewind_forgets(self) -> None:
        """After a proof the file can still be read from its start."""
        with reading(self.ROWS + b"{}\n") as reader:
            assert proven(reader, len(self.ROWS), self.digest(self.ROWS))
            assert [line.raw for block in reader.blocks() for line in block] == [b"{}"]
            reader.rewind()
            assert reader.sha256 == self.digest(b"")
            assert len([line for block in reader.blocks() for line in block]) == 3
            assert reader.sha256 == self.digest(self.ROWS + b"{}\n")

    def test_nothing_consumed_is_a_prefix_of_everything(self) -> None:
        """An empty prefix is proven without a read."""
        with reading(self.ROWS) as reader:
            assert proven(reader, 0, self.digest(b""))
            assert reader.bytes_read == 0


def test_a_file_that_shrinks_while_it_is_read_has_changed() -> None:
    """Bytes that were there at the fstat and are gone now end the reading."""
    with reading(b"{}\n") as short:
        longer = PartitionReader(short._descriptor, 100, MANY, "data/x.jsonl")
        with pytest.raises(InputChanged, match=r"data/x\.jsonl"):
            list(longer.blocks())


def test_what_is_appended_after_the_look_is_not_read() -> None:
    """The reader stops at the size that the file had: what came later is for the next pass."""
    with reading(b"{}\n{}\n") as longer:
        early = PartitionReader(longer._descriptor, 4, MANY, "data/x.jsonl")
        assert [line.raw for block in early.blocks() for line in block] == [b"{}"]
        assert early.tail is not None
        assert early.tail.raw == b"{"


def test_a_read_that_fails_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO is the operator's: both readers say which file it is.

    The story: the reader that reads rows again by their spans let the bare OSError through.
    """

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with reading(b"{}\n") as reader:
        descriptor, shown = reader._descriptor, "data/x.jsonl"
        monkeypatch.setattr(os, "pread", broken)
        reads: list[Callable[[], object]] = [
            lambda: list(reader.blocks()),
            lambda: proven(reader, 3, ""),
            lambda: list(read_neighbours(descriptor, [(0, 2)], shown)),
            lambda: read_head(descriptor, 0, 2, b"", shown),
        ]
        for read in reads:
            with pytest.raises(UnreadableError, match=r"cannot read data/x\.jsonl: Input/output error"):
                read()


def test_an_over_long_line_is_not_held_in_memory(tmp_path: Path) -> None:
    """A line of 100 MiB costs its head and a block or two; its digest and length are right, and rows around it come."""
    size = 100 << 20
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"before":1}\n')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'\n{"after":1}\n')

    def read() -> None:
        with path.open("rb") as file:
            reader = PartitionReader(file.fileno(), path.stat().st_size, 8 << 20, "x")
            tracemalloc.start()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = [line for block in reader.blocks() for line in block]
            held = tracemalloc.get_traced_memory()[1]
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            tracemalloc.stop()
        assert [(line.length, line.raw is None) for line in found] == [(12, False), (size, True), (11, False)]
        digest = hashlib.sha256()
        for _ in range(100):
            digest.update(b"x" * (1 << 20))
        assert found[1].digest == digest.digest()[:16]
        assert held < 24 << 20
        assert grown < 40 << 10  # KiB

    assert in_child(read) == 0


class TestSpans:
    """Rows read again by their byte spans."""

    CONTENT = b"".join(b'{"number":%d,"text":"%s"}\n' % (number, b"w" * (number * 37 % 400)) for number in range(300))

    @PROPERTY
    @given(st.sets(st.integers(0, 299), min_size=1, max_size=60), st.sampled_from((1, 700, tail.NEIGHBOURS_BYTES)))
    def test_any_lines_in_order(self, chosen: set[int], together: int) -> None:
        """Neighbours and lines far apart: each span gives its line."""
        lines, _ = naive(self.CONTENT, MANY)
        picked = [lines[number] for number in sorted(chosen)]
        with pytest.MonkeyPatch.context() as patch, reading(self.CONTENT) as reader:
            patch.setattr(tail, "NEIGHBOURS_BYTES", together)
            found = read_neighbours(reader._descriptor, [(line.start, line.length) for line in picked], "x")
            assert list(found) == [line.raw for line in picked]

    def test_neighbours_share_a_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lines that stand side by side are read in one go, and what stands between others is not read."""
        lines, _ = naive(self.CONTENT, MANY)
        reads: list[int] = []
        real = os.pread

        def noted(descriptor: int, length: int, offset: int) -> bytes:
            reads.append(length)
            return real(descriptor, length, offset)

        monkeypatch.setattr(os, "pread", noted)
        with reading(self.CONTENT) as reader:
            spans = [(line.start, line.length) for line in lines]
            list(read_neighbours(reader._descriptor, spans, "x"))
            assert len(reads) == 1
            reads.clear()
            list(read_neighbours(reader._descriptor, [spans[0], spans[-1]], "x"))
        assert reads == [spans[0][1], spans[-1][1]]

    @pytest.mark.parametrize("now", [CONTENT[:5], b""])
    def test_what_is_cut_off_comes_shorter(self, now: bytes) -> None:
        """Who asked sees by its digest that it is not the line."""
        line = naive(self.CONTENT, MANY)[0][0]
        with reading(now) as reader:
            assert list(read_neighbours(reader._descriptor, [(line.start, line.length)], "x")) == [now[: line.length]]

    @pytest.mark.parametrize("block_bytes", [700, BLOCK_BYTES])
    def test_the_head_of_an_over_long_line(self, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
        """Its first bytes, and no more than there are."""
        monkeypatch.setattr(tail, "BLOCK_BYTES", block_bytes)
        with reading(self.CONTENT) as reader:
            for length in (5000, 3):
                line = self.CONTENT[:length]
                assert read_head(reader._descriptor, 0, length, digest_of(line), "x") == line[:HEAD_BYTES]

    LONG = CONTENT[:5000]

    @pytest.mark.parametrize("now", [LONG[1:] + b"x", LONG[:-1] + b"x", LONG[:-1], b""])
    def test_the_head_of_another_line_is_not_given_out(self, now: bytes) -> None:
        """Shifted, cut, or edited behind its head: it is not the line that was indexed.

        The story: the head was read without proof, and where the file changed between indexing and judging, quarantine
        showed text that began no line.
        """
        with reading(now) as reader, pytest.raises(InputChanged):
            read_head(reader._descriptor, 0, len(self.LONG), digest_of(self.LONG), "x")


@pytest.mark.parametrize("hole", range(2, 8))
@pytest.mark.parametrize("before", ["", "a", "aa", "aaa", "a\ud83d", "aa\ud83d"], ids=ascii)
@pytest.mark.parametrize("cut", [0, 1])
def test_hole_changes_no_verdict_in_utf16(monkeypatch: pytest.MonkeyPatch, hole: int, before: str, cut: int) -> None:
    """What is found behind a hole is what would be found behind as many NULs."""
    first = codecs.BOM_UTF16_LE + f'{{"evidence_run_id":"{before}'.encode("utf-16-le", "surrogatepass")
    first = first[: len(first) - cut]
    then = b"\xdc" * (hole % 2) + '\udc00bär","category":"rejected"'.encode("utf-16-le", "surrogatepass")
    found = []
    for pieces in ([first, hole, then], [first + bytes(hole) + then]):
        monkeypatch.setattr(tail, "_pieces", lambda *_, pieces=pieces: iter(pieces))
        with reading(b"", 0) as reader:
            assert list(reader.blocks()) == [[] for _ in pieces]
        assert reader.tail is not None
        found.append(verdict_in(reader.tail))
    assert found[0] == found[1]


@pytest.mark.parametrize("complete", [True, False])
def test_work_of_a_long_line_grows_with_its_length(monkeypatch: pytest.MonkeyPatch, complete: bool) -> None:
    """The story: each read copied all that was read of the line before, and 128 MiB took a minute."""
    pieces = list(long_line())[: None if complete else -1]
    monkeypatch.setattr(tail, "_pieces", lambda *_: iter(pieces))
    with reading(b"", MANY) as reader:
        found = [line.raw for block in reader.blocks() for line in block]
        found += [reader.tail.raw] if reader.tail else []
    content = b"".join(pieces)
    assert found == [content.rstrip(b"\n")]
    assert Copied.total <= 2 * len(content)
