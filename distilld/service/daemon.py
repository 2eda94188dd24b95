"""``distilld run``: the loop around passes (SPEC 5, 6).

File events are hints, every pass is a whole scan, and only :class:`Schedule` decides what is due. A failed
pass is logged and tried again after growing pauses; only here an ``except Exception`` keeps the daemon going.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from distilld import __version__, logs
from distilld.config.settings import Settings
from distilld.core.model import DistilldError, OperatorError, Trigger, UsageError, WriterBusy
from distilld.engine.cluster import UnfitWorker
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.lake.scan import TREES, ListingError, tree_path
from distilld.service.export_recheck import ExportRecheck
from distilld.service.failure_text import explain_failure
from distilld.service.inotify import Watcher
from distilld.service.listener import Listener
from distilld.service.recheck import Recheck
from distilld.service.reporter import Bulletin
from distilld.service.run_once import StoreMovedError, on_whole_store, recover, writer
from distilld.service.schedule import CHECKPOINT_AFTER_SECONDS, LONGEST_RETRY_SECONDS, NEVER, Schedule
from distilld.service.signals import PassEnded, Signals
from distilld.service.systemd import Notifier
from distilld.store.connection import StoreCorruptError, StoreFaultError
from distilld.store.queries import Views

log = structlog.get_logger()

_ENDINGS: Final = (StoreCorruptError, StoreMovedError, UsageError, WriterBusy)
"""What no second try mends: a corrupt store is set aside, one that was moved is opened or made by the next start, and a
lake that another writer took stays that writer's."""

SQL_STEPS_A_PULSE: Final = 500_000


def serve(
    settings: Settings,
    *,
    read_settings: Callable[[], Settings],
    notifier: Notifier,
    take_over: bool = False,
) -> None:
    """Be the lake's daemon until SIGTERM or SIGINT. ``read_settings`` is called at SIGHUP.

    Raises:
        WriterBusy: Another process is the writer.
        UsageError: The store belongs to another root, or the lake to another store.
        OperatorError: A lock or the store is not available at the start, or the store was found corrupt twice.
    """
    daemon = Daemon(settings, read_settings=read_settings, notifier=notifier)

    def once() -> None:
        with writer(daemon.settings, take_over=take_over, pulse=daemon.pulse) as engine:
            daemon.run(engine)

    with suppress(PassEnded), daemon.signals.taken():
        on_whole_store(once)


