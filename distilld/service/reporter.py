"""A daemon's reports about itself: the store's vitals, the metrics file, systemd's status line.

No report may stop the work: one that fails is skipped, and made the next time.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

import structlog

from distilld import __version__
from distilld.config.settings import Settings
from distilld.core.model import Dataset, OperatorError
from distilld.core.remedies import remedy_of
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult, Progress
from distilld.files.regular import owned
from distilld.lake.scan import tree_path
from distilld.publish.lasting import Lasting
from distilld.publish.receipt import iso_time
from distilld.publish.receipt_files import stage_heads
from distilld.service.health_record import Vitals, read_vitals, seconds_of, write_vitals
from distilld.service.listener import EVENTS_ARRIVE
from distilld.service.lock import tell_trouble
from distilld.service.systemd import Notifier
from distilld.store.queries import Views
from distilld.store.retained import Retained

if TYPE_CHECKING:
    from distilld.service.metrics import Metrics

log = structlog.get_logger()

SCANS_NOTED_A_PERIOD: Final = 4
"""How often per rescan period the time of the last scan is written to the store."""


class Bulletin:
    """Makes the reports. It keeps the last ones, so that only changes are written to the store."""

    def __init__(
        self, settings: Settings, engine: Engine, notifier: Notifier, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._notifier = notifier
        self._clock = clock
        self._metrics: Metrics | None = None
        self._counted = 0
        """The number of the last batch that the metrics count."""
        self._lasting = Lasting()
        self._trouble = False
        self._stored = Vitals()
        with suppress(OperatorError, sqlite3.Error):
            self._stored = read_vitals(engine.store)
        self.vitals = self._stored
        """What is true now; the store has it too, if the store can be written."""
        self._started_at = iso_time(clock())
        self.take(settings)

    @property
    def overdue_seconds(self) -> float:
        """For how long a failure has kept rows in a dataset that must leave it; 0 if it keeps none."""
        since = self.vitals.overdue_since
        return max(0.0, self._clock() / 1e9 - seconds_of(since)) if since else 0.0

    def take(self, settings: Settings) -> None:
        """Use these settings from now on."""
        self._settings = settings
        if settings.metrics_file is None:
            self._metrics = None
        elif self._metrics is not None:
            self._metrics.path = settings.metrics_file
        else:
            from distilld.service.metrics import Metrics

            self._metrics = Metrics(settings.metrics_file)
            self._metrics.set("distilld_info", 1, __version__)
            self._metrics.set("distilld_start_time_seconds", seconds_of(self._started_at))
            with suppress(OperatorError, sqlite3.Error):
                newest = self._engine.receipts.last_batch()
                self._counted = newest.batch if newest is not None else 0

    # what is reported

    def started(self) -> None:
        """Report that the daemon is up."""
        self._note(replace(self.vitals, pid=os.getpid(), started_at=self._started_at, watching=None))
        self._notifier.status("started; the first pass is under way")

    def progress(self, progress: Progress) -> None:
        """Report the progress of a long pass."""
        doing = "reading" if progress.phase == "read" else "judging"
        percent = 100 * progress.done // progress.whole if progress.whole else 0
        self._notifier.status(f"{doing}, {percent} % done")

    def looked(self) -> None:
        """Report a scan of the input trees; a long pass makes many."""
        pause = self._settings.rescan_seconds / SCANS_NOTED_A_PERIOD
        vitals = self.vitals.after_scan(iso_time(self._clock()), note_every=pause)
        if vitals is not self.vitals:
            self._note(vitals)

    def passed(self, result: PassResult, *, watching: str, folders: int) -> None:
        """Report a pass that worked. ``watching``: 'events', or why not; ``folders``: how many are watched."""
        now = self._clock()
        self._note(
            replace(
                self.vitals.after_pass(iso_time(now), result.unreadable),
                pid=os.getpid(),
                started_at=self._started_at,
                watching=watching,
            )
        )
        how = f"{folders} folders watched" if watching == EVENTS_ARRIVE else f"scanning, {watching}"
        last = f"; last batch {result.batches[-1].identity.batch_id}" if result.batches else ""
        left = result.indexed.left
        state = f"waiting to read {tree_path(*left[0])}" if left else "up to date"
        others = f" and {len(left) - 1} more" if len(left) > 1 else ""
        self._notifier.status(f"{state}{others}; {how}{last}")
        if self._metrics is not None:
            self._measure(self._metrics, result, now, folders)

    def failed(self, text: str, hint: str, *, overdue: bool) -> None:
        """Report a pass that failed. ``overdue``: rows wait to leave a dataset."""
        self._note(self.vitals.after_failure(iso_time(self._clock()), text, hint, overdue=overdue))
        if self.vitals.failure is not None:
            self._notifier.status(f"failing since {self.vitals.failure.since}: {text}")
        if self._metrics is not None:
            self._metrics.add("distilld_failures_total", 1)
            self._metrics.set("distilld_failing", 1)
            self._metrics.set("distilld_overdue_withdrawal_seconds", self.overdue_seconds)
            with suppress(OperatorError, sqlite3.Error):
                # A pass that fails has no result; what it committed is in the store.
                new = takewhile(lambda each: each.batch.batch > self._counted, Views(self._engine.store).receipts(None))
                for receipt in reversed(list(new)):
                    if facts := receipt.facts():
                        self._count(self._metrics, facts)
                self._ask_store(self._metrics)
            self._write(self._metrics)

    # the store and the lock file

    def _note(self, vitals: Vitals) -> None:
        """Write the vitals to the store; if that fails, write the failure to the lock file."""
        self.vitals, trouble, remedy = vitals, None, ""
        try:
            # Do not wait for a store that another program keeps locked.
            with self._engine.store.patience(0):
                write_vitals(self._engine.store, vitals, self._stored)
            self._stored = vitals
        except (OperatorError, sqlite3.Error) as error:
            trouble, remedy = str(error), getattr(error, "hint", "")
            if vitals.failure is not None:
                trouble, remedy = vitals.failure.text, vitals.failure.hint
        if trouble is not None or self._trouble:
            tell_trouble(self._settings.root, trouble, remedy)
            self._trouble = trouble is not None

    # metrics

    def _measure(self, metrics: Metrics, result: PassResult, now: int, folders: int) -> None:
        metrics.add("distilld_passes_total", 1)
        metrics.set("distilld_failing", 0)
        metrics.set("distilld_last_scan_time_seconds", now / 1e9)
        metrics.set("distilld_watched_folders", folders)
        metrics.set("distilld_unsettled_files", len(result.indexed.unsettled))
        metrics.set("distilld_unreadable_inputs", len(result.unreadable))
        for batch in result.batches:
            self._count(metrics, batch.receipt)
        # What changed nothing is in no receipt.
        metrics.add("distilld_rows_indexed_total", result.untold.rows_indexed)
        metrics.add("distilld_rows_judged_total", result.judged_alike)
        metrics.add("distilld_read_bytes_total", result.untold.bytes_read + result.read_alike)
        metrics.set("distilld_lag_seconds", result.lag_seconds)
        if result.scan is not None:
            files = [file.kind.value for file in result.scan.files]
            for kind in ("scored", "evidence"):
                metrics.set("distilld_partition_files", files.count(kind), kind)
        metrics.set("distilld_overdue_withdrawal_seconds", self.overdue_seconds)
        with suppress(OperatorError, sqlite3.Error):
            self._ask_store(metrics)
        self._write(metrics)

    def _count(self, metrics: Metrics, receipt: dict[str, Any]) -> None:
        self._counted = receipt["sequence"]
        metrics.add("distilld_batches_total", 1)
        metrics.add("distilld_rows_indexed_total", receipt["work"]["rows_indexed"])
        metrics.add("distilld_rows_judged_total", receipt["work"]["rows_judged"])
        metrics.add("distilld_read_bytes_total", receipt["work"]["bytes_read"])
        for dataset, counts in receipt["record_counts"]["per_exporter"].items():
            metrics.add("distilld_rows_appended_total", counts["appended"], dataset)
            metrics.add("distilld_rows_withdrawn_total", counts["withdrawn"], dataset)
        metrics.set("distilld_last_batch_time_seconds", seconds_of(receipt["ended_at"]))
        metrics.set("distilld_last_batch_duration_seconds", receipt["duration_ms"] / 1000)

    def _ask_store(self, metrics: Metrics) -> None:
        engine, totals = self._engine, self._engine.ledger.totals()
        metrics.replace("distilld_rows", [((each.value,), totals.exported(each)) for each in Dataset])
        retained = Retained(self._engine.store)
        standing = retained.by_dataset(totals)
        metrics.replace("distilld_retained_rows", [((name,), rows) for name, rows in standing.items()])
        quarantined = Views(self._engine.store).quarantine()
        metrics.replace(
            "distilld_quarantined_rows", [((each.dataset.value, each.reason.value), each.rows) for each in quarantined]
        )
        kept = retained.kept_by_tripwire()
        metrics.replace("distilld_tripwire_rows", [((each.value,), kept.get(each.value, 0)) for each in Dataset])
        heads = {"distill": engine.receipts.last_receipt_sha256() or "", **stage_heads(self._engine.root)}
        metrics.replace("distilld_chain_head", [(head, 1) for head in heads.items() if head[1]])
        metrics.set("distilld_exports_tampered", len(engine.export_records.recent_tamperings(self._clock())))
        metrics.set("distilld_waiting_rows", self._engine.work.waiting().rows)
        trees = Views(self._engine.store).trees()
        metrics.replace("distilld_malformed_lines", [((each.kind.value,), each.malformed_lines) for each in trees])
        metrics.set("distilld_pending_tails", len(engine.receipts.pending_tails()))

    def _write(self, metrics: Metrics) -> None:
        size = 0
        for suffix in ("", "-wal"):
            with suppress(OSError):
                size += os.stat(f"{self._settings.state}{suffix}").st_size
        metrics.set("distilld_state_bytes", size)
        path = str(metrics.path)
        try:
            metrics.write()
            self._lasting.is_news(path, None)
        except OSError as error:
            problem = f"{error.strerror or type(error).__name__}{owned(self._settings.metrics_file)}"
            if self._lasting.is_news(path, problem):
                log.warning("metrics_failed", path=path, problem=problem, hint=remedy_of(error))
