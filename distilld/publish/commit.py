"""Makes one batch durable: intent, exports, one transaction, finish. See docs/design.md, 'The commit protocol'.

A file that loses rows is overwritten in place if that is fast and no reader has its batch pinned. Otherwise it is
rewritten into a temporary file. So is a file in which a row is replaced: no reader sees two rows with one id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar

import orjson

from distilld.core.line_facts import VERDICTS, id_of, ignored
from distilld.core.model import EXPORT_PATHS, ROW_DATASETS, Committed, Dataset, Options, Pieces, ProgramError
from distilld.lake.lines import digest_of
from distilld.publish import receipt_files as receipts
from distilld.publish.new_file import Written
from distilld.publish.overwrite import Overwriting
from distilld.publish.reading import ExportTamperedError
from distilld.publish.receipt import MS, BatchContext, BatchIdentity, ExportWrite, batch_id_of, iso_time, receipt_of
from distilld.publish.recovery import FIRST, Recovery
from distilld.store.decisions import Decisions, PublishedWithdrawal, Withdrawal
from distilld.store.export_records import ExportRecord, Intent
from distilld.store.ledger import Totals
from distilld.store.receipts import BatchRecord


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """The result of a committed batch."""

    identity: BatchIdentity
    receipt: dict[str, Any]
    receipt_sha256: str | None
    """The newest digest in the chain of receipts."""


class Committer(Recovery):
    """Commits batches, and defines the order of durable writes for one lake."""

    writes: ClassVar[bool] = True
    """Whether anything below the root is written."""

    def next_identity(self, after: BatchIdentity | None = None) -> BatchIdentity:
        """Return the next batch's identity: its time is now, or 1 ms after the last one's if the clock stepped back.

        ``after`` is a batch that has a time and is not committed yet: the new time is later. The number always follows
        the last committed batch, because ``after`` may never be committed.
        """
        last = self._receipts.last_batch()
        sequence = last.batch if last is not None else 0
        now_ns = self._clock() // MS * MS
        floor = after.recorded_at if after is not None else self._store.recall("last_recorded_at")
        stamp = iso_time(now_ns)
        if floor is not None and stamp <= floor:
            before = datetime.fromisoformat(floor)
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
        """Write and commit the batch; ``also`` runs in its transaction, after the decisions.

        If ``also`` raises, nothing is committed. Call :meth:`finish` next, or :meth:`recover` after a failure.

        Raises:
            WriterBusy: Another writer has the lock of the lake.
            ExportTamperedError: An export is not what its last commit left.
            ExportWriteError: A write failed; :meth:`recover` undoes the batch.
            ProgramError: The accounting is wrong; nothing is committed.
        """
        self.keep_lock()
        with self._undone_at_failure():
            records = self._records.exports()
            batch_ids = {
                batch: self._receipts.batch_id_of(batch)
                for batch in {each.shipped_batch for each in decisions.withdrawals}
            }
            published = [_published(each, identity, batch_ids[each.shipped_batch]) for each in decisions.withdrawals]
            repeated = self._withdrawals.repeated(published)
            for each in published:
                decisions.changes[each.dataset].withdrawn.lines.add(each.line())
            for each in repeated.values():
                decisions.changes[each.dataset].withdrawn.drop(digest_of(each.line()))
            writes = self._in_place(_writes_of(identity, decisions, records), records)
            intents = [
                Intent(write.name, identity.sequence, records[write.name].committed.size, write.temp)
                for write in writes
                if write.temp is not None or write.change.lines.rows
            ]
            for write in writes:
                if write.temp is None and self.writes:
                    with self.left_as_found(write.name):
                        self._exports.check(write.name, records[write.name].committed)
            if intents:
                with self._store.transaction():
                    self._records.intend(intents)
            written = {write.name: self._write(write, records[write.name].committed) for write in writes}
            with self._store.transaction():
                self._withdrawals.add(published, repeated)
                receipt = self._transact(identity, decisions, context, records, writes, written, also)
            return CommittedBatch(identity, receipt, self._receipts.last_receipt_sha256())

    @contextmanager
    def _undone_at_failure(self) -> Iterator[None]:
        """If the block fails, forget the digests of what was planned or written, and let readers pin a batch again.

        A batch that only overwrites has changed no file yet, so that there is nothing to recover.
        """
        try:
            yield
        except BaseException:
            self._exports.forget()
            self._pins.let_in()
            raise

    def _in_place(self, writes: list[ExportWrite], records: dict[str, ExportRecord]) -> list[ExportWrite]:
        """Return the same writes, with a plan to overwrite rows in place where that is possible."""
        if not self.writes or not any(write.change.leaving for write in writes):
            return writes
        if not self._pins.keep_out():
            return writes
        done = []
        for write in writes:
            planned, change = None, write.change
            if change.leaving and not write.replaces():
                known = records[write.name].committed
                with self.left_as_found(write.name):
                    planned = self._exports.plan(write.name, known, change.leaving, grows=change.lines.rows > 0)
            done.append(write if planned is None else replace(write, temp=None, planned=planned))
        return done

    def _write(self, write: ExportWrite, known: Committed) -> Written:
        blocks, leaving = write.change.lines.pieces(), write.change.leaving
        if write.planned is not None:
            new = blocks if write.change.lines.rows else None
            with self.left_as_found(write.name):
                return self._exports.planned(write.name, known, write.planned, new)
        if write.temp is None:
            with self.left_as_found(write.name):
                return self._exports.append(write.name, known, blocks)
        result = self._exports.rewrite(write.name, known, write.temp, leaving, blocks)
        if result.dropped != (due := leaving.total()):
            raise ProgramError(f"{EXPORT_PATHS[write.name]}: {result.dropped} lines left, {due} should have")
        return result

    @contextmanager
    def left_as_found(self, name: str) -> Iterator[None]:
        """If the block finds an export that another program changed, keep recovery from cutting it back.

        Its content may be needed. The next check reads the content, whatever stat says, and sets the file aside.
        """
        try:
            yield
        except ExportTamperedError:
            with self._store.transaction():
                self._records.drop_intent(name)
                self._records.set_installed(name, None)
            raise

    def _transact(
        self,
        identity: BatchIdentity,
        decisions: Decisions,
        context: BatchContext,
        records: dict[str, ExportRecord],
        writes: list[ExportWrite],
        written: dict[str, Written],
        also: Callable[[], None],
    ) -> dict[str, Any]:
        self._ledger.apply(decisions)
        also()
        for write in writes:
            result, before = written[write.name], records[write.name].committed
            now = result.committed(before.rows - result.dropped + write.change.lines.rows)
            self._records.set_export(write.name, now, result.facts, write.temp)
            self._note_segments(write.name, write.temp, write.planned, result)
        ended_ns = max(self._clock(), identity.started_ns)
        batch = BatchRecord(
            identity.sequence, identity.batch_id, context.trigger.value, identity.recorded_at,
            decisions.rows_exported, decisions.rows_quarantined, len(decisions.withdrawals),
            context.rows_judged, context.bytes_read, identity.duration_ms(ended_ns),
        )  # fmt: skip
        self._receipts.add_batch(batch)
        self._store.remember("last_recorded_at", identity.recorded_at)
        totals, exports = self._ledger.totals(), self._records.exports()
        checks = self._checks(decisions, context, totals, exports)
        failed = sorted(name for name, passed in checks.items() if not passed)
        if failed:
            raise ProgramError(f"batch {identity.batch_id} fails its checks: {', '.join(failed)}")
        receipt = receipt_of(
            identity, ended_ns, decisions, context, totals, checks, writes, written, exports, self._receipts
        )
        content = receipts.receipt_bytes(receipt)
        self._receipts.add_receipt(identity.sequence, content.decode(), receipts.sha256_of(content))
        if self._receipts.replaced_files():
            self._receipts.note_replaced([])
        self._records.drop_intents()
        return dict(orjson.loads(content))

    def _note_segments(self, name: str, temp: str | None, planned: Overwriting | None, written: Written) -> None:
        if temp is not None:
            self._records.forget_segments(name)
        if planned is not None:
            self._records.record_overwrites(name, planned.segments, planned.spans, planned.size, written.segment_bytes)
        self._records.add_segments(name, written.segments)

    def _checks(
        self, decisions: Decisions, context: BatchContext, totals: Totals, exports: dict[str, ExportRecord]
    ) -> dict[str, bool]:
        """Return the checks for ``validation_pass``, by name: accounting by counters, and the firewall again."""
        checks = {
            f"{dataset}_rows_accounted": totals.live(dataset) == self._ledger.judged_rows(dataset)
            for dataset in ROW_DATASETS
        }
        for dataset in Dataset:
            exported = exports[dataset.value].committed.rows + self._records.missing_rows(dataset.value)
            checks[f"{dataset}_file_rows"] = exported == totals.exported(dataset)
            quarantine = f"quarantine_{dataset}"
            quarantined = exports[quarantine].committed.rows + self._records.missing_rows(quarantine)
            checks[f"{dataset}_quarantine_rows"] = quarantined == totals.quarantined(dataset)
        checks["no_forbidden_verdict"] = self._second_look(decisions, context.options)
        return checks

    def _second_look(self, decisions: Decisions, options: Options) -> bool:
        if not options.revoke:
            return True
        exported = {dataset: set(decisions.exported_walks[dataset]) for dataset in ROW_DATASETS}
        forbidden = {
            dataset: {code for code, category in VERDICTS.items() if options.forbids(dataset, category)}
            for dataset in exported
        }
        found = self._ledger.verdicts_among(sorted(set().union(*exported.values())), set().union(*forbidden.values()))
        if but := ignored(Dataset.RAG, options):
            found += self._ledger.verdicts_among(sorted(exported[Dataset.RAG]), forbidden[Dataset.RAG], but=but)
        return not any(
            walk in walks and code in forbidden[dataset] for walk, code in found for dataset, walks in exported.items()
        )

    # whole files

    def replace(self, versions: Mapping[str, Pieces], also: Callable[[], None] = lambda: None) -> dict[str, int]:
        """Replace whole exports by new versions, by the same protocol; ``also`` runs in the transaction.

        It rewrites files whose rows are recorded already: after damage, for another order, in a takeover. Return how
        many rows each file has now.
        """
        self.keep_lock()
        stamp = self.next_identity()
        temps = {name: _temp_name(name, stamp.batch_id) for name in versions}
        if temps:
            with self._store.transaction():
                self._records.intend([Intent(name, stamp.sequence, 0, temp) for name, temp in temps.items()])
        written = {name: self._exports.compose(name, temp, versions[name]) for name, temp in temps.items()}
        with self._store.transaction():
            also()
            for name, result in written.items():
                self._records.set_export(name, result.committed(result.lines), result.facts, temps[name])
                self._note_segments(name, temps[name], None, result)
            self._receipts.note_replaced(list(versions))
            self._records.drop_intents()
        self.finish()
        return {name: result.lines for name, result in written.items()}


def _writes_of(identity: BatchIdentity, decisions: Decisions, records: dict[str, ExportRecord]) -> list[ExportWrite]:
    writes = []
    for name, change in decisions.files():
        if not (change.leaving or change.lines.rows):
            continue
        # An empty export is written to a temporary file, too: a foreign file there is never taken for ours.
        temp = _temp_name(name, identity.batch_id) if change.leaving else None
        if not records[name].committed.size:
            temp = _temp_name(name, identity.batch_id + FIRST)
        writes.append(ExportWrite(name, change, temp))
    return writes


def _temp_name(name: str, batch_id: str) -> str:
    return f".{EXPORT_PATHS[name].rsplit('/', 1)[1]}.{batch_id}.tmp"


def _published(each: Withdrawal, identity: BatchIdentity, shipped_batch: str | None) -> PublishedWithdrawal:
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
        shipped_batch,
        identity.batch_id,
        identity.recorded_at,
    )
