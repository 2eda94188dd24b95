"""File events as hints (DESIGN: the scan alone is the truth). Tells *that* something may have changed, never what.

Every folder is watched by itself, as a list of folders that a scan saw, and no folder below another by implication: so
an arming either watches all of them or fails aloud, no link is followed, and a folder is never watched later than the
events in it begin to matter. Whoever arms scans once more afterwards; what happened between the scan that found a
folder and its watch is found by that one. An overflow of the kernel's queue is harmless in the same way: the events
that were left out lie before the hint that the others give.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from watchfiles import WatchfilesRustInternalError, watch

Folders = Mapping[str, tuple[int, int]]
"""Folders by absolute path, each with its st_dev and st_ino: another folder in the same place is another one."""

MOUNTS: Final = Path("/proc/self/mountinfo")

_LONGEST_STEP_MS: Final = 50
_SHORTEST_STEP_MS: Final = 10
_STEPS_PER_DEBOUNCE: Final = 5
_BLIND_STEP_SECONDS: Final = 0.05

_WITHOUT_EVENTS: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
        "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
    }
)  # fmt: skip
"""File systems on which another machine can change a file without an event here."""


class Wake(Enum):
    """Why a wait ended."""

    CHANGED = "changed"
    TICK = "tick"


class WatchBrokenError(Exception):
    """File events cannot be had, or no longer; ``reason`` says why, in words that a log may hold."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FolderGoneError(Exception):
    """A folder of the list was no longer there; a new scan tells which are."""


class Watcher:
    """Waits for events in a list of folders, in the thread that calls it.

    ``stopped`` ends a wait within some ten milliseconds, whatever it waits for. A wait without an event ends after
    ``tick_seconds``.
    """

    def __init__(self, *, debounce_ms: int, tick_seconds: float, stopped: Callable[[], bool]) -> None:
        self._debounce_ms = max(debounce_ms, 1)
        # How long there must be no event before a hint is given; it decides over the delay, and over the idle cost.
        self._step_ms = min(max(debounce_ms // _STEPS_PER_DEBOUNCE, _SHORTEST_STEP_MS), _LONGEST_STEP_MS)
        self._tick_seconds = tick_seconds
        self._stop_event = _StopEvent(stopped)
        self._events: Generator[set[Any], None, None] | None = None
        self._armed: Folders = MappingProxyType({})

    @property
    def armed(self) -> Folders:
        """The folders that are watched."""
        return self._armed

    def arm(self, folders: Folders) -> None:
        """Watch these folders instead of the former ones; none is fine.

        Raises:
            WatchBrokenError: They cannot be watched; none is watched then.
            FolderGoneError: One of them is gone; none is watched then.
        """
        self.disarm()
        if not folders:
            return
        self._events = watch(
            *folders,
            watch_filter=None,
            debounce=self._debounce_ms,
            step=self._step_ms,
            stop_event=self._stop_event,
            rust_timeout=round(self._tick_seconds * 1000),
            yield_on_timeout=True,
            force_polling=False,  # its polling compares whole seconds
            recursive=False,
            ignore_permission_denied=False,
        )
        self._armed = MappingProxyType(dict(folders))
        # The generator takes up its watches at the first wait.
        with _refusals(self):
            pass
