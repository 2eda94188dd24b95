"""Make jobs of the queued rows: spans of partitions in walk order, cut into batches.

Jobs are made ahead of their results, across the ends of batches, so that workers judge while a batch is committed.
This is safe: whether a row is contested, and its current verdict, follow from the facts of the inputs alone. These
facts do not change while the queue is worked off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from distilld.core.line_facts import LINE_BITS, Content
from distilld.core.model import Dataset, Options, StatFacts
from distilld.engine.jobs import SpanJob
from distilld.engine.spans import Failure, NewPartition, RowOrder, Span, Stamp, Verdicts
from distilld.publish.receipt import BatchIdentity
from distilld.store.queues import EVIDENCE_PRUNED
from distilld.store.work import Place, Work, WorkRow

NO_LIMIT: Final = 1 << 62
JOB_BYTES: Final = 3 << 20
JOB_ROWS: Final = 4000
JOB_SPANS: Final = 48
PAGE_ROWS: Final = 4000
"""Rows that are read from the store at a time."""


class UnreadEvidence(NamedTuple):
    """A new evidence file that is read when its rows are judged, and the new scored file with these rows."""

    path: str
    facts: StatFacts
    scored: Content


class QueuedSpan(NamedTuple):
    """A span of a job: its partition, its known rows that are not contested, by walk, and its last row."""

    place: Place
    rows: dict[int, WorkRow]
    is_new: bool
    last: int


@dataclass(slots=True)
class QueuedJob:
    """A job that was made; ``identity`` is that of its batch, whose last job it may be."""

    job: SpanJob
    spans: list[QueuedSpan]
    identity: BatchIdentity
    ends_batch: bool = False
    ends_queue: bool = False


class SpanQueue:
    """Makes the queued rows into jobs, while only the batches of these jobs change the store."""

    def __init__(
        self,
        work: Work,
        options: Options,
        next_identity: Callable[[BatchIdentity | None], BatchIdentity],
        unread: Mapping[int, UnreadEvidence],
        failures: Mapping[int, Failure],
        *,
        batch_rows: int,
        batch_bytes: int,
        forced_only: bool = False,
        after: int = -1,
    ) -> None:
        self._work = work
        self._options = options
        self._next_identity = next_identity
        self._unread = unread
        self._failures = failures
        self._batch_rows = batch_rows
        self._batch_bytes = batch_bytes
        self._forced_only = forced_only
        self._after = after
        self._vacated = work.look_for_loose_lines()
        self._lines_missing = work.has_missing_lines()
        self._stamps: dict[int, str] = {}
        self._identity: BatchIdentity | None = None
        self._rows = self._bytes = 0
        """Of the current batch."""
        self._spans: list[Span] = []
        self._queued: list[QueuedSpan] = []
        self._size = self._job_rows = 0
        self._held: QueuedJob | None = None
        self.pruned: set[int | None] = set()
        """The ids of rows whose evidence an operator gave up."""
        self.under_way: deque[QueuedJob] = deque()
        """The jobs that were given out, in order; the caller takes the job from here with its result."""

    def jobs(self) -> Iterator[SpanJob]:
        """Yield the jobs, in walk order."""
        for place, low, high in self._work.partitions_queued(self._after, forced_only=self._forced_only):
            unread = self._unread.get(place.partition_id)
            if unread is not None:
                yield from self._make_room(unread.scored.lines, unread.facts.size + unread.scored.size)
                self._add_new(place, unread)
                yield from self._close_full_job()
                continue
            after, page = max(self._after, place.base - 1), list[WorkRow]()
            while True:
                yield from self._make_room(1, 1)
                page = page or self._work.queued(place, (low, high), after, PAGE_ROWS, forced_only=self._forced_only)
                if not page:
                    break
                rows = page[: self._fitting(page)]
                page = page[len(rows) :]
                self._add(place, rows)
                after = rows[-1].walk
                yield from self._close_full_job()
        yield from self._close_job()
        if self._held is not None:
            self._held.ends_batch = self._held.ends_queue = True
            yield self._give_out(self._held)

    def _make_room(self, rows: int, size: int) -> Iterator[SpanJob]:
        """End the current batch if this much does not fit into it."""
        if self._rows and (self._rows + rows > self._batch_rows or self._bytes + size > self._batch_bytes):
            yield from self._close_job()
            assert self._held is not None  # noqa: S101  the batch has rows
            self._held.ends_batch = True
            self._identity, self._rows, self._bytes = None, 0, 0

    def _fitting(self, rows: list[WorkRow]) -> int:
        """Return how many rows fit into the job and the batch, at least one."""
        size = 0
        limit = min(len(rows), JOB_ROWS, self._batch_rows - self._rows)
        for number, row in enumerate(rows[:limit], 1):
            size += row.length + (row.evidence_length or 0)
            if size + self._size >= JOB_BYTES or size + self._bytes >= self._batch_bytes:
                return number
        return limit

    def _add_new(self, place: Place, unread: UnreadEvidence) -> None:
        """Add a partition that is new as a whole: its rows are plain, except for the contested ones."""
        low, high = place.base, place.base + unread.scored.lines
        contested = self._work.contested_among(low, high, everything=self._lines_missing or bool(self._vacated))
        over = self._work.exports.over(contested, self._options)
        verdicts = {walk - low: self._verdicts_of(run_id, walk in over) for walk, run_id in contested}
        self._take(
            Span(
                place.path,
                place.base,
                (),
                NewPartition(unread.scored, verdicts),
                self._failures.get(place.partition_id),
            ),
            QueuedSpan(place, {}, True, high - 1),
            unread.scored.lines,
            unread.scored.size + unread.facts.size,
        )

    def _take(self, span: Span, queued: QueuedSpan, rows: int, size: int) -> None:
        """Put a span into the current job and the current batch."""
        if self._identity is None:
            last = self._held.identity if self._held is not None else None
            self._identity = self._next_identity(last)
        self._spans.append(span)
        self._queued.append(queued)
        self._rows, self._bytes = self._rows + rows, self._bytes + size
        self._job_rows, self._size = self._job_rows + rows, self._size + size

    def _verdicts_of(self, run_id: str | None, over_limit: bool) -> Verdicts:
        in_force = (None, None) if run_id is None else self._work.verdict_of(run_id, self._options)
        return Verdicts(*in_force, over_limit)

    def _add(self, place: Place, rows: list[WorkRow]) -> None:
        batches = {batch for row in rows for batch in (row.rag_batch, row.sft_batch) if batch is not None}
        if new := batches.difference(self._stamps):
            self._stamps |= dict.fromkeys(new, "") | self._work.stamps(new)
        self.pruned.update(row.sample_key for row in rows if row.evidence_changed == EVIDENCE_PRUNED)
        odd = self._lines_missing or bool(self._vacated)
        over = self._work.exports.over([(row.walk, row.run_id) for row in rows if row.contested], self._options)
        orders = tuple(
            [
                _plain(row) if row.rag is None and not odd and row.is_plain else self._order(row, row.walk in over)
                for row in rows
            ]
        )
        known = {
            row.walk: row for row, order in zip(rows, orders, strict=True) if row.rag is not None and not order.verdicts
        }
        self._take(
            Span(place.path, place.base, orders, None, self._failures.get(place.partition_id)),
            QueuedSpan(place, known, False, rows[-1].walk),
            len(rows),
            sum([row.length + (row.evidence_length or 0) for row in rows]),
        )

    def _order(self, row: WorkRow, over_limit: bool) -> RowOrder:
        verdicts = None
        if self._is_contested(row):
            verdicts = self._verdicts_of(row.run_id, over_limit)
        recorded = None
        if row.rag is not None and row.sft is not None and verdicts is None:
            recorded = (
                row.rag, row.rag_line or b"", self._stamp(Dataset.RAG, row, row.rag_batch),
                row.sft, row.sft_line or b"", self._stamp(Dataset.SFT, row, row.sft_batch),
            )  # fmt: skip
        evidence = _evidence_of(row)
        return tuple.__new__(
            RowOrder, (row.walk, row.start, row.length, row.digest, row.malformed, evidence, recorded, verdicts)
        )

    def _is_contested(self, row: WorkRow) -> bool:
        """Return whether more than its own text decides what is done with a row."""
        if self._lines_missing or not row.is_plain:
            return True
        if self._vacated and row.rag is None:
            place = self._work.place(row.walk)
            return (place.partition_id, row.walk & (1 << LINE_BITS) - 1) in self._vacated
        return False

    def _stamp(self, dataset: Dataset, row: WorkRow, batch: int | None) -> Stamp:
        if not batch and row.sample_key is not None:
            return self._work.adopted(dataset, row.sample_key) or ""
        return self._stamps.get(batch or 0, "")

    def _close_full_job(self) -> Iterator[SpanJob]:
        if self._size >= JOB_BYTES or self._job_rows >= JOB_ROWS or len(self._spans) >= JOB_SPANS:
            yield from self._close_job()

    def _close_job(self) -> Iterator[SpanJob]:
        """Close the job and give out the one before it: of the closed job it is not known yet if it ends its batch."""
        if not self._spans:
            return
        assert self._identity is not None  # noqa: S101  the batch has rows
        job = SpanJob(tuple(self._spans), self._identity.recorded_at, self._size)
        queued = QueuedJob(job, self._queued, self._identity)
        self._spans, self._queued, self._size, self._job_rows = [], [], 0, 0
        held, self._held = self._held, queued
        if held is not None:
            yield self._give_out(held)

    def _give_out(self, queued: QueuedJob) -> SpanJob:
        self.under_way.append(queued)
        return queued.job


def _plain(row: WorkRow) -> RowOrder:
    """Return the order for a row that was never judged and depends on no other row."""
    values = (row.walk, row.start, row.length, row.digest, row.malformed, _evidence_of(row), None, None)
    return tuple.__new__(RowOrder, values)


def order_of(work: Work, options: Options, row: WorkRow) -> RowOrder:
    """Return the order for a row that joins a batch: judged with its id free and taken, whatever is recorded."""
    in_force = (None, None) if row.run_id is None else work.verdict_of(row.run_id, options)
    verdicts = Verdicts(*in_force, row.walk in work.exports.over([(row.walk, row.run_id)], options))
    return RowOrder(row.walk, row.start, row.length, row.digest, row.malformed, _evidence_of(row), None, verdicts)


def _evidence_of(row: WorkRow) -> tuple[int, int, bytes] | None:
    if not row.evidence_found:
        return None
    start, length, digest = row.evidence_start, row.evidence_length, row.evidence_digest
    if start is None or length is None or digest is None:
        return None
    return start, length, digest
