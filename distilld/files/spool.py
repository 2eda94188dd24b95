"""Lines to write to an export: in memory while they are few, else in unnamed files.

An unnamed file leaves nothing after a crash. Worker processes append their lines to such a file of this process
(:class:`SharedFile`), and return only their offsets.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, NamedTuple

from distilld.core.model import MarkedLines, Marks, OperatorError
from distilld.core.remedies import remedy_of
from distilld.files.segments import Span, read_span

MEMORY_BYTES: Final = 1 << 19


class SpoolError(OperatorError):
    """The lines of a batch could not be stored temporarily: a full disk, no descriptor left, EIO.

    Everything here that writes or reads lines may raise it.
    """

    def __init__(self, folder: Path, cause: OSError) -> None:
        super().__init__(
            f"cannot keep a temporary file in {folder}: {cause.strerror or cause}",
            hint=f"{remedy_of(cause)}; the next run goes on",
        )
        self.errno = cause.errno


@contextmanager
def spool_faults(folder: Path) -> Iterator[None]:
    """Raise each OSError within the context as SpoolError."""
    try:
        yield
    except OSError as error:
        raise SpoolError(folder, error) from error


def unnamed_file(folder: Path) -> IO[bytes]:
    """Open an unnamed file for writing and reading."""
    with spool_faults(folder):
        return tempfile.TemporaryFile(dir=folder, buffering=0)


class SharedFile:
    """An unnamed file that several jobs append to; it is closed once all of them have let go of it."""

    def __init__(self, folder: Path) -> None:
        self._file = unnamed_file(folder)
        self._users = 0

    @property
    def closed(self) -> bool:
        """Return whether it is closed."""
        return self._file.closed

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._file.fileno()

    def share(self) -> SharedFile:
        """Return the file to one more user, who closes it."""
        self._users += 1
        return self

    def close(self) -> None:
        """Let go of it."""
        self._users -= 1
        if self._users <= 0:
            self._file.close()


class _Part(NamedTuple):
    """Whole lines in a file; ``marks`` is None if they are not known."""

    descriptor: int
    offset: int
    length: int
    marks: Marks | None


class LineSpool:
    """Finished lines in order: single lines, and parts of files that the caller holds open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[bytes] = []
        self._held = 0
        self._parts: list[_Part] = []
        """The lines added before ``_lines``."""
        self._file: IO[bytes] | None = None
        self._written = 0
        self.rows = 0
        self.bytes = 0

    def add(self, line: bytes) -> None:
        """Add one line, line feed included."""
        self._lines.append(line)
        self._held += len(line)
        self.rows += 1
        self.bytes += len(line)
        if self._held > MEMORY_BYTES:
            self._spill()

    def add_piece(self, lines: MarkedLines) -> None:
        """Add several lines."""
        if self._lines:
            self._spill()
        self._keep(lines.content, lines.marks)
        self.rows += len(lines.marks.lengths)
        self.bytes += len(lines.content)

    def add_part(self, descriptor: int, offset: int, length: int, marks: Marks) -> None:
        """Add lines that are at ``offset`` in the file of ``descriptor``; they are read only when needed."""
        if self._lines:
            self._spill()
        self._parts.append(_Part(descriptor, offset, length, marks))
        self.rows += len(marks.lengths)
        self.bytes += length

    def _spill(self) -> None:
        self._keep(b"".join(self._lines), None)
        self._lines, self._held = [], 0

    def _keep(self, block: bytes, marks: Marks | None) -> None:
        if self._file is None:
            self._file = unnamed_file(self._folder)
        with spool_faults(self._folder):
            view = memoryview(block)
            while view:
                view = view[self._file.write(view) :]
        self._parts.append(_Part(self._file.fileno(), self._written, len(block), marks))
        self._written += len(block)

    def blocks(self) -> Iterator[bytes]:
        """Return all lines in order, in blocks of whole ones."""
        return (piece.content if isinstance(piece, MarkedLines) else piece for piece in self.pieces())

    def pieces(self) -> Iterator[bytes | MarkedLines]:
        """Return the same blocks, with marks where they are known."""
        for part in self._parts:
            content = self._read(part)
            yield content if part.marks is None else MarkedLines(content, part.marks)
        if self._lines:
            yield b"".join(self._lines)

    def _read(self, part: _Part) -> bytes:
        with spool_faults(self._folder):
            content = read_span(part.descriptor, Span(part.offset, part.length))
            if len(content) != part.length:
                raise OSError(errno.EIO, "lines of the batch are missing")
        return content

    def close(self) -> None:
        """Close the temporary file and drop all lines."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lines, self._parts = [], []
