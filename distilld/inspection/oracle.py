"""The naive full pass: ``Export(inputs, options)`` of SPEC 3, written to be checked by eye.

It reads every input anew and remembers nothing, so it can say whether the incremental engine is right: ``verify
--deep`` and the property tests compare the exports with it. It shares the pure core (what a line says, which gate holds
it, what a row looks like) and the walk over the partitions with the engine; how lines are found, joined, ordered and
remembered is written here a second time, in the plainest way.

It goes over the lake up to three times, a partition at a time: for the verdicts, for the rows, and for the rows that
stand in pairs. In memory it holds what it says of each row, which may be as short as a digest, and the rows of pairs.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from distilld.core.datasets import preference, rag, sft
from distilld.core.firewall import MissingFiles, PairCase, PairSide, RowCase, revoking
from distilld.core.json_text import Malformed, parse_object, trim
from distilld.core.model import Category, Dataset, InputKind, Options, RowRef
from distilld.core.outcome import Hold, Outcome, Ship, hold_malformed
from distilld.core.records import EvidenceRecord, ScoredRun, evidence_record, id_digits, scored_run
from distilld.lake import scan as lake
from distilld.lake.lines import digest_of
from distilld.lake.scan import tree_path, walk_key

STAMP: Final = "-"
"""Stands for every timestamp that a batch gives, so that lines of different batches can be compared."""


class Partition(NamedTuple):
    """The lines that count of one partition, without line feeds: scored rows, and the mirrored evidence."""

    scored: tuple[bytes, ...]
    evidence: tuple[bytes, ...]


Lake = Mapping[str, Partition]
"""Partitions by their path below the input trees."""


class Placed(NamedTuple):
    """What became of a row or a pair: the dataset line that it has by its id, or a quarantine line (``id`` is None)."""

    id: str | None
    line: bytes


class AbsentVerdict(NamedTuple):
    """A verdict in an absent partition: it still forbids, and never clears (SPEC 3)."""

    at: RowRef
    run_id: str
    category: Category
    digest: bytes
    malformed: bool = False


class FrozenRow(NamedTuple):
    """What became, in one dataset, of a row that no present input gives: absent, vanished, or an orphan.

    Of an orphan, ``told`` is what an old quarantine file says of its run.
    """

    dataset: Dataset
    placed: Placed
    run_id: str | None
    digest: bytes
    is_orphan: bool = False
    told: Category | None = None


class FrozenPair(NamedTuple):
    """What became of a pair one side of which is so; its runs, with the categories that they may have had in it."""

    placed: Placed
    sides: tuple[tuple[str, tuple[Category, ...]], tuple[str, tuple[Category, ...]]]
    is_orphan: bool = False


@dataclass(frozen=True, slots=True)
class Frozen:
    """What stands in the exports by way of exception (SPEC 3): of absent partitions, by the tripwire, of orphans.

    ``kept`` is what became of present rows whose evidence is absent or vanished, by dataset and place. Which of them
    all may still stand is for the full pass to say.
    """

    verdicts: tuple[AbsentVerdict, ...] = ()
    rows: tuple[FrozenRow, ...] = ()
    pairs: tuple[FrozenPair, ...] = ()
    kept: Mapping[tuple[Dataset, RowRef], Placed] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether any line of an absent partition is remembered."""
        return bool(self.verdicts or self.rows)


NOTHING_FROZEN: Final = Frozen()


class Pair(NamedTuple):
    """A pair that was tried: where its two rows stand, and what became of it."""

    chosen: RowRef
    rejected: RowRef
    placed: Placed


@dataclass(slots=True)
class FullPass:
    """What the exports must hold, in canonical walk order; lines carry :data:`STAMP` where a batch puts its time."""

    lines: int = 0
    """Scored lines: each is shipped or held, in RAG and in SFT alike."""
    shipped: dict[Dataset, dict[str, bytes]] = field(default_factory=lambda: {dataset: {} for dataset in Dataset})
    """Dataset lines by id."""
    held: dict[Dataset, list[bytes]] = field(default_factory=lambda: {dataset: [] for dataset in Dataset})
    """Quarantine lines; two may be equal."""
    places: bool = False
    """Whether it is also told by place."""
    rows: dict[tuple[Dataset, RowRef], Placed] = field(default_factory=dict)
    """What became of each scored line, by place."""
    pairs: list[Pair] = field(default_factory=list)
    """The pairs that were tried, by place."""
    frozen_rows: list[FrozenRow] = field(default_factory=list)
    """Of the frozen rows, those that stay."""
    frozen_pairs: list[FrozenPair] = field(default_factory=list)
    kept: int = 0
    """How many outcomes stay although the evidence is not there."""

    def quarantine(self, dataset: Dataset) -> Counter[bytes]:
        """The quarantine lines as a multiset, which is how SPEC 3 compares them."""
        return Counter(self.held[dataset])


