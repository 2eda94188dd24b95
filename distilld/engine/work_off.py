"""Work the queues off: decide and commit batches until only what is out of reach waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import Final

import structlog

from distilld.core.decisions import Decisions
from distilld.core.line_facts import OddLines
from distilld.core.model import (
    Dataset,
    InputChanged,
    InputKind,
    OnDelete,
    Trigger,
    UnreadableError,
)
from distilld.engine.batch import Batch, Batches, UnreadFailed
from distilld.engine.indexed import Indexed
from distilld.engine.looking import Looking
from distilld.engine.pass_result import PassResult
from distilld.engine.progress import Judging
from distilld.engine.read_file import record_reading
from distilld.engine.span_queue import UnreadEvidence
from distilld.lake import scan as lake
from distilld.logs import lines_of_batch
from distilld.publish.commit import CommittedBatch
from distilld.publish.reading import ExportTamperedError
from distilld.publish.receipt import BatchContext, BatchIdentity
from distilld.publish.restore import AnotherWriterError
from distilld.store.export_lines import ExportLines
from distilld.store.inputs import FileRecord

log = structlog.get_logger()

CHECKS_IN_A_PASS: Final = 3
"""How often a pass checks the exports and restores what is damaged; later damage is another writer's."""


class WorkingOff(Looking):
    """Commits batches, and does the steps between the look at the inputs and the first batch."""

    def _work_off(self, trigger: Trigger, result: PassResult, *, options_changed: bool) -> None:
        """Commit batches, one after the other, until only what is out of reach waits."""
        if self._pool is not None and not self._pool.has_workers:
            self._pool.expect(self.work.bytes_waiting())
        self._empty_queues(trigger, result, options_changed=options_changed)
        self._doubt_changed(result)

    def _empty_queues(self, trigger: Trigger, result: PassResult, *, options_changed: bool) -> None:
        self._judging = Judging(self.work, result.indexed.files_seen) if self.progress else None
        self._tell_judging(0, 0)
        try:
            while self.work.anything_waits() or self.receipts.has_news():
                try:
                    committed = self.run_batch(trigger, result, options_changed=options_changed)
                except InputChanged as error:
                    result.changed_so_far.add(error.path)
                    return
                except UnreadFailed as error:
                    self._drop_batches()
                    self._index_unread(error.unread, result)
                    continue
                except ExportTamperedError:
                    # Found during a batch: undo the batch, restore the file, judge again.
                    self._drop_batches()
                    self.committer.recover()
                    self._mend_exports()
                    continue
                if committed is None and self._batches is not None and self._batches.took_none:
                    return
                if monotonic_ns() >= self._look_at_ns:
                    self._look_again(result)
            if self._judging is not None:
                self._tell(self._judging.end())
        finally:
            self._drop_batches()

    def _look_again(self, result: PassResult) -> None:
        """Look for new changes during a long pass: what a verdict forbids now leaves with the next batch."""
        began = monotonic_ns()
        scan = self._scan()
        # Files that this pass read count as unchanged if their facts are; the next pass checks more.
        indexer = self._indexer(scan, hashed_since_ns=None)
        before = self.store.connection.total_changes
        news = indexer.take(scan, unread=result.indexed.unread)
        self._note_left_alone(news)
        self._look_at_ns = self._next_look(began)
        result.indexed.add(news)
        result.indexed.left_by(news)
        # A file that is left for later may have changed the store too: its place, or rows before its end.
        if self.store.connection.total_changes == before and not news.problems:
            return
        self._drop_batches()
        self.work.forget_places()
        result.scan, result.looked_at_ns = scan, time.time_ns()
        if result.untold is not result.indexed:
            result.untold.add(news)
        result.note_problems(news.problems)
        self.teller.odd_lines(news.malformed, news.unreviewed.values())
        self._make_live()
        self._trip()
        self._lose_missing()

    def _doubt_changed(self, result: PassResult) -> None:
        """Have the files that changed during the pass read again, whatever their stat facts are."""
        changed = result.changed_so_far.difference(result.changed_inputs)
        if not changed:
            return
        for path in sorted(changed):
            self.teller.input_changed(path)
        with self.store.transaction():
            self.inputs.doubt([key for key in self.inputs.files() if lake.tree_path(*key) in changed])
        result.changed_inputs = tuple(sorted(result.changed_so_far))

    def run_batch(self, trigger: Trigger, result: PassResult, *, options_changed: bool) -> CommittedBatch | None:
        """Judge what fits into one batch and commit it; return None if it changed nothing."""
        if self._batches is None:
            self._batches = self._new_batches(result.indexed.unread, options_changed=options_changed)
        batch = self._batches.decide()
        try:
            return self._commit(batch, trigger, result)
        finally:
            batch.close()

    def _new_batches(self, unread: dict[int, UnreadEvidence], *, options_changed: bool) -> Batches:
        assert self._pool is not None  # noqa: S101  as long as a pass takes
        return Batches(
            self.root,
            self.work,
            self.committer,
            self._pool,
            self.options,
            unread,
            batch_rows=self.limits.batch_rows,
            spool_folder=self._spool(),
            options_changed=options_changed,
            told=self._tell_judging,
        )

    def _drop_batches(self) -> None:
        """Drop the jobs that were judged ahead."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _commit(self, batch: Batch, trigger: Trigger, result: PassResult) -> CommittedBatch | None:
        decisions, indexed = batch.decisions, result.untold
        result.note_problems(_problems_of(decisions))
        result.changed_so_far |= decisions.changed_inputs
        judged = decisions.rows or decisions.fresh or decisions.pairs or decisions.dropped_pairs
        if not (judged or batch.read or _changes_exports(decisions) or self.receipts.has_news()):
            with self.store.transaction():
                self.ledger.apply(decisions)
            result.judged_alike += decisions.rows_judged
            result.read_alike += decisions.bytes_read
            return None
        context = BatchContext(
            trigger,
            self.options,
            self.git,
            indexed.rows_indexed + sum(read.reading.lines for _, read in batch.read),
            indexed.bytes_read + result.read_alike,
            tuple(dict.fromkeys(map(str, (*indexed.problems, *_problems_of(decisions))))),
            rows_judged_before=result.judged_alike,
            run=result.batches[-1].receipt["run"] if result.batches else None,
        )
        with lines_of_batch(batch.identity.batch_id):
            committed = self._made_durable(batch.identity, decisions, context, partial(self._add_read, batch))
            self._count(committed, batch, result)
            self._finish(committed)
        return committed

    def _count(self, committed: CommittedBatch, batch: Batch, result: PassResult) -> None:
        """Add a committed batch to the result of the pass; its receipt has what no other one had."""
        result.batches.append(committed)
        for place, read in batch.read:
            del result.indexed.unread[place.partition_id]
            result.indexed.rows_indexed += read.reading.lines
            if read.reading.first_malformed is not None:
                reading = read.reading
                malformed = OddLines(InputKind.EVIDENCE, place.path, reading.malformed, read.reading.first_malformed)
                self.teller.odd_lines([malformed], ())
        result.untold, result.judged_alike, result.read_alike = Indexed(), 0, 0

    def _add_read(self, batch: Batch) -> None:
        """Index the evidence files that were read with a batch's rows, inside the batch's transaction."""
        for place, read in batch.read:
            record = FileRecord.new(
                InputKind.EVIDENCE, place.path, (place.partition_id, place.base), read.reading.facts
            )
            record_reading(record, read.reading, 0)
            self.evidence.add_unread(record, read.facts, all_judged=not batch.decisions.out_of_reach)

    def _made_durable(
        self,
        identity: BatchIdentity,
        decisions: Decisions,
        context: BatchContext,
        also: Callable[[], None] = lambda: None,
    ) -> CommittedBatch:
        log.debug("batch_started", sequence=identity.sequence, trigger=context.trigger.value)
        try:
            return self.committer.commit(identity, decisions, context, also)
        except BaseException:
            # Evidence that was read with the batch's rows is unknown to the store again.
            self.inputs.forget_files()
            log.error("batch_undone", sequence=identity.sequence)
            raise

    def _finish(self, committed: CommittedBatch) -> None:
        try:
            self.committer.finish()
        finally:
            # The batch is committed, even if the rest is left to recovery.
            kept = self.options.on_delete is OnDelete.KEEP
            self.teller.committed(self.root, committed, kept=kept, written=self.committer.writes)

    def _mend_exports(self, *, patient: bool = False) -> None:
        """Make exports and store agree before anything is judged: adopt older exports, restore damaged ones.

        Raises:
            AnotherWriterError: They are damaged after the checks that a pass allows.
        """
        if self.committer.writes:
            self.committer.keep_lock()
            if self.committer.needs_recovery():
                self.committer.recover()
            now_ns = time.time_ns()
            if self.restorer.take_over(now_ns, self.options):
                self.inputs.forget_files()
            self._mendings += 1
            if self._mendings > CHECKS_IN_A_PASS and self.restorer.damaged():
                raise AnotherWriterError(
                    "another writer changes exports/ whenever they are restored",
                    hint="find out who writes below exports/ and stop it; see export_tampered in the log",
                )
            self.restorer.check(now_ns, patient=patient)

    def _make_live(self) -> None:
        """Make pairs live again that were retained with a partition that returned."""
        with self.store.transaction():
            self.retained.make_live()

    def _lose_missing(self) -> None:
        """Give up lines that a damaged export lost and whose inputs are gone too; others are written again."""
        if self.work.has_missing_lines():
            with self.store.transaction():
                ExportLines(self.store).lose_missing()

    def _trip(self) -> None:
        """Apply the tripwire: retain rows that vanish in masses until an operator decides (SPEC 3)."""
        exports = self.export_records.exports()
        stood = {dataset: exports[dataset.value].committed.rows for dataset in Dataset}
        vanishing = {dataset: self.tripwire.vanishing(dataset, self.options) for dataset in Dataset}
        tripped = [
            dataset
            for dataset, rows in vanishing.items()
            if rows > self.limits.tripwire_rows and rows > self.limits.tripwire_share * stood[dataset]
        ]
        if not tripped:
            return
        with self.store.transaction():
            for dataset in tripped:
                self.tripwire.keep(dataset, self.options)
        for dataset in tripped:
            log.error("tripwire_tripped", dataset=dataset.value, rows=vanishing[dataset], of=stood[dataset])


def _problems_of(decisions: Decisions) -> list[UnreadableError]:
    return [UnreadableError(path, OSError(why)) for path, why in decisions.unreadable.items()]


def _changes_exports(decisions: Decisions) -> bool:
    return bool(decisions.withdrawals) or any(
        change.exported.rows or change.quarantined.rows or change.removed_keys or change.removed_quarantined
        for change in decisions.changes.values()
    )
