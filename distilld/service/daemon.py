"""``distilld run``: the loop around passes (SPEC 5, 6).

File events are hints, every pass is a whole scan, and everything that may be due is asked in one place, ``_due``. What
goes wrong is told and tried again with growing pauses; the only ``except Exception`` of the program stands here.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import structlog

from distilld import __version__, logs
from distilld.config.settings import Settings
from distilld.core.model import DistilldError, OperatorError, Trigger, UsageError, WriterBusy
from distilld.engine.cluster import UnfitWorker
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.lake.scan import TREES, ListingError, tree_path
from distilld.service.inotify import Watcher
from distilld.service.listener import Listener
from distilld.service.recheck import Recheck
from distilld.service.reporter import Bulletin
from distilld.service.run_once import on_whole_store, recover, writer
from distilld.service.systemd import Notifier
from distilld.store.connection import StoreCorruptError, StoreFaultError
from distilld.store.queries import Views

log = structlog.get_logger()

TICK_SECONDS: Final = 0.25
"""How long a wait lasts at most: so late a replaced folder or a changed export is noticed, or a signal that comes
without a file event."""
FIRST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 60.0
LEAST_PAUSE_SECONDS: Final = 0.1
LEAST_WAIT_SECONDS: Final = 0.001
STOP_PATIENCE_SECONDS: Final = 5.0
"""How long a pass has to come to a place where it can end, before it is cut off wherever it is."""
STUCK_LOG_SECONDS: Final = 1.0
"""How often it is asked from then on whether the log takes anything: a line that waits for room is given up."""
CHECKPOINT_AFTER_SECONDS: Final = 5.0
SQL_STEPS_A_PULSE: Final = 500_000


class PassEnded(BaseException):
    """The process is to end, and the pass in hand with it."""


def serve(
    settings: Settings,
    *,
    read_settings: Callable[[], Settings],
    environ: Mapping[str, str],
    notifier: Notifier,
    take_over: bool = False,
) -> None:
    """Be the lake's daemon until SIGTERM or SIGINT. ``read_settings`` is asked at SIGHUP.

    Raises:
        WriterBusy: Another process is the writer.
        UsageError: The store belongs to another root, or the lake to another store.
        OperatorError: A lock or the store cannot be had at the start, or the store was found corrupt twice.
    """
    daemon = Daemon(settings, read_settings=read_settings, environ=environ, notifier=notifier)

    def once() -> None:
        with writer(daemon.settings, take_over=take_over, pulse=daemon.pulse) as engine:
            daemon.run(engine)

    with suppress(PassEnded), daemon.signals():
        on_whole_store(once)


class Daemon:
    """The daemon: what signals asked for and the settings in force outlast a store, all else begins with its run."""

    def __init__(
        self,
        settings: Settings,
        *,
        read_settings: Callable[[], Settings],
        environ: Mapping[str, str],
        notifier: Notifier,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._read_settings = read_settings
        self._environ = environ
        self._notifier = notifier
        self._clock = clock
        self._stop = self._reload = self._give_up = False
        self._cuttable = False
        """Whether what is going on may be cut off where it is, when the process is to end."""

    def run(self, engine: Engine) -> None:
        """Pass after pass, until a signal says stop. Nothing is half done when this returns."""
        self._cuttable = False
        self._engine = engine
        self._bulletin = Bulletin(self.settings, engine, self._notifier)
        self._recheck = Recheck(engine)
        self._await_everything()
        engine.store.connection.set_progress_handler(self._pulse_of_sql, SQL_STEPS_A_PULSE)
        try:
            self._start()
            with suppress(PassEnded):
                while not self._stop:
                    self._step()
            log.info("daemon_stopping", cut_off=self._cuttable)
        finally:
            self._end()

    def _await_everything(self) -> None:
        """Nothing has been looked at yet."""
        # what may be due
        self._next: Trigger | None = Trigger.STARTUP
        self._hinted = False
        self._again_at: float | None = None
        self._rescan_at = self._retry_at = self._checkpoint_at = self._recheck_at = float("inf")
        self._mend_at = 0.0
        self._listener = Listener(
            [str(self.settings.root / tree) for tree in TREES.values()],
            self._new_watcher(),
            rescan_seconds=self.settings.rescan_seconds,
            clock=self._clock,
        )
        self._failures = 0
        self._overdue_rows = 0
        self._settling: tuple[str, ...] = ()

    def _step(self) -> None:
        if self._reload:
            self._take_settings()
        elif (trigger := self._due()) is not None:
            self._pass(trigger)
        else:
            self._rest()

    def _start(self) -> None:
        log.info(
            "daemon_started",
            version=__version__,
            pid=os.getpid(),
            root=str(self.settings.root),
            state=str(self.settings.state),
            options=self._engine.options.as_json(),
        )
        self._bulletin.started()
        self._notifier.ready()

    def _end(self) -> None:
        self._cuttable = False
        self._notifier.stopping()
        self._listener.close()
        self._recheck.close()
        connection = self._engine.store.connection
        connection.set_progress_handler(None, 0)
        with suppress(DistilldError, sqlite3.Error):
            connection.rollback()
            # What cannot be undone now is undone at the next start.
            recover(self._engine)
        log.info("daemon_stopped")
        signal.setitimer(signal.ITIMER_REAL, 0)
        # Where another store is begun, what comes before its first pass may take long.
        self._cuttable = True

    def _new_watcher(self) -> Watcher:
        return Watcher(debounce_ms=self.settings.debounce_ms, stopped=lambda: self._stop or self._reload)

    # signals, and signs of life

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within it, SIGTERM and SIGINT stop the daemon and SIGHUP reloads it; also one that waits, blocked."""
        handlers = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_reload,
            signal.SIGALRM: self._on_alarm,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        # Also what comes before the first pass may take long.
        self._cuttable = True
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        if not self._stop:
            self._stop = True
            signal.setitimer(signal.ITIMER_REAL, STOP_PATIENCE_SECONDS, STUCK_LOG_SECONDS)

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._reload = True

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        first, self._give_up = not self._give_up, True
        logs.drop_if_stuck()
        if first and self._cuttable:
            raise PassEnded

    def pulse(self) -> None:
        """The work goes on; called from within passes. Ends them when the daemon is to stop."""
        self._notifier.alive()
        if self._stop and self._cuttable:
            raise PassEnded

    def _pulse_of_sql(self) -> bool:
        """The same from within a statement: one that takes too long when the daemon is to stop is interrupted."""
        self._notifier.alive()
        return self._give_up and self._cuttable

    # what is due, and waiting until something is

    def _due(self) -> Trigger | None:
        now = self._clock()
        moved = self._listener.tops_moved()
        if self._failures:
            return Trigger.RECOVERY if now >= self._retry_at or moved else None
        if self._next is not None:
            return self._next
        if self._hinted or (self._again_at is not None and now >= self._again_at):
            return Trigger.WATCH
        if now >= self._mend_at and self._engine.restorer.disturbed():
            return Trigger.WATCH
        return Trigger.RESCAN if moved or now >= self._rescan_at else None

    def _rest(self) -> None:
        """Wait for the next thing that may be due; with nothing to do this is all that happens."""
        self._notifier.alive()
        now = self._clock()
        if now >= self._checkpoint_at:
            cut = True
            with suppress(OperatorError):
                cut = self._engine.store.checkpoint()
            # A reader that lasts keeps the log; it is cut soon after that reader's end, also while nothing changes.
            self._checkpoint_at = float("inf") if cut else self._clock() + CHECKPOINT_AFTER_SECONDS
        if now >= self._recheck_at:
            self._look_again(now)
        times = (self._recheck_at, self._retry_at, self._rescan_at, self._checkpoint_at, self._again_at or float("inf"))
        seconds = max(min(TICK_SECONDS, *(each - now for each in times)), LEAST_WAIT_SECONDS)
        self._hinted = self._listener.wait(seconds) or self._hinted

    def _look_again(self, now: float) -> None:
        """Hash a little of what may have changed unnoticed."""
        pause = LONGEST_RETRY_SECONDS
        with suppress(StoreFaultError):
            pause = self._recheck.step()
        self._recheck_at = now + pause
        self._hinted, self._recheck.found = self._hinted or self._recheck.found, False

    # passes

    def _pass(self, trigger: Trigger) -> None:
        self._hinted, self._again_at = False, None
        self._engine.progress = self._bulletin.progress if trigger in _LONG else None
        began = self._clock()
        self._cuttable = True
        try:
            if self._failures or trigger is Trigger.STARTUP:
                self._engine.store.connection.rollback()
                recover(self._engine)
            result = self._engine.run_pass(trigger)
            self._engine.restorer.note_committed()
            self._mend_at = self._clock() + self._engine.restorer.pause_left(time.time_ns())
        except (StoreCorruptError, UsageError, WriterBusy) as error:
            if self._stop:
                raise PassEnded from error
            if not isinstance(error, UnfitWorker):
                # A corrupt store is set aside, and another is begun; a lake that another writer took is left to it.
                raise
            # Somebody is mending the cluster, perhaps: the daemon need not be started again then.
            self._cuttable = False
            self._failed(error)
        except Exception as error:
            # The one place: whatever it is, the next try may work.
            if self._stop:
                raise PassEnded from error
            self._cuttable = False
            self._failed(error)
        else:
            self._cuttable = False
            self._passed(result, self._clock() - began, trigger)

    def _passed(self, result: PassResult, seconds: float, trigger: Trigger) -> None:
        if not result.changed:
            self._listener.note_scan(seconds)
        if self._failures:
            log.info("failure_over", failures=self._failures, since=_since(self._bulletin))
        self._next, self._failures, self._overdue_rows, self._retry_at = None, 0, 0, float("inf")
        now = self._clock()
        if result.changed:
            self._checkpoint_at = now + CHECKPOINT_AFTER_SECONDS
        if result.indexed.bytes_read or trigger is not Trigger.WATCH:
            self._recheck_at = now
        if result.unfinished:
            self._again_at = now
            if not result.indexed.postponed:
                self._again_at += max(self.settings.settle_seconds, LEAST_PAUSE_SECONDS)
        self._tell_settling(result)
        if result.scan is not None and self._listener.cover(result.scan.folders):
            self._again_at = now
        self._rescan_at = now + self._listener.period_seconds
        if trigger in _LONG:
            log.info(
                "scan_finished", trigger=trigger.value, batches=len(result.batches), files=result.indexed.files_seen
            )
        self._bulletin.passed(result, watching=self._listener.watching, folders=self._listener.folders)

    def _tell_settling(self, result: PassResult) -> None:
        files = tuple(sorted(tree_path(*key) for key in result.indexed.unsettled))
        if files and files != self._settling:
            log.info("settling", files=files)
        self._settling = files

    def _failed(self, error: Exception) -> None:
        text, hint = str(error), getattr(error, "hint", "")
        if isinstance(error, ListingError):
            log.error("scan_failed", problem=text, hint=hint)
        elif isinstance(error, OperatorError):
            log.error("batch_failed", problem=text, hint=hint)
        else:
            # Its message may hold the value of a row.
            text, hint = f"an unexpected {type(error).__name__}", "see the log; it is tried again, and please report it"
            log.error("batch_failed", exc_info=error)
        self._failures += 1
        with suppress(sqlite3.Error):
            self._engine.store.connection.rollback()
        # Before anything that may take long: health is to say so with the first failure.
        rows = self._waiting_to_leave()
        self._bulletin.failed(text, hint, overdue=rows > 0)
        with suppress(DistilldError, sqlite3.Error):
            # Readers should not meet half a row until the next try.
            recover(self._engine)
        pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 16))
        pause *= random.uniform(0.5, 1.0)
        self._retry_at = self._clock() + pause
        self._checkpoint_at = self._clock() + CHECKPOINT_AFTER_SECONDS
        if since := self._bulletin.overdue_since:
            age = round(self._bulletin.overdue_seconds)
            log.error("withdrawal_overdue", rows=rows, since=since, age_seconds=age)
        log.warning("retry_scheduled", seconds=round(pause, 1), failures=self._failures)

    def _waiting_to_leave(self) -> int:
        """How many rows must leave a dataset and still stand there; as before where the store does not say."""
        with suppress(OperatorError, sqlite3.Error), self._engine.store.faults():
            self._overdue_rows = Views(self._engine.store).waiting_to_leave()
        return self._overdue_rows

    # SIGHUP

    def _take_settings(self) -> None:
        self._reload, self._cuttable = False, True
        self._notifier.reloading()
        log.info("reload_started")
        try:
            settings = self._read_settings()
            _refuse_to_move(self.settings, settings)
        except (DistilldError, OSError) as error:
            log.error("reload_refused", faults=str(error).splitlines(), in_force="the settings as they were")
        else:
            self._reconfigure(settings)
        self._cuttable = False
        self._notifier.ready()

    def _reconfigure(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        logs.configure(level=settings.log_level, fmt=settings.log_format, environ=self._environ)
        self._engine.reconfigure(settings.options(), **settings.limits()._asdict())
        self._bulletin.take(settings)
        new_watcher = self._new_watcher() if settings.debounce_ms != before.debounce_ms else None
        self._listener.take(new_watcher, rescan_seconds=settings.rescan_seconds)
        changed = [name for name in before.__slots__ if getattr(before, name) != getattr(settings, name)]
        log.info("reload_finished", changed=changed)
        # Also the operator's way to say: try again now.
        self._next, self._retry_at = Trigger.RELOAD, self._clock()


_LONG: Final = (Trigger.STARTUP, Trigger.RELOAD)
"""The passes that may take long, and tell of their progress."""


def _refuse_to_move(before: Settings, after: Settings) -> None:
    for name in ("root", "state"):
        if getattr(before, name) != getattr(after, name):
            raise UsageError(
                f"{name} = {str(getattr(after, name))!r} cannot take the place of {str(getattr(before, name))!r}"
                " while the daemon runs",
                hint="restart it",
            )


def _since(bulletin: Bulletin) -> str | None:
    return bulletin.failure.since if bulletin.failure else None