# The inputs


class LakeOnDisk(Mapping[str, Partition]):
    """All partitions below ``root``: found by one look, and each read anew when it is asked for.

    ``read`` takes the bytes and the rows of each; ``bytes`` is what all of them hold.

    Raises:
        ListingError: A folder could not be listed.
        UnreadableError: A file could not be read.
        InputChanged: A file went away meanwhile.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self._root = root
        self._max_line_bytes = options.max_line_bytes
        self._kinds: dict[str, set[InputKind]] = {}
        self.read: Callable[[int, int], None] = lambda _bytes, _rows: None
        scan = lake.scan(root)
        self.bytes = sum(file.stat.size for file in scan.files)
        for folder in scan.unlisted:
            raise lake.ListingError(tree_path(folder.kind, folder.below), folder.problem or "it went away meanwhile")
        for file in scan.files:
            self._kinds.setdefault(file.path, set()).add(file.kind)

    def __getitem__(self, path: str) -> Partition:
        found = Partition(self._lines(InputKind.SCORED, path), self._lines(InputKind.EVIDENCE, path))
        self.read(sum(len(line) + 1 for line in found.scored + found.evidence), len(found.scored))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def _lines(self, kind: InputKind, path: str) -> tuple[bytes, ...]:
        if kind not in self._kinds[path]:
            return ()
        return lines_of(read_file(self._root, kind, path), self._max_line_bytes)


def read_lake(root: Path, options: Options) -> dict[str, Partition]:
    """The same, all of it read now."""
    return dict(LakeOnDisk(root, options))


def read_file(root: Path, kind: InputKind, path: str) -> bytes:
    """One input file as it is now."""
    with lake.open_partition(root, kind, path) as (descriptor, _), os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


def lines_of(content: bytes, max_line_bytes: int) -> tuple[bytes, ...]:
    """The lines that count (SPEC 2): complete and not empty; an unterminated last one only if it is a JSON object."""
    *complete, last = content.split(b"\n")
    lines = [line for line in complete if line]
    if len(last) <= max_line_bytes and parse_object(last).value is not None:
        lines.append(last)
    return tuple(lines)


# The pass


class _Row(NamedTuple):
    """One scored line: what it says, or why it says nothing, and the evidence that it joins."""

    at: RowRef
    raw: bytes
    run: ScoredRun | None
    malformed: Malformed | None
    evidence: EvidenceRecord | None


def export(
    lines: Lake,
    options: Options,
    *,
    missing_files: MissingFiles | None = None,
    frozen: Frozen = NOTHING_FROZEN,
    keep: Callable[[Placed], Placed] = lambda placed: placed,
    places: bool = False,
) -> FullPass:
    """Judge every line of the lake in walk order, then add what is frozen and stays.

    ``missing_files`` is the path check (SPEC 3.5), None where it is off. ``keep`` makes of what became of a row what is
    remembered of it; with ``places`` it is also told by the places of rows and pairs.
    """
    verdicts = Verdicts(_all_rows(lines, options), frozen, options)
    result = FullPass(places=places)
    without_evidence: list[tuple[Dataset, _Row, Placed]] = []
    tasks = _Tasks()
    for row in _all_rows(lines, options):
        result.lines += 1
        tasks.add(row)
        for dataset in (Dataset.RAG, Dataset.SFT):
            outcome = _row_outcome(result, dataset, row, verdicts, options, missing_files)
            placed = keep(_placed(outcome))
            if isinstance(outcome, Hold) and outcome.gate == "evidence" and (dataset, row.at) in frozen.kept:
                without_evidence.append((dataset, row, placed))
            else:
                _put_row(result, dataset, row.at, placed)
    pairs = tasks.pairs()
    sides = _rows_at({at for pair in pairs for at in pair}, lines, options)
    for chosen, rejected in pairs:
        outcome = _pair_outcome(result, sides[chosen], sides[rejected], verdicts, options, missing_files)
        placed = _put(result, Dataset.PREFERENCE, keep(_placed(outcome)))
        if places:
            result.pairs.append(Pair(chosen, rejected, placed))
    _add_kept(result, without_evidence, frozen)
    _add_frozen_rows(result, frozen, verdicts, options)
    _add_frozen_pairs(result, frozen, verdicts, options)
    return result


def _add_kept(result: FullPass, without_evidence: list[tuple[Dataset, _Row, Placed]], frozen: Frozen) -> None:
    """Rows on absent evidence stay what they were, but a present row that ships the same id wins wherever it stands."""
    for dataset, row, held in without_evidence:
        placed = frozen.kept[dataset, row.at]
        if placed.id in result.shipped[dataset]:
            placed = held
        else:
            result.kept += 1
        _put_row(result, dataset, row.at, placed)


def _add_frozen_rows(result: FullPass, frozen: Frozen, verdicts: Verdicts, options: Options) -> None:
    for row in frozen.rows:
        stands_elsewhere = verdicts.line_stands(row.run_id, row.digest)
        won = row.placed.id in result.shipped[row.dataset]
        verdict = verdicts.of(row.dataset, row.run_id)
        revoked = row.placed.id is not None and revoking(row.dataset, verdict, options)
        forbidden = row.told is not None and options.forbids(row.dataset, row.told)
        decided = row.is_orphan and (forbidden or verdicts.names(row.run_id))
        if not (stands_elsewhere or won or revoked or decided):
            _put(result, row.dataset, row.placed)
            result.frozen_rows.append(row)


def _add_frozen_pairs(result: FullPass, frozen: Frozen, verdicts: Verdicts, options: Options) -> None:
    for pair in frozen.pairs:
        overruled = options.revoke and any(
            said is not None and said not in categories
            for run_id, categories in pair.sides
            for said in verdicts.of_run(run_id)
        )
        won = pair.placed.id in result.shipped[Dataset.PREFERENCE]
        decided = pair.is_orphan and any(verdicts.names(run_id) for run_id, _ in pair.sides)
        if pair.placed.id is None or not (overruled or won or decided):
            _put(result, Dataset.PREFERENCE, pair.placed)
            result.frozen_pairs.append(pair)


class Verdicts:
    """The verdicts in force (SPEC 3.4): the last present one, or a later absent one that forbids."""

    def __init__(self, rows: Iterable[_Row], frozen: Frozen, options: Options) -> None:
        self._options = options
        self._present: dict[str, tuple[tuple[tuple[str, ...], int], Category]] = {}
        self._named: set[str | None] = set()
        self._lines: set[tuple[str | None, bytes]] = set()
        for row in rows:
            if row.run:
                self._named.add(row.run.run_id)
            for run_id, category in verdicts_of(row.raw, row.run):
                self._present[run_id] = _place(row.at), category
            if frozen.any:
                self._lines.add((row.run.run_id if row.run else None, digest_of(row.raw)))
        self._absent: dict[str, list[AbsentVerdict]] = {}
        for each in sorted(frozen.verdicts, key=lambda each: _place(each.at)):
            # A line that is too long to be read now clears nothing.
            if (None if each.malformed else each.run_id, each.digest) not in self._lines:
                self._absent.setdefault(each.run_id, []).append(each)

    def line_stands(self, run_id: str | None, digest: bytes) -> bool:
        """Whether a line also stands in a present partition, where it may be too long now to say its run."""
        return not self._lines.isdisjoint({(run_id, digest), (None, digest)})

    def names(self, run_id: str | None) -> bool:
        """Whether a present scored row names the run: then no orphan of it stays (SPEC 3.11)."""
        return run_id is not None and run_id in self._named

    def of(self, dataset: Dataset, run_id: str | None) -> Category | None:
        """The category in force for a run in a dataset."""
        place, category = self._present.get(run_id or "", (None, None))
        for each in self._absent.get(run_id or "", ()):
            later = place is None or _place(each.at) > place
            if later and self._options.forbids(dataset, each.category):
                category = each.category
        return category

    def of_run(self, run_id: str | None) -> tuple[Category | None, Category | None]:
        """What a side of a pair must agree with: the last present verdict, and an absent one that forbids as well."""
        _, present = self._present.get(run_id or "", (None, None))
        return present, self.of(Dataset.PREFERENCE, run_id)

    def of_side(self, run: ScoredRun) -> Category | None:
        """That of the two which a present row does not agree with, if there is one."""
        present, in_force = self.of_run(run.run_id)
        return in_force if present is run.category else present


def _place(at: RowRef) -> tuple[tuple[str, ...], int]:
    return _walk_key(at.partition), at.line


_walk_key: Final = lru_cache(maxsize=8)(walk_key)
"""One key for all the rows of a partition."""


def verdicts_in_force(lines: Lake, options: Options, frozen: Frozen = NOTHING_FROZEN) -> Verdicts:
    """The verdict in force of each run, over all partitions (SPEC 3.4)."""
    return Verdicts(_all_rows(lines, options), frozen, options)


def _all_rows(lines: Lake, options: Options) -> Iterator[_Row]:
    for path in sorted(lines, key=walk_key):
        yield from _rows_of(path, lines[path], options)


def _rows_at(places: set[RowRef], lines: Lake, options: Options) -> dict[RowRef, _Row]:
    return {
        row.at: row
        for path in sorted({at.partition for at in places})
        for row in _rows_of(path, lines[path], options)
        if row.at in places
    }


def _rows_of(path: str, partition: Partition, options: Options) -> list[_Row]:
    evidence: dict[str, EvidenceRecord] = {}
    for raw in partition.evidence:
        parsed = parse_object(raw)
        if len(raw) <= options.max_line_bytes and parsed.value is not None:
            record = evidence_record(parsed.value, marked=parsed.marked)
            if record.run_id:
                evidence[record.run_id] = record  # the last one counts
    rows = []
    for number, raw in enumerate(partition.scored):
        at = RowRef(path, number)
        parsed = parse_object(raw)
        if len(raw) > options.max_line_bytes:
            rows.append(_Row(at, raw, None, Malformed.TOO_LONG, None))
        elif parsed.value is None:
            rows.append(_Row(at, raw, None, parsed.malformed, None))
        else:
            run = scored_run(parsed.value, marked=parsed.marked)
            rows.append(_Row(at, raw, run, None, evidence.get(run.run_id) if run.run_id else None))
    return rows


_CATEGORY: Final = re.compile(r'"category"[ \t\n\r]*:[ \t\n\r]*"[ \t\n\r]*([A-Za-z_]+)[ \t\n\r]*"')
_NOT_TEXT: Final = str.maketrans("", "", "\0\ufeff")
_FORBIDDING: Final = {"rejected": Category.REJECTED, "needs_human_review": Category.NEEDS_HUMAN_REVIEW}


def verdicts_of(raw: bytes, run: ScoredRun | None) -> list[tuple[str, Category]]:
    """Return what a scored line says of runs: its verdict, or what a malformed one still spells out (SPEC 2, 3.4)."""
    if run is not None:
        if not run.run_id:
            return []
        category = run.category
        if category is None:
            said = run.value.get("category")
            word = trim(said).lower() if isinstance(said, str) else ""
            category = Category.REJECTED if word == "rejected" else Category.NEEDS_HUMAN_REVIEW
        return [(run.run_id, category)]
    utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = raw.decode("utf-16" if utf16 else "utf-8", errors="replace").translate(_NOT_TEXT)
    words = {found.group(1).lower() for found in _CATEGORY.finditer(text)}
    category = next((_FORBIDDING[word] for word in _FORBIDDING if word in words), None)
    if category is None:
        return []
    named = re.finditer(r'"evidence_run_id"[ \t\n\r]*:[ \t\n\r]*"((?:\\.|[^"\\])+)"', text, re.DOTALL)
    return [(_unescaped(found.group(1)), category) for found in named]


def _unescaped(text: str) -> str:
    try:
        text = str(_DECODER.decode(f'"{text}"'))
    except ValueError:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Tasks:
    """The rows that can be paired, by task; tasks in the order of their first rows (SPEC 3.3)."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[Category, list[RowRef]]] = {}

    def add(self, row: _Row) -> None:
        """Take a row of the lake. Those behind the first few of a task and a category stand in no pair."""
        if row.run and row.run.task_id and row.evidence:
            of = self._tasks.setdefault(row.run.task_id, {})
            if row.run.category and len(of.setdefault(row.run.category, [])) < preference.PAIRS_PER_TASK:
                of[row.run.category].append(row.at)

    def pairs(self) -> list[tuple[RowRef, RowRef]]:
        """The pairs that are tried: the chosen and the rejected row of each."""
        return [
            pair
            for of in self._tasks.values()
            for pair in preference.pair_up(
                of.get(Category.ACCEPTED, []), of.get(Category.REJECTED, []), of.get(Category.PARTIALLY_ACCEPTED, [])
            )
        ]


