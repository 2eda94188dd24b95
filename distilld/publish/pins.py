"""A lock that lets readers keep the files of one batch unchanged, and that never blocks the writer.

A reader pins a batch with a shared lock on the exports folder. While any reader holds it, the writer replaces files by
new ones and overwrites nothing, so the files that a reader has open do not change. The writer tries the lock once and
never waits. A reader waits at most while the writer commits and overwrites one batch.
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
    """Keep exports that are opened within the block unchanged, except that rows may be appended to them.

    Query the store and open the files within the block. If the folder cannot be locked, nothing is guaranteed, so a
    reader always compares what it reads with its digest.
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
    """The writer's side of the lock."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor: int | None = None

    def keep_out(self) -> bool:
        """Block pins until :meth:`let_in`; return False if a batch is pinned or the folder cannot be locked."""
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
        """Let readers pin a batch again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
