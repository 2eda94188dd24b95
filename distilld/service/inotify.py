"""File events as hints *that* something may have changed, never what. Only a scan finds that out (SPEC 6).

Each folder that a scan listed is watched by itself, none through a folder above it. So arming either watches all
folders or raises an error, and no link is followed. A scan after arming misses nothing: a new folder changes its
parent, which is in the list. An overflow of the kernel's queue is harmless too: the lost events happened before the
hint that the other events give, and a whole scan follows every hint.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Final

# Not watchfiles.watch(): its first step both arms and waits, and we must scan in between.
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

Folders = Mapping[str, tuple[int, int]]
"""Folders by absolute path, with their st_dev and st_ino: these show when a folder was replaced."""

MOUNTS: Final = Path("/proc/self/mountinfo")

_SHORTEST_STEP_MS: Final = 10
_LONGEST_STEP_MS: Final = 50
_STEPS_PER_DEBOUNCE: Final = 4
_AWAKE_SECONDS: Final = 10.0
"""After so long without an event, the steps are the longest: each wakes the processor up."""
_BLIND_STEP_SECONDS: Final = 0.05

_WITHOUT_EVENTS: Final = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse", "gfs2", "glusterfs", "gpfs", "lustre", "nfs",
        "nfs4", "ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
    }
)  # fmt: skip
"""File systems on which a change by another machine causes no event on this one."""


class WatchBrokenError(Exception):
    """File events are not available, or no longer; the message says why, in words fit for a log."""


class FolderGoneError(Exception):
    """A folder of the list no longer exists; the next scan finds which folders do."""


class Watcher:
    """Waits for events in a list of folders, in the calling thread.

    After an event, a hint comes when no event followed for a quarter of ``debounce_ms`` (10 to 50 ms), and after
    ``debounce_ms`` in any case. After ten seconds without events, it is 50 ms. ``stopped`` ends a wait at once.
    """

    def __init__(self, *, debounce_ms: int, stopped: Callable[[], bool]) -> None:
        self.debounce_ms = debounce_ms
        # No threading.Event: setting one in a signal handler can deadlock.
        self._stopped = SimpleNamespace(is_set=stopped)
        self._events: RustNotify | None = None
        self.armed: Folders = MappingProxyType({})
        """The folders that are watched."""
        self._asleep_at = 0.0

    def arm(self, folders: Folders) -> None:
        """Watch these folders instead of the former ones; an empty list is allowed. Scan again afterwards.

        Raises:
            WatchBrokenError: The folders cannot be watched. None is watched then.
            FolderGoneError: One of them is gone. None is watched then.
        """
        self.disarm()
        if not folders:
            return
        _refuse_silent_file_systems(folders)
        try:
            # The arguments: no debug output, no polling (it compares whole seconds), no subfolders.
            self._events = RustNotify(list(folders), False, False, 1000, False, False)
        except FileNotFoundError as error:
            raise FolderGoneError from error
        except (OSError, WatchfilesRustInternalError) as error:
            raise WatchBrokenError(_reason(error)) from error
        self.armed = MappingProxyType(dict(folders))

    def disarm(self) -> None:
        """Watch nothing."""
        if self._events is not None:
            self._events.close()
        self._events, self.armed = None, MappingProxyType({})

    def wait(self, seconds: float) -> bool:
        """Wait for an event, ``seconds`` at most; return whether there was one.

        Raises:
            WatchBrokenError: The watch ended by itself; nothing is watched now.
        """
        if self._events is None:
            self._wait_blindly(seconds)
            return False
        step_ms = min(max(self.debounce_ms // _STEPS_PER_DEBOUNCE, _SHORTEST_STEP_MS), _LONGEST_STEP_MS)
        if time.monotonic() >= self._asleep_at:
            step_ms = _LONGEST_STEP_MS
        limit_ms = max(round(seconds * 1000), 1)
        try:
            found = self._events.watch(max(self.debounce_ms, 1), step_ms, limit_ms, self._stopped)
        except WatchfilesRustInternalError as error:
            # A file name that is not UTF-8 causes this, for example.
            self.disarm()
            raise WatchBrokenError(_reason(error)) from error
        changed = isinstance(found, set)
        if changed:
            self._asleep_at = time.monotonic() + _AWAKE_SECONDS
        return changed

    def _wait_blindly(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopped.is_set() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _BLIND_STEP_SECONDS))


def _reason(error: Exception) -> str:
    text = str(error)
    if "limit reached" in text or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return "the kernel's limit of watches is reached (fs.inotify.max_user_watches)"
    if "(os error 24)" in text or "Too many open files" in text:
        return "the kernel's limit of inotify instances, or of open files, is reached (fs.inotify.max_user_instances)"
    if isinstance(error, PermissionError):
        return "a folder may not be watched: permission denied"
    if isinstance(error, OSError):
        return f"the system refused: {error.strerror or type(error).__name__}"
    return "the watch ended by itself, as a file name that is not UTF-8 makes it"


def folder_identity(path: str) -> tuple[int, int] | None:
    """Return a folder's st_dev and st_ino as in ``Folders``; None if it cannot be examined."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _refuse_silent_file_systems(folders: Folders) -> None:
    """Raise WatchBrokenError if a folder is on a file system without events for other machines' changes."""
    for device in {device for device, _ in folders.values()}:
        kind = file_system_without_events(device)
        if kind is not None:
            raise WatchBrokenError(f"{kind} tells nothing of what other machines write")


def file_system_without_events(device: int) -> str | None:
    """Return the type of the file system on ``device`` if other machines' changes cause no event here, else None.

    ``device`` is an st_dev. If the mount table cannot be read, the result is None.
    """
    try:
        mounts = MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, file_system = line.partition(" - ")
        if mount.split(" ")[2:3] == [number]:
            kind = file_system.split(" ")[0]
            return kind if kind.partition(".")[0] in _WITHOUT_EVENTS else None
    return None
