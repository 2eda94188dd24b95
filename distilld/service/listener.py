"""Listens to the file events of folders, or scans periodically where there are no events (SPEC 6).

The folders are exactly those that the last scan saw. When they change, they are watched again, and a pass must follow,
because of changes before that. Without events, scans follow one another at a period that bounds their cost, and from
time to time the folders are watched again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from distilld.service.inotify import FolderGoneError, Folders, WatchBrokenError, Watcher, folder_identity

log = structlog.get_logger()

POLL_SHARE: Final = 50
"""Without file events, a scan follows after this many times its own duration: it costs 2 % of a core."""
LEAST_POLL_SECONDS: Final = 1.0
BROKEN_AGAIN_SECONDS: Final = 60.0
"""A watch that breaks twice within this time is not tried again for the same time."""

EVENTS_ARRIVE: Final = "events"


class Listener:
    """Listens to the folders of ``trees``, the top folders, and says when to scan."""

    def __init__(
        self, trees: Sequence[str], watcher: Watcher, *, rescan_seconds: float, clock: Callable[[], float]
    ) -> None:
        self.rescan_seconds = rescan_seconds
        self._trees = tuple(trees)
        self._watcher = watcher
        self._clock = clock
        self.watching = EVENTS_ARRIVE
        """'events', or why there are none."""
        self.scan_seconds = 0.0
        """How long the last pass took that found nothing to do."""
        self._arm_at = self._broken_at = float("-inf")
        self._began = False
        self._gone: Folders = {}
        self._tops: tuple[tuple[int, int] | None, ...] | None = None

    @property
    def folders(self) -> int:
        """How many folders are listened to."""
        return len(self._watcher.armed)

    @property
    def period_seconds(self) -> float:
        """How long after a scan the next one is due if no event comes."""
        if self.watching == EVENTS_ARRIVE:
            return self.rescan_seconds
        return min(self.rescan_seconds, max(LEAST_POLL_SECONDS, POLL_SHARE * self.scan_seconds))

    def wait(self, seconds: float) -> bool:
        """Wait for an event, ``seconds`` at most; return whether a scan is needed."""
        try:
            return self._watcher.wait(seconds)
        except WatchBrokenError as error:
            now = self._clock()
            if now - self._broken_at < BROKEN_AGAIN_SECONDS:
                self._fall_back(str(error), BROKEN_AGAIN_SECONDS)
            # Otherwise the pass that follows watches the folders again.
            self._broken_at = now
            return True

    def tops_moved(self) -> bool:
        """Return whether a top folder came, went or was replaced since the last call; no event reports that."""
        before, self._tops = self._tops, tuple(folder_identity(path) for path in self._trees)
        return before is not None and before != self._tops

    def cover(self, folders: Folders) -> bool:
        """Listen to exactly these folders; return whether they must be scanned again."""
        before = self._watcher.armed
        if folders == before or self._clock() < self._arm_at:
            return False
        try:
            self._watcher.arm(folders)
        except FolderGoneError:
            again = folders != self._gone
            self._gone = folders
            if not again:
                self._fall_back("a folder can be listed and not watched", self.rescan_seconds)
            return again
        except WatchBrokenError as error:
            self._fall_back(str(error), self.rescan_seconds)
            return False
        self._tell(before, folders)
        self.watching, self._gone = EVENTS_ARRIVE, {}
        return True

    def take(self, *, debounce_ms: int, rescan_seconds: float) -> None:
        """Use other settings, and try again what was refused."""
        self.rescan_seconds = rescan_seconds
        self._watcher.debounce_ms = debounce_ms
        self._arm_at = float("-inf")

    def close(self) -> None:
        """Listen to nothing."""
        self._watcher.disarm()

    def _fall_back(self, reason: str, seconds: float) -> None:
        """Rely on scans alone, and allow the next try to listen after ``seconds``."""
        known, self.watching = self.watching, reason
        self._arm_at = self._clock() + seconds
        if known != reason:
            log.warning("watch_fallback", reason=reason, scan_every_seconds=round(self.period_seconds, 1))

    def _tell(self, before: Folders, folders: Folders) -> None:
        if not self._began:
            self._began = True
            log.info("watch_started", folders=len(folders))
        elif before and all(before.get(tree) == folders.get(tree) for tree in self._trees):
            # Folders come and go all the time.
            log.debug("watch_rearmed", folders=len(folders))
        else:
            log.info("watch_rearmed", folders=len(folders))
