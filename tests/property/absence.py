"""What is retained after a history, by the words of SPEC 3 ('Absent partitions') and from the files alone.

From pass to pass it remembers what each file held and what became of its rows; the oracle says what of it stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from distilld.core.firewall import MissingFiles
from distilld.core.json_text import parse_object
from distilld.core.model import Category, Dataset, InputKind, OnDelete, Options, RowRef
from distilld.core.records import evidence_record, scored_run
from distilld.inspection import oracle
from distilld.inspection.oracle import FullPass, Placed, Retained, RetainedPair, RetainedRow
from distilld.inspection.oracle_lake import Lake
from distilld.inspection.oracle_verdicts import AbsentVerdict, verdicts_of
from distilld.lake import scan as lake
from distilld.lake.lines import digest_of
from tests.support.target_state import read_lake


class Line(NamedTuple):
    """A scored line as it was read."""

    raw: bytes
    readable: bool
    run_id: str | None
    task_id: str | None
    category: Category | None


class Side(NamedTuple):
    """A row of a pair: its partition, and what it said."""

    path: str
    run_id: str
    task_id: str
    category: Category


@dataclass
class Remembered:
    """The lines of a scored file as of the last pass that saw it, and what became of each, None where that left.

    A line of an absent file that moved to a present one is None: nothing is left of it here.
    """

    lines: list[Line | None]
    placed: list[dict[Dataset, Placed | None]]
    rest: bytes
    """What it ended in that was no line."""


@dataclass
class Look:
    """The lake as it is now, and what may be retained in the exports because of what is not there."""

    now: Lake
    present: set[tuple[InputKind, str]]
    lines: dict[str, list[Line]]
    absent: list[str]
    """Scored partitions that were there once."""
    without: set[str]
    """Partitions whose evidence was there once."""
    rows: dict[tuple[str, int, Dataset], RetainedRow] = field(default_factory=dict)
    pairs: list[tuple[tuple[Side, Side], RetainedPair]] = field(default_factory=list)
    retained: Retained = oracle.NOTHING_RETAINED


@dataclass(slots=True)
class PlacedPass(FullPass):
    """A full pass that also remembers the outcomes by the places of rows and pairs."""

    rows: dict[tuple[Dataset, RowRef], Placed] = field(default_factory=dict)
    pairs: list[tuple[RowRef, RowRef, Placed]] = field(default_factory=list)

    def put(self, dataset: Dataset, placed: Placed, *at: RowRef) -> None:
        """Remember the outcome."""
        FullPass.put(self, dataset, placed, *at)
        match at:
            case [place]:
                self.rows[dataset, place] = placed
            case [chosen, rejected]:
                self.pairs.append((chosen, rejected, placed))


class Absence:
    """The memory of one history."""

    def __init__(self) -> None:
        self._scored: dict[str, Remembered] = {}
        self._evidence: dict[str, set[str]] = {}
        """The runs of each evidence file as of the last pass that saw it."""
        self._pairs: list[tuple[tuple[Side, Side], Placed]] = []

    def look(self, root: Path, options: Options) -> Look:
        """Look at the lake; nothing is remembered yet."""
        present = {(file.kind, file.path) for file in lake.scan(root).files}
        now = read_lake(root, options)
        lines = {path: [line_of(raw, options) for raw in partition.scored] for path, partition in now.items()}
        look = Look(now, present, lines, [], set())
        if options.on_delete is OnDelete.WITHDRAW:
            return look
        look.absent = [path for path in self._scored if (InputKind.SCORED, path) not in present]
        look.without = {path for path in self._evidence if (InputKind.EVIDENCE, path) not in present}
        look.rows = {
            (path, number, dataset): RetainedRow(dataset, placed, line.run_id, digest_of(line.raw))
            for path in look.absent
            for number, (line, by_dataset) in enumerate(
                zip(self._scored[path].lines, self._scored[path].placed, strict=True)
            )
            if line is not None
            for dataset, placed in by_dataset.items()
            if placed is not None
        }
        look.pairs = [
            (
                sides,
                RetainedPair(placed, ((chosen.run_id, (chosen.category,)), (rejected.run_id, (rejected.category,)))),
            )
            for sides, placed in self._pairs
            for chosen, rejected in [sides]
            if self._is_absent(chosen, look) or self._is_absent(rejected, look)
        ]
        look.retained = Retained(
            tuple(self._verdicts(look.absent)),
            tuple(look.rows.values()),
            tuple(pair for _, pair in look.pairs),
            dict(self._kept(look)),
        )
        return look

    def full_pass(self, root: Path, options: Options, missing_files: MissingFiles | None) -> FullPass:
        """What the exports must hold after a pass over the lake as it is now; it is remembered."""
        look = self.look(root, options)
        result = PlacedPass()
        oracle.export(look.now, options, missing_files=missing_files, retained=look.retained, into=result)
        stayed = {id(row) for row in result.retained_rows}
        for (path, number, dataset), row in look.rows.items():
            if id(row) not in stayed:
                self._scored[path].placed[number][dataset] = None
        self._scored = {path: self._scored[path] for path in look.absent}
        self._forget_moved(look)
        self._evidence = {path: self._evidence[path] for path in look.without}
        for kind, path in look.present:
            if kind is InputKind.EVIDENCE:
                self._evidence[path] = set(runs_of(look.now[path].evidence, options))
            else:
                placed: list[dict[Dataset, Placed | None]] = [
                    {each: result.rows[each, RowRef(path, number)] for each in (Dataset.RAG, Dataset.SFT)}
                    for number in range(len(look.lines[path]))
                ]
                self._scored[path] = Remembered([*look.lines[path]], placed, look.now[path].rest)
        stayed = {id(pair) for pair in result.retained_pairs}
        self._pairs = [(sides, pair.placed) for sides, pair in look.pairs if id(pair) in stayed]
        self._pairs += [
            ((side_at(look.lines, chosen), side_at(look.lines, rejected)), placed)
            for chosen, rejected, placed in result.pairs
        ]
        return result

    def _forget_moved(self, look: Look) -> None:
        """A line of an absent file that is in a present one, and says the same there, counts only there from now on."""
        standing = {line[:3] for lines in look.lines.values() for line in lines}
        for path in look.absent:
            of = self._scored[path]
            if of.rest in {each.rest for each in look.now.values()} or (of.rest, False, None) in standing:
                of.rest = b""
            of.lines = [line if line is None or line[:3] not in standing else None for line in of.lines]
        for path in look.without:
            if (InputKind.SCORED, path) not in look.present:
                named = self._scored[path].lines if path in self._scored else []
                self._evidence[path] &= {line.run_id for line in named if line is not None}

    def prune(self, root: Path) -> None:
        """An operator gave up what is not there."""
        present = {(file.kind, file.path) for file in lake.scan(root).files}
        self._scored = {path: each for path, each in self._scored.items() if (InputKind.SCORED, path) in present}
        self._evidence = {path: each for path, each in self._evidence.items() if (InputKind.EVIDENCE, path) in present}

    def _is_absent(self, side: Side, look: Look) -> bool:
        """Whether a pair's side stands in an absent file alone, or on absent evidence."""
        if side.path in look.absent:
            standing = {line.raw for each in look.lines.values() for line in each}
            return any(
                line is not None and line[2:] == side[1:] and line.raw not in standing
                for line in self._scored[side.path].lines
            )
        stands = any(line[2:] == side[1:] for line in look.lines.get(side.path, ()))
        return side.path in look.without and side.run_id in self._evidence[side.path] and stands

    def _verdicts(self, absent: list[str]) -> Iterator[AbsentVerdict]:
        for path in absent:
            of = self._scored[path]
            for run_id, category in verdicts_of(of.rest, None):
                yield AbsentVerdict(RowRef(path, len(of.lines)), run_id, category, digest_of(of.rest), True, True)
            for number, line in enumerate(of.lines):
                if line is None:
                    continue
                run = scored_run(parse_object(line.raw).value or {}) if line.readable else None
                for run_id, category in verdicts_of(line.raw, run):
                    yield AbsentVerdict(RowRef(path, number), run_id, category, digest_of(line.raw), not line.readable)

    def _kept(self, look: Look) -> Iterator[tuple[tuple[Dataset, RowRef], Placed]]:
        """What became of lines that stood there when their evidence went, and still stand in their file."""
        for path in look.without & look.lines.keys() & self._scored.keys():
            before = self._scored[path]
            for number, old in match(before.lines, look.lines[path]):
                if look.lines[path][number].run_id in self._evidence[path]:
                    for dataset, placed in before.placed[old].items():
                        if placed is not None:
                            yield (dataset, RowRef(path, number)), placed


