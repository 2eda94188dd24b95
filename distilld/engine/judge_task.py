"""Judge the pairs of a task, in a worker. The order of the tasks, which decides on ids, is not known here."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from distilld.core.datasets import preference
from distilld.core.firewall import MissingFiles, PairCase, PairSide
from distilld.core.json_text import parse_object
from distilld.core.line_facts import EXPORTED, LINES_END, VERDICTS, TaskRow, key_of
from distilld.core.model import InputChanged, InputKind, Options, RowRef, UnreadableError
from distilld.core.outcome import Outcome
from distilld.core.records import evidence_record, scored_run
from distilld.engine.judge_span import finished
from distilld.engine.sink import Sink
from distilld.engine.spans import OUTCOMES, Failure, Part
from distilld.lake.lines import digest_of, read_neighbours
from distilld.lake.scan import open_partition, tree_path

_BEHIND_IDS = frozenset({None, "schema"})
"""The gates that may stop a pair with a free id after it passed all gates before the one for ids; None: exported."""
EXPORTED_PAIRS: Final = 0
QUARANTINED_PAIRS: Final = 1


class TaskOrder(NamedTuple):
    """A task, and its first rows of each category that may pair: TaskRows, as plain tuples.

    Nothing is recorded of a plain task: its lines are finished as if its ids were free.
    """

    task_id: str
    rows: list[list[tuple[Any, ...]]]
    plain: bool


class JudgedPair(NamedTuple):
    """The outcome of a pair with its id free, and with its id taken where that may differ."""

    free: Outcome
    taken: Outcome | None


class TaskDone(NamedTuple):
    """The result of a task.

    With a ``failure`` it is unknown: one of its files cannot be read or has changed, or its path check is refused.
    """

    pairs: tuple[JudgedPair, ...]
    failure: Failure | None
    bytes_read: int


@dataclass(slots=True)
class PlainTasks:
    """The results of consecutive plain tasks: their pairs as they will be recorded, and where their lines are."""

    tasks: int = 0
    pairs: list[tuple[Any, ...]] = field(default_factory=list)
    """PairRows, as plain tuples."""
    outcomes: list[int] = field(default_factory=lambda: [0] * OUTCOMES)
    """Numbers of pairs by outcome code."""
    parts: list[Part] = field(default_factory=list)
    """In the streams EXPORTED_PAIRS and QUARANTINED_PAIRS."""
    bytes_read: int = 0


class TaskJudge:
    """Judges tasks below one root, with one set of options."""

    def __init__(self, root: Path, options: Options, missing: MissingFiles | None) -> None:
        self._root = root
        self._options = options
        self._missing = missing

    def judge(
        self,
        tasks: tuple[TaskOrder, ...],
        paths: dict[int, str],
        failures: dict[int, Failure],
        over_limit: set[int],
        batch: int,
        stamp: str,
        sink: Sink,
    ) -> list[PlainTasks | TaskDone]:
        """Judge tasks one after the other; files that are opened for one task stay open for the next.

        Raises:
            OSError: The sink cannot be written to.
        """
        done: list[PlainTasks | TaskDone] = []
        plain = PlainTasks()
        with ExitStack() as stack:
            reader = _Reader(self._root, paths, failures, over_limit, stack)
            for task in tasks:
                reader.size = 0
                pairs = [(TaskRow._make(one), TaskRow._make(other)) for one, other in preference.pair_up(*task.rows)]
                try:
                    cases = self._cases(pairs, reader.sides(pairs), paths)
                    # Nothing of a task is handed over until all its pairs are judged.
                    if task.plain:
                        lines = [finished(preference.judge(*case), stamp) for case in cases]
                        _add_plain(plain, task.task_id, pairs, lines, batch, sink)
                        plain.bytes_read += reader.size
                        continue
                    result = TaskDone(tuple(_judged(*case) for case in cases), None, reader.size)
                except (UnreadableError, InputChanged) as error:
                    result = TaskDone((), Failure.of(error), reader.size)
                plain = _close(plain, done, sink)
                done.append(result)
            _close(plain, done, sink)
        return done

    def _cases(
        self, pairs: list[tuple[TaskRow, TaskRow]], sides: dict[int, PairSide], paths: dict[int, str]
    ) -> list[tuple[PairCase, RowRef]]:
        """Return what the gates look at for each pair with its id free, and the place of its chosen row."""
        options, missing = self._options, self._missing
        return [
            (PairCase(sides[chosen.walk], sides[rejected.walk], False, options, missing), _at(chosen, paths))
            for chosen, rejected in pairs
        ]


class _Reader:
    """Reads rows and their evidence; keeps the files open."""

    def __init__(
        self,
        root: Path,
        paths: dict[int, str],
        failures: dict[int, Failure],
        over_limit: set[int],
        stack: ExitStack,
    ) -> None:
        self._root = root
        self._paths = paths
        self._failures = failures
        self._over_limit = over_limit
        self._stack = stack
        self._files: dict[tuple[InputKind, int], int] = {}
        self.size = 0

    def sides(self, pairs: list[tuple[TaskRow, TaskRow]]) -> dict[int, PairSide]:
        """Return the sides of pairs as they are in their files, by their places.

        A side has no evidence if each of its pairs has a row over ``max_exports_per_run``: no gate needs it then.

        Raises:
            InputChanged: A line is no longer what was indexed.
            UnreadableError: The system refuses to read a file.
        """
        over = self._over_limit
        needed = {row.walk for pair in pairs if over.isdisjoint(row.walk for row in pair) for row in pair}
        rows = {row.walk: row for pair in pairs for row in pair}
        return {walk: self._side(row, with_evidence=walk in needed) for walk, row in rows.items()}

    def _side(self, row: TaskRow, *, with_evidence: bool) -> PairSide:
        self.size += row.length
        scored, marked = self._read(InputKind.SCORED, row.partition_id, row.start, row.length, row.digest)
        evidence, evidence_marked = dict[str, Any](), False
        if with_evidence:
            self.size += row.evidence_length
            evidence, evidence_marked = self._read(
                InputKind.EVIDENCE, row.partition_id, row.evidence_start, row.evidence_length, row.evidence_digest
            )
        return PairSide(
            scored_run(scored, marked=marked),
            evidence_record(evidence, marked=evidence_marked),
            VERDICTS[row.verdict] if row.verdict is not None else None,
            row.walk in self._over_limit,
        )

    def _read(
        self, kind: InputKind, partition_id: int, start: int, length: int, digest: bytes
    ) -> tuple[dict[str, Any], bool]:
        if partition_id in self._failures:
            raise self._failures[partition_id].error()
        path = self._paths[partition_id]
        shown = tree_path(kind, path)
        descriptor = self._files.get((kind, partition_id))
        if descriptor is None:
            if len(self._files) >= _OPEN_AT_MOST:
                self._stack.close()
                self._files.clear()
            descriptor, _ = self._stack.enter_context(open_partition(self._root, kind, path))
            self._files[kind, partition_id] = descriptor
        (raw,) = read_neighbours(descriptor, ((start, length),), shown)
        value, marked, _ = parse_object(raw)
        if value is None or digest_of(raw) != digest:
            raise InputChanged(shown)
        return value, marked


def _add_plain(
    plain: PlainTasks,
    task_id: str,
    pairs: list[tuple[TaskRow, TaskRow]],
    lines: list[tuple[int, bytes]],
    batch: int,
    sink: Sink,
) -> None:
    """Hand over the lines of a plain task, with their outcome codes, and add its pairs."""
    for slot, ((chosen, rejected), (code, line)) in enumerate(zip(pairs, lines, strict=True)):
        digest = digest_of(line)
        sink.add(EXPORTED_PAIRS if code == EXPORTED else QUARANTINED_PAIRS, line, digest)
        plain.outcomes[code] += 1
        key = key_of(preference.id_digits(chosen.run_id, rejected.run_id, task_id))
        plain.pairs.append(
            (
                task_id, slot, chosen.run_id, rejected.run_id, rejected.category, chosen.partition_id,
                rejected.partition_id, key, code, digest, batch,
            )
        )  # fmt: skip
    plain.tasks += 1


def _judged(case: PairCase, place: RowRef) -> JudgedPair:
    free = preference.judge(case, place)
    if free.gate not in _BEHIND_IDS:
        return JudgedPair(free, None)
    return JudgedPair(free, preference.judge(case._replace(id_taken=True), place))


def _close(plain: PlainTasks, done: list[PlainTasks | TaskDone], sink: Sink) -> PlainTasks:
    """Hand over the plain tasks so far; return an empty object for more."""
    if not plain.tasks:
        return plain
    plain.parts += [part for part in sink.end() if isinstance(part, Part)]
    done.append(plain)
    return PlainTasks()


def _at(chosen: TaskRow, paths: dict[int, str]) -> RowRef:
    return RowRef(paths[chosen.partition_id], chosen.walk & LINES_END - 1)


_OPEN_AT_MOST = 48
