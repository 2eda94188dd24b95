"""Signals to the daemon: stop, or read the settings again. A timer cuts off work that takes too long to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from distilld import logs

STOP_PATIENCE_SECONDS: Final = 5.0
"""How long a pass has to reach a place where it can end, before it is cut off where it is."""
STUCK_LOG_SECONDS: Final = 1.0
"""How often to check after that whether the log is stuck: a line that waits for room is dropped."""


class PassEnded(BaseException):
    """The process must end, and the current pass with it."""


class Signals:
    """Holds what signals asked for, and whether the current work may be cut off for it."""

    def __init__(self) -> None:
        self.stop = self.reload = self._give_up = False
        self.cuttable = False
        """Whether the current work may be cut off at any point when the process must end."""

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Handle signals: SIGTERM and SIGINT stop the daemon, SIGHUP reloads it, even one blocked until then."""
        handlers = {
            signal.SIGTERM: self.on_stop,
            signal.SIGINT: self.on_stop,
            signal.SIGHUP: self._on_reload,
            signal.SIGALRM: self._on_alarm,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        # The work before the first pass may take long, too.
        self.cuttable = True
        try:
            yield
        finally:
            self.end_patience()
            for number, handler in before.items():
                signal.signal(number, handler)

    def end_patience(self) -> None:
        """Stop the timer: the work has ended."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def cut_off(self) -> None:
        """Raise PassEnded if the process must end and the calling work may be cut off."""
        if self.stop and self.cuttable:
            raise PassEnded

    def interrupt(self) -> bool:
        """Return whether to interrupt an SQL statement: the process must end and its patience is over."""
        return self._give_up and self.cuttable

    def on_stop(self, _number: int, _frame: FrameType | None) -> None:
        """Ask the daemon to stop, and start the timer that cuts the work off."""
        if not self.stop:
            self.stop = True
            signal.setitimer(signal.ITIMER_REAL, STOP_PATIENCE_SECONDS, STUCK_LOG_SECONDS)

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload = True

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        first, self._give_up = not self._give_up, True
        logs.drop_if_stuck()
        if first and self.cuttable:
            raise PassEnded
