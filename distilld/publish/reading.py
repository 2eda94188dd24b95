"""Opens exports for reading, compares them with their last commit, and defines the errors if they differ."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from distilld.core.model import Committed, OperatorError, StatFacts
from distilld.core.remedies import remedy_of
from distilld.files.durable import open_in_folder
from distilld.files.regular import lstat, open_regular, owned, without_space
from distilld.files.segments import BLOCK_BYTES, SegmentHash, Span, blocks_of

ROW_ID: Final = re.compile(rb'\{"schema_version":1,"id":"([a-z]+-([0-9a-f]{16}))"')
"""How each row of a dataset begins; the groups are its id and its sample key."""
LONGEST_LINE_BYTES: Final = 1 << 26
"""Up to this length, a line of a former export is read as a whole even if no longer one is known."""


class ExportTamperedError(OperatorError):
    """An export is not what its last commit left: another program edited, cut or deleted it."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path} {problem}", hint="distilld is the only writer of exports/; see docs/operations.md")
        self.path = path
        self.problem = problem


class FileRefusedError(OperatorError):
    """The system refused to read or to write a file of ours."""

    doing = "read"
    then = ""

    def __init__(self, path: str, cause: OSError) -> None:
        whose = owned(cause.filename) if self.doing == "write" else ""
        super().__init__(
            f"cannot {self.doing} {path}: {cause.strerror or cause}{whose}", hint=f"{remedy_of(cause)}{self.then}"
        )
        self.path = path
        self.errno = cause.errno

    @classmethod
    @contextmanager
    def about(cls, path: str) -> Iterator[None]:
        """Raise an OSError from the block as this error about a file."""
        try:
            yield
        except OSError as error:
            raise cls(path, error) from error


class ExportWriteError(FileRefusedError):
    """A write to an export failed: a full disk, a quota, a read-only file system, EIO."""

    doing = "write"
    then = "; the next run goes on"


class ExportReadError(FileRefusedError):
    """An export could not be read: a missing permission, no descriptor left, EIO."""

    then = "; the next run goes on"


class CommittedFile:
    """An export that is open for reading; at the end of a read it raises if the content is not the committed one."""

    def __init__(self, descriptor: int, shown: str, known: Committed, pulse: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._shown = shown
        self._known = known
        self._pulse = pulse
        self._facts = self._look()

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Return the offset and the bytes of each row, with its line feed, without the white space before it.

        Raises:
            ExportTamperedError: At the end: the bytes are not the committed ones.
            ExportReadError: The file cannot be read.
        """
        end = 0
        with ExportReadError.about(self._shown):
            for line in lines_of(committed_blocks(self._descriptor, self._known, self._shown, self._pulse)):
                row, end = without_space(line), end + len(line)
                yield end - len(row), row

    def pick(self, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """Return the bytes at each (offset, length); call it after :meth:`rows`.

        Raises:
            ExportTamperedError: At the end: the file was touched since it was opened.
            ExportReadError: The file cannot be read.
        """
        for start, length in joined(spans, BLOCK_BYTES):
            with ExportReadError.about(self._shown):
                block = os.pread(self._descriptor, length, start)
            yield block
        if self._look() != self._facts:
            raise ExportTamperedError(self._shown, "was changed while it was read")

    def _look(self) -> StatFacts:
        with ExportReadError.about(self._shown):
            return StatFacts.of(os.fstat(self._descriptor))


def joined(spans: Iterable[tuple[int, int]], most: int = sys.maxsize) -> Iterator[Span]:
    """Return the same spans, with adjacent ones joined to spans of up to ``most`` bytes."""
    start = length = 0
    for next_start, next_length in spans:
        if next_start == start + length and length + next_length <= most:
            length += next_length
            continue
        if length:
            yield Span(start, length)
        start, length = next_start, next_length
    if length:
        yield Span(start, length)


def committed_blocks(
    descriptor: int, known: Committed, shown: str, pulse: Callable[[], None] = lambda: None
) -> Iterator[bytes]:
    """Return the bytes of an open export, in blocks.

    Raises:
        ExportTamperedError: At the end: the bytes are not the committed ones.
    """
    sha = SegmentHash(known.segment_bytes)
    for block in blocks_of(descriptor, known.size):
        pulse()
        sha.update(block)
        yield block
    if sha.hexdigest() != known.sha256:
        raise ExportTamperedError(shown, "has other bytes than its last commit")


def whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Return the bytes of blocks that are cut anywhere, in blocks of whole lines; the last line may be incomplete."""
    held: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end == len(block) and not held:
            yield block
            continue
        if end:
            # A line that is in many blocks is joined once.
            whole = b"".join((*held, memoryview(block)[:end]))
            held.clear()
            yield whole
        if end < len(block):
            held.append(block[end:])
    if held:
        yield b"".join(held)


def lines_of(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Return the whole lines in such blocks, one by one, line feeds included."""
    for block in whole_lines(blocks):
        yield from split_lines(block)


def split_lines(data: bytes) -> list[bytes]:
    """Split whole lines, line feeds included."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def what_is_no_file(mode: int) -> str | None:
    """Return what is wrong at an export's path if it is no regular file, else None."""
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFLNK: "is a link", stat.S_IFDIR: "is a folder"}
    return kinds.get(stat.S_IFMT(mode), "is no regular file")


def open_live(path: Path, shown: str, known: Committed) -> int | None:
    """Open a live file, which must be regular and of its committed length; return None if there is none yet."""
    try:
        descriptor = open_in_folder(path, os.O_RDONLY)
    except FileNotFoundError:
        if known.size:
            raise ExportTamperedError(shown, "is gone") from None
        return None
    except OSError as error:
        # A socket cannot be opened at all.
        live = lstat(path)
        if live is not None and (problem := what_is_no_file(live.st_mode)):
            raise ExportTamperedError(shown, problem) from error
        raise
    try:
        status = os.fstat(descriptor)
        if problem := what_is_no_file(status.st_mode):
            raise ExportTamperedError(shown, problem)
        if status.st_size != known.size:
            raise ExportTamperedError(shown, f"has {status.st_size} bytes and should have {known.size}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def file_lines(path: Path | None, longest: int = LONGEST_LINE_BYTES) -> Iterator[bytes]:
    """Return the lines of a former export, without the white space before them; the last one may be torn.

    Of a line of more than ``longest`` bytes, which is none of ours, return its start, without a line feed.
    """
    if path is not None:
        with open_regular(path) as file:
            for line in iter(partial(file.readline, longest), b""):
                yield without_space(line)
                while line and not line.endswith(b"\n"):
                    line = file.readline(BLOCK_BYTES)  # noqa: PLW2901  the rest of it
