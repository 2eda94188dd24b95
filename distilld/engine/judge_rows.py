"""Decide the outcomes of scored rows in RAG and SFT, and the changes that follow from them.

Rows are judged in walk order. An id belongs to the first row that passes the gates. A row that is displaced, or that
waits for a freed id, joins the batch. A line is rewritten only if its content, timestamps aside, changed.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from distilld.core.line_facts import CATEGORIES, EXPORTED
from distilld.core.model import Dataset, InputChanged, Options, UnreadableError
from distilld.core.outcome import Outcome
from distilld.engine.lane import Lane
from distilld.engine.loose_rows import LooseRows
from distilld.engine.row_batch import RowBatch
from distilld.engine.span_queue import QueuedSpan
from distilld.engine.spans import FailedRow, JudgedRow, Part, SpanDone
from distilld.files.spool import SharedFile
from distilld.store.decisions import Decisions, RowUpdate
from distilld.store.work import Work, WorkRow

_END: Final = 1 << 62


class RowJudge:
    """Judges the rows of one batch and adds the changes to its decisions."""

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
        self._work = work
        self._out = decisions
        self._batch = RowBatch(work, options, decisions, options_changed=options_changed)
        self.done = self._batch.done
        self._judge_one = judge_one
        self._ahead = ahead
        self._judged: dict[int, JudgedRow | FailedRow] = {}
        """The results of rows that may be displaced, until they are."""
        self._rag = Lane(self._batch, Dataset.RAG)
        self._sft = Lane(self._batch, Dataset.SFT)
        self._lanes = {Dataset.RAG: self._rag, Dataset.SFT: self._sft}
        self.loose_rows = LooseRows(self._batch, self._lanes)

    # the order of work

    def settle(self, span: QueuedSpan, done: SpanDone, file: SharedFile | None) -> None:
        """Settle the results of a span, in walk order."""
        out = self._out
        streams = (
            out.changes[Dataset.RAG].exported.lines, out.changes[Dataset.RAG].quarantined.lines,
            out.changes[Dataset.SFT].exported.lines, out.changes[Dataset.SFT].quarantined.lines,
        )  # fmt: skip
        for item in done.items:
            if isinstance(item, Part):
                item.put_into(streams[item.stream], file)
            elif item.walk not in self._ahead:
                self.judge_joined(item.walk)
                row = span.rows.get(item.walk)
                self._judge_once(
                    self._work.row(item.walk) if row is None else row.alone(), item, evidence_is_new=span.is_new
                )
        self._settle_fresh(done, evidence_is_new=span.is_new)
        out.judged_walks += (walk for walk in done.same if walk not in self._ahead)
        for code, category in CATEGORIES.items():
            out.by_category[category] += done.categories[code]
        out.bytes_read += done.bytes_read

    def _settle_fresh(self, done: SpanDone, *, evidence_is_new: bool) -> None:
        """Settle rows that were never judged and depend on no other row: their lines are already finished."""
        out, fresh = self._out, done.fresh
        if not fresh:
            return
        if evidence_is_new:
            out.fresh_found += fresh
        else:
            out.fresh += [(*row[:4], row[5]) for row in fresh]
        out.judged_walks += [row[5] for row in fresh]
        out.exported_walks[Dataset.RAG] += [row[5] for row in fresh if row[0] == EXPORTED]
        out.exported_walks[Dataset.SFT] += [row[5] for row in fresh if row[2] == EXPORTED]
        out.newly_judged += len(fresh)
        for dataset, by_code in zip(self._lanes, done.outcomes, strict=True):
            for code, rows in enumerate(by_code):
                out.totals[dataset, "live", code] += rows

    def judge_joined(self, before: int = _END) -> None:
        """Judge the rows that have joined the batch so far and come before a place."""
        while (walk := self._batch.next_joined(before)) is not None:
            row = self._work.row(walk)
            self._judge_once(row, self._judgement(row))

    def judge_rest(self) -> None:
        """Judge all rows that have joined; let absent rows go whose lines were judged, for which others may join."""
        self.judge_joined()
        while self.loose_rows.take_moved():
            self.judge_joined()

    def finish(self) -> None:
        """Remove the lines that no row took over, and publish the withdrawals."""
        for lane in self._lanes.values():
            lane.freed.finish()

    # one row

    def _judgement(self, row: WorkRow) -> JudgedRow | FailedRow:
        if row.walk not in self._judged:
            self._judged[row.walk] = self._judge_one(row)
        return self._judged[row.walk]

    def _judge_once(self, row: WorkRow, judged: JudgedRow | FailedRow, *, evidence_is_new: bool = False) -> None:
        if row.walk in self.done:
            return
        if evidence_is_new and isinstance(judged, JudgedRow):
            self._out.found.append((judged.found, row.walk))
            row = row._replace(evidence_found=int(judged.found), evidence_digest=b"" if judged.found else None)
        try:
            if isinstance(judged, FailedRow):
                raise judged.failure.error()
            outcomes = self._outcomes(row, judged)
            for displaced in self._displaced_by(row, outcomes):
                # Its quarantine row needs its text, so read it now; in the other dataset it may displace another row.
                for other in self._displaced_by(displaced, self._outcomes(displaced, self._checked(displaced))):
                    self._checked(other)
        except (UnreadableError, InputChanged) as error:
            self._out_of_reach(row, error)
            return
        self.done.add(row.walk)
        if self._batch.has_loose_lines and (row.rag is None or row.sft is None):
            self.loose_rows.note_judged(row)
        self._settle(row, judged, outcomes)

    def _checked(self, row: WorkRow) -> JudgedRow:
        judged = self._judgement(row)
        if isinstance(judged, FailedRow):
            raise judged.failure.error()
        return judged

    def _displaced_by(self, row: WorkRow, outcomes: tuple[Outcome, Outcome]) -> list[WorkRow]:
        """Return the rows that lose their id to this one in RAG or in SFT."""
        walks = (self._rag.displaced_by(row, outcomes[0]), self._sft.displaced_by(row, outcomes[1]))
        return [self._work.row(walk) for walk in walks if walk is not None]

    def _out_of_reach(self, row: WorkRow, error: UnreadableError | InputChanged) -> None:
        """Leave a row as it is until its file can be read; withdraw it all the same where a verdict forbids it.

        It has no outcome there then: its quarantine row needs its text.
        """
        if row.walk in self._batch.displaced:
            raise error  # its id is another row's already
        out = self._out
        out.note_out_of_reach(error)
        out.rows_to_queue.append(row.walk)
        update = RowUpdate(row.rag, row.rag_line, row.rag_batch, row.sft, row.sft_line, row.sft_batch, row.walk)
        for dataset, lane in self._lanes.items():
            if row.recorded(dataset).code == EXPORTED and self._batch.forbids(dataset, row.run_id):
                lane.give_up(row)
                update = update.without(dataset)
                out.newly_judged -= dataset is Dataset.RAG
                self.done.add(row.walk)
        if row.walk in self.done:
            out.rows.append(update)

    def _outcomes(self, row: WorkRow, judged: JudgedRow) -> tuple[Outcome, Outcome]:
        """Return the outcomes of a row in RAG and in SFT, without recording them."""
        return self._rag.outcome(row, judged.rag), self._sft.outcome(row, judged.sft)

    def _settle(self, row: WorkRow, judged: JudgedRow, outcomes: tuple[Outcome, Outcome]) -> None:
        out = self._out
        out.judged_walks.append(row.walk)
        out.newly_judged += row.rag is None
        in_rag, in_sft = row.recorded(Dataset.RAG), row.recorded(Dataset.SFT)
        if judged.category is not None:
            out.by_category[judged.category] += 1
        now_rag = self._rag.settle(row, in_rag, outcomes[0])
        now_sft = self._sft.settle(row, in_sft, outcomes[1])
        if now_rag is not in_rag or now_sft is not in_sft:
            codes = now_rag.code or 0, now_sft.code or 0
            out.rows.append(
                RowUpdate(codes[0], now_rag.line, now_rag.batch, codes[1], now_sft.line, now_sft.batch, row.walk)
            )