def _row_outcome(
    result: FullPass,
    dataset: Dataset,
    row: _Row,
    verdicts: Verdicts,
    options: Options,
    missing_files: MissingFiles | None,
) -> Outcome:
    if row.run is None:
        return hold_malformed(
            dataset,
            row.raw.decode(errors="replace"),
            row.malformed or Malformed.NOT_JSON,
            row.at,
            source_file=tree_path(InputKind.SCORED, row.at.partition),
            max_line_bytes=options.max_line_bytes,
        )
    run_id, signature = row.run.run_id or "", row.run.sig_hash or ""
    taken = f"{dataset}-{id_digits(run_id, signature)}" in result.shipped[dataset]
    case = RowCase(row.run, row.evidence, verdicts.of(dataset, run_id), taken, options, missing_files)
    return rag.judge(case, row.at) if dataset is Dataset.RAG else sft.judge(case, row.at)


def _pair_outcome(
    result: FullPass,
    chosen: _Row,
    rejected: _Row,
    verdicts: Verdicts,
    options: Options,
    missing_files: MissingFiles | None,
) -> Outcome:
    sides = []
    for row in (chosen, rejected):
        assert row.run is not None and row.evidence is not None  # noqa: S101, PT018  _tasks_of() gives no others
        sides.append(PairSide(row.run, row.evidence, verdicts.of_side(row.run)))
    better, worse = sides
    task_id = better.scored.task_id or ""
    digits = preference.id_digits(better.scored.run_id or "", worse.scored.run_id or "", task_id)
    taken = f"pref-{digits}" in result.shipped[Dataset.PREFERENCE]
    return preference.judge(PairCase(better, worse, taken, options, missing_files), chosen.at)


