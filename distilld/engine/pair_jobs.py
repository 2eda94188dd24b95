"""Look up tasks, many at a time, and have workers judge their pairs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from distilld.core.datasets import preference
from distilld.core.line_facts import CATEGORIES, CATEGORY_CODES, TaskRow, key_of
from distilld.core.model import Category, Options
from distilld.engine.jobs import TaskJob
from distilld.engine.judge_task import PlainTasks, TaskDone, TaskOrder
from distilld.engine.pool import Done
from distilld.engine.spans import Failure
from distilld.files.spool import SharedFile
from distilld.store.decisions import Decisions
from distilld.store.statements import ASKED_AT_ONCE
from distilld.store.tasks import WorkPair
from distilld.store.work import Work

TASKS_A_JOB: Final = ASKED_AT_ONCE
_PAIRED: Final = (Category.ACCEPTED, Category.REJECTED, Category.PARTIALLY_ACCEPTED)
_WALK, _RUN_ID, _PARTITION, _LENGTH, _EVIDENCE_LENGTH = map(
    TaskRow._fields.index, ("walk", "run_id", "partition_id", "length", "evidence_length")
)


class FormedPair(NamedTuple):
    """A pair of a task: its two rows and its id."""

    chosen: TaskRow
    rejected: TaskRow
    key: int


class AskedTask(NamedTuple):
    """A task that was looked up; if not plain: its pairs now, those recorded, and other pairs with their ids."""

    order: TaskOrder
    formed: list[FormedPair]
    recorded: list[WorkPair]
    others: dict[int, list[WorkPair]]


class PairJobs:
    """Makes the jobs of one batch's tasks, and yields their results in order."""

    def __init__(
        self,
        work: Work,
        options: Options,
        decisions: Decisions,
        do: Callable[[Iterable[TaskJob]], Iterator[Done[TaskJob]]],
        failures: Mapping[int, Failure],
    ) -> None:
        """``do`` does jobs, in order, and keeps their files; ``failures`` say which partitions are out of reach."""
        self._work = work
        self._options = options
        self._out = decisions
        self._do = do
        self._failures = failures
        self._absent_verdicts = work.has_retained_verdicts()

    def judged(
        self, task_ids: Iterable[str], *, plainly: bool = False
    ) -> Iterator[tuple[list[AskedTask], PlainTasks | TaskDone, SharedFile | None]]:
        """Look up tasks and have their pairs judged; with ``plainly``, workers finish the lines of plain tasks."""
        under_way: deque[list[AskedTask]] = deque()

        def jobs() -> Iterator[TaskJob]:
            coming = iter(task_ids)
            while some := list(islice(coming, TASKS_A_JOB)):
                tasks = self._look_up(some, plainly=plainly)
                under_way.append(tasks)
                yield self._job(tuple(task.order for task in tasks))

        for done in self._do(jobs()):
            assert isinstance(done.result, list)  # noqa: S101  a TaskJob returns this
            tasks = iter(under_way.popleft())
            for result in done.result:
                assert isinstance(result, TaskDone | PlainTasks)  # noqa: S101  as above
                number = result.tasks if isinstance(result, PlainTasks) else 1
                yield list(islice(tasks, number)), result, done.file

    def _job(self, orders: tuple[TaskOrder, ...]) -> TaskJob:
        rows = [row for order in orders for rows in order.rows for row in rows]
        places = {row[_PARTITION]: row[_WALK] for row in rows}
        return TaskJob(
            orders,
            {partition_id: self._work.place(walk).path for partition_id, walk in places.items()},
            {partition_id: failure for partition_id, failure in self._failures.items() if partition_id in places},
            self._work.exports.over([(row[_WALK], row[_RUN_ID]) for row in rows], self._options),
            self._out.sequence,
            self._out.recorded_at,
            sum([row[_LENGTH] + row[_EVIDENCE_LENGTH] for row in rows]),
        )

    def _look_up(self, task_ids: Sequence[str], *, plainly: bool) -> list[AskedTask]:
        found = self._work.task_rows(task_ids, _PAIRED, preference.PAIRS_PER_TASK)
        recorded = self._work.pairs_of_tasks(task_ids)
        tasks = []
        for task_id in task_ids:
            accepted, rejected, partial = found[task_id]
            rows = [accepted, rejected, [] if rejected else partial] if accepted else [[], [], []]
            if self._absent_verdicts:
                rows = [[(*row[:-1], self._verdict(TaskRow._make(row))) for row in some] for some in rows]
            is_plain = plainly and task_id not in recorded
            formed = [] if is_plain else formed_pairs(task_id, rows)
            tasks.append(AskedTask(TaskOrder(task_id, rows, is_plain), formed, recorded.get(task_id, []), {}))
        keys = {pair.key for task in tasks for pair in task.formed}
        if not keys:
            return tasks
        others = self._work.pairs_with_keys(keys)
        return [task._replace(others=others) for task in tasks]

    def _verdict(self, row: TaskRow) -> int | None:
        """Return the code of the verdict that a side must agree with; an absent verdict forbids and never clears."""
        _, in_force, present = self._work.verdicts(row.run_id, self._options)
        verdict = in_force if present is CATEGORIES[row.category] else present
        return None if verdict is None else CATEGORY_CODES[verdict]


def formed_pairs(task_id: str, rows: list[list[tuple[Any, ...]]]) -> list[FormedPair]:
    """Return the pairs that the rows of a task form, in order."""
    pairs = [(TaskRow._make(one), TaskRow._make(other)) for one, other in preference.pair_up(*rows)]
    return [
        FormedPair(chosen, other, key_of(preference.id_digits(chosen.run_id, other.run_id, task_id)))
        for chosen, other in pairs
    ]
