"""When the daemon does what, and what is due now: every cause of a pass is asked in one place, ``due``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from distilld.core.model import Trigger
from distilld.engine.pass_result import PassResult

TICK_SECONDS: Final = 0.25
"""How long a wait lasts at most: so late a replaced folder or a changed export is noticed, or a signal that comes
without a file event."""
LEAST_WAIT_SECONDS: Final = 0.001
FIRST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 60.0
LEAST_PAUSE_SECONDS: Final = 0.1
CHECKPOINT_AFTER_SECONDS: Final = 5.0
NEVER: Final = float("inf")


class Schedule:
    """The times of what may be due. Who keeps it has the clock, and says what is ``now``."""

    def __init__(self) -> None:
        self.failures = 0
        """How many passes failed since the last one that did not."""
        self.hinted = False
        """Whether there was a hint that something changed."""
        self.again_at = self.rescan_at = self.recheck_at = self.checkpoint_at = NEVER
        self.mend_at = 0.0
        """A changed export is not looked for before that."""
        self._next: Trigger | None = Trigger.STARTUP
        self._retry_at = NEVER

    def due(self, now: float, *, moved: bool, disturbed: Callable[[], bool]) -> Trigger | None:
        """What calls for a pass. ``moved``: a top folder is another one; ``disturbed``: an export looks changed."""
        if self.failures:
            return Trigger.RECOVERY if now >= self._retry_at or moved else None
        if self._next is not None:
            return self._next
        if self.hinted or now >= self.again_at or (now >= self.mend_at and disturbed()):
            return Trigger.WATCH
        return Trigger.RESCAN if moved or now >= self.rescan_at else None

    def wait_seconds(self, now: float) -> float:
        """How long nothing is due, for a tick at most."""
        times = (self.recheck_at, self._retry_at, self.rescan_at, self.checkpoint_at, self.again_at)
        return max(min(TICK_SECONDS, *(each - now for each in times)), LEAST_WAIT_SECONDS)

    def begin_pass(self) -> None:
        """What called for it so far is answered by it."""
        self.hinted, self.again_at = False, NEVER

    def passed(self, now: float, result: PassResult, trigger: Trigger, *, settle_seconds: float) -> None:
        """A pass came to its end."""
        self._next, self.failures, self._retry_at = None, 0, NEVER
        if result.changed:
            self.checkpoint_at = now + CHECKPOINT_AFTER_SECONDS
        if result.indexed.bytes_read or trigger is not Trigger.WATCH:
            self.recheck_at = now
        if result.unfinished:
            pause = 0.0 if result.indexed.postponed else max(settle_seconds, LEAST_PAUSE_SECONDS)
            self.again_at = now + pause

    def failed(self, now: float) -> float:
        """A pass failed; returns after how many seconds it is tried again, which grow with the failures."""
        self.failures += 1
        pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self.failures - 1, 16))
        pause *= random.uniform(0.5, 1.0)
        self._retry_at = now + pause
        self.checkpoint_at = now + CHECKPOINT_AFTER_SECONDS
        return pause

    def reload(self, now: float) -> None:
        """The settings are others: judge by them now. This is also the operator's way to say: try again now."""
        self._next, self._retry_at = Trigger.RELOAD, now
