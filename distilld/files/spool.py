"""Lines on their way to an export: in memory while they are few, else in files without a name.

A file without a name leaves nothing behind after a crash. Whoever judges rows in another process writes their lines
into such a file of this process (:func:`unnamed_file`), and only says where they stand.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from distilld.core.model import OperatorError
from distilld.core.remedies import remedy_of

MEMORY_BYTES: Final = 1 << 19
_BLOCK: Final = 1 << 17


class SpoolError(OperatorError):
    """The lines of a batch could not be kept until they are written: a full disk, no descriptor left, EIO."""

    def __init__(self, folder: Path, cause: OSError) -> None:
        super().__init__(
            f"cannot keep a temporary file in {folder}: {cause.strerror or cause}",
            hint=f"{remedy_of(cause)}; the next run goes on",
        )
        self.errno = cause.errno


@contextmanager
def spool_faults(folder: Path) -> Iterator[None]:
    """Within it, what the system refuses is raised as SpoolError."""
    try:
        yield
    except OSError as error:
        raise SpoolError(folder, error) from error


def unnamed_file(folder: Path) -> IO[bytes]:
    """Open a file without a name for writing and reading.

    Raises:
        SpoolError: The system refused.
    """
    with spool_faults(folder):
        return tempfile.TemporaryFile(dir=folder, buffering=0)


class LineSpool:
    """Finished lines in order: single ones, and parts that stand in files which somebody else holds open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[bytes] = []
        self._held = 0
        self._parts: list[tuple[int, int, int]] = []
        """Descriptor, offset, length of what was added before ``_lines``."""
        self._file: IO[bytes] | None = None
        self._written = 0
        self.rows = 0
        self.bytes = 0

    def add(self, line: bytes) -> None:
        """Take one line, line feed included.

        Raises:
            SpoolError: The system refused.
        """
        self.add_block(line, 1)

    def add_block(self, block: bytes, rows: int) -> None:
        """Take some lines in one piece.

        Raises:
            SpoolError: The system refused.
        """
        self._lines.append(block)
        self._held += len(block)
        self.rows += rows
        self.bytes += len(block)
        if self._held > MEMORY_BYTES:
            self._spill()

    def add_part(self, descriptor: int, offset: int, length: int, rows: int) -> None:
        """Take ``rows`` lines that stand at ``offset`` behind ``descriptor``; they are read when they are asked for.

        Raises:
            SpoolError: The system refused.
        """
        if self._lines:
            self._spill()
        self._parts.append((descriptor, offset, length))
        self.rows += rows
        self.bytes += length

    def _spill(self) -> None:
        if self._file is None:
            self._file = unnamed_file(self._folder)
        block = b"".join(self._lines)
        with spool_faults(self._folder):
            view = memoryview(block)
            while view:
                view = view[self._file.write(view) :]
        self._parts.append((self._file.fileno(), self._written, len(block)))
        self._written += len(block)
        self._lines, self._held = [], 0

    def blocks(self) -> Iterator[bytes]:
        """Return everything in order, in blocks of some size.

        Raises:
            SpoolError: The system refused, or a part is not there.
        """
        for descriptor, start, length in self._parts:
            offset, end = start, start + length
            while offset < end:
                block = self._read(descriptor, min(end - offset, _BLOCK), offset)
                offset += len(block)
                yield block
        if self._lines:
            yield b"".join(self._lines)

    def _read(self, descriptor: int, length: int, offset: int) -> bytes:
        with spool_faults(self._folder):
            block = os.pread(descriptor, length, offset)
            if not block:
                raise OSError(errno.EIO, "lines of the batch are missing")
        return block

    def close(self) -> None:
        """Give the temporary file back."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lines, self._parts = [], []
