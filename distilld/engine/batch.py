"""Decide batches: take as many queued rows and tasks as fit into one batch, and decide what becomes of them.

:class:`Batches` lives while the queues are worked off. It has jobs judged ahead of the current batch, so that workers
continue while that one is committed. After a failure it is dropped, and a new one starts with the queues as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from distilld.core.line_facts import ALL_WALKS
from distilld.core.model import Cause, Dataset, OperatorError, Options
from distilld.engine.answers import check_lines, check_pairs, check_rows
from distilld.engine.jobs import SpanJob, TaskJob
from distilld.engine.judge_pairs import PairJudge
from distilld.engine.judge_rows import RowJudge
from distilld.engine.judge_span import SpanJudge
from distilld.engine.pool import Done, Pool
from distilld.engine.read_file import FileRead, as_scanned
from distilld.engine.sink import Sink
from distilld.engine.span_queue import NO_LIMIT, QueuedJob, SpanQueue, UnreadEvidence, order_of
from distilld.engine.spans import FailedRow, Failure, JudgedRow, Span, SpanDone
from distilld.files.spool import SharedFile
from distilld.lake.source_files import path_check
from distilld.publish.commit import Committer
from distilld.publish.receipt import BatchIdentity
from distilld.store.decisions import Decisions, Withdrawal
from distilld.store.work import Place, Work, WorkRow

BATCH_BYTES: Final = 32 << 20
"""The most bytes of rows and their evidence in one batch; a single larger row still gets a batch."""
TASKS_PER_BATCH: Final = 10_000
DEPARTURES_PER_BATCH: Final = 200_000


class UnreadFailed(OperatorError):
    """An evidence file that was to be read with its rows cannot be read, or differs from what was scanned."""

    def __init__(self, unread: UnreadEvidence) -> None:
        super().__init__(f"{unread.path} cannot be judged with")
        self.unread = unread


@dataclass(slots=True)
class Batch:
    """A batch while it is decided: its identity and decisions, and the evidence files that were read with its rows."""

    identity: BatchIdentity
    decisions: Decisions
    read: list[tuple[Place, FileRead]] = field(default_factory=list)
    files: list[SharedFile] = field(default_factory=list)
    """The files that hold its lines, one entry for each job."""

    def keep(self, file: SharedFile | None) -> None:
        """Take over a job's share of its file."""
        if file is not None:
            self.files.append(file)

    def close(self) -> None:
        """Drop the lines of the batch."""
        self.decisions.close()
        for each in self.files:
            each.close()


