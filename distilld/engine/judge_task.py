"""Judge the pairs of a task: what a worker does. Who holds an id follows from the order of the tasks, elsewhere."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from distilld.core.datasets import preference
from distilld.core.firewall import MissingFiles, PairCase, PairSide
from distilld.core.json_text import parse_object
from distilld.core.model import Category, InputChanged, InputKind, Options, RowRef, UnreadableError
from distilld.core.outcome import Rendered, rendered
from distilld.core.records import evidence_record, scored_run
from distilld.engine.judge_span import FailedRow, failed_row, finished
from distilld.lake.lines import digest_of, read_neighbours
from distilld.lake.scan import open_partition, tree_path

_BEHIND_IDS = frozenset({None, "schema"})
"""What becomes of a pair that no gate before the one for ids holds."""


class SideOrder(NamedTuple):
    """A row that stands in a pair: where it and its evidence stand, and what is said of its run.

    That is the verdict in force, and whether the row is over ``max_exports_per_run``.
    """

    path: str
    line: int
    scored: tuple[int, int, bytes]
    evidence: tuple[int, int, bytes]
    verdict: Category | None
    over_limit: bool


class TaskOrder(NamedTuple):
    """The pairs of a task, by the places of their sides among ``sides``: the chosen one, the other one.

    Of a plain task nothing is recorded, and its ids are free: its lines are finished with the time ``stamp``.
    """

    task_id: str
    sides: tuple[SideOrder, ...]
    pairs: tuple[tuple[int, int], ...]
    stamp: str | None


class JudgedPair(NamedTuple):
    """What becomes of a pair with its id free, and with its id taken where that differs."""

    free: Rendered
    taken: Rendered | None


class TaskDone(NamedTuple):
    """What came of a task; with a ``failure`` it is not known, for a file of it cannot be read, or changed.

    ``finished`` are the pairs of a plain task: the code of its outcome, its line's digest, its line.
    """

    pairs: tuple[JudgedPair, ...]
    finished: tuple[tuple[int, bytes, bytes], ...]
    failure: FailedRow | None
    bytes_read: int


class TaskJudge:
    """Judges tasks below one root, with one set of options."""

    def __init__(self, root: Path, options: Options, missing: MissingFiles | None) -> None:
        self._root = root
        self._options = options
        self._missing = missing

    def judge(self, tasks: tuple[TaskOrder, ...]) -> list[TaskDone]:
        """Judge tasks one after the other; files that are opened for one stay open for the next.

        Raises:
            UnreadableError: The path check was refused.
        """
        with ExitStack() as stack:
            files: dict[tuple[InputKind, str], int] = {}
            return [self._judge(task, files, stack) for task in tasks]

    def _judge(self, task: TaskOrder, files: dict[tuple[InputKind, str], int], stack: ExitStack) -> TaskDone:
        size = 0
        try:
            sides = []
            for side in task.sides:
                sides.append(self._read(side, files, stack))
                size += side.scored[1] + side.evidence[1]
        except (UnreadableError, InputChanged) as error:
            return TaskDone((), (), failed_row(-1, error), size)
        cases = [(sides[chosen], sides[other], task.sides[chosen]) for chosen, other in task.pairs]
        if task.stamp is None:
            return TaskDone(tuple(self._pair(*case) for case in cases), (), None, size)
        return TaskDone((), tuple(self._finished(*case, task.stamp) for case in cases), None, size)

    def _read(self, side: SideOrder, files: dict[tuple[InputKind, str], int], stack: ExitStack) -> PairSide:
        values = []
        for kind, (start, length, digest) in ((InputKind.SCORED, side.scored), (InputKind.EVIDENCE, side.evidence)):
            shown = tree_path(kind, side.path)
            descriptor = files.get((kind, side.path))
            if descriptor is None:
                if len(files) >= _OPEN_AT_MOST:
                    stack.close()
                    files.clear()
                descriptor, _ = stack.enter_context(open_partition(self._root, kind, side.path))
                files[kind, side.path] = descriptor
            (raw,) = read_neighbours(descriptor, ((start, length),), shown)
            value, marked, _ = parse_object(raw)
            if value is None or digest_of(raw) != digest:
                raise InputChanged(shown)
            values.append((value, marked))
        (scored, scored_marked), (evidence, evidence_marked) = values
        return PairSide(
            scored_run(scored, marked=scored_marked),
            evidence_record(evidence, marked=evidence_marked),
            side.verdict,
            side.over_limit,
        )

    def _finished(self, chosen: PairSide, other: PairSide, at: SideOrder, stamp: str) -> tuple[int, bytes, bytes]:
        case = PairCase(chosen, other, False, self._options, self._missing)
        code, line = finished(preference.judge(case, RowRef(at.path, at.line)), stamp)
        return code, digest_of(line), line

    def _pair(self, chosen: PairSide, other: PairSide, at: SideOrder) -> JudgedPair:
        case = PairCase(chosen, other, False, self._options, self._missing)
        place = RowRef(at.path, at.line)
        free = rendered(preference.judge(case, place))
        if free.gate not in _BEHIND_IDS:
            return JudgedPair(free, None)
        return JudgedPair(free, rendered(preference.judge(case._replace(id_taken=True), place)))


_OPEN_AT_MOST = 48