def _placed(outcome: Outcome) -> Placed:
    return Placed(outcome.sample["id"] if isinstance(outcome, Ship) else None, outcome.line(STAMP))


def _put(result: FullPass, dataset: Dataset, placed: Placed) -> Placed:
    if placed.id is None:
        result.held[dataset].append(placed.line)
    else:
        result.shipped[dataset][placed.id] = placed.line
    return placed


def _put_row(result: FullPass, dataset: Dataset, at: RowRef, placed: Placed) -> None:
    _put(result, dataset, placed)
    if result.places:
        result.rows[dataset, at] = placed


# Lines of the exports, to be compared


def unstamped_sample(line: bytes) -> bytes:
    """A dataset's line with :data:`STAMP` in the place of its two timestamps; another text comes back as it is."""
    head, created, rest = line.partition(b',"created_at":"')
    middle, recorded, end = rest.rpartition(b',"recorded_at":"')
    if not created or not recorded or not end.endswith(b'"}}\n') or b'"' in end[:-4]:
        return line
    time, quote, between = middle.partition(b'"')
    return (
        b"".join((head, created, STAMP.encode(), quote, between, recorded, STAMP.encode(), b'"}}\n')) if time else line
    )


def unstamped_hold(line: bytes) -> bytes:
    """A quarantine line with :data:`STAMP` in the place of its timestamp; another text comes back as it is.

    What stands before it is the producer's own JSON, which is stepped over value by value and not searched.
    """
    try:
        text = line.decode()
        _, at = _value_after(text, '"source_record":', text.index('"source_record":'))
        _, at = _value_after(text, ',"errors":', at)
        start = at
        _, at = _value_after(text, ',"recorded_at":', at)
    except ValueError:
        return line
    return f'{text[:start]},"recorded_at":"{STAMP}"{text[at:]}'.encode()


def _value_after(text: str, key: str, at: int) -> tuple[object, int]:
    if not text.startswith(key, at):
        raise ValueError(key)
    value: tuple[object, int] = _DECODER.raw_decode(text, at + len(key))
    return value


_DECODER: Final = json.JSONDecoder()
