"""One writer brings a lake up to date and reports the result: the work of ``run --once`` and the demo."""

from __future__ import annotations

import gc
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

import structlog

from distilld.config.settings import Settings
from distilld.core.model import (
    DATASET_PATHS,
    EXPORT_PATHS,
    REPORTS,
    Cause,
    Dataset,
    OperatorError,
    Options,
    ProgramError,
    Trigger,
    WriterBusy,
)
from distilld.core.plan import FileKey
from distilld.core.remedies import remedy_of
from distilld.engine.engine import Engine
from distilld.engine.index_turns import turns_of
from distilld.engine.pass_result import PassResult, Progress
from distilld.lake.scan import TREES, tree_path
from distilld.publish.commit import CommittedBatch
from distilld.publish.receipt import iso_time
from distilld.publish.receipt_files import newest_receipt, receipt_path
from distilld.service.failure_text import explain_failure
from distilld.service.health_record import Vitals, read_vitals, write_vitals
from distilld.service.lock import WriterLock, tell_trouble, writer_lock
from distilld.service.schedule import LEAST_PAUSE_SECONDS
from distilld.store.connection import Store, StoreCorruptError, StoreOutdatedError
from distilld.store.open_writer import opened_store
from distilld.store.queries import Pairing, Views, Withdrawn
from distilld.store.receipts import Receipts

log = structlog.get_logger()

T = TypeVar("T")

NEW_OBJECTS_A_COLLECTION: Final = 20_000
"""New objects between two garbage collections. Most objects stay; the default of 700 would cost a third of a scan."""
GRACE_SECONDS: Final = 30.0
"""How much longer than ten times ``settle_seconds`` a run waits for inputs that keep changing."""


class StoreMovedError(OperatorError):
    """Another file, or none, is at the path of the open store: what is committed to the open one would be lost."""

    hint = "leave the store where it is while distilld runs; a start without it builds it again from inputs and exports"


@contextmanager
def writer(
    settings: Settings,
    *,
    take_over: bool = False,
    progress: Callable[[Progress], None] | None = None,
    pulse: Callable[[], None] = lambda: None,
) -> Iterator[Engine]:
    """Yield the engine of the lake's one writer, with the store open and both locks held.

    Raises:
        WriterBusy: Another process is the writer.
        UsageError: The store belongs to another root, or the lake to another store, or the file is no store.
        StoreCorruptError: The store was found corrupt while it was used, or is older than the exports; it is set aside,
            and the next writer begins another.
        StoreMovedError: The store was moved or removed while it was used.
        OperatorError: A lock cannot be taken, or the store cannot be used.
    """
    with writer_lock(settings.root, settings.state, take_over=take_over) as lock, _seldom_collecting():
        log.info("lock_taken", state=str(settings.state))
        with (
            # In the lock file, until the next writer begins: the store may be unusable.
            _leaving_word(partial(tell_trouble, settings.root), OperatorError, ProgramError, OSError, sqlite3.Error),
            opened_store(settings.state, settings.root, kept=lock.kept) as store,
        ):
            _refuse_outdated(store, settings.root)
            lock.bind()
            engine = Engine(
                settings.root,
                store,
                settings.options(),
                settings.limits(),
                progress=progress,
                pulse=pulse,
                keep_lock=partial(_keep, lock, store, os.stat(store.path)),
            )
            engine.looked = partial(_note_if_possible, store, lambda vitals: vitals.after_scan(_now()))
            yield engine


@contextmanager
def _leaving_word(tell: Callable[[str, str], None], *kinds: type[Exception]) -> Iterator[None]:
    """Record an error of these kinds that ends the work within it; not WriterBusy: another writer has the lake."""
    try:
        yield
    except kinds as error:
        if not isinstance(error, WriterBusy):
            tell(*explain_failure(error))
        raise


def _keep(lock: WriterLock, store: Store, opened: os.stat_result) -> None:
    """Refuse to go on without the store that was opened; lock the files again that were removed."""
    # No descriptor: to close one of the store's file would end SQLite's locks.
    try:
        moved = not os.path.samestat(opened, os.stat(store.path))
    except (FileNotFoundError, NotADirectoryError):
        moved = True
    except OSError as error:
        raise OperatorError(
            f"cannot look at the store {store.path}: {error.strerror}", hint=remedy_of(error)
        ) from error
    if moved:
        raise StoreMovedError(f"the state store {store.path} was moved or removed while it was in use")
    for path in lock.keep():
        log.warning("lock_taken_again", path=str(path))


