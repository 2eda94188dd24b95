"""Tasks become preference pairs, and pairs become changes (SPEC 3.3).

The pairs of a task depend on its first five accepted, rejected and partially accepted rows whose evidence is found, so
a touched task is formed anew as a whole and compared with what is recorded of it. Which rows these are is asked for
many tasks at a time; their pairs are judged by workers; the order among the tasks, which decides on ids, is kept here.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from distilld.core.datasets import preference
from distilld.core.decisions import Decisions, PairRow, Withdrawal, key_of
from distilld.core.line_facts import CATEGORIES, CATEGORY_CODES, DUPLICATE, REASON_CODES, SHIPPED, VERDICTS
from distilld.core.model import Category, Cause, Dataset, Options, Reason
from distilld.core.outcome import Rendered
from distilld.engine.jobs import TaskJob
from distilld.engine.judge_span import error_of
from distilld.engine.judge_task import JudgedPair, SideOrder, TaskDone, TaskOrder
from distilld.lake.lines import digest_of
from distilld.store.asked import ASKED_AT_ONCE
from distilld.store.tasks import TaskRow, WorkPair
from distilld.store.work import Work

TASKS_A_JOB: Final = ASKED_AT_ONCE
_PAIRED: Final = (Category.ACCEPTED, Category.REJECTED, Category.PARTIALLY_ACCEPTED)
_PREFERENCE: Final = Dataset.PREFERENCE
_SCHEMA_VIOLATION: Final = REASON_CODES[Reason.SCHEMA_VIOLATION]


class _Formed(NamedTuple):
    """A pair of a task: its rows, its id."""

    chosen: TaskRow
    rejected: TaskRow
    key: int


class _Task(NamedTuple):
    """A task with all that judging it takes: its pairs now, those that are recorded, and who else has their ids."""

    order: TaskOrder
    formed: list[_Formed]
    recorded: list[WorkPair]
    others: dict[int, list[WorkPair]]


class PairJudge:
    """Forms the pairs of one batch's tasks and adds what follows to its decisions."""

    def __init__(
        self,
        work: Work,
        options: Options,
        decisions: Decisions,
        do: Callable[[Iterable[TaskJob]], Iterator[list[TaskDone]]],
        *,
        options_changed: bool,
    ) -> None:
        """``do`` does jobs, in order."""
        self._work = work
        self._options = options
        self._out = decisions
        self._do = do
        self._options_changed = options_changed
        self._shipped: dict[int, str] = {}
        self._given_out: set[int] = set()
        """The ids of the tasks that were given out as plain ones, which no other task of the batch may have."""
        self._freed: dict[int, tuple[WorkPair, Cause]] = {}
        self._absent = work.absent_files()
        self._absent_verdicts = work.has_frozen_verdicts()
        self._stamps: dict[int, str] = {}
        self.left: set[str] = set()
        """Tasks for a later batch: a file of theirs is out of reach, or their turn was over when they were touched."""
        # Pairs whose line another task took over before their own task was formed anew.
        self._moved_on: set[int] = set()

    def judge(self, tasks: Iterable[tuple[int, str]]) -> None:
        """Form the pairs of these tasks anew, in the order of the tasks' first rows, whose places are given.

        Only in this order is it known whether an earlier pair ships an id, so a task whose turn is over is left.
        """
        first = sorted(tasks)
        known = {task_id for _, task_id in first}
        expected = self._judged((task_id for _, task_id in first), plainly=True)
        coming, touched_later = deque(first), list[tuple[int, str]]()
        while coming or touched_later:
            if touched_later and (not coming or touched_later[0] < coming[0]):
                turn = heapq.heappop(touched_later)
                task, done = next(self._judged([turn[1]]))
            else:
                turn = coming.popleft()
                task, done = next(expected)
            task_id = turn[1]
            self._out.bytes_read += done.bytes_read
            if done.finished and not self._shipped.keys().isdisjoint(pair.key for pair in task.formed):
                # A task that was touched ships an id of this one, and comes before it.
                task, done = next(self._judged([task_id]))
            if done.failure is not None:
                self._out.note_out_of_reach(error_of(done.failure))
                self.left.add(task_id)
                touched = self._let_forbidden_go(task)
            elif done.finished:
                touched = self._take_finished(task, done.finished)
            else:
                touched = self._judge_task(task, done.pairs)
            for at in sorted((self._work.first_walk(other), other) for other in touched - known):
                if at < turn:
                    self.left.add(at[1])
                else:
                    known.add(at[1])
                    heapq.heappush(touched_later, at)
        self._out.tasks.extend(known - self.left)
        for pair, cause in self._freed.values():
            self._withdraw(pair, cause)

    # many tasks at a time

    def _judged(self, task_ids: Iterable[str], *, plainly: bool = False) -> Iterator[tuple[_Task, TaskDone]]:
        """Look tasks up and have their pairs judged; with ``plainly``, workers finish the lines of plain tasks."""
        under_way: deque[list[_Task]] = deque()

        def jobs() -> Iterator[TaskJob]:
            coming = iter(task_ids)
            while some := list(islice(coming, TASKS_A_JOB)):
                tasks = self._look_up(some, plainly=plainly)
                under_way.append(tasks)
                yield TaskJob(
                    tuple(task.order for task in tasks),
                    sum(side.scored[1] + side.evidence[1] for task in tasks for side in task.order.sides),
                )

        for done in self._do(jobs()):
            yield from zip(under_way.popleft(), done, strict=True)

    def _look_up(self, task_ids: Sequence[str], *, plainly: bool) -> list[_Task]:
        rows = self._work.task_rows(task_ids, _PAIRED, preference.PAIRS_PER_TASK)
        recorded = self._work.pairs_of_tasks(task_ids)
        formed = {
            task_id: [
                _Formed(chosen, other, key_of(preference.id_digits(chosen.run_id, other.run_id, task_id)))
                for chosen, other in preference.pair_up(*rows[task_id])
            ]
            for task_id in task_ids
        }
        paired = {row.walk: row.run_id for pairs in formed.values() for pair in pairs for row in pair[:2]}
        over = self._work.over_limit(paired.items(), self._options)
        others = self._work.pairs_with_keys({pair.key for pairs in formed.values() for pair in pairs})
        tasks = []
        for task_id in task_ids:
            pairs = formed[task_id]
            sides = {row.walk: row for pair in pairs for row in (pair.chosen, pair.rejected)}
            place = {walk: number for number, walk in enumerate(sides)}
            order = TaskOrder(
                task_id,
                tuple(self._side(row, row.walk in over) for row in sides.values()),
                tuple((place[pair.chosen.walk], place[pair.rejected.walk]) for pair in pairs),
                self._out.recorded_at if plainly and self._is_plain(pairs, recorded.get(task_id), others) else None,
            )
            tasks.append(_Task(order, pairs, recorded.get(task_id, []), others))
        return tasks

    def _is_plain(
        self, pairs: list[_Formed], recorded: list[WorkPair] | None, others: dict[int, list[WorkPair]]
    ) -> bool:
        """Whether nothing is recorded of a task, and no other one has an id of it."""
        keys = {pair.key for pair in pairs}
        free = len(keys) == len(pairs) and keys.isdisjoint(others) and keys.isdisjoint(self._given_out)
        self._given_out |= keys
        return free and not recorded

    def _side(self, row: TaskRow, over_limit: bool) -> SideOrder:
        return SideOrder(
            row.path,
            row.walk - row.base,
            (row.start, row.length, row.digest),
            (row.evidence_start, row.evidence_length, row.evidence_digest),
            self._verdict(row),
            over_limit,
        )

    def _verdict(self, row: TaskRow) -> Category | None:
        """The verdict in force that a side must agree with; an absent one forbids and never clears."""
        if not self._absent_verdicts:
            return VERDICTS[row.verdict] if row.verdict is not None else None
        _, in_force, present = self._work.verdicts(row.run_id, self._options)
        return in_force if present is CATEGORIES[row.category] else present

    # one task

    def _judge_task(self, task: _Task, judged: Sequence[JudgedPair]) -> set[str]:
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

    def _take_finished(self, task: _Task, finished: Iterable[tuple[int, bytes, bytes]]) -> set[str]:
        """Take in a plain task, whose lines are finished: it touches no other one."""
        task_id, batch = task.order.task_id, self._out.sequence
        changes = self._out.changes[_PREFERENCE]
        for slot, ((chosen, rejected, key), (code, digest, line)) in enumerate(zip(task.formed, finished, strict=True)):
            if code == SHIPPED:
                self._shipped[key] = task_id
                changes.shipped.add(line)
            else:
                changes.held.add(line)
            self._out.totals[_PREFERENCE, "live", code] += 1
            self._out.pairs.append(
                PairRow(
                    task_id, slot, chosen.run_id, rejected.run_id, rejected.category, chosen.partition_id,
                    rejected.partition_id, key, code, digest, batch,
                )
            )  # fmt: skip
        return set()

    def _let_forbidden_go(self, task: _Task) -> set[str]:
        """Of a task that cannot be formed anew, pairs that a verdict overrules leave; returns as for a whole task."""
        touched: set[str] = set()
        for pair in task.recorded:
            if pair.outcome == SHIPPED and self._overruled(pair):
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
        pair: _Formed,
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
        self._shipped[key] = task_id
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
            self._publish(standing, cause, replaced=True)
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
            if same and digest_of(stamped) == pair.line and not self._is_absent(pair):
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
        overruled = self._overruled(pair)
        kept = pair.frozen in ("vanished", "orphan") or self._is_absent(pair)
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
        cause = Cause.LOST if lost and not overruled else self._cause(pair, overruled=overruled)
        self._freed[pair.sample_key] = (pair, cause)
        touched.update(self._waiting_for(pair.sample_key))

    def _waiting_for(self, key: int) -> set[str]:
        """The tasks with a pair that was held because an earlier one has this id."""
        return {
            pair.task_id
            for pair in self._work.pairs_with_keys([key]).get(key, [])
            if pair.outcome == DUPLICATE and pair.frozen is None
        }

    def _is_absent(self, pair: WorkPair) -> bool:
        return any(
            partition in self._absent and self._work.side_is_absent(partition, run_id, pair.task_id, category)
            for partition, run_id, category in (
                (pair.chosen_partition or 0, pair.chosen_run_id, CATEGORY_CODES[Category.ACCEPTED]),
                (pair.rejected_partition or 0, pair.rejected_run_id, pair.rejected_category),
            )
        )

    def _overruled(self, pair: WorkPair) -> bool:
        """Whether a verdict in force says otherwise than the pair about one of its sides."""
        if not self._options.revoke:
            return False
        # Of a pair from an older exporter nobody knows which of the two the rejected side was.
        known = CATEGORIES.get(pair.rejected_category)
        rejected = (known,) if known else (Category.REJECTED, Category.PARTIALLY_ACCEPTED)
        return any(
            said is not None and said not in categories
            for run_id, categories in ((pair.chosen_run_id, (Category.ACCEPTED,)), (pair.rejected_run_id, rejected))
            for said in self._work.verdicts(run_id, self._options)[1:]
        )

    def _cause(self, pair: WorkPair, *, overruled: bool) -> Cause:
        if overruled:
            return Cause.REVOKED
        if not all(self._work.names_run(run_id) for run_id in (pair.chosen_run_id, pair.rejected_run_id)):
            return Cause.ROW_REMOVED
        if self._work.lacks_evidence(pair.chosen_run_id) or self._work.lacks_evidence(pair.rejected_run_id):
            return Cause.EVIDENCE_CHANGED
        return Cause.OPTIONS_CHANGED if self._options_changed else Cause.DISPLACED

    def _withdraw(self, pair: WorkPair, cause: Cause) -> None:
        self._out.changes[_PREFERENCE].drop_key(pair.sample_key, pair.line)
        self._out.unadopted.append((_PREFERENCE, pair.sample_key))
        self._publish(pair, cause, replaced=False)

    def _publish(self, pair: WorkPair, cause: Cause, *, replaced: bool) -> None:
        verdict = None
        if cause is Cause.REVOKED:
            for run_id in (pair.chosen_run_id, pair.rejected_run_id):
                category = self._work.verdicts(run_id, self._options)[1]
                place = self._work.verdict_place(run_id, category) if category else None
                expected = Category.ACCEPTED if run_id == pair.chosen_run_id else None
                if place is not None and category is not expected:
                    verdict = place
                    break
        self._out.withdrawals.append(
            Withdrawal(
                _PREFERENCE,
                pair.sample_key,
                cause,
                replaced,
                chosen_run_id=pair.chosen_run_id,
                rejected_run_id=pair.rejected_run_id,
                verdict=verdict,
                shipped_batch=pair.batch or None,
            )
        )

    def _stamped(self, key: int, ship: Rendered, batch: int) -> bytes:
        if batch == 0:
            adopted = self._work.adopted(_PREFERENCE, key)
            return ship.line(*adopted) if adopted else b""
        return ship.line(self._stamp(batch))

    def _stamp(self, batch: int) -> str:
        if batch not in self._stamps:
            self._stamps |= self._work.stamps([batch])
        return self._stamps.get(batch, "")
