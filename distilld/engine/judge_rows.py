"""Scored rows become outcomes in RAG and SFT, and outcomes become changes.

Rows are judged in walk order. An id belongs to the first row that passes the gates; a row that is displaced, or that
waits for an id which came free, joins the batch. A line is rewritten only if its content, timestamps aside, changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable
from typing import IO, Final

from distilld.core.decisions import Decisions, RowUpdate, Withdrawal
from distilld.core.line_facts import CATEGORIES, SHIPPED
from distilld.core.model import Category, Cause, Dataset, InputChanged, Options, UnreadableError
from distilld.core.outcome import Rendered
from distilld.engine.lane import Lane, Recorded
from distilld.engine.span_queue import QueuedSpan
from distilld.engine.spans import FailedRow, JudgedRow, Part, SpanDone, error_of
from distilld.store.loose_lines import Departure, FrozenRow
from distilld.store.work import Work, WorkRow

_END: Final = 1 << 62
_NEVER: Final = Recorded(None, b"", 0)


class RowJudge:
    """Judges the rows of one batch and adds what follows to its decisions."""

    def __init__(
        self,
        work: Work,
        options: Options,
        decisions: Decisions,
        judge_one: Callable[[WorkRow], JudgedRow | FailedRow],
        *,
        options_changed: bool,
        ahead: Container[int] = frozenset(),
    ) -> None:
        """``judge_one`` judges a row that joins the batch; ``ahead`` are rows that were judged before their turn."""
        self.work = work
        self.options = options
        self.out = decisions
        self.options_changed = options_changed
        self.loose = work.has_loose_lines()
        self._judge_one = judge_one
        self._ahead = ahead
        self._joined: list[int] = []
        self._moving: dict[int, FrozenRow] = {}
        """Absent rows whose lines stand in a present file, and were judged there in this batch, by id."""
        self.done: set[int] = set()
        """The rows that were judged one by one, not by the span."""
        self._displaced: set[int] = set()
        self._judged: dict[int, JudgedRow | FailedRow] = {}
        """What became of rows that may be displaced, until they are."""
        self._rag = Lane(self, Dataset.RAG, kept_bit=1)
        self._sft = Lane(self, Dataset.SFT, kept_bit=2)
        self._lanes = {Dataset.RAG: self._rag, Dataset.SFT: self._sft}

    # the order of work

    def settle(self, span: QueuedSpan, done: SpanDone, file: IO[bytes] | None) -> None:
        """Take in what came of a span, in walk order."""
        out = self.out
        streams = (
            out.changes[Dataset.RAG].shipped, out.changes[Dataset.RAG].held,
            out.changes[Dataset.SFT].shipped, out.changes[Dataset.SFT].held,
        )  # fmt: skip
        for item in done.items:
            if isinstance(item, Part):
                item.put_into(streams[item.stream], file)
            elif item.walk not in self._ahead:
                self._judge_joined(item.walk)
                row = span.rows.get(item.walk)
                self._judge_once(
                    self.work.row(item.walk) if row is None else row.alone(), item, evidence_is_new=span.is_new
                )
        self._settle_fresh(done, evidence_is_new=span.is_new)
        out.judged_walks += (walk for walk in done.same if walk not in self._ahead)
        for code, category in CATEGORIES.items():
            out.by_category[category] += done.categories[code]
        out.bytes_read += done.bytes_read

    def _settle_fresh(self, done: SpanDone, *, evidence_is_new: bool) -> None:
        """Take in rows that were never judged and depend on no other: they have their lines already."""
        out, fresh = self.out, done.fresh
        if not fresh:
            return
        if evidence_is_new:
            out.fresh_found += fresh
        else:
            out.fresh += [(*row[:4], row[5]) for row in fresh]
        out.judged_walks += [row[5] for row in fresh]
        out.shipped_walks[Dataset.RAG] += [row[5] for row in fresh if row[0] == SHIPPED]
        out.shipped_walks[Dataset.SFT] += [row[5] for row in fresh if row[2] == SHIPPED]
        out.newly_judged += len(fresh)
        for dataset, by_code in zip(self._lanes, done.outcomes, strict=True):
            for code, rows in enumerate(by_code):
                out.totals[dataset, "live", code] += rows

    def judge_joined(self) -> None:
        """Judge all rows that joined the batch so far."""
        self._judge_joined(_END)

    def _judge_joined(self, before: int) -> None:
        """Judge the rows that joined the batch and stand before a place."""
        while self._joined and self._joined[0] < before:
            walk = heapq.heappop(self._joined)
            if walk not in self.done:
                row = self.work.row(walk)
                self._judge_once(row, self._judgement(row))

    def _judgement(self, row: WorkRow) -> JudgedRow | FailedRow:
        if row.walk not in self._judged:
            self._judged[row.walk] = self._judge_one(row)
        return self._judged[row.walk]

    def _judge_once(self, row: WorkRow, judged: JudgedRow | FailedRow, *, evidence_is_new: bool = False) -> None:
        if row.walk in self.done:
            return
        if evidence_is_new and isinstance(judged, JudgedRow):
            self.out.found.append((judged.found, row.walk))
            row = row._replace(evidence_found=int(judged.found), evidence_digest=b"" if judged.found else None)
        try:
            if isinstance(judged, FailedRow):
                raise error_of(judged)
            outcomes = self._outcomes(row, judged)
            now = zip((row.rag, row.sft), outcomes, strict=True)
            if self.out.withholds and any(code != SHIPPED and outcome.gate is None for code, outcome in now):
                self._leave(row)
                return
            for displaced in self._displaced_by(row, outcomes):
                # It gets a quarantine row instead, which quotes its text; and in the other dataset it may do the same.
                for other in self._displaced_by(displaced, self._outcomes(displaced, self._checked(displaced))):
                    self._checked(other)
        except (UnreadableError, InputChanged) as error:
            self._out_of_reach(row, error)
            return
        self.done.add(row.walk)
        if self.loose and row.rag is None:
            self._moving |= {each.frozen_id: each for each in self.work.moved_to(row.digest, row.run_id)}
        self._judge_row(row, judged, outcomes)

    def _checked(self, row: WorkRow) -> JudgedRow:
        judged = self._judgement(row)
        if isinstance(judged, FailedRow):
            raise error_of(judged)
        return judged

    def _displaced_by(self, row: WorkRow, outcomes: tuple[Rendered, Rendered]) -> list[WorkRow]:
        """The rows that lose their id to this one in RAG or in SFT."""
        walks = (self._rag.displaced_by(row, outcomes[0]), self._sft.displaced_by(row, outcomes[1]))
        return [self.work.row(walk) for walk in walks if walk is not None]

    def is_done(self, walk: int | None) -> bool:
        """Whether this batch judged the row already."""
        return walk in self.done

    def join(self, walk: int) -> None:
        """Let a row join the batch."""
        heapq.heappush(self._joined, walk)

    def displace(self, walk: int) -> None:
        """Let a row join the batch that another one took the id from: it cannot be left for later."""
        self._displaced.add(walk)
        self.join(walk)

    def wake(self, dataset: Dataset, key: int, after: int) -> None:
        """Let the first row behind ``after`` join the batch that is held because an earlier one had this id."""
        waiter = self.work.waiter_after(dataset, key, after)
        while waiter is not None and waiter in self.done:
            waiter = self.work.waiter_after(dataset, key, waiter)
        if waiter is not None:
            self.join(waiter)

    # lines without a present row

    def take_departures(self, departures: Iterable[Departure]) -> None:
        """Lines whose rows are gone: they leave, unless another row ships the same id."""
        for each in departures:
            if self.out.withholds and not self._forbidden(each.dataset, each.run_id):
                continue  # a row that is yet to be judged may take it over
            self.out.departures.append(each.departure_id)
            self.out.totals[each.dataset, "departing", each.outcome] -= 1
            if each.outcome != SHIPPED:
                if each.dataset is Dataset.PREFERENCE:
                    self.out.changes[each.dataset].drop_held(each.line)
                else:
                    self._lanes[each.dataset].vacate(each)
                continue
            key = each.sample_key or 0
            if each.dataset is Dataset.PREFERENCE:
                self._let_pair_go(each, key)
                continue
            pruned = each.cause == Cause.PRUNED
            revoked = not pruned and self._forbidden(each.dataset, each.run_id)
            cause = Cause.REVOKED if revoked else Cause(each.cause)
            self._lanes[each.dataset].free(key, Recorded(SHIPPED, each.line, each.batch), each.run_id, cause)

    def _let_pair_go(self, each: Departure, key: int) -> None:
        self.out.changes[Dataset.PREFERENCE].drop_key(key, each.line)
        self.out.unadopted.append((Dataset.PREFERENCE, key))
        self.out.withdrawals.append(
            Withdrawal(
                Dataset.PREFERENCE,
                key,
                Cause(each.cause),
                False,
                chosen_run_id=each.run_id,
                rejected_run_id=each.other_run_id,
                shipped_batch=each.batch or None,
            )
        )

    def take_frozen(self, frozen: Iterable[FrozenRow]) -> None:
        """Frozen rows leave when their run is revoked; absent ones also where their line stands once more.

        Where that is yet to be judged, they are left until it is, for it takes their lines over: :meth:`take_moved`.
        """
        left = set(self.out.frozen_left)
        of_run: tuple[str | None, dict[bytes, list[tuple[int, bool]]]] = None, {}
        for row in frozen:
            copies = []
            if row.kind == "absent":
                if of_run[0] != row.run_id:
                    of_run = row.run_id, self.work.rows_of_run(row.run_id) if row.run_id is not None else {}
                copies = self.work.copies(row.digest, row.run_id, of_run[1])
            waits = any(not judged and walk not in self.done for walk, judged in copies)
            self.out.frozen_seen.append(row.frozen_id)
            for dataset, code, line, batch in (
                (Dataset.RAG, row.rag, row.rag_line, row.rag_batch),
                (Dataset.SFT, row.sft, row.sft_line, row.sft_batch),
            ):
                if code is None or line is None or batch is None or (dataset, row.frozen_id) in left:
                    continue
                revoked = code == SHIPPED and self._forbidden(dataset, row.run_id)
                if not revoked and (waits or not copies):
                    continue
                self.out.frozen_left.append((dataset, row.frozen_id))
                self.out.totals[dataset, "frozen", code] -= 1
                if code == SHIPPED:
                    cause = Cause.REVOKED if revoked else Cause.DISPLACED
                    self._lanes[dataset].free(row.sample_key or 0, Recorded(SHIPPED, line, batch), row.run_id, cause)
                else:
                    self.out.changes[dataset].drop_held(line)

    def take_moved(self) -> None:
        """Absent rows whose lines were judged elsewhere in this batch leave."""
        self.take_frozen(self._moving.values())

    def finish(self) -> None:
        """Lines that no row took over leave their datasets, and are published."""
        for lane in self._lanes.values():
            lane.finish()

    # one row

    def _out_of_reach(self, row: WorkRow, error: UnreadableError | InputChanged) -> None:
        """A row that needs a file that is not to be had waits as it is; what a verdict forbids leaves all the same.

        Then the row counts as never judged: its quarantine row needs its text.
        """
        if row.walk in self._displaced:
            raise error  # its id is another row's already
        self.out.note_out_of_reach(error)
        self._leave(row)

    def _leave(self, row: WorkRow) -> None:
        out = self.out
        out.rows_to_queue.append(row.walk)
        outcomes = (
            (self._rag, Recorded(row.rag, row.rag_line or b"", row.rag_batch or 0)),
            (self._sft, Recorded(row.sft, row.sft_line or b"", row.sft_batch or 0)),
        )
        if not any(each.code == SHIPPED and self._forbidden(lane.dataset, row.run_id) for lane, each in outcomes):
            return
        self.done.add(row.walk)
        for lane, each in outcomes:
            lane.give_up(row, each)
        out.newly_judged -= 1
        out.rows.append(RowUpdate(None, None, None, None, None, None, row.walk))

    def _outcomes(self, row: WorkRow, judged: JudgedRow) -> tuple[Rendered, Rendered]:
        """What becomes of a row in RAG and in SFT; nothing follows from it yet."""
        return self._rag.outcome(row, judged.rag), self._sft.outcome(row, judged.sft)

    def _judge_row(self, row: WorkRow, judged: JudgedRow, outcomes: tuple[Rendered, Rendered]) -> None:
        out = self.out
        out.judged_walks.append(row.walk)
        if row.rag is None:
            out.newly_judged += 1
            in_rag = in_sft = _NEVER
        else:
            in_rag = Recorded(row.rag, row.rag_line or b"", row.rag_batch or 0)
            in_sft = Recorded(row.sft, row.sft_line or b"", row.sft_batch or 0)
        if judged.category is not None:
            out.by_category[judged.category] += 1
        now_rag = self._rag.settle(row, in_rag, outcomes[0])
        now_sft = self._sft.settle(row, in_sft, outcomes[1])
        if now_rag is not in_rag or now_sft is not in_sft:
            out.rows.append(
                RowUpdate(
                    now_rag.code or 0,
                    now_rag.line,
                    now_rag.batch,
                    now_sft.code or 0,
                    now_sft.line,
                    now_sft.batch,
                    row.walk,
                )
            )

    def verdict_in(self, dataset: Dataset, run_id: str) -> Category | None:
        """The verdict in force for a run in a dataset."""
        in_rag, in_sft, _ = self.work.verdicts(run_id, self.options)
        return in_rag if dataset is Dataset.RAG else in_sft

    def _forbidden(self, dataset: Dataset, run_id: str | None) -> bool:
        if run_id is None or not self.options.revoke:
            return False
        verdict = self.verdict_in(dataset, run_id)
        return verdict is not None and self.options.forbids(dataset, verdict)