def match(before: list[Line | None], now: list[Line]) -> Iterator[tuple[int, int]]:
    """Which line was which: one that stands where it stood, or else the next of the same bytes."""
    known = [None if line is None else line[:2] for line in before]
    pairs = {number: number for number, line in enumerate(now) if number < len(known) and known[number] == line[:2]}
    left = [number for number in range(len(known)) if number not in pairs]
    for number, line in enumerate(now):
        if number not in pairs:
            found = next((old for old in left if known[old] == line[:2]), None)
            if found is not None:
                pairs[number] = found
                left.remove(found)
    yield from pairs.items()


def line_of(raw: bytes, options: Options) -> Line:
    """A scored line and what it says."""
    value = parse_object(raw).value if len(raw) <= options.max_line_bytes else None
    if value is None:
        return Line(raw, False, None, None, None)
    run = scored_run(value)
    return Line(raw, True, run.run_id, run.task_id, run.category)


def runs_of(lines: tuple[bytes, ...], options: Options) -> Iterator[str]:
    """The runs that evidence lines speak of."""
    for raw in lines:
        value = parse_object(raw).value if len(raw) <= options.max_line_bytes else None
        run_id = evidence_record(value).run_id if value is not None else None
        if run_id:
            yield run_id


def side_at(lines: dict[str, list[Line]], at: RowRef) -> Side:
    """The row of a pair that stands there."""
    line = lines[at.partition][at.line]
    assert line.run_id and line.task_id  # noqa: PT018
    assert line.category
    return Side(at.partition, line.run_id, line.task_id, line.category)