class Daemon:
    """The daemon. Its signals and settings outlast a store; all other state begins with :meth:`run`."""

    def __init__(
        self,
        settings: Settings,
        *,
        read_settings: Callable[[], Settings],
        notifier: Notifier,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._read_settings = read_settings
        self._notifier = notifier
        self._clock = clock
        self.signals = Signals()

    def run(self, engine: Engine) -> None:
        """Run passes until a signal asks to stop. Nothing is half done on return."""
        self.signals.cuttable = False
        self._engine = engine
        self._bulletin = Bulletin(self.settings, engine, self._notifier)
        engine.looked = self._bulletin.looked
        self._recheck, self._export_recheck = Recheck(engine), ExportRecheck(engine)
        self._schedule = Schedule()
        self._listener = Listener(
            [str(self.settings.root / tree) for tree in TREES.values()],
            self._new_watcher(),
            rescan_seconds=self.settings.rescan_seconds,
            clock=self._clock,
        )
        self._overdue_rows = 0
        self._settling: tuple[str, ...] = ()
        engine.store.connection.set_progress_handler(self._pulse_of_sql, SQL_STEPS_A_PULSE)
        try:
            self._start()
            with suppress(PassEnded):
                while not self.signals.stop:
                    self._step()
            log.info("daemon_stopping", cut_off=self.signals.cuttable)
        finally:
            self._end()

    def _step(self) -> None:
        """Do what is due. After any failure the next pass is the next try, and it may work."""
        try:
            if self.signals.reload:
                self._take_settings()
            elif trigger := self._due():
                self._pass(trigger)
            else:
                self._rest()
        except Exception as error:
            if self.signals.stop:
                raise PassEnded from error
            # UnfitWorker: an operator may be repairing the cluster, so the daemon goes on without a restart.
            if isinstance(error, _ENDINGS) and not isinstance(error, UnfitWorker):
                raise
            self.signals.cuttable = False
            self._failed(error)

    def _due(self) -> Trigger | None:
        moved = self._listener.tops_moved()
        return self._schedule.due(self._clock(), moved=moved, disturbed=self._engine.restorer.disturbed)

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
        self.signals.cuttable = False
        self._notifier.stopping()
        self._listener.close()
        self._recheck.close()
        connection = self._engine.store.connection
        connection.set_progress_handler(None, 0)
        self._recover_if_possible()
        log.info("daemon_stopped")
        self.signals.end_patience()
        # If another store is begun, the work before its first pass may take long.
        self.signals.cuttable = True

    def _new_watcher(self) -> Watcher:
        return Watcher(debounce_ms=self.settings.debounce_ms, stopped=lambda: self.signals.stop or self.signals.reload)

    def pulse(self) -> None:
        """Report that the work goes on; passes call this. Raise PassEnded to end them when the daemon must stop."""
        self._notifier.alive()
        self.signals.cut_off()

    def _pulse_of_sql(self) -> bool:
        """Report the same from within an SQL statement; return whether to interrupt it because the daemon must stop."""
        self._notifier.alive()
        return self.signals.interrupt()

    def _rest(self) -> None:
        """Wait for the next thing that may be due; an idle daemon does only this."""
        self._notifier.alive()
        now, schedule = self._clock(), self._schedule
        if now >= schedule.checkpoint_at:
            cut = True
            with suppress(OperatorError):
                cut = self._engine.store.checkpoint()
            # A long reader keeps the log; the log is cut soon after that reader ends, even if nothing changes.
            schedule.checkpoint_at = NEVER if cut else self._clock() + CHECKPOINT_AFTER_SECONDS
        if now >= schedule.recheck_at:
            self._look_again(now)
        schedule.hinted = self._listener.wait(schedule.wait_seconds(now)) or schedule.hinted

    def _look_again(self, now: float) -> None:
        """Hash a part of the inputs and exports that may have changed unnoticed."""
        pause = LONGEST_RETRY_SECONDS
        with suppress(StoreFaultError):
            pause, exports_pause = self._recheck.step(), self._export_recheck.step()
            if not self._recheck.is_busy:
                pause = min(pause, exports_pause)
        schedule = self._schedule
        schedule.recheck_at = now + pause
        for recheck in (self._recheck, self._export_recheck):
            schedule.hinted, recheck.found = schedule.hinted or recheck.found, False

    # passes

    def _pass(self, trigger: Trigger) -> None:
        self._schedule.begin_pass()
        self._engine.progress = self._bulletin.progress if trigger in _LONG else None
        began = self._clock()
        self.signals.cuttable = True
        if self._schedule.failures or trigger is Trigger.STARTUP:
            self._engine.store.connection.rollback()
            recover(self._engine)
        result = self._engine.run_pass(trigger)
        self._engine.restorer.note_committed()
        self._schedule.mend_at = self._clock() + self._engine.restorer.pause_left(time.time_ns())
        self.signals.cuttable = False
        self._passed(result, self._clock() - began, trigger)

    def _passed(self, result: PassResult, seconds: float, trigger: Trigger) -> None:
        if not result.changed:
            self._listener.scan_seconds = seconds
        if self._schedule.failures:
            failure = self._bulletin.vitals.failure
            log.info("failure_over", failures=self._schedule.failures, since=failure.since if failure else None)
        self._overdue_rows, now = 0, self._clock()
        self._schedule.passed(now, result, trigger, settle_seconds=self.settings.settle_seconds)
        self._tell_settling(result)
        if result.scan is not None and self._listener.cover(result.scan.folders):
            self._schedule.again_at = now
        self._schedule.rescan_at = now + self._listener.period_seconds
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
        text, hint = explain_failure(error)
        if isinstance(error, ListingError):
            log.error("scan_failed", problem=text, hint=hint)
        elif isinstance(error, OperatorError):
            log.error("batch_failed", problem=text, hint=hint)
        elif isinstance(error, OSError):
            log.error("batch_failed", problem=text, hint=hint, exc_info=error)
        else:
            log.error("batch_failed", exc_info=error)
        with suppress(sqlite3.Error):
            self._engine.store.connection.rollback()
        # Before anything that may take long: health must report the first failure at once.
        rows = self._waiting_to_leave()
        self._bulletin.failed(text, hint, overdue=rows > 0)
        # Readers should not find half a row until the next try.
        self._recover_if_possible(told=text)
        pause = self._schedule.failed(self._clock())
        if since := self._bulletin.vitals.overdue_since:
            age = round(self._bulletin.overdue_seconds)
            log.error("withdrawal_overdue", rows=rows, since=since, age_seconds=age)
        log.warning("retry_scheduled", seconds=round(pause, 1), failures=self._schedule.failures)

    def _recover_if_possible(self, *, told: str = "") -> None:
        """Complete or undo what was cut off; the next try or the next start does what fails now.

        ``told`` is the problem that was just logged; it is not logged again.
        """
        try:
            self._engine.store.connection.rollback()
            if self._engine.committer.needs_recovery():
                recover(self._engine)
        except Exception as error:  # noqa: BLE001  nothing depends on it
            problem, hint = explain_failure(error)
            if problem != told:
                log.warning("recovery_failed", problem=problem, hint=hint)

    def _waiting_to_leave(self) -> int:
        """Return how many rows of the datasets must leave them; the last known count if the store cannot be read."""
        with suppress(OperatorError, sqlite3.Error):
            self._overdue_rows = Views(self._engine.store).waiting_to_leave()
        return self._overdue_rows

    # SIGHUP

    def _take_settings(self) -> None:
        self.signals.reload, self.signals.cuttable = False, True
        self._notifier.reloading()
        log.info("reload_started")
        try:
            settings = self._read_settings()
            _refuse_to_move(self.settings, settings)
        except (DistilldError, OSError) as error:
            text, hint = explain_failure(error)
            log.error("reload_refused", faults=text.splitlines(), in_force="the settings as they were", hint=hint)
        else:
            self._reconfigure(settings)
        finally:
            self.signals.cuttable = False
            self._notifier.ready()

    def _reconfigure(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        logs.configure(level=settings.log_level, fmt=settings.log_format)
        self._engine.reconfigure(settings.options(), settings.limits())
        self._bulletin.take(settings)
        self._listener.take(debounce_ms=settings.debounce_ms, rescan_seconds=settings.rescan_seconds)
        changed = [name for name in before.__slots__ if getattr(before, name) != getattr(settings, name)]
        log.info("reload_finished", changed=changed)
        self._schedule.reload(self._clock())


_LONG: Final = (Trigger.STARTUP, Trigger.RELOAD)
"""The passes that may take long, and report their progress."""


def _refuse_to_move(before: Settings, after: Settings) -> None:
    for name in ("root", "state"):
        if getattr(before, name) != getattr(after, name):
            raise UsageError(
                f"{name} = {str(getattr(after, name))!r} cannot take the place of {str(getattr(before, name))!r}"
                " while the daemon runs",
                hint="restart it",
            )
