"""Which folders' events are listened to, and what takes their place where there are none (SPEC 6).

The folders are exactly those that the last scan saw. Whenever they changed, they are watched again and a pass must
follow, for what happened before they were. Where events cannot be had, scans follow one another at a period that bounds
their cost, and from time to time it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from distilld.service.inotify import (
    FolderGoneError,
    Folders,
    Wake,
    WatchBrokenError,
    Watcher,
    file_system_without_events,
    folder_identity,
)

log = structlog.get_logger()

POLL_SHARE: Final = 50
"""Without file events a scan follows after so many times its own duration: it costs two hundredths of a core."""
LEAST_POLL_SECONDS: Final = 1.0
BROKEN_AGAIN_SECONDS: Final = 60.0
"""A watch that breaks twice within this time is left alone for as long."""

EVENTS_ARRIVE: Final = "events"


class Listener:
    """Listens to the folders of ``trees``, the top folders, and says when to look."""

    def __init__(
        self, trees: Sequence[str], watcher: Watcher, *, rescan_seconds: float, clock: Callable[[], float]
    ) -> None:
        self.rescan_seconds = rescan_seconds
        self._trees = tuple(trees)
        self._watcher = watcher
        self._clock = clock
        self._blind: str | None = None
        """Why there are no events, where there are none."""
        self._scan_seconds = 0.0
        self._arm_at = self._broken_at = float("-inf")
        self._began = False
        self._gone: Folders = {}
        self._tops: tuple[tuple[int, int] | None, ...] | None = None

    @property
    def watching(self) -> str:
        """'events', or why there are none."""
        return self._blind or EVENTS_ARRIVE

    @property
    def folders(self) -> int:
        """How many folders are listened to."""
        return len(self._watcher.armed)

    @property
    def period_seconds(self) -> float:
        """How long after a scan the next one is due although nothing was heard."""
        if self._blind is None:
            return self.rescan_seconds
        return min(self.rescan_seconds, max(LEAST_POLL_SECONDS, POLL_SHARE * self._scan_seconds))

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; returns whether there is something to look at."""
        try:
            return self._watcher.wait(seconds) is Wake.CHANGED
        except WatchBrokenError as error:
            now = self._clock()
            if now - self._broken_at < BROKEN_AGAIN_SECONDS:
                self._fall_back(error.reason, BROKEN_AGAIN_SECONDS)
            # Else the pass that follows takes it up again.
            self._broken_at = now
            return True

    def tops_moved(self) -> bool:
        """Whether a top folder came, went or was replaced since this was asked last; no event tells of that."""
        before, self._tops = self._tops, tuple(folder_identity(path) for path in self._trees)
        return before is not None and before != self._tops

    def note_scan(self, seconds: float) -> None:
        """A pass that found nothing to do took so long."""
        self._scan_seconds = seconds

    def cover(self, folders: Folders) -> bool:
        """Listen to exactly these folders; returns whether they must be scanned once more."""
        before = self._watcher.armed
        if folders == before or self._clock() < self._arm_at:
            return False
        try:
            _refuse_silent_file_systems(folders)
            self._watcher.arm(folders)
        except FolderGoneError:
            again = folders != self._gone
            self._gone = folders
            if not again:
                self._fall_back("a folder can be listed and not watched", self.rescan_seconds)
            return again
        except WatchBrokenError as error:
            self._watcher.disarm()
            self._fall_back(error.reason, self.rescan_seconds)
            return False
        self._tell(before, folders)
        self._blind, self._gone = None, {}
        return True

    def take(self, watcher: Watcher | None, *, rescan_seconds: float) -> None:
        """Go on with other settings, and with another watcher if one is given; what was refused is tried again."""
        self.rescan_seconds = rescan_seconds
        self._arm_at = float("-inf")
        if watcher is not None:
            self._watcher.disarm()
            self._watcher = watcher

    def close(self) -> None:
        """Listen to nothing."""
        self._watcher.disarm()

    def _fall_back(self, reason: str, seconds: float) -> None:
        """Go on by scanning alone, and try to listen again after ``seconds``."""
        known, self._blind = self._blind, reason
        self._arm_at = self._clock() + seconds
        if known != reason:
            log.warning("watch_fallback", reason=reason, scan_every_seconds=round(self.period_seconds, 1))

    def _tell(self, before: Folders, folders: Folders) -> None:
        if not self._began:
            self._began = True
            log.info("watch_started", folders=len(folders))
        elif before and all(before.get(tree) == folders.get(tree) for tree in self._trees):
            # A folder more or less is everyday life.
            log.debug("watch_rearmed", folders=len(folders))
        else:
            log.info("watch_rearmed", folders=len(folders))


def _refuse_silent_file_systems(folders: Folders) -> None:
    """Raise WatchBrokenError where a folder stands on a file system that has no events for others' changes."""
    for folder in {device: folder for folder, (device, _) in folders.items()}.values():
        kind = file_system_without_events(folder)
        if kind is not None:
            raise WatchBrokenError(f"{kind} tells nothing of what other machines write")
