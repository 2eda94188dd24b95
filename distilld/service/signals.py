"""What signals ask of the daemon: to stop, to read its settings again; and to cut off what takes too long to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from distilld import logs

STOP_PATIENCE_SECONDS: Final = 5.0
"""How long a pass has to come to a place where it can end, before it is cut off wherever it is."""
STUCK_LOG_SECONDS: Final = 1.0
"""How often it is asked from then on whether the log takes anything: a line that waits for room is given up."""


class PassEnded(BaseException):
    """The process is to end, and the pass in hand with it."""


class Signals:
    """What was asked for, and whether what is going on may be cut off for it."""

    def __init__(self) -> None:
        self.stop = self.reload = self._give_up = False
        self.cuttable = False
        """Whether what is going on may be cut off where it is, when the process is to end."""

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within it, SIGTERM and SIGINT stop the daemon and SIGHUP reloads it; also one that waits, blocked."""
        handlers = {
            signal.SIGTERM: self.on_stop,
            signal.SIGINT: self.on_stop,
            signal.SIGHUP: self._on_reload,
            signal.SIGALRM: self._on_alarm,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        # Also what comes before the first pass may take long.
        self.cuttable = True
        try:
            yield
        finally:
            self.end_patience()
            for number, handler in before.items():
                signal.signal(number, handler)

    def end_patience(self) -> None:
        """What was to end has ended."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def cut_off(self) -> None:
        """Raise PassEnded where the process is to end and what calls this may be cut off."""
        if self.stop and self.cuttable:
            raise PassEnded

    def interrupt(self) -> bool:
        """Whether a statement in the store is to be interrupted: it took too long when the process was to end."""
        return self._give_up and self.cuttable

    def on_stop(self, _number: int, _frame: FrameType | None) -> None:
        """Ask for the end, and be patient for a while."""
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
