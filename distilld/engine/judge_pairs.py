"""Tasks become preference pairs, and pairs become changes (SPEC 3.3).

The pairs of a task depend on its first five accepted, rejected and partially accepted rows whose evidence is found, so
a touched task is formed anew as a whole and compared with what is recorded of it. Which rows these are is asked for
many tasks at a time; their pairs are judged by workers; the order among the tasks, which decides on ids, is kept here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import IO, Final

from distilld.core.decisions import Decisions, PairRow
from distilld.core.line_facts import DUPLICATE, REASON_CODES, SHIPPED
from distilld.core.model import Cause, Dataset, Options, Reason
from distilld.core.outcome import Rendered
from distilld.engine.jobs import TaskJob
from distilld.engine.judge_task import HELD_PAIRS, SHIPPED_PAIRS, JudgedPair, PlainTasks, TaskDone
from distilld.engine.leaving_pairs import LeavingPairs
from distilld.engine.pair_jobs import AskedTask, FormedPair, PairJobs
from distilld.engine.pool import Done
from distilld.engine.spans import error_of
from distilld.lake.lines import digest_of
from distilld.store.tasks import WorkPair
from distilld.store.work import Work

_PREFERENCE: Final = Dataset.PREFERENCE
_KEY, _OUTCOME = map(PairRow._fields.index, ("sample_key", "outcome"))
_SCHEMA_VIOLATION: Final = REASON_CODES[Reason.SCHEMA_VIOLATION]

Turn = tuple[int, str]
"""A task's place among the tasks: that of its first row, its id."""


