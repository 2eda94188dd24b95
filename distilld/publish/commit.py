"""One batch made durable: intent, exports, one transaction, finish. See docs/design.md, 'The commit protocol'.

| killed or failed | what :meth:`Committer.recover` does |
|---|---|
| before the intent | nothing |
| before COMMIT | cuts appended files back, removes temporary files, drops the intents |
| after COMMIT | puts temporary files in place, what somebody else put there aside; writes receipts |

Recovery decides from the store alone, may itself be killed, and is what a running process does after any failure.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Final

import orjson
import structlog

from distilld.core.decisions import DatasetChanges, Decisions, PublishedWithdrawal, Withdrawal, id_of
from distilld.core.line_facts import VERDICTS
from distilld.core.model import EXPORT_PATHS, SET_ASIDE, Committed, Dataset, Options, ProgramError
from distilld.lake.lines import digest_of
from distilld.publish import receipt_files as receipts
from distilld.publish.exports import (
    RENAME_ORDER,
    Drop,
    Exports,
    ExportTamperedError,
    ExportWriteError,
    Written,
    drop_digests,
    drop_ids,
)
from distilld.publish.receipt import MS, BatchContext, BatchIdentity, ExportWrite, batch_id_of, iso_time, receipt_of
from distilld.publish.set_aside import copy_aside, move_aside
from distilld.store.connection import Store
from distilld.store.ledger import ExportRecord, Intent, Ledger, Totals

FIRST: Final = ".first"
"""Marks the temporary file of an export without rows: a file that has some is not to be replaced by it unseen."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """What a batch came to."""

    identity: BatchIdentity
    receipt: dict[str, Any]
    appended: dict[str, int]
    removed: dict[str, int]


class Committer:
    """Owns the order of durable writes for one lake."""

    writes: ClassVar[bool] = True
    """Whether anything below the root is written at all."""

    def __init__(
        self,
        root: Path,
        store: Store,
        exports: Exports,
        *,
        clock: Callable[[], int] = time.time_ns,
        receipts_keep: int = 0,
        keep_lock: Callable[[], None] = lambda: None,
    ) -> None:
        """``keep_lock`` is called before anything is written, and raises where this is not the lake's one writer."""
        self._root = root
        self._store = store
        self._ledger = Ledger(store)
        self._exports = exports
        self._clock = clock
        self.receipts_keep = receipts_keep
        self.keep_lock = keep_lock

    def next_identity(self, after: BatchIdentity | None = None) -> BatchIdentity:
        """The next batch: its time is now, or one millisecond after the last batch's if the clock stepped back.

        ``after`` is a batch whose time was given out and that is not committed yet: the time is behind that one's. The
        number is always that of the next batch, for the one before may come to nothing.
        """
        last = self._ledger.last_batch()
        sequence = last.batch if last is not None else 0
        now_ns = self._clock() // MS * MS
        floor = after.recorded_at if after is not None else self._store.recall("last_recorded_at")
        stamp = iso_time(now_ns)
        if floor is not None and stamp <= floor:
            before = datetime.fromisoformat(floor.replace("Z", "+00:00"))
            stamp = iso_time(round(before.timestamp() * 1000) * MS + MS)
        return BatchIdentity(sequence + 1, batch_id_of(stamp), stamp, now_ns)

    # one batch

    def commit(
        self,
        identity: BatchIdentity,
        decisions: Decisions,
        context: BatchContext,
        also: Callable[[], None] = lambda: None,
    ) -> CommittedBatch:
        """Write and commit the batch; ``also`` runs in its transaction, behind the decisions.

        What it raises leaves nothing committed. :meth:`finish` follows, or :meth:`recover` after a failure.

        Raises:
            WriterBusy: Another writer took the lake.
            ExportTamperedError: An export is not what its last commit left.
            ExportWriteError: A write failed; :meth:`recover` undoes the batch.
            ProgramError: The accounting does not hold; nothing is committed.
        """
        self.keep_lock()
        records = self._ledger.exports()
        published = [_published(each, identity, self._ledger) for each in decisions.withdrawals]
        writes = _writes_of(identity, decisions, published, records)
        intents = [
            Intent(write.name, identity.sequence, records[write.name].committed.size, write.temp) for write in writes
        ]
        for write in writes:
            if write.temp is None and self.writes:
                with self._left_as_found(write.name):
                    self._exports.check(write.name, records[write.name].committed)
        if intents:
            with self._store.transaction():
                self._ledger.intend(intents)
        written = {write.name: self._write(write, records[write.name].committed) for write in writes}
        with self._store.transaction():
            receipt = self._transact(identity, decisions, published, context, records, writes, written, also)
        return CommittedBatch(
            identity,
            receipt,
            {write.name: write.rows for write in writes},
            {name: result.dropped for name, result in written.items()},
        )

    def _write(self, write: ExportWrite, known: Committed) -> Written:
        if write.temp is None:
            with self._left_as_found(write.name):
                return self._exports.append(write.name, known, write.blocks)
        assert write.drop is not None  # noqa: S101  a rewrite always drops
        result = self._exports.rewrite(write.name, known, write.temp, write.drop, write.blocks)
        if result.dropped != write.drops:
            raise ProgramError(f"{EXPORT_PATHS[write.name]}: {result.dropped} lines left, {write.drops} should have")
        return result

    @contextmanager
    def _left_as_found(self, name: str) -> Iterator[None]:
        """Within it, an export that is to be appended to and was changed by somebody else is not cut back by recovery.

        What was put there may be needed. The next look goes by the content, whatever stat says, and sets it aside.
        """
        try:
            yield
        except ExportTamperedError:
            with self._store.transaction():
                self._ledger.drop_intent(name)
                self._ledger.set_installed(name, None)
            raise

    def _transact(
        self,
        identity: BatchIdentity,
        decisions: Decisions,
        published: list[PublishedWithdrawal],
        context: BatchContext,
        records: dict[str, ExportRecord],
        writes: list[ExportWrite],
        written: dict[str, Written],
        also: Callable[[], None],
    ) -> dict[str, Any]:
        ledger = self._ledger
        ledger.apply(decisions)
        also()
        committed: dict[str, Committed] = {}
        for write in writes:
            result, before = written[write.name], records[write.name].committed
            now = Committed(result.size, before.rows - result.dropped + write.rows, result.sha256)
            committed[write.name] = now
            ledger.set_export(write.name, now, result.facts, write.temp)
        ended_ns = max(self._clock(), identity.started_ns)
        ledger.add_batch(
            identity.sequence, identity.batch_id, context.trigger.value, identity.recorded_at, decisions,
            context.bytes_read(decisions), (ended_ns - identity.started_ns) // MS,
        )  # fmt: skip
        self._store.remember("last_recorded_at", identity.recorded_at)
        ledger.add_withdrawals(published)
        totals = ledger.totals()
        exports = ledger.exports()
        checks = self._checks(decisions, context, totals, exports)
        failed = sorted(name for name, passed in checks.items() if not passed)
        if failed:
            raise ProgramError(f"batch {identity.batch_id} fails its checks: {', '.join(failed)}")
        receipt = receipt_of(
            identity, iso_time(ended_ns), (ended_ns - identity.started_ns) // MS, decisions, context, totals,
            checks, ledger.unreported_inputs(), ledger.pending_tails(), writes, written, exports,
            ledger.replaced_files(), ledger.last_receipt_sha256(),
        )  # fmt: skip
        content = receipts.receipt_bytes(receipt)
        ledger.add_receipt(identity.sequence, content.decode(), receipts.sha256_of(content))
        if ledger.replaced_files():
            ledger.note_replaced([])
        ledger.drop_intents()
        return dict(orjson.loads(content))

    def _checks(
        self, decisions: Decisions, context: BatchContext, totals: Totals, exports: dict[str, ExportRecord]
    ) -> dict[str, bool]:
        """The named checks behind ``validation_pass``: accounting by counters, a second look at the firewall."""
        judged = self._ledger.counter("scored_rows") - self._ledger.counter("unjudged_rows")
        checks = {
            "rag_rows_accounted": totals.live(Dataset.RAG) == judged,
            "sft_rows_accounted": totals.live(Dataset.SFT) == judged,
        }
        for dataset in Dataset:
            shipped = exports[dataset.value].committed.rows + self._ledger.missing_rows(dataset.value)
            checks[f"{dataset}_file_rows"] = shipped == totals.shipped(dataset)
            quarantine = f"quarantine_{dataset}"
            held = exports[quarantine].committed.rows + self._ledger.missing_rows(quarantine)
            checks[f"{dataset}_quarantine_rows"] = held == totals.held(dataset)
        checks["no_forbidden_verdict"] = self._second_look(decisions, context.options)
        return checks

    def _second_look(self, decisions: Decisions, options: Options) -> bool:
        if not options.revoke:
            return True
        codes = {
            dataset: tuple(code for code, category in VERDICTS.items() if options.forbids(dataset, category))
            for dataset in (Dataset.RAG, Dataset.SFT)
        }
        return not any(
            self._ledger.forbidden_among(decisions.shipped_walks[dataset], forbidden)
            for dataset, forbidden in codes.items()
        )

    # whole files

    def replace(self, files: Sequence[NewVersion], also: Callable[[], None]) -> None:
        """Put new versions of whole exports in place, under the same protocol; ``also`` runs in the transaction.

        Used where a file's lines are as recorded but must be written anew: a damaged file, another order, a takeover.
        """
        self.keep_lock()
        stamp = self.next_identity()
        intents = [Intent(file.name, stamp.sequence, 0, _temp_name(file.name, stamp.batch_id)) for file in files]
        if intents:
            with self._store.transaction():
                self._ledger.intend(intents)
        written = [
            self._exports.compose(file.name, intent.temp or "", file.blocks)
            for file, intent in zip(files, intents, strict=True)
        ]
        with self._store.transaction():
            also()
            for file, intent, result in zip(files, intents, written, strict=True):
                committed = Committed(result.size, file.rows(), result.sha256)
                self._ledger.set_export(file.name, committed, result.facts, intent.temp)
            self._ledger.note_replaced([file.name for file in files])
            self._ledger.drop_intents()
        self.finish()

    # after COMMIT, and after a crash

    def finish(self) -> None:
        """Put the temporary files of the committed batch in place, and write its receipt.

        Raises:
            OperatorError: The system refused; the batch stands, and :meth:`recover` does what is left.
        """
        self._install()
        self._report()

    def _install(self) -> None:
        """Put what was committed in place: files that lose rows before all others."""
        records = self._ledger.exports()
        for name in RENAME_ORDER:
            record = records[name]
            if record.pending_temp is None:
                continue
            tampered = self._make_room(name, record.pending_temp)
            facts = self._exports.install(name, record.pending_temp, record.committed)
            if facts is None:
                self.set_aside(name, self._clock(), temp=record.pending_temp)
            with self._store.transaction():
                self._ledger.set_installed(name, facts)
                if tampered:
                    self._ledger.count_tampering(self._clock())

    def _make_room(self, name: str, temp: str) -> bool:
        """Set aside what somebody put where a finished file is to go; returns whether there was anything."""
        error = self._exports.in_the_way(name, temp, is_first=temp.endswith(f"{FIRST}.tmp"))
        if error is None:
            return False
        log.error("export_tampered", path=error.path, problem=error.problem)
        self.set_aside(name, self._clock())
        return True

    def set_aside(self, name: str, now_ns: int, *, temp: str | None = None) -> Path | None:
        """Move what stands in an export's place, or copy it where readers may have it open; None where it is gone.

        With ``temp`` it is the export's temporary file that is moved.

        Raises:
            ExportWriteError: The system refused.
        """
        path = self._root / EXPORT_PATHS[name]
        path = path.with_name(temp) if temp else path
        try:
            regular = stat.S_ISREG(os.lstat(path).st_mode)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ExportWriteError(EXPORT_PATHS[name], error) from error
        put_aside = copy_aside if regular and not temp else move_aside
        try:
            kept = put_aside(path, self._root / SET_ASIDE, name, iso_time(now_ns).replace(":", ""))
        except OSError as error:
            raise ExportWriteError(SET_ASIDE, error) from error
        shown = f"{SET_ASIDE}/{kept.name}" if kept is not None else None
        log.warning("export_set_aside", path=str(path.relative_to(self._root)), copy=shown)
        return kept if regular else None

    def _report(self, *, cut_off: bool = False) -> None:
        """Write the receipts of what was committed, and remove those that are kept no longer."""
        for sequence, batch_id, text in self._ledger.unwritten_receipts():
            receipts.write_receipt(self._root, batch_id, text.encode(), cut_off=cut_off)
            with self._store.transaction():
                self._ledger.mark_written(sequence)
            if cut_off:
                log.info("receipt_repaired", batch_id=batch_id, path=receipts.receipt_path(batch_id))
            else:
                log.debug("receipt_written", batch_id=batch_id, path=receipts.receipt_path(batch_id))
        self._retire_receipts()

    def _retire_receipts(self) -> None:
        old = self._ledger.receipts_beyond(self.receipts_keep)
        if old:
            # The files first: the store is what knows that they are to go.
            receipts.remove_receipts(self._root, [batch_id for _, batch_id, _ in old])
            with self._store.transaction():
                self._ledger.drop_receipts(old)

    def needs_recovery(self) -> bool:
        """Whether a write was cut off, or a finish is not done."""
        return bool(
            self._ledger.intents()
            or self._ledger.unwritten_receipts()
            or self._ledger.receipts_beyond(self.receipts_keep)
            or any(record.pending_temp for record in self._ledger.exports().values())
        )

    def recover(self) -> bool:
        """Complete or undo what a crash or a failure left; returns whether there was anything.

        Raises:
            OperatorError: The cause of the failure is still there; what is done is done, and it may be tried again.
        """
        self.keep_lock()
        with self._store.at_work():
            return self._recover()

    def _recover(self) -> bool:
        self._exports.forget()
        if not self.needs_recovery():
            return False
        intents = self._ledger.intents()
        if intents:
            self._settle_doubt()
        # The exports first: whatever is wrong with the reports, no row stands in them that was not committed.
        self._install()
        records = self._ledger.exports()
        for intent in intents:
            if intent.temp is None:
                self._exports.cut_back(intent.name, records[intent.name].committed)
            else:
                self._exports.discard(intent.name, intent.temp)
        with self._store.transaction():
            for intent in intents:
                # The file itself may be why it was not written, whatever stat says; the next look goes by its content.
                self._ledger.set_installed(intent.name, None)
            self._ledger.drop_intents()
        self._report(cut_off=True)
        return True

    def _settle_doubt(self) -> None:
        """Make certain that a batch whose COMMIT failed is undone, before any export is cut back.

        A COMMIT that reports an I/O error is taken back for this process, but its pages may stand in the write-ahead
        log, and whoever opens the store after a kill would find it committed. The next commit writes over them.
        """
        with self._store.transaction():
            self._store.remember("batch_undone_at", iso_time(self._clock()))


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A whole new version of an export; ``rows`` is asked once the blocks are written."""

    name: str
    blocks: Iterable[bytes]
    rows: Callable[[], int]


def _writes_of(
    identity: BatchIdentity,
    decisions: Decisions,
    published: list[PublishedWithdrawal],
    records: dict[str, ExportRecord],
) -> list[ExportWrite]:
    writes = []
    for dataset, change in decisions.changes.items():
        writes += _dataset_writes(identity, dataset, change)
        gone = [each for each in published if each.dataset is dataset]
        if gone:
            lines = b"".join(each.line() for each in gone)
            writes.append(ExportWrite(f"withdrawals_{dataset}", (lines,), len(gone), None, None, 0))
    return [write if records[write.name].committed.size else _as_first(write, identity) for write in writes]


def _as_first(write: ExportWrite, identity: BatchIdentity) -> ExportWrite:
    """A write to an export without rows, made beside it: what another program puts there is never taken for ours."""
    return replace(write, temp=_temp_name(write.name, identity.batch_id + FIRST), drop=drop_ids({}))


def _dataset_writes(identity: BatchIdentity, dataset: Dataset, change: DatasetChanges) -> list[ExportWrite]:
    writes = []
    for name, spool, drops, drop in (
        (dataset.value, change.shipped, len(change.removed_keys), _drop_keys(dataset, change)),
        (
            f"quarantine_{dataset}",
            change.held,
            change.removed_held.total(),
            drop_digests(change.removed_held, digest_of),
        ),
    ):
        if drops:
            temp = _temp_name(name, identity.batch_id)
            writes.append(ExportWrite(name, spool.blocks(), spool.rows, temp, drop, drops))
        elif spool.rows:
            writes.append(ExportWrite(name, spool.blocks(), spool.rows, None, None, 0))
    return writes


def _temp_name(name: str, batch_id: str) -> str:
    return f".{EXPORT_PATHS[name].rsplit('/', 1)[1]}.{batch_id}.tmp"


def _drop_keys(dataset: Dataset, change: DatasetChanges) -> Drop:
    return drop_ids({id_of(dataset, key).encode(): line for key, line in change.removed_keys.items()})


def _published(each: Withdrawal, identity: BatchIdentity, ledger: Ledger) -> PublishedWithdrawal:
    verdict = None
    if each.verdict is not None:
        at = each.verdict.at
        verdict = {
            "category": each.verdict.category.value,
            "location": {"partition": at.partition, "line_offset": at.line},
        }
    return PublishedWithdrawal(
        each.dataset,
        id_of(each.dataset, each.key),
        each.source_run_id,
        each.chosen_run_id,
        each.rejected_run_id,
        each.cause.value,
        each.replaced,
        verdict,
        ledger.batch_id_of(each.shipped_batch),
        identity.batch_id,
        identity.recorded_at,
    )