def _refuse_outdated(store: Store, root: Path) -> None:
    """Refuse a store that was restored from before the newest batch, or that was not the lake's store at the time.

    It would undo what was done since: withdrawn rows would be exported again, and published history would be lost.

    Raises:
        StoreOutdatedError: The store does not know the newest batch that has a receipt on disk.
        ReceiptReadError: The receipts cannot be read.
    """
    newest = newest_receipt(root)
    if newest is not None and Receipts(store).lacks(newest.sequence, newest.batch_id):
        raise StoreOutdatedError(
            f"the state store {store.path} is older than the exports: it does not know batch {newest.batch_id}, whose"
            f" receipt stands in {REPORTS}"
        )


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS_A_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def on_whole_store(task: Callable[[], T]) -> T:
    """Run ``task``, which opens a :func:`writer`; run it again if the store was corrupt and was set aside."""
    try:
        return task()
    except StoreCorruptError:
        return task()


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """The rows of one dataset and its quarantine after this run, and what this run changed in them.

    ``rows`` and ``quarantined`` are totals; ``retained`` of ``rows`` are there although no present input gives them.
    ``added`` and ``withdrawn`` leave out rows that were replaced under their id: ``replaced`` counts those.
    ``adopted`` rows were in the file before its store knew the file (SPEC 3.11).
    """

    dataset: Dataset
    path: str
    rows: int
    retained: int
    quarantined: int
    by_reason: Mapping[str, int]
    added: int
    replaced: int
    withdrawn: int
    adopted: int
    causes: Mapping[Cause, int]


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run. ``not_read`` names every input that could not be read, and why.

    ``rows_judged`` and ``bytes_read`` also count work that changed nothing and is in no receipt.
    """

    rows_read: int
    datasets: Mapping[Dataset, DatasetReport]
    pairing: Pairing
    options: Options
    batch_ids: tuple[str, ...]
    rows_judged: int
    bytes_read: int
    recovered: bool
    taken_over: bool
    """Whether there were exports that the store did not know."""
    not_read: tuple[str, ...]
    no_inputs: str
    """The two trees if the last scan saw no partition file in them, else empty."""
    dropped_flags: tuple[str, ...]
    """Options that were on when the last batch was committed, and are off now."""
    withdrawn: tuple[Withdrawn, ...] = field(default=())

    @property
    def changed(self) -> bool:
        """Whether anything was committed."""
        return bool(self.batch_ids)

    @property
    def receipt(self) -> str | None:
        """The newest receipt of this run, below the root."""
        return receipt_path(self.batch_ids[-1]) if self.batch_ids else None


def bring_up_to_date(
    engine: Engine,
    trigger: Trigger = Trigger.ONCE,
    *,
    withdrawals_listed: int | None = 0,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> RunReport:
    """Recover what was cut off, then run passes until no input is still being written, or the time for that is over.

    The report lists the first ``withdrawals_listed`` rows that left or were replaced; None for all.

    Raises:
        OperatorError: A write failed, an export was tampered with, or the trees cannot be listed. What was committed
            stays, and the current batch is undone if possible.
    """
    views = Views(engine.store)
    options_before, withdrawal = views.last_options() or {}, views.last_withdrawal()
    taken_over = _takes_over(engine)
    # A killed daemon may have had this process's pid, in a container.
    _note_if_possible(engine.store, lambda vitals: replace(vitals, pid=None))
    with _leaving_word(partial(_note_failure, engine.store), Exception):
        recovered = recover(engine)
        results = list(_passes(engine, trigger, pause, clock))
    last, batches = results[-1], [batch for result in results for batch in result.batches]
    if not batches:
        log.info("up_to_date")
    _note(engine.store, lambda vitals: vitals.after_pass(_now(), last.unreadable))
    return RunReport(
        rows_read=engine.ledger.counter("scored_rows"),
        datasets=_datasets(engine, views, batches, withdrawal),
        pairing=views.pairing(),
        options=engine.options,
        batch_ids=tuple(batch.identity.batch_id for batch in batches),
        rows_judged=sum(result.rows_judged for result in results),
        bytes_read=sum(result.bytes_read for result in results),
        recovered=recovered,
        taken_over=taken_over,
        not_read=_not_read(last),
        no_inputs=_no_inputs(engine.root, last),
        dropped_flags=tuple(
            name
            for name in ("include_partial", "include_review")
            if options_before.get(name) and not getattr(engine.options, name)
        ),
        withdrawn=tuple(views.withdrawn_since(withdrawal, withdrawals_listed)),
    )


def _note_failure(store: Store, text: str, hint: str) -> None:
    """Record for ``health`` what went wrong, if the store can be written."""
    with suppress(OperatorError, sqlite3.Error):
        store.connection.rollback()
        overdue = Views(store).waiting_to_leave() > 0
        _note(store, lambda vitals: vitals.after_failure(_now(), text, hint, overdue=overdue))


def _note_if_possible(store: Store, change: Callable[[Vitals], Vitals]) -> None:
    with suppress(OperatorError, sqlite3.Error):
        _note(store, change)


def _note(store: Store, change: Callable[[Vitals], Vitals]) -> None:
    vitals = read_vitals(store)
    write_vitals(store, change(vitals), vitals)


def _now() -> str:
    return iso_time(time.time_ns())


def _takes_over(engine: Engine) -> bool:
    if engine.receipts.last_batch() is not None or engine.committer.needs_recovery():
        return False
    return any(engine.exports.stands(name) for name in EXPORT_PATHS)


def _adopted(dataset: Dataset, batches: list[CommittedBatch]) -> int:
    outputs = [output for batch in batches for output in batch.receipt["outputs"]]
    return sum(output["adopted"] for output in outputs if output["path"] == DATASET_PATHS[dataset])


def recover(engine: Engine) -> bool:
    """Complete or undo what was cut off, and log that; return whether there was anything.

    Raises:
        ListingError: A tree with known files is missing.
        OperatorError: The cause of a failure persists.
    """
    engine.refuse_missing_lake()
    if not engine.committer.needs_recovery():
        return engine.committer.recover()
    log.info("recovery_started")
    engine.committer.recover()
    log.info("recovery_finished")
    return True


def _passes(
    engine: Engine, trigger: Trigger, pause: Callable[[float], None], clock: Callable[[], float]
) -> Iterator[PassResult]:
    settle_seconds = engine.limits.settle_seconds
    until = clock() + 10 * settle_seconds + GRACE_SECONDS
    turns: dict[FileKey, int] = {}
    for passes in count(1):
        try:
            result = engine.run_pass(trigger)
        except (Exception, KeyboardInterrupt):
            # The next start would do this too, but readers should not find half a row until then.
            with suppress(Exception):
                engine.committer.recover()
            raise
        yield result
        if result.indexed.postponed and result.scan is not None:
            large = set(result.indexed.postponed).difference(turns)
            turns |= {key: turns_of(file.stat.size) for file in result.scan.files if (key := file.key) in large}
        # Large files are read in turns. Those that are rewritten again and again do not keep this run going.
        if result.indexed.postponed and passes <= sum(turns.values()):
            continue
        if not result.unfinished or clock() >= until:
            return
        log.info("settling", files=[tree_path(*key) for key in result.indexed.unsettled])
        pause(max(settle_seconds, LEAST_PAUSE_SECONDS))


def _not_read(last: PassResult) -> tuple[str, ...]:
    seen = (*last.scan.oddities, *last.scan.not_listed) if last.scan else ()
    oddities = [f"{each.path} {each.problem}" for each in seen]
    # A large file that is not read to its end changed while it had its turns.
    moving = [*(tree_path(*key) for key in last.indexed.left), *last.changed_inputs]
    return (*oddities, *last.problems, *(f"{path} is still being written" for path in dict.fromkeys(moving)))


def _no_inputs(root: Path, last: PassResult) -> str:
    if last.scan is None or last.scan.files or last.scan.unlisted:
        return ""
    return " and ".join(str(root / tree) for tree in TREES.values())


def _datasets(
    engine: Engine, views: Views, batches: list[CommittedBatch], withdrawal: int
) -> dict[Dataset, DatasetReport]:
    """Return the reports of the datasets; ``withdrawal`` is the last one before these batches."""
    totals, causes = engine.ledger.totals(), views.causes_since(withdrawal)
    datasets = {}
    for dataset in Dataset:
        left = {cause: rows for (of, cause, replaced), rows in causes.items() if of is dataset and not replaced}
        replaced = sum(rows for (of, _, again), rows in causes.items() if of is dataset and again)
        appended = sum(batch.receipt["record_counts"]["per_exporter"][dataset]["appended"] for batch in batches)
        datasets[dataset] = DatasetReport(
            dataset=dataset,
            path=DATASET_PATHS[dataset],
            rows=totals.exported(dataset),
            retained=totals.retained(dataset),
            quarantined=totals.quarantined(dataset),
            by_reason=totals.by_reason(dataset),
            added=appended - replaced,
            replaced=replaced,
            withdrawn=sum(left.values()),
            adopted=_adopted(dataset, batches),
            causes=left,
        )
    return datasets
