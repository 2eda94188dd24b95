"""One dataset's side of a batch: who holds which id, which lines came free, and what a row's outcome changes."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from distilld.core.decisions import Decisions, Withdrawal
from distilld.core.line_facts import DUPLICATE, REASON_CODES, SHIPPED
from distilld.core.model import Category, Cause, Dataset, Options, Verdict
from distilld.core.outcome import Rendered
from distilld.lake.lines import digest_of
from distilld.store.loose_lines import Departure, Standing
from distilld.store.work import Work, WorkRow

_WAITS_FOR_ID: Final = frozenset({"duplicate", "shape", "source_files", "schema"})
"""The gates whose word may change with who ships the id: the one for ids, and those behind it."""
_NEEDS_EVIDENCE: Final = frozenset({"evidence", "content", "shape", "schema"})


class Recorded(NamedTuple):
    """What was recorded of a row in a dataset; ``code`` is None where it was never judged."""

    code: int | None
    line: bytes
    batch: int


class _Freed(NamedTuple):
    """A line whose row gave its id up in this batch; another row may still take the line over."""

    line: bytes
    batch: int
    withdrawal: Withdrawal


class Turns(Protocol):
    """What a lane asks of who judges the rows of the batch, and tells it."""

    work: Work
    options: Options
    out: Decisions
    options_changed: bool
    loose: bool

    def is_done(self, walk: int | None) -> bool:
        """Whether this batch judged the row already."""

    def join(self, walk: int) -> None:
        """Let a row join the batch."""

    def displace(self, walk: int) -> None:
        """Let a row join the batch that another one took the id from: it cannot be left for later."""

    def wake(self, dataset: Dataset, key: int, after: int) -> None:
        """Let the first row behind ``after`` join the batch that is held because an earlier one had this id."""

    def verdict_in(self, dataset: Dataset, run_id: str) -> Category | None:
        """Return the verdict in force for a run in a dataset."""


class Lane:
    """One dataset's side of a batch: who holds which id, which lines came free."""

    def __init__(self, judge: Turns, dataset: Dataset, *, kept_bit: int) -> None:
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
            cause = Cause.LOST if lost else self._cause_of_hold(row, hold)
            self.free(key, recorded, row.run_id, cause, contested=row.contested)

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

    def free(self, key: int, recorded: Recorded, run_id: str | None, cause: Cause, *, contested: bool = True) -> None:
        """A line is without its row: it leaves unless another row ships the id, and who waits for the id joins.

        Where its row is not ``contested``, no other has the id.
        """
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
        if contested:
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
        if hold.gate == "over_limit":
            return Cause.DISPLACED
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
