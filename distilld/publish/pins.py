"""Readers that need the files of one batch to stay as they are, and a writer that nobody can hold up.

Who has a batch pinned holds a shared lock on the exports folder. As long as somebody does, the writer puts new files in
the place of old ones and overwrites nothing, so what a reader has open stays as it was. The writer asks once and never
waits; a reader waits for as long as one batch takes to be overwritten.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

FOLDER: Final = "exports"
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def pinned(root: Path) -> Iterator[None]:
    """Within it, an export that is open stays as it is, but for what is appended to it.

    The store is to be asked, and the files are to be opened, within it. Where the folder cannot be locked, nothing is
    promised: what a reader reads is to be held against its digest in any case.
    """
    try:
        descriptor = os.open(root / FOLDER, _FLAGS)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


class Pins:
    """The writer's side."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor: int | None = None

    def keep_out(self) -> bool:
        """Let nobody pin a batch until :meth:`let_in`; False where somebody has one pinned, or no lock is to be had."""
        if self._descriptor is not None:
            return True
        try:
            descriptor = os.open(self._root / FOLDER, _FLAGS)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def let_in(self) -> None:
        """Readers may pin what is committed now."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def let_in_at_failure(self) -> Iterator[None]:
        """What fails within it overwrites nothing."""
        try:
            yield
        except BaseException:
            self.let_in()
            raise
