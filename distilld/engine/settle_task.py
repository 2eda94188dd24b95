"""Settle one task's pairs: match the pairs that it forms now with those recorded, and derive the changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from distilld.core.line_facts import DUPLICATE, EXPORTED, REASON_CODES
from distilld.core.model import Cause, Dataset, Reason
from distilld.core.outcome import Outcome
from distilld.engine.judge_task import JudgedPair
from distilld.engine.pair_jobs import AskedTask, FormedPair
from distilld.engine.pair_lane import PairLane
from distilld.store.decisions import PairRow
from distilld.store.tasks import WorkPair
from distilld.store.work import Recorded

_PREFERENCE: Final = Dataset.PREFERENCE
_SCHEMA_VIOLATION: Final = REASON_CODES[Reason.SCHEMA_VIOLATION]


class TaskPairs:
    """The pairs of one task."""

    def __init__(self, lane: PairLane, task: AskedTask) -> None:
        self._lane = lane
        self._out = lane.out
        self._task = task
        self._task_id = task.order.task_id
        self._unmatched = {pair.pair_id: pair for pair in task.recorded}
        self._touched: set[str] = set()
        """Tasks whose ids may change because of this one."""

    def settle(self, judged: Sequence[JudgedPair]) -> set[str]:
        """Settle the pairs that the task forms now; return the other tasks whose ids may change because of it."""
        live = [pair for pair in self._task.recorded if pair.retained is None]
        formed = [self._judge(slot, *each) for slot, each in enumerate(zip(self._task.formed, judged, strict=True))]
        for pair in self._unmatched.values():
            self._let_go(pair)
        self._record(live, formed)
        return self._touched - {self._task_id}

    def let_forbidden_go(self) -> set[str]:
        """Withdraw pairs that a verdict overrules, if the task cannot be formed; return as :meth:`settle`."""
        for pair in self._task.recorded:
            if pair.outcome == EXPORTED and self._lane.overruled(pair):
                if pair.retained is None:
                    self._out.dropped_pairs.append(pair.pair_id)
                self._let_go(pair)
        return self._touched - {self._task_id}

    def _record(self, live: list[WorkPair], formed: list[PairRow]) -> None:
        if [pair[2:] for pair in live] == formed:
            return
        retained = set(self._out.retained_pairs)
        self._out.dropped_pairs += [pair.pair_id for pair in live if pair.pair_id not in retained]
        self._out.pairs += formed

    # one pair

    def _judge(self, slot: int, pair: FormedPair, judged: JudgedPair) -> PairRow:
        chosen, rejected, key = pair
        run_ids = chosen.run_id, rejected.run_id
        others = self._others(key)
        taken = key in self._lane.exported or self._taken_earlier(others)
        outcome = judged.taken if taken and judged.taken is not None else judged.free
        settled = self._export(key, outcome, others) if outcome.gate is None else self._quarantine(outcome, run_ids)
        return PairRow(
            self._task_id, slot, *run_ids, rejected.category, chosen.partition_id, rejected.partition_id, key,
            settled.code or 0, settled.line, settled.batch,
        )  # fmt: skip

    def _others(self, key: int) -> list[WorkPair]:
        """Return other tasks' recorded pairs with this id (names with '|' can share one), as this batch leaves them."""
        return [
            pair._replace(retained="absent") if pair.pair_id in self._out.retained_pairs else pair
            for pair in self._task.others.get(key, [])
            if pair.task_id != self._task_id and pair.pair_id not in self._out.dropped_pairs
        ]

    def _taken_earlier(self, others: list[WorkPair]) -> bool:
        """Return whether a pair of an earlier task holds this id; a retained pair gives it up to any present one."""
        return any(
            pair.outcome == EXPORTED and pair.retained is None and self._lane.is_earlier(pair.task_id, self._task_id)
            for pair in others
        )

    def _export(self, key: int, exported: Outcome, others: list[WorkPair]) -> Recorded:
        lane = self._lane
        lane.exported.add(key)
        self._out.totals[_PREFERENCE, "live", EXPORTED] += 1
        standing, cause = self._standing(key, others)
        self._touched.update(pair.task_id for pair in others if self._is_out_of_turn(pair))
        if standing is not None:
            recorded = Recorded(EXPORTED, standing.line, standing.batch)
            if lane.lines.keep(recorded, exported, key):
                lane.changes.exported.adopted += standing.batch == 0 and standing.retained is not None
                return recorded
            lane.lines.take_out(standing.line, key)
            lane.publish(standing, cause, replaced=True)
        return lane.lines.write(EXPORTED, exported)

    def _is_out_of_turn(self, pair: WorkPair) -> bool:
        """Return whether a pair was judged when its task and this one, which holds its id, were in the other order.

        A pair of an earlier task may not wait; one of a later task is a duplicate before its schema counts.
        """
        if pair.retained is not None or pair.outcome not in (DUPLICATE, _SCHEMA_VIOLATION):
            return False
        return self._lane.is_earlier(pair.task_id, self._task_id) == (pair.outcome == DUPLICATE)

    def _standing(self, key: int, others: list[WorkPair]) -> tuple[WorkPair | None, Cause]:
        """Return the recorded pair whose line this id has now, and why it gives the line up to the exported pair."""
        for pair in self._unmatched.values():
            if pair.sample_key == key and pair.outcome == EXPORTED:
                self._match(pair)
                return pair, self._lane.change
        freed = self._lane.take_freed(key)
        if freed is not None:
            return freed, Cause.DISPLACED
        for pair in others:
            if pair.outcome == EXPORTED:
                self._lane.drop_totals(pair)
                self._out.dropped_pairs.append(pair.pair_id)
                self._lane.moved_on.add(pair.pair_id)
                if pair.retained is None:
                    self._touched.add(pair.task_id)
                return pair, Cause.DISPLACED
        return None, self._lane.change

    def _match(self, pair: WorkPair) -> None:
        """Mark a recorded pair as one that is formed now."""
        del self._unmatched[pair.pair_id]
        self._lane.drop_totals(pair)
        if pair.retained is not None:
            self._out.dropped_pairs.append(pair.pair_id)

    def _quarantine(self, quarantined: Outcome, run_ids: tuple[str, str]) -> Recorded:
        assert quarantined.reason is not None  # noqa: S101  a quarantined pair has a reason
        code = REASON_CODES[quarantined.reason]
        self._out.totals[_PREFERENCE, "live", code] += 1
        for pair in self._unmatched.values():
            same = (pair.chosen_run_id, pair.rejected_run_id, pair.outcome) == (*run_ids, code)
            recorded = Recorded(code, pair.line, pair.batch)
            # A recorded pair with an absent side is another pair, even with an equal line: it stays.
            if same and not self._lane.is_absent(pair) and self._lane.lines.keep(recorded, quarantined):
                self._match(pair)
                return recorded
        return self._lane.lines.write(code, quarantined)

    # a pair that is no longer formed

    def _let_go(self, pair: WorkPair) -> None:
        """Withdraw or retain a recorded pair that the task's present rows do not form (SPEC 3)."""
        lane = self._lane
        if pair.pair_id in lane.moved_on:
            return
        overruled = lane.overruled(pair)
        kept = pair.retained in ("vanished", "orphan") or lane.is_absent(pair)
        # A line that a damaged file lost cannot be written again without its rows.
        lost = kept and lane.changes.is_missing(pair.outcome, pair.line)
        if kept and not lost and (pair.outcome != EXPORTED or not overruled):
            if pair.retained is None:
                self._out.retained_pairs.append(pair.pair_id)
                lane.drop_totals(pair)
                self._out.totals[_PREFERENCE, "retained", pair.outcome] += 1
            if pair.outcome == EXPORTED:
                self._touched.update(lane.waiting_for(pair.sample_key))
            return
        if pair.retained is not None:
            self._out.dropped_pairs.append(pair.pair_id)
        lane.drop_totals(pair)
        if pair.outcome != EXPORTED:
            lane.changes.quarantined.drop(pair.line)
            return
        cause = Cause.LOST if lost and not overruled else lane.cause(pair, overruled=overruled)
        lane.freed[pair.sample_key] = (pair, cause)
        self._touched.update(lane.waiting_for(pair.sample_key))