class PairJudge:
    """Forms the pairs of one batch's tasks and adds what follows to its decisions."""

    def __init__(
        self,
        work: Work,
        options: Options,
        decisions: Decisions,
        do: Callable[[Iterable[TaskJob]], Iterator[Done[TaskJob]]],
        *,
        options_changed: bool,
    ) -> None:
        """``do`` does jobs, in order, and keeps their files."""
        self._work = work
        self._options = options
        self._out = decisions
        self._jobs = PairJobs(work, options, decisions, do)
        self._options_changed = options_changed
        self._shipped: set[int] = set()
        self._formed: set[int] = set()
        """The ids of all pairs that this batch's tasks formed so far."""
        self._freed: dict[int, tuple[WorkPair, Cause]] = {}
        self._leaving = LeavingPairs(work, options, decisions, options_changed=options_changed)
        self._stamps: dict[int, str] = {}
        self._known: set[str] = set()
        self._touched: list[Turn] = []
        """Tasks that others touched, and whose turn is yet to come."""
        self.left: set[str] = set()
        """Tasks for a later batch: a file of theirs is out of reach, or their turn was over when they were touched."""
        # Pairs whose line another task took over before their own task was formed anew.
        self._moved_on: set[int] = set()

    def judge(self, tasks: Iterable[Turn]) -> None:
        """Form the pairs of these tasks anew, in the order of the tasks' first rows, whose places are given.

        Only in this order is it known whether an earlier pair ships an id, so a task whose turn is over is left.
        """
        first = sorted(tasks)
        self._known = {task_id for _, task_id in first}
        coming = iter(first)
        for some, result, file in self._jobs.judged((task_id for _, task_id in first), plainly=not self._out.withholds):
            turns = list(islice(coming, len(some)))
            if isinstance(result, TaskDone):
                self._settle(turns[0], some[0], result)
            elif not self._take_plain(turns, result, file):
                self._judge_again(turns)
        while self._touched:
            self._judge_touched()
        self._out.tasks.extend(self._known - self.left)
        for pair, cause in self._freed.values():
            self._leaving.withdraw(pair, cause)

    def _judge_again(self, turns: list[Turn]) -> None:
        """Settle tasks one by one that were taken for plain, and are not."""
        coming = iter(turns)
        for (task,), result, _ in self._jobs.judged(task_id for _, task_id in turns):
            assert isinstance(result, TaskDone)  # noqa: S101  none is asked for as a plain one
            self._settle(next(coming), task, result)

    def _judge_touched(self) -> None:
        turn = heapq.heappop(self._touched)
        (task,), result, _ = next(self._jobs.judged([turn[1]]))
        assert isinstance(result, TaskDone)  # noqa: S101  it is not asked for as a plain one
        self._settle(turn, task, result)

    def _settle(self, turn: Turn, task: AskedTask, done: TaskDone) -> None:
        """Settle one task, behind those that were touched and come before it."""
        while self._touched and self._touched[0] < turn:
            self._judge_touched()
        self._out.bytes_read += done.bytes_read
        self._formed.update(pair.key for pair in task.formed)
        if done.failure is not None:
            self._out.note_out_of_reach(error_of(done.failure))
        if done.failure is not None or self._out.withholds:
            self.left.add(turn[1])
            touched = self._let_forbidden_go(task)
        else:
            touched = self._judge_task(task, done.pairs)
        for at in sorted((self._work.first_walk(other), other) for other in touched - self._known):
            if at < turn:
                self.left.add(at[1])
            else:
                self._known.add(at[1])
                heapq.heappush(self._touched, at)

    def _take_plain(self, turns: list[Turn], done: PlainTasks, file: IO[bytes] | None) -> bool:
        """Take in tasks whose lines are finished, all at once; False where an id of theirs is not free after all."""
        keys = [pair[_KEY] for pair in done.pairs]
        formed = set(keys)
        if len(formed) < len(keys) or not formed.isdisjoint(self._formed) or self._work.pairs_with_keys(formed):
            return False
        if self._touched and self._touched[0] < turns[-1]:
            return False
        self._formed |= formed
        out, changes = self._out, self._out.changes[_PREFERENCE]
        out.bytes_read += done.bytes_read
        self._shipped.update([pair[_KEY] for pair in done.pairs if pair[_OUTCOME] == SHIPPED])
        out.pairs += done.pairs
        for code, pairs in enumerate(done.outcomes):
            out.totals[_PREFERENCE, "live", code] += pairs
        streams = {SHIPPED_PAIRS: changes.shipped, HELD_PAIRS: changes.held}
        for part in done.parts:
            part.put_into(streams[part.stream], file)
        return True

    # one task

    def _judge_task(self, task: AskedTask, judged: Sequence[JudgedPair]) -> set[str]:
        """Settle one task's pairs; returns the tasks whose ids that may change."""
        task_id = task.order.task_id
        live = [pair for pair in task.recorded if pair.frozen is None]
        touched: set[str] = set()
        unmatched = {pair.pair_id: pair for pair in task.recorded}
        formed: list[PairRow] = []
        for slot, (now, outcomes) in enumerate(zip(task.formed, judged, strict=True)):
            others = self._others(task_id, task.others.get(now.key, []))
            formed.append(self._judge_pair(task_id, slot, now, outcomes, unmatched, others, touched))
        for pair in unmatched.values():
            self._let_go(pair, touched)
        self._record(live, formed)
        return touched - {task_id}

    def _let_forbidden_go(self, task: AskedTask) -> set[str]:
        """Of a task that cannot be formed anew, pairs that a verdict overrules leave; returns as for a whole task."""
        touched: set[str] = set()
        for pair in task.recorded:
            if pair.outcome == SHIPPED and self._leaving.overruled(pair):
                if pair.frozen is None:
                    self._out.dropped_pairs.append(pair.pair_id)
                self._let_go(pair, touched)
        return touched - {task.order.task_id}

    def _record(self, live: list[WorkPair], formed: list[PairRow]) -> None:
        kept = [
            (pair.task_id, pair.slot, pair.chosen_run_id, pair.rejected_run_id, pair.rejected_category,
             pair.chosen_partition, pair.rejected_partition, pair.sample_key, pair.outcome, pair.line, pair.batch)
            for pair in live
        ]  # fmt: skip
        if kept == [tuple(pair) for pair in formed]:
            return
        frozen = set(self._out.frozen_pairs)
        self._out.dropped_pairs += [pair.pair_id for pair in live if pair.pair_id not in frozen]
        self._out.pairs += formed

    # one pair

    def _judge_pair(
        self,
        task_id: str,
        slot: int,
        pair: FormedPair,
        judged: JudgedPair,
        unmatched: dict[int, WorkPair],
        others: list[WorkPair],
        touched: set[str],
    ) -> PairRow:
        chosen, rejected, key = pair
        run_ids = chosen.run_id, rejected.run_id
        taken = key in self._shipped or self._held_earlier(task_id, others)
        outcome = judged.taken if taken and judged.taken is not None else judged.free
        if outcome.gate is None:
            code, line, batch = self._ship(task_id, key, outcome, unmatched, others, touched)
        else:
            code, line, batch = self._hold(outcome, run_ids, unmatched)
        return PairRow(
            task_id, slot, *run_ids, rejected.category, chosen.partition_id, rejected.partition_id, key, code, line,
            batch,
        )  # fmt: skip

    def _others(self, task_id: str, recorded: list[WorkPair]) -> list[WorkPair]:
        """The recorded pairs of other tasks with this id (shared by '|' in ids), as this batch leaves them."""
        return [
            pair._replace(frozen="absent") if pair.pair_id in self._out.frozen_pairs else pair
            for pair in recorded
            if pair.task_id != task_id and pair.pair_id not in self._out.dropped_pairs
        ]

    def _held_earlier(self, task_id: str, others: list[WorkPair]) -> bool:
        """Whether a pair of an earlier task ships this id; a frozen one gives it up to any present one."""
        return any(
            pair.outcome == SHIPPED and pair.frozen is None and self._is_earlier(pair.task_id, task_id)
            for pair in others
        )

    def _is_earlier(self, one: str, other: str) -> bool:
        return (self._work.first_walk(one), one) < (self._work.first_walk(other), other)

    def _ship(
        self,
        task_id: str,
        key: int,
        ship: Rendered,
        unmatched: dict[int, WorkPair],
        others: list[WorkPair],
        touched: set[str],
    ) -> tuple[int, bytes, int]:
        self._shipped.add(key)
        self._out.totals[_PREFERENCE, "live", SHIPPED] += 1
        changes = self._out.changes[_PREFERENCE]
        standing, cause = self._standing(key, unmatched, others, touched)
        touched.update(pair.task_id for pair in others if self._is_out_of_turn(pair, task_id))
        if standing is not None:
            stamped = self._stamped(key, ship, standing.batch)
            if digest_of(stamped) == standing.line:
                changes.adopted += standing.batch == 0 and standing.frozen is not None
                changes.keep_shipped(standing.line, stamped)
                return SHIPPED, standing.line, standing.batch
            changes.drop_key(key, standing.line)
            self._out.unadopted.append((_PREFERENCE, key))
            self._leaving.publish(standing, cause, replaced=True)
        line = ship.line(self._out.recorded_at)
        changes.shipped.add(line)
        return SHIPPED, digest_of(line), self._out.sequence

    def _is_out_of_turn(self, pair: WorkPair, task_id: str) -> bool:
        """Whether a pair was judged when its task and this one, which ships its id, stood the other way round.

        An earlier one may not wait; a later one is a duplicate before its schema counts.
        """
        if pair.frozen is not None or pair.outcome not in (DUPLICATE, _SCHEMA_VIOLATION):
            return False
        return self._is_earlier(pair.task_id, task_id) == (pair.outcome == DUPLICATE)

    def _standing(
        self, key: int, unmatched: dict[int, WorkPair], others: list[WorkPair], touched: set[str]
    ) -> tuple[WorkPair | None, Cause]:
        """The recorded pair whose line this id has now; it gives the line up to the pair that ships."""
        change = Cause.OPTIONS_CHANGED if self._options_changed else Cause.EVIDENCE_CHANGED
        for pair in unmatched.values():
            if pair.sample_key == key and pair.outcome == SHIPPED:
                del unmatched[pair.pair_id]
                self._leave_totals(pair)
                if pair.frozen is not None:
                    self._out.dropped_pairs.append(pair.pair_id)
                return pair, change
        freed = self._freed.pop(key, None)
        if freed is not None:
            return freed[0], Cause.DISPLACED
        for pair in others:
            if pair.outcome == SHIPPED:
                self._leave_totals(pair)
                self._out.dropped_pairs.append(pair.pair_id)
                self._moved_on.add(pair.pair_id)
                if pair.frozen is None:
                    touched.add(pair.task_id)
                return pair, Cause.DISPLACED
        return None, change

    def _hold(self, hold: Rendered, run_ids: tuple[str, str], unmatched: dict[int, WorkPair]) -> tuple[int, bytes, int]:
        assert hold.reason is not None  # noqa: S101  what holds a pair gives a reason
        code = REASON_CODES[hold.reason]
        self._out.totals[_PREFERENCE, "live", code] += 1
        for pair in unmatched.values():
            same = (pair.chosen_run_id, pair.rejected_run_id, pair.outcome) == (*run_ids, code)
            stamped = hold.line(self._stamp(pair.batch)) if same else b""
            # One with an absent side is another pair, whatever its line says: it stays.
            if same and digest_of(stamped) == pair.line and not self._leaving.is_absent(pair):
                self._out.changes[_PREFERENCE].keep_held(pair.line, stamped)
                del unmatched[pair.pair_id]
                self._leave_totals(pair)
                if pair.frozen is not None:
                    self._out.dropped_pairs.append(pair.pair_id)
                return code, pair.line, pair.batch
        line = hold.line(self._out.recorded_at)
        self._out.changes[_PREFERENCE].held.add(line)
        return code, digest_of(line), self._out.sequence

    def _leave_totals(self, pair: WorkPair) -> None:
        self._out.totals[_PREFERENCE, "frozen" if pair.frozen else "live", pair.outcome] -= 1

    # a pair that is no longer formed

    def _let_go(self, pair: WorkPair, touched: set[str]) -> None:
        """A recorded pair that the task's present rows do not form: it leaves, or it is frozen (SPEC 3)."""
        if pair.pair_id in self._moved_on:
            return
        overruled = self._leaving.overruled(pair)
        kept = pair.frozen in ("vanished", "orphan") or self._leaving.is_absent(pair)
        # Without its rows a line that a damaged file lost cannot be written again.
        lost = kept and self._out.changes[_PREFERENCE].is_missing(pair.outcome, pair.line)
        if kept and not lost and (pair.outcome != SHIPPED or not overruled):
            if pair.frozen is None:
                self._out.frozen_pairs.append(pair.pair_id)
                self._out.totals[_PREFERENCE, "live", pair.outcome] -= 1
                self._out.totals[_PREFERENCE, "frozen", pair.outcome] += 1
            if pair.outcome == SHIPPED:
                touched.update(self._waiting_for(pair.sample_key))
            return
        if pair.frozen is not None:
            self._out.dropped_pairs.append(pair.pair_id)
        self._leave_totals(pair)
        if pair.outcome != SHIPPED:
            self._out.changes[_PREFERENCE].drop_held(pair.line)
            return
        cause = Cause.LOST if lost and not overruled else self._leaving.cause(pair, overruled=overruled)
        self._freed[pair.sample_key] = (pair, cause)
        touched.update(self._waiting_for(pair.sample_key))

    def _waiting_for(self, key: int) -> set[str]:
        """The tasks with a pair that was held because an earlier one has this id."""
        return {
            pair.task_id
            for pair in self._work.pairs_with_keys([key]).get(key, [])
            if pair.outcome == DUPLICATE and pair.frozen is None
        }

    def _stamped(self, key: int, ship: Rendered, batch: int) -> bytes:
        if batch == 0:
            adopted = self._work.adopted(_PREFERENCE, key)
            return ship.line(*adopted) if adopted else b""
        return ship.line(self._stamp(batch))

    def _stamp(self, batch: int) -> str:
        if batch not in self._stamps:
            self._stamps |= self._work.stamps([batch])
        return self._stamps.get(batch, "")
