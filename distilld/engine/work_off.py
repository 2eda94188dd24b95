"""Work the queues off: decide and commit batches until only what is out of reach waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import Final

import structlog

from distilld.core.line_facts import OddLines
from distilld.core.model import InputChanged, InputKind, OnDelete, Trigger, UnreadableError
from distilld.engine.batch import Batch, Batches, UnreadFailed
from distilld.engine.indexed import Indexed
from distilld.engine.ingest import Ingest
from distilld.engine.lake_context import LakeContext
from distilld.engine.mend import ExportMender
from distilld.engine.pass_result import PassResult
from distilld.engine.pool import Pool
from distilld.engine.progress import Judging
from distilld.engine.read_file import record_reading
from distilld.engine.spans import Failure
from distilld.lake.scan import tree_path
from distilld.logs import lines_of_batch
from distilld.publish.commit import CommittedBatch
from distilld.publish.reading import ExportTamperedError
from distilld.publish.receipt import BatchContext, BatchIdentity
from distilld.store.decisions import Decisions
from distilld.store.inputs import FileRecord

log = structlog.get_logger()

LOOK_AGAIN_NS: Final = 2 * 10**9
"""Nanoseconds for which a pass continues before it looks for new changes between two batches."""


class QueueWorker:
    """Commits the batches of one pass, and adds them to its result."""

    def __init__(
        self,
        context: LakeContext,
        ingest: Ingest,
        pool: Pool,
        mender: ExportMender,
        result: PassResult,
        trigger: Trigger,
        *,
        options_changed: bool,
    ) -> None:
        """``options_changed`` says that rows may have been judged with other options."""
        self._lake = context
        self._ingest = ingest
        self._pool = pool
        self._mender = mender
        self._result = result
        self._trigger = trigger
        self.options_changed = options_changed
        self._look_at_ns = _next_look(monotonic_ns())
        self._batches: Batches | None = None
        self._judging: Judging | None = None

    def work_off(self) -> None:
        """Commit batches, one after the other, until only what is out of reach waits."""
        if not self._pool.has_workers:
            self._pool.expect(self._lake.work.bytes_waiting())
        self._empty_queues()
        self._doubt_changed()

    def _empty_queues(self) -> None:
        lake, result = self._lake, self._result
        self._judging = Judging(lake.work, result.indexed.files_seen) if lake.progress else None
        self._tell_judging(0, 0)
        try:
            while lake.work.anything_waits() or lake.receipts.has_news():
                try:
                    committed = self.run_batch()
                except InputChanged as error:
                    result.changed_so_far.add(error.path)
                    return
                except UnreadFailed as error:
                    self._drop_batches()
                    self._ingest.index_unread([error.unread], result, self._pool)
                    continue
                except ExportTamperedError:
                    # Found during a batch: undo the batch, restore the file, judge again.
                    self._drop_batches()
                    lake.committer.recover()
                    self._mender.mend()
                    continue
                if committed is None and self._batches is not None and self._batches.took_none:
                    return
                if monotonic_ns() >= self._look_at_ns:
                    self._look_again()
            if self._judging is not None:
                lake.tell(self._judging.end())
        finally:
            self._drop_batches()

    def _look_again(self) -> None:
        """Look for new changes during a long pass: what a verdict forbids now leaves with the next batch."""
        began = monotonic_ns()
        lake, result = self._lake, self._result
        scan = self._ingest.scan()
        news, changed = self._ingest.look_again(scan, self._pool, result.indexed.unread)
        self._look_at_ns = _next_look(began)
        if not (changed or news.problems):
            result.indexed.add(news)
            result.indexed.left_by(news)
            return
        result.add(news)
        result.indexed.left_by(news)
        self._drop_batches()
        lake.work.forget_places()
        result.scan, result.looked_at_ns = scan, time.time_ns()
        lake.teller.odd_lines(news.malformed, news.unreviewed.values())
        self._ingest.follow_up(result, self._pool)

    def _doubt_changed(self) -> None:
        """Have the files that changed during the pass read again, whatever their stat facts are."""
        lake, result = self._lake, self._result
        changed = result.changed_so_far.difference(result.changed_inputs)
        if not changed:
            return
        for path in sorted(changed):
            lake.teller.input_changed(path)
        with lake.store.transaction():
            lake.inputs.doubt([key for key in lake.inputs.files() if tree_path(*key) in changed])
        result.changed_inputs = tuple(sorted(result.changed_so_far))

    # one batch

    def run_batch(self) -> CommittedBatch | None:
        """Judge what fits into one batch and commit it; return None if it changed nothing."""
        if self._batches is None:
            self._batches = self._new_batches()
        batch = self._batches.decide()
        try:
            return self._commit(batch)
        finally:
            batch.close()

    def _new_batches(self) -> Batches:
        lake = self._lake
        return Batches(
            lake.root,
            lake.work,
            lake.committer,
            self._pool,
            lake.options,
            self._result.indexed.unread,
            self._failures(),
            batch_rows=lake.limits.batch_rows,
            spool_folder=lake.spool,
            options_changed=self.options_changed,
            told=self._tell_judging,
        )

    def _failures(self) -> dict[int, Failure]:
        """Return of which scored files only the beginning was read, by partition, and why.

        Their rows wait: what was not read may forbid them.
        """
        indexed, scan = self._result.indexed, self._result.scan
        if not (indexed.unsettled or indexed.unreadable or (scan and scan.unlisted)):
            return {}
        errors = self._result.problems.values()
        why = {error.path: error for error in errors if isinstance(error, UnreadableError)}
        parts = {
            record.partition_id: tree_path(*record.key)
            for record in self._lake.inputs.files().values()
            if record.present and record.is_part
        }
        return {number: Failure.of(why.get(path, InputChanged(path))) for number, path in parts.items()}

    def _drop_batches(self) -> None:
        """Drop the jobs that were judged ahead."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _commit(self, batch: Batch) -> CommittedBatch | None:
        lake, result = self._lake, self._result
        decisions, indexed = batch.decisions, result.untold
        result.note_problems(decisions.unreadable.values())
        result.changed_so_far |= decisions.changed_inputs
        judged = decisions.rows or decisions.fresh or decisions.pairs or decisions.dropped_pairs
        if not (judged or batch.read or _changes_exports(decisions) or lake.receipts.has_news()):
            with lake.store.transaction():
                lake.ledger.apply(decisions)
            result.judged_alike += decisions.rows_judged
            result.read_alike += decisions.bytes_read
            return None
        context = BatchContext(
            self._trigger,
            lake.options,
            lake.git,
            indexed.rows_indexed + sum(read.reading.content.lines for _, read in batch.read),
            decisions.rows_judged + result.judged_alike,
            decisions.bytes_read + indexed.bytes_read + result.read_alike,
            tuple(dict.fromkeys(map(str, (*indexed.problems, *decisions.unreadable.values())))),
            run=result.batches[-1].receipt["run"] if result.batches else None,
        )
        with lines_of_batch(batch.identity.batch_id):
            committed = self._made_durable(batch.identity, decisions, context, partial(self._add_read, batch))
            self._count(committed, batch)
            self._finish(committed)
        return committed

    def _count(self, committed: CommittedBatch, batch: Batch) -> None:
        """Add a committed batch to the result of the pass; its receipt has what no other one had."""
        result = self._result
        result.batches.append(committed)
        for place, read in batch.read:
            del result.indexed.unread[place.partition_id]
            result.indexed.rows_indexed += read.reading.content.lines
            if read.reading.first_malformed is not None:
                reading = read.reading
                malformed = OddLines(InputKind.EVIDENCE, place.path, reading.malformed, read.reading.first_malformed)
                self._lake.teller.odd_lines([malformed], ())
        result.untold, result.judged_alike, result.read_alike = Indexed(), 0, 0

    def _add_read(self, batch: Batch) -> None:
        """Index the evidence files that were read with a batch's rows, inside the batch's transaction."""
        for place, read in batch.read:
            at = place.partition_id, place.base
            record = FileRecord.new(InputKind.EVIDENCE, place.path, at, read.reading.facts)
            record_reading(record, read.reading, 0)
            self._lake.evidence.add_unread(record, read.facts, all_judged=not batch.decisions.out_of_reach)

    def _made_durable(
        self, identity: BatchIdentity, decisions: Decisions, context: BatchContext, also: Callable[[], None]
    ) -> CommittedBatch:
        log.debug("batch_started", sequence=identity.sequence, trigger=context.trigger.value)
        try:
            return self._lake.committer.commit(identity, decisions, context, also)
        except BaseException:
            # Evidence that was read with the batch's rows is unknown to the store again.
            self._lake.inputs.forget_files()
            log.error("batch_undone", sequence=identity.sequence)
            raise

    def _finish(self, committed: CommittedBatch) -> None:
        lake = self._lake
        try:
            lake.committer.finish()
        finally:
            # The batch is committed, even if the rest is left to recovery.
            kept = lake.options.on_delete is OnDelete.KEEP
            lake.teller.committed(lake.root, committed, kept=kept, written=lake.committer.writes)

    def _tell_judging(self, done: int, size: int) -> None:
        if self._judging is None:
            self._lake.pulse()
        else:
            self._lake.tell(self._judging.progress(done, size))


def _next_look(began_ns: int) -> int:
    """Return when to look again: looking takes at most a tenth of a long pass."""
    now = monotonic_ns()
    return now + max(LOOK_AGAIN_NS, 10 * (now - began_ns))


def _changes_exports(decisions: Decisions) -> bool:
    return bool(decisions.withdrawals) or any(change.lines.rows or change.leaving for _, change in decisions.files())
