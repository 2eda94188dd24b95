"""Form the preference pairs of tasks, and the changes that follow from them (SPEC 3.3).

The pairs of a task depend on its first five accepted, rejected and partially accepted rows whose evidence is found. So
a touched task is formed again as a whole and compared with what is recorded. Its rows are looked up for many tasks at
a time, and workers judge the pairs. The order of the tasks, which decides on ids, is kept here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Dataset, Options
from distilld.engine.jobs import TaskJob
from distilld.engine.judge_task import EXPORTED_PAIRS, QUARANTINED_PAIRS, PlainTasks, TaskDone
from distilld.engine.pair_jobs import AskedTask, PairJobs
from distilld.engine.pair_lane import PairLane
from distilld.engine.pool import Done
from distilld.engine.settle_task import TaskPairs
from distilld.engine.spans import Failure
from distilld.files.spool import SharedFile
from distilld.store.decisions import Decisions, PairRow
from distilld.store.loose_lines import Departure
from distilld.store.work import Work

_PREFERENCE: Final = Dataset.PREFERENCE
_KEY, _OUTCOME = map(PairRow._fields.index, ("sample_key", "outcome"))

Turn = tuple[int, str]
"""A task's place in the order of the tasks: the place of its first row, then its id."""


class PairJudge:
    """Forms the pairs of one batch's tasks and adds the changes to its decisions."""

    def __init__(
        self,
        work: Work,
        options: Options,
        decisions: Decisions,
        do: Callable[[Iterable[TaskJob]], Iterator[Done[TaskJob]]],
        failures: Mapping[int, Failure],
        *,
        options_changed: bool,
    ) -> None:
        """``do`` does jobs, in order, and keeps their files; ``failures`` are as in :class:`Batches`."""
        self._work = work
        self._out = decisions
        self._jobs = PairJobs(work, options, decisions, do, failures)
        self._lane = PairLane(work, options, decisions, options_changed=options_changed)
        self._formed: set[int] = set()
        """The ids of all pairs that this batch's tasks have formed so far."""
        self._known: set[str] = set()
        self._touched: list[Turn] = []
        """Tasks that other tasks touched and that come later in the order."""
        self.left: set[str] = set()
        """Tasks for a later batch: a file is out of reach, exports are withheld, or they were touched too late."""
        self.out_of_reach: set[str] = set()
        """Those of them whose files cannot be read, or changed."""

    def take_departures(self, departures: Iterable[Departure]) -> None:
        """Remove lines whose pairs are gone, unless another pair takes the same id."""
        self._lane.take_departures(departures)

    def judge(self, tasks: Iterable[Turn]) -> None:
        """Form the pairs of these tasks again, in the order of the given places of their first rows.

        Only this order shows whether an earlier pair holds an id, so a task that is touched too late is left.
        """
        first = sorted(tasks)
        self._known = {task_id for _, task_id in first}
        coming = iter(first)
        for some, result, file in self._jobs.judged((task_id for _, task_id in first), plainly=True):
            turns = list(islice(coming, len(some)))
            if isinstance(result, TaskDone):
                self._settle(turns[0], some[0], result)
            elif not self._take_plain(turns, result, file):
                self._judge_again(turns)
        while self._touched:
            self._judge_again([heapq.heappop(self._touched)])
        self._out.tasks.extend(self._known - self.left)
        self._lane.finish()

    def _judge_again(self, turns: list[Turn]) -> None:
        """Settle tasks one by one: they were judged as plain and are not, or other tasks touched them."""
        for ((task,), result, _), turn in zip(self._jobs.judged(each for _, each in turns), turns, strict=True):
            assert isinstance(result, TaskDone)  # noqa: S101  none was ordered as plain
            self._settle(turn, task, result)

    def _settle(self, turn: Turn, task: AskedTask, done: TaskDone) -> None:
        """Settle one task, after the touched tasks that come before it."""
        while self._touched and self._touched[0] < turn:
            self._judge_again([heapq.heappop(self._touched)])
        self._out.bytes_read += done.bytes_read
        self._formed.update(pair.key for pair in task.formed)
        if done.failure is not None:
            self._out.note_out_of_reach(done.failure.error())
            self.left.add(turn[1])
            self.out_of_reach.add(turn[1])
            touched = TaskPairs(self._lane, task).let_forbidden_go()
        else:
            touched = TaskPairs(self._lane, task).settle(done.pairs)
        for at in sorted((self._work.first_walk(other), other) for other in touched - self._known):
            if at < turn:
                self.left.add(at[1])
            else:
                self._known.add(at[1])
                heapq.heappush(self._touched, at)

    def _take_plain(self, turns: list[Turn], done: PlainTasks, file: SharedFile | None) -> bool:
        """Settle plain tasks all at once; return False if an id is not free or a touched task comes first."""
        keys = [pair[_KEY] for pair in done.pairs]
        formed = set(keys)
        if len(formed) < len(keys) or not formed.isdisjoint(self._formed) or self._work.pairs_with_keys(formed):
            return False
        if self._lane.any_departed(formed):
            return False
        if self._touched and self._touched[0] < turns[-1]:
            return False
        self._formed |= formed
        out, changes = self._out, self._out.changes[_PREFERENCE]
        out.bytes_read += done.bytes_read
        self._lane.exported.update([pair[_KEY] for pair in done.pairs if pair[_OUTCOME] == EXPORTED])
        out.pairs += done.pairs
        for code, pairs in enumerate(done.outcomes):
            out.totals[_PREFERENCE, "live", code] += pairs
        streams = {EXPORTED_PAIRS: changes.exported.lines, QUARANTINED_PAIRS: changes.quarantined.lines}
        for part in done.parts:
            part.put_into(streams[part.stream], file)
        return True