class Batches:
    """Decides batches, one after the other."""

    def __init__(
        self,
        root: Path,
        work: Work,
        committer: Committer,
        pool: Pool,
        options: Options,
        unread: dict[int, UnreadEvidence],
        failures: Mapping[int, Failure],
        *,
        batch_rows: int,
        spool_folder: Path,
        options_changed: bool,
        told: Callable[[int, int], None] = lambda _done, _bytes: None,
    ) -> None:
        """``failures`` say of which scored files only the beginning was read, by partition, and why.

        ``told`` is called with the number of rows or tasks just judged, and the bytes read for them.
        """
        self._told = told
        self._work = work
        self._committer = committer
        self._pool = pool
        self._options = options
        self._unread = unread
        self._failures = failures
        self._batch_rows = batch_rows
        self._folder = spool_folder
        self._options_changed = options_changed
        self._span_judge = SpanJudge(root, options, path_check(options))
        self._queue: SpanQueue | None = None
        self._results: Iterator[Done[SpanJob]] = iter(())
        self._next: Done[SpanJob] | None = None
        self._ahead: set[int] = set()
        """Rows that earlier batches judged before their turn."""
        self._is_start = False
        """Whether no batch since the queue's first row has taken the departures that wait for no row."""
        self._tasks_out_of_reach: set[str] = set()
        """Tasks that earlier batches could not form: others have their turn before these are tried again."""
        self._missing_lines = work.missing_lines()
        self._took_any = False
        """Whether any batch since the queue's first row took something out of it; they may also have added rows."""
        self.took_none = False
        """Whether a run through the whole queue took nothing: what waits is out of reach."""
        work.begin_judging()

    def close(self) -> None:
        """Drop the jobs that were judged ahead."""
        self._work.end_judging()
        if self._next is not None:
            self._next.close()
            self._next = None
        if isinstance(self._results, Generator):
            self._results.close()
        self._queue = None

    def decide(self) -> Batch:
        """Judge what fits into one batch; the caller closes the batch.

        Rows that a current verdict may now forbid are judged in it, whatever its size: no committed batch leaves such
        a row in the files.

        Raises:
            UnreadFailed: An evidence file that was left unread cannot be read, or has changed.
            OperatorError: The lines could not be written, or a worker died.
        """
        batch = self._begin()
        try:
            self._decide(batch)
        except BaseException:
            batch.close()
            raise
        return batch

    def _begin(self) -> Batch:
        if self._queue is None:
            self._ahead, self._took_any, self._is_start = set(), False, True
            self._queue = self._new_queue(after=-1)
            self._results = self._pool.run(self._queue.jobs(), self._options)
        self._next = self._next or next(self._results, None)
        identity = self._committer.next_identity()
        if self._next is not None:
            given = self._queue.under_way[0].identity
            identity = replace(given, sequence=identity.sequence)
        decisions = Decisions.begin(identity.sequence, identity.recorded_at, self._folder, self._missing_lines)
        return Batch(identity, decisions)

    def _new_queue(self, *, after: int, forced_in: Batch | None = None) -> SpanQueue:
        """Return the queue of rows after ``after``: all, or only those forced into a batch, which get its time."""
        limits = (self._batch_rows, BATCH_BYTES) if forced_in is None else (NO_LIMIT, NO_LIMIT)
        return SpanQueue(
            self._work,
            self._options,
            self._committer.next_identity if forced_in is None else lambda _: forced_in.identity,
            self._unread if forced_in is None else {},
            self._failures,
            batch_rows=limits[0],
            batch_bytes=limits[1],
            forced_only=forced_in is not None,
            after=after,
        )

    def _decide(self, batch: Batch) -> None:
        decisions = batch.decisions
        rows = RowJudge(
            self._work,
            self._options,
            decisions,
            self._judge_one,
            options_changed=self._options_changed,
            ahead=self._ahead,
        )
        pairs = PairJudge(
            self._work,
            self._options,
            decisions,
            partial(self._do, batch),
            self._failures,
            options_changed=self._options_changed,
        )
        # Closed even if an error ends the batch: a half-read query locks the tables of the pass.
        with closing(self._work.retained_queue()) as retained:
            rows.loose_rows.take_retained(retained)
        if self._is_start:
            self._take_departures(decisions, rows, pairs, all_judged=False)
            self._is_start = False
        assert self._queue is not None  # noqa: S101  set by _begin
        pruned = self._queue.pruned
        first = self._queue.under_way[0].spans[0].place.base if self._next is not None else 0
        last = self._judge_spans(batch, rows)
        rows.judge_rest()
        left_over = last is not None and not last.ends_queue
        if last is not None and left_over:
            forced = self._new_queue(after=last.spans[-1].last, forced_in=batch)
            for done in self._pool.run(forced.jobs(), self._options):
                self._settle(batch, rows, forced.under_way.popleft(), done)
            rows.judge_rest()
            pruned |= forced.pruned
            self._ahead |= {walk for walk in rows.done if walk > last.spans[-1].last}
        elif self._work.departing() > len(decisions.departures):
            self._take_departures(decisions, rows, pairs, all_judged=True)
            rows.judge_rest()
        rows.finish()
        decisions.withdrawals = [_as_pruned(each) if each.key in pruned else each for each in decisions.withdrawals]
        decisions.judged = (first, last.spans[-1].last) if last is not None and left_over else ALL_WALKS
        # What else stands in a task may be among rows whose evidence is not known to the store before the commit.
        if last is not None or rows.done:
            self._work.forget_task_places()
        limit = 0 if left_over or batch.read else TASKS_PER_BATCH
        pairs.judge(self._work.tasks(limit, self._tasks_out_of_reach))
        if self._pool.is_elsewhere:
            check_lines(decisions, self._work, self._options)
        touched = self._work.tasks_of_unjudged(decisions.judged)
        decisions.tasks_to_queue = sorted((touched | pairs.left) - set(decisions.tasks))
        if not left_over:
            self._queue = None
        self._took_any = self._took_any or decisions.took_any or not pairs.out_of_reach <= self._tasks_out_of_reach
        self._tasks_out_of_reach |= pairs.out_of_reach
        self.took_none = not (self._took_any or left_over)

    def _take_departures(self, decisions: Decisions, rows: RowJudge, pairs: PairJudge, *, all_judged: bool) -> None:
        leaving = self._work.departures(DEPARTURES_PER_BATCH, self._options, all_judged=all_judged)
        departures = [each for each in leaving if decisions.note_departure(*each[:3])]
        rows.loose_rows.take_departures(each for each in departures if each.dataset is not Dataset.PREFERENCE)
        pairs.take_departures(each for each in departures if each.dataset is Dataset.PREFERENCE)

    def _judge_spans(self, batch: Batch, rows: RowJudge) -> QueuedJob | None:
        """Settle the rows of one batch; return its last job, or None where no row is queued."""
        assert self._queue is not None  # noqa: S101  set by _begin
        while self._next is not None:
            queued = self._queue.under_way.popleft()
            done, self._next = self._next, None
            self._settle(batch, rows, queued, done)
            if queued.ends_batch:
                return queued
            self._next = next(self._results, None)
        return None

    def _settle(self, batch: Batch, rows: RowJudge, queued: QueuedJob, done: Done[SpanJob]) -> None:
        batch.keep(done.file)
        assert isinstance(done.result, list)  # noqa: S101  a SpanJob returns this
        for span, order, result in zip(queued.spans, done.job.spans, done.result, strict=True):
            assert isinstance(result, SpanDone)  # noqa: S101  as above
            if order.new is not None:
                unread = self._unread[span.place.partition_id]
                read = as_scanned(result.evidence, unread.facts) if result.evidence is not None else None
                if read is None:
                    raise UnreadFailed(self._unread.pop(span.place.partition_id))
                batch.read.append((span.place, read))
            check_rows(order, result)
            rows.settle(span, result, done.file)
            self._told(order.size(), result.bytes_read)

    def _judge_one(self, row: WorkRow) -> JudgedRow | FailedRow:
        """Judge a row that joins the batch, in this process."""
        place = self._work.place(row.walk)
        order = order_of(self._work, self._options, row)
        span = Span(place.path, place.base, (order,), None, self._failures.get(place.partition_id))
        (judged,) = self._span_judge.judge(span, "", Sink(None)).items
        assert isinstance(judged, JudgedRow | FailedRow)  # noqa: S101  a contested row gives one of these
        return judged

    def _do(self, batch: Batch, jobs: Iterable[TaskJob]) -> Iterator[Done[TaskJob]]:
        for done in self._pool.run(jobs, self._options):
            batch.keep(done.file)
            if self._pool.is_elsewhere:
                check_pairs(done.job, done.result, self._options)
            self._told(len(done.job.tasks), done.job.size)
            yield done


def _as_pruned(withdrawal: Withdrawal) -> Withdrawal:
    if withdrawal.cause is Cause.EVIDENCE_CHANGED and not withdrawal.replaced:
        return replace(withdrawal, cause=Cause.PRUNED)
    return withdrawal
