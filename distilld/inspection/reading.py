"""The progress of an inspection, for users who wait for it."""

from __future__ import annotations

from collections.abc import Callable

from distilld.engine.pass_result import Progress

Tell = Callable[[Progress], None]
_STEP_BYTES = 1 << 20


class Reading:
    """Calls ``tell``, unless it is None, every MiB with how much of ``whole`` bytes was read."""

    def __init__(self, tell: Tell | None, whole: int) -> None:
        self._tell = tell
        self._whole = whole
        self._bytes = self._rows = 0
        self.add(0, 0)

    def add(self, read: int, rows: int = 1) -> None:
        """Count so many more bytes and rows as read."""
        before = self._bytes // _STEP_BYTES
        self._bytes += read
        self._rows += rows
        if self._tell is not None and (not read or self._bytes // _STEP_BYTES > before):
            self._tell(Progress("read", self._bytes, self._whole, 0, self._rows, self._bytes))
