"""A lock that lets readers keep the files of one batch unchanged, and that never blocks the writer.

A reader pins a batch with a shared lock on the exports folder. While any reader holds it, the writer replaces files by
new ones and overwrites nothing, so the files that a reader has open do not change. The writer tries the lock once and
never waits. A reader waits while the writer commits and overwrites one batch, but not for ever: whoever may list the
folder can lock it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from distilld.files.durable import closed_after

FOLDER: Final = "exports"
PATIENCE_SECONDS: Final = 30.0
"""How long a reader waits for the lock: longer than the writer needs for a batch."""
_PAUSE_SECONDS: Final = 0.01


@contextmanager
def pinned(root: Path) -> Iterator[None]:
    """Keep exports that are opened within the block unchanged, except that rows may be appended to them.

    Query the store and open the files within the block. If the folder cannot be locked in time, nothing is guaranteed,
    so a reader always compares what it reads with its digest.
    """
    with closed_after(_locked(root, fcntl.LOCK_SH, PATIENCE_SECONDS)):
        yield


class Pins:
    """The writer's side of the lock."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor: int | None = None

    def keep_out(self) -> bool:
        """Block pins until :meth:`let_in`; return False if a batch is pinned or the folder cannot be locked."""
        if self._descriptor is None:
            self._descriptor = _locked(self._root, fcntl.LOCK_EX)
        return self._descriptor is not None

    def let_in(self) -> None:
        """Let readers pin a batch again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked(root: Path, how: int, patience_seconds: float = 0.0) -> int | None:
    """Lock the folder; return the descriptor that holds the lock, or None if there is none."""
    until = time.monotonic() + patience_seconds
    with suppress(OSError):
        descriptor = os.open(root / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                    return descriptor
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise
                time.sleep(_PAUSE_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
    return None
