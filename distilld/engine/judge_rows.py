"""Scored rows become outcomes in RAG and SFT, and outcomes become changes.

Rows are judged in walk order. An id belongs to the first row that passes the gates; a row that is displaced, or that
waits for an id which came free, joins the batch. A line is rewritten only if its content, timestamps aside, changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable
from typing import IO, Final, NamedTuple

from distilld.core.decisions import Decisions, RowUpdate, Withdrawal
from distilld.core.line_facts import CATEGORIES, DUPLICATE, REASON_CODES, SHIPPED
from distilld.core.model import Category, Cause, Dataset, InputChanged, MarkedLines, Options, UnreadableError, Verdict
from distilld.core.outcome import Rendered
from distilld.engine.judge_span import FailedRow, JudgedRow, Part, SpanDone, error_of
from distilld.engine.span_queue import QueuedSpan
from distilld.lake.lines import digest_of
from distilld.store.work import Departure, FrozenRow, Standing, Work, WorkRow

_WAITS_FOR_ID: Final = frozenset({"duplicate", "shape", "source_files", "schema"})
"""The gates whose word may change with who ships the id: the one for ids, and those behind it."""
_NEEDS_EVIDENCE: Final = frozenset({"evidence", "content", "shape", "schema"})
_END: Final = 1 << 62


class Recorded(NamedTuple):
    """What was recorded of a row in a dataset; ``code`` is None where it was never judged."""

    code: int | None
    line: bytes
    batch: int


_NEVER: Final = Recorded(None, b"", 0)


class _Freed(NamedTuple):
    """A line whose row gave its id up in this batch; another row may still take the line over."""

    line: bytes
    batch: int
    withdrawal: Withdrawal


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
        self._rag = _Lane(self, Dataset.RAG, kept_bit=1)
        self._sft = _Lane(self, Dataset.SFT, kept_bit=2)
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
                if isinstance(item.content, int):
                    assert file is not None  # noqa: S101  it says where in the file
                    streams[item.stream].add_part(file.fileno(), item.offset, item.content, item.marks)
                else:
                    streams[item.stream].add_piece(MarkedLines(item.content, item.marks))
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
            for displaced in self._displaced_by(row, outcomes):
                # It gets a quarantine row instead, which quotes its text; and in the other dataset it may do the same.
                for other in self._displaced_by(displaced, self._outcomes(displaced, self._checked(displaced))):
                    self._checked(other)
        except (UnreadableError, InputChanged) as error:
            self._out_of_reach(row, error)
            return
        self.done.add(row.walk)
        if self.loose and row.rag is None:
            self._moving |= {each.frozen_id: each for each in self.work.moved_to(row)}
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
        for row in frozen:
            copies = self.work.copies(row.digest, row.run_id) if row.kind == "absent" else []
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
        out = self.out
        out.note_out_of_reach(error)
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


class _Lane:
    """One dataset's side of a batch: who holds which id, which lines came free."""

    def __init__(self, judge: RowJudge, dataset: Dataset, *, kept_bit: int) -> None:
        self._judge = judge
        self.dataset = self._dataset = dataset
        self._kept_bit = kept_bit
        self._out = judge.out
        self._changes = judge.out.changes[dataset]
        self._shipped_walks = judge.out.shipped_walks[dataset]
        self._stamps: dict[int, str] = {}
        self._taken: dict[int, int | None] = {}
        """Who holds an id as of now, where this batch decided it; None where the id is free."""
        self._shipped_now: set[int] = set()
        self._freed: dict[int, _Freed] = {}
        self._held_now: dict[int, list[int]] = {}
        """Rows that this batch held at the gate for ids or behind it, by id."""
        self._vacant: dict[tuple[int | None, int | None], Departure] = {}
        """Quarantine lines whose rows are gone, by partition and line: the row there now may come to the same."""

    def outcome(self, row: WorkRow, judged: tuple[Rendered, Rendered | None]) -> Rendered:
        """What becomes of a row, by who has its id as of now."""
        free, taken = judged
        holder = self._holder(row)
        if taken is not None and holder is not None and holder < row.walk:
            return taken
        if taken is not None and free.gate is None and holder is None and self._judge.is_done(self._kept_holder(row)):
            # Who is kept with this id was judged before, in this batch: it gives the id up in the next one.
            self._out.rows_to_queue.append(row.walk)
            return taken
        return free

    def displaced_by(self, row: WorkRow, outcome: Rendered) -> int | None:
        """The row that loses its id to this one."""
        if outcome.gate is not None:
            return None
        holder = self._holder(row)
        if holder is None:
            return self._kept_holder(row)
        return holder if holder > row.walk else None

    def settle(self, row: WorkRow, recorded: Recorded, outcome: Rendered) -> Recorded:
        """Turn an outcome into changes; returns what is recorded of the row from now on."""
        if outcome.gate is None:
            settled = self._ship(row, recorded, outcome)
        else:
            if self._stays_as_it_is(row, recorded, outcome):
                self._pass_on(row, recorded)
                return recorded
            settled = self._hold(row, recorded, outcome)
        if recorded.code != settled.code:
            totals = self._out.totals
            if recorded.code is not None:
                totals[self._dataset, "live", recorded.code] -= 1
            totals[self._dataset, "live", settled.code or 0] += 1
        return settled

    def _holder(self, row: WorkRow) -> int | None:
        """The row that ships the id, on evidence that is there; None where the id is free for any present row."""
        key = row.sample_key
        if key in self._taken:
            return self._taken[key]
        holder = row.rag_holder if self._dataset is Dataset.RAG else row.sft_holder
        return holder if holder is not None and holder > 0 else None

    def _kept_holder(self, row: WorkRow) -> int | None:
        """The row that ships the id without its evidence, absent, vanished or gone: any other may take it."""
        if row.sample_key in self._taken:
            return None
        holder = row.rag_holder if self._dataset is Dataset.RAG else row.sft_holder
        return -holder if holder is not None and holder < 0 and -holder != row.walk else None

    def _stays_as_it_is(self, row: WorkRow, recorded: Recorded, outcome: Rendered) -> bool:
        """Whether the row stands on absent evidence and keeps its outcome: a shipped one until another ships its id."""
        if recorded.code is None or not self._is_frozen(row, outcome):
            return False
        if self._changes.is_missing(recorded.code, recorded.line):
            return False
        return recorded.code != SHIPPED or self._holder(row) is None

    def _pass_on(self, row: WorkRow, recorded: Recorded) -> None:
        """A row that waited for an id and does not take it, or has it but is only kept: the next one may take it."""
        if recorded.code in (DUPLICATE, SHIPPED) and row.sample_key is not None and self._holder(row) is None:
            self._judge.wake(self._dataset, row.sample_key, row.walk if recorded.code == DUPLICATE else -1)

    def _is_frozen(self, row: WorkRow, outcome: Rendered) -> bool:
        """Whether the evidence is absent, not gone: then what became of the row stays as it is (SPEC 3)."""
        absent = row.evidence_digest is not None and not row.evidence_found
        return outcome.gate == "evidence" and (absent or bool(row.kept & self._kept_bit))

    def _ship(self, row: WorkRow, recorded: Recorded, ship: Rendered) -> Recorded:
        key = row.sample_key or 0
        holder, displaced = self._holder(row), self.displaced_by(row, ship)
        if displaced is not None:
            self._judge.displace(displaced)
        # Who has it again on evidence that came back was passed by in the meantime.
        if holder != row.walk or row.evidence_changed:
            self._let_wait(key, row.walk, contested=row.contested)
        standing = self._standing(row, recorded, key, displaced if holder is None else holder)
        if recorded.code is not None and recorded.code != SHIPPED:
            self._changes.drop_held(recorded.line)
        self._taken[key] = row.walk
        self._shipped_now.add(key)
        if standing is not None:
            stamped = self._stamped(key, ship, standing.batch)
            if digest_of(stamped) == standing.line:
                self._changes.adopted += standing.batch == 0 and standing is not recorded
                self._changes.keep_shipped(standing.line, stamped)
                return standing
            self._changes.drop_key(key, standing.line)
            self._out.unadopted.append((self._dataset, key))
            cause = self._cause_of_change(row, own=standing is recorded)
            self._out.withdrawals.append(
                Withdrawal(
                    self._dataset, key, cause, True, source_run_id=row.run_id, shipped_batch=standing.batch or None
                )
            )
        line = ship.line(self._out.recorded_at)
        self._changes.shipped.add(line)
        self._shipped_walks.append(row.walk)
        return Recorded(SHIPPED, digest_of(line), self._out.sequence)

    def _let_wait(self, key: int, walk: int, *, contested: bool) -> None:
        """An id goes to the row at ``walk``: rows behind it that a later gate holds are duplicates from now on."""
        if contested:
            for waiter in self._judge.work.behind(self._dataset, key, walk):
                self._judge.join(waiter)
        self._look_again(key, walk)

    def _look_again(self, key: int, after: int) -> None:
        """Rows behind ``after`` that this batch has judged already are judged again in the next one."""
        if key in self._held_now:
            self._out.rows_to_queue += [walk for walk in self._held_now[key] if walk > after]

    def _standing(self, row: WorkRow, recorded: Recorded, key: int, holder: int | None) -> Recorded | None:
        """The line that this id has now, whoever's it was; it passes to the row."""
        freed = self._freed.pop(key, None) if self._freed else None
        if freed is not None:
            return Recorded(SHIPPED, freed.line, freed.batch)
        if holder == row.walk:
            return recorded if recorded.code == SHIPPED else None
        if holder is not None:
            other = self._judge.work.row(holder)
            self._out.released[self._dataset].append(holder)
            return self._recorded(other)
        if self._judge.loose:
            loose = self._judge.work.frozen_standing(self._dataset, key)
            if loose is not None:
                return self._take_loose(loose)
        return None

    def _recorded(self, row: WorkRow) -> Recorded:
        if self._dataset is Dataset.RAG:
            return Recorded(row.rag, row.rag_line or b"", row.rag_batch or 0)
        return Recorded(row.sft, row.sft_line or b"", row.sft_batch or 0)

    def _take_loose(self, loose: Standing) -> Recorded:
        if loose.owner == "frozen":
            self._out.frozen_left.append((self._dataset, loose.owner_id))
            self._out.totals[self._dataset, "frozen", SHIPPED] -= 1
        else:
            self._out.departures.append(loose.owner_id)
            self._out.totals[self._dataset, "departing", SHIPPED] -= 1
        return Recorded(SHIPPED, loose.line, loose.batch)

    def _hold(self, row: WorkRow, recorded: Recorded, hold: Rendered) -> Recorded:
        assert hold.reason is not None  # noqa: S101  what holds a row gives a reason
        code = REASON_CODES[hold.reason]
        key = row.sample_key
        if key is not None and hold.gate in _WAITS_FOR_ID:
            self._held_now.setdefault(key, []).append(row.walk)
        if recorded.code is not None and recorded.code != SHIPPED:
            self._pass_on(row, recorded)
            stamped = hold.line(self._stamp(recorded.batch))
            if digest_of(stamped) == recorded.line:
                self._changes.keep_held(recorded.line, stamped)
                return recorded if recorded.code == code else Recorded(code, recorded.line, recorded.batch)
            self._changes.drop_held(recorded.line)
        if recorded.code is None and self._vacant:
            taken = self._take_vacant(row, code, hold)
            if taken is not None:
                return taken
        line = hold.line(self._out.recorded_at)
        self._changes.held.add(line)
        if recorded.code == SHIPPED and key is not None:
            self._release(row, recorded, key, hold)
        return Recorded(code, digest_of(line), self._out.sequence)

    def vacate(self, departure: Departure) -> None:
        """A held row is gone; its quarantine line leaves, unless the row in its place comes to the very same."""
        before = self._vacant.pop((departure.partition_id, departure.row_line), None)
        if before is not None:
            self._changes.drop_held(before.line)
        self._vacant[departure.partition_id, departure.row_line] = departure

    def _take_vacant(self, row: WorkRow, code: int, hold: Rendered) -> Recorded | None:
        place = self._judge.work.place(row.walk)
        left = self._vacant.get((place.partition_id, row.walk - place.base))
        if left is None or left.outcome != code:
            return None
        stamped = hold.line(self._stamp(left.batch))
        if digest_of(stamped) != left.line:
            return None
        del self._vacant[left.partition_id, left.row_line]
        self._changes.keep_held(left.line, stamped)
        return Recorded(code, left.line, left.batch)

    def _release(self, row: WorkRow, recorded: Recorded, key: int, hold: Rendered) -> None:
        """A row that shipped ships no more; if no other row took its id in this batch, the line is free."""
        self._out.released[self._dataset].append(row.walk)
        if key not in self._shipped_now:
            lost = self._changes.is_missing(SHIPPED, recorded.line) and self._is_frozen(row, hold)
            self.free(key, recorded, row.run_id, Cause.LOST if lost else self._cause_of_hold(row, hold))

    def give_up(self, row: WorkRow, recorded: Recorded) -> None:
        """What became of a row is taken back, as if it had never been judged."""
        if recorded.code is None:
            return
        self._out.totals[self._dataset, "live", recorded.code] -= 1
        if recorded.code != SHIPPED:
            self._changes.drop_held(recorded.line)
            return
        self._out.released[self._dataset].append(row.walk)
        revoked = self._judge.verdict_in(self._dataset, row.run_id or "")
        forbidden = revoked is not None and self._judge.options.forbids(self._dataset, revoked)
        self.free(row.sample_key or 0, recorded, row.run_id, Cause.REVOKED if forbidden else Cause.UNDONE)

    def free(self, key: int, recorded: Recorded, run_id: str | None, cause: Cause) -> None:
        """A line is without its row: it leaves unless another row ships the id, and who waits for the id joins."""
        verdict: Verdict | None = None
        if cause is Cause.REVOKED and run_id is not None:
            category = self._judge.verdict_in(self._dataset, run_id)
            verdict = self._judge.work.verdict_place(run_id, category) if category else None
        withdrawal = Withdrawal(
            self._dataset,
            key,
            cause,
            False,
            source_run_id=run_id,
            verdict=verdict,
            shipped_batch=recorded.batch or None,
        )
        self._taken[key] = None
        self._freed[key] = _Freed(recorded.line, recorded.batch, withdrawal)
        self._judge.wake(self._dataset, key, -1)
        self._look_again(key, -1)

    def finish(self) -> None:
        """What is still free leaves."""
        for left in self._vacant.values():
            self._changes.drop_held(left.line)
        for key, freed in self._freed.items():
            self._changes.drop_key(key, freed.line)
            self._out.withdrawals.append(freed.withdrawal)
            self._out.unadopted.append((self._dataset, key))

    def _cause_of_hold(self, row: WorkRow, hold: Rendered) -> Cause:
        if hold.gate == "revoked":
            return Cause.REVOKED
        if row.evidence_changed and hold.gate in _NEEDS_EVIDENCE:
            return Cause.EVIDENCE_CHANGED
        if hold.gate == "duplicate":
            return Cause.DISPLACED
        if self._judge.options_changed:
            return Cause.OPTIONS_CHANGED
        return Cause.EVIDENCE_CHANGED if row.evidence_changed else Cause.UNDONE

    def _cause_of_change(self, row: WorkRow, *, own: bool) -> Cause:
        if not own:
            return Cause.DISPLACED
        if self._judge.options_changed and not row.evidence_changed:
            return Cause.OPTIONS_CHANGED
        return Cause.EVIDENCE_CHANGED

    def _stamped(self, key: int, ship: Rendered, batch: int) -> bytes:
        if batch == 0:
            adopted = self._judge.work.adopted(self._dataset, key)
            return ship.line(*adopted) if adopted else b""
        return ship.line(self._stamp(batch))

    def _stamp(self, batch: int) -> str:
        if batch not in self._stamps:
            self._stamps |= self._judge.work.stamps([batch])
        # A line that stood before this store was: its time is not known, and it is not taken for another's.
        return self._stamps.get(batch, "")
