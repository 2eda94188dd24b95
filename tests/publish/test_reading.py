"""Exports are read in blocks that are cut anywhere, and come out as whole lines."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from distilld.publish.reading import file_lines, lines_of, whole_lines

BLOCKS = 500
BLOCK_BYTES = 100


class Counted(bytes):
    """A block that counts the bytes that are searched, and those that are copied to add it to others."""

    work: ClassVar[int] = 0

    def __radd__(self, before: bytes) -> Self:
        Counted.work += len(before) + len(self)
        return type(self)(before + bytes(self))

    def rfind(self, *wanted: Any) -> int:
        Counted.work += len(self)
        return super().rfind(*wanted)


def blocks_of_a_long_line() -> Iterator[bytes]:
    """One line in many blocks."""
    for _ in range(BLOCKS):
        yield Counted(b"x" * BLOCK_BYTES)
    yield Counted(b"\nrest")


@pytest.mark.parametrize("read", [lambda blocks: list(lines_of(blocks)), lambda blocks: list(whole_lines(blocks))])
def test_work_on_a_long_line_grows_with_its_length(read: Callable[[Iterator[bytes]], object]) -> None:
    """The story: each block was copied together with all before it, so that a row of 64 MiB took 13 seconds."""
    Counted.work = 0
    read(blocks_of_a_long_line())
    assert Counted.work < 3 * BLOCKS * BLOCK_BYTES


def test_a_line_that_is_too_long_is_cut_and_takes_no_memory(tmp_path: Path) -> None:
    """The story: one line of 300 MB in an export, and each pass ended for want of memory, whatever waited for it."""
    path = tmp_path / "export"
    path.write_bytes(b"one\n  0123456789\n0123456789 and more\n\n")
    assert list(file_lines(path, 13)) == [b"one\n", b"0123456789\n", b"0123456789 an", b"\n"]
    os.truncate(path, 1 << 24)
    tracemalloc.start()
    try:
        assert [len(line) for line in file_lines(path, 1000)] == [4, 11, 20, 1, 1000]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("width", [1, 2, 3, 7, 100])
def test_lines_do_not_depend_on_where_blocks_are_cut(width: int) -> None:
    """Line feeds included; a rest without one is no line, but is part of the bytes."""
    content = b"one\n\ntwo\n" + hashlib.sha256().hexdigest().encode() + b"\nrest"
    blocks = [content[start : start + width] for start in range(0, len(content), width)]
    assert list(lines_of(blocks)) == content.splitlines(keepends=True)[:-1]
    assert b"".join(whole_lines(iter(blocks))) == content
