"""When the daemon does what, and what is due now: ``due`` is the one place that checks the causes of a pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from distilld.core.model import Trigger

if TYPE_CHECKING:
    # Those who only look need a pause's length, and not the engine.
    from distilld.engine.pass_result import PassResult

TICK_SECONDS: Final = 1.0
"""The longest wait, and so the delay until a replaced folder, a changed export, or a signal without a file event is
noticed."""
LEAST_WAIT_SECONDS: Final = 0.001
FIRST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 60.0
LEAST_PAUSE_SECONDS: Final = 0.1
CHECKPOINT_AFTER_SECONDS: Final = 5.0
NEVER: Final = float("inf")


class Schedule:
    """Holds the times at which work is due. The caller has the clock and passes ``now``."""

    def __init__(self) -> None:
        self.failures = 0
        """How many passes failed since the last one that worked."""
        self.hinted = False
        """Whether there is a hint that something changed."""
        self.again_at = self.rescan_at = self.recheck_at = self.checkpoint_at = NEVER
        self.mend_at = 0.0
        """The earliest time to look for a changed export."""
        self._next: Trigger | None = Trigger.STARTUP
        self._retry_at = NEVER

    def due(self, now: float, *, moved: bool, disturbed: Callable[[], bool]) -> Trigger | None:
        """Return why a pass is due, if any. ``moved``: a top folder changed; ``disturbed``: an export looks changed."""
        if self.failures:
            return Trigger.RECOVERY if now >= self._retry_at or moved else None
        if self._next is not None:
            return self._next
        if self.hinted or now >= self.again_at or (now >= self.mend_at and disturbed()):
            return Trigger.WATCH
        return Trigger.RESCAN if moved or now >= self.rescan_at else None

    def wait_seconds(self, now: float) -> float:
        """Return how long nothing is due, one tick at most."""
        # After a failure no pass but the retry is due, as in ``due``.
        passes = [self._retry_at] if self.failures else [self.rescan_at, self.again_at]
        times: list[float] = [self.recheck_at, self.checkpoint_at, *passes]
        return max(min(TICK_SECONDS, *(each - now for each in times)), LEAST_WAIT_SECONDS)

    def begin_pass(self) -> None:
        """Forget the hints so far: the pass that begins answers them."""
        self.hinted, self.again_at = False, NEVER

    def passed(self, now: float, result: PassResult, trigger: Trigger, *, settle_seconds: float) -> None:
        """Schedule what follows a pass that worked."""
        self._next, self.failures, self._retry_at = None, 0, NEVER
        if result.changed:
            self.checkpoint_at = now + CHECKPOINT_AFTER_SECONDS
        if result.indexed.bytes_read or trigger not in (Trigger.WATCH, Trigger.RECOVERY):
            self.recheck_at = now
        if result.unfinished:
            pause = 0.0 if result.indexed.postponed else max(settle_seconds, LEAST_PAUSE_SECONDS)
            self.again_at = now + pause

    def failed(self, now: float) -> float:
        """Schedule the next try after a failed pass; return the seconds until then, which grow with the failures."""
        self.failures += 1
        pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self.failures - 1, 16))
        pause *= random.uniform(0.5, 1.0)
        self._retry_at = now + pause
        # The recheck itself may be what fails: then the pass that follows works, and its pause does not grow.
        self.recheck_at = now + LONGEST_RETRY_SECONDS
        self.checkpoint_at = now + CHECKPOINT_AFTER_SECONDS
        return pause

    def reload(self, now: float) -> None:
        """Schedule a pass at once, by new settings. An operator can also use this to try again after a failure."""
        self._next, self._retry_at = Trigger.RELOAD, now
