"""Lines on their way to an export: in memory while they are few, in an unnamed temporary file when they are many."""

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


class LineSpool:
    """Finished lines in order. The temporary file has no name, so a crash leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[bytes] = []
        self._held = 0
        self._file: IO[bytes] | None = None
        self.rows = 0
        self.bytes = 0

    def add(self, line: bytes) -> None:
        """Take one line, line feed included.

        Raises:
            SpoolError: The system refused.
        """
        self._lines.append(line)
        self._held += len(line)
        self.rows += 1
        self.bytes += len(line)
        if self._held > MEMORY_BYTES:
            self._spill()

    def _spill(self) -> None:
        block = b"".join(self._lines)
        with self._faults():
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  closed by close()
            view = memoryview(block)
            while view:
                view = view[self._file.write(view) :]
        self._lines, self._held = [], 0

    def blocks(self) -> Iterator[bytes]:
        """Everything in order, in blocks of some size.

        Raises:
            SpoolError: The system refused.
        """
        if self._file is not None:
            with self._faults():
                self._file.seek(0)
                while block := self._file.read(_BLOCK):
                    yield block
                self._file.seek(0, 2)
        if self._lines:
            yield b"".join(self._lines)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SpoolError(self._folder, error) from error

    def close(self) -> None:
        """Give the temporary file back."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lines = []


class SpooledParts:
    """Finished lines that stand, in parts, in files that somebody else holds open; single lines between them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: list[tuple[int, int, int] | bytes] = []
        self.rows = 0
        self.bytes = 0

    def add(self, line: bytes) -> None:
        """Take one line, line feed included."""
        self._parts.append(line)
        self.rows += 1
        self.bytes += len(line)

    def add_part(self, descriptor: int, offset: int, length: int, rows: int) -> None:
        """Take ``rows`` lines that stand at ``offset`` behind ``descriptor``; they are read when they are asked for."""
        self._parts.append((descriptor, offset, length))
        self.rows += rows
        self.bytes += length

    def blocks(self) -> Iterator[bytes]:
        """Everything in order, in blocks of some size.

        Raises:
            SpoolError: The system refused, or a part is not there.
        """
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            descriptor, offset, length = part
            while length:
                block = self._read(descriptor, min(length, _BLOCK), offset)
                offset, length = offset + len(block), length - len(block)
                yield block

    def _read(self, descriptor: int, length: int, offset: int) -> bytes:
        try:
            block = os.pread(descriptor, length, offset)
            if not block:
                raise OSError(errno.EIO, "lines of the batch are missing")
        except OSError as error:
            raise SpoolError(self._folder, error) from error
        return block

    def close(self) -> None:
        """Forget the parts; whoever opened their files closes them."""
        self._parts = []
