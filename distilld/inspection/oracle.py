"""The naive full pass: ``Export(inputs, options)`` of SPEC 3, written to be checked by eye.

It reads every input again and keeps no state, so it can check the incremental engine: ``verify --deep`` and the
property tests compare the exports with it. It shares with the engine the pure core (what a line says, which gate fails
it, how an exported row is built) and the walk over the partitions. The code that finds, joins, orders and remembers
lines is written a second time, in the simplest way, here and in ``oracle_lake`` and ``oracle_verdicts``.

It reads the lake up to three times, one partition at a time: for the verdicts, for the rows, and for the rows in pairs.
In memory it holds the outcome of each row, which may be as short as a digest, and the rows of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from distilld.core.datasets import preference, rag, sft
from distilld.core.firewall import MissingFiles, PairCase, PairSide, RowCase, revoking
from distilld.core.json_text import Malformed
from distilld.core.model import ROW_DATASETS, Category, Dataset, InputKind, Options, RowRef
from distilld.core.outcome import Outcome, quarantine_malformed
from distilld.core.records import ScoredRun, id_digits
from distilld.inspection.oracle_lake import Lake, Row, all_rows, rows_at
from distilld.inspection.oracle_verdicts import AbsentVerdict, Verdicts
from distilld.inspection.unstamped import STAMP
from distilld.lake.scan import tree_path


class Placed(NamedTuple):
    """The outcome of a row or a pair: a dataset line with its id, or a quarantine line (``id`` is None)."""

    id: str | None
    line: bytes


class RetainedRow(NamedTuple):
    """The outcome, in one dataset, of a row that no present input gives: absent, vanished, or an orphan.

    For an orphan, ``told`` is the category that an old quarantine file gives its run.
    """

    dataset: Dataset
    placed: Placed
    run_id: str | None
    digest: bytes
    is_orphan: bool = False
    told: Category | None = None


class RetainedPair(NamedTuple):
    """The outcome of a retained pair, and its runs with the categories that each of them may have had in it."""

    placed: Placed
    sides: tuple[tuple[str, tuple[Category, ...]], tuple[str, tuple[Category, ...]]]
    is_orphan: bool = False


@dataclass(frozen=True, slots=True)
class Retained:
    """What the exports retain (SPEC 3): rows of absent partitions, rows kept by the tripwire, and orphans.

    ``kept`` has the outcomes of present rows whose evidence is absent or vanished, by dataset and place. The full pass
    decides which of all these stay.
    """

    verdicts: tuple[AbsentVerdict, ...] = ()
    rows: tuple[RetainedRow, ...] = ()
    pairs: tuple[RetainedPair, ...] = ()
    kept: Mapping[tuple[Dataset, RowRef], Placed] = field(default_factory=dict)


NOTHING_RETAINED: Final = Retained()


@dataclass(slots=True)
class FullPass:
    """What the exports must hold, in canonical walk order. Lines have :data:`STAMP` in place of a batch's times."""

    lines: int = 0
    """Scored lines. Each is exported or quarantined in RAG, and also in SFT."""
    exported: dict[Dataset, dict[str, bytes]] = field(default_factory=lambda: {dataset: {} for dataset in Dataset})
    """Dataset lines by id."""
    quarantined: dict[Dataset, list[bytes]] = field(default_factory=lambda: {dataset: [] for dataset in Dataset})
    """Quarantine lines; two may be equal, so SPEC 3 compares them as multisets."""
    retained_rows: list[RetainedRow] = field(default_factory=list)
    """The retained rows that stay."""
    retained_pairs: list[RetainedPair] = field(default_factory=list)
    kept: int = 0
    """How many outcomes stay although their evidence is absent or vanished."""
    left_behind: list[RowRef] = field(default_factory=list)
    """Absent verdicts whose lines are in a present partition. The store must not keep them."""

    def put(self, dataset: Dataset, placed: Placed, *_at: RowRef) -> None:
        """Add the outcome of the row or the pair at these places; what is retained has none."""
        if placed.id is None:
            self.quarantined[dataset].append(placed.line)
        else:
            self.exported[dataset][placed.id] = placed.line


def export(
    lines: Lake,
    options: Options,
    *,
    missing_files: MissingFiles | None = None,
    retained: Retained = NOTHING_RETAINED,
    keep: Callable[[Placed], Placed] = lambda placed: placed,
    into: FullPass | None = None,
) -> FullPass:
    """Judge every line of the lake in walk order, then add the retained rows and pairs that stay.

    ``missing_files`` is the path check (SPEC 3.5), None if it is off. ``keep`` reduces an outcome to what is remembered
    of the line. The result is put ``into`` an empty one, if it is given.
    """
    verdicts = verdicts_in_force(lines, options, retained)
    result = into or FullPass()
    result.left_behind = verdicts.moved
    without_evidence: list[tuple[Dataset, Row, Placed]] = []
    tasks, exports = _Tasks(), _ExportsOfRuns(options, verdicts)
    judge = _Judge(result, verdicts, exports, options, missing_files)
    for row in all_rows(lines, options):
        result.lines += 1
        tasks.add(row)
        exports.add(row)
        for dataset in ROW_DATASETS:
            outcome = judge.row(dataset, row)
            placed = keep(_placed(outcome))
            if outcome.gate == "evidence" and (dataset, row.at) in retained.kept:
                without_evidence.append((dataset, row, placed))
            else:
                result.put(dataset, placed, row.at)
    pairs = tasks.pairs()
    sides = rows_at({at for pair in pairs for at in pair}, lines, options)
    for chosen, rejected in pairs:
        placed = keep(_placed(judge.pair(sides[chosen], sides[rejected])))
        result.put(Dataset.PREFERENCE, placed, chosen, rejected)
    _add_kept(result, without_evidence, retained)
    _add_retained_rows(result, retained, verdicts, options)
    _add_retained_pairs(result, retained, verdicts, options)
    return result


def _add_kept(result: FullPass, without_evidence: list[tuple[Dataset, Row, Placed]], retained: Retained) -> None:
    """Keep the outcomes of rows whose evidence is gone, unless a present row anywhere is exported under the same id."""
    for dataset, row, quarantined in without_evidence:
        placed = retained.kept[dataset, row.at]
        if placed.id in result.exported[dataset]:
            placed = quarantined
        else:
            result.kept += 1
        result.put(dataset, placed, row.at)


def _add_retained_rows(result: FullPass, retained: Retained, verdicts: Verdicts, options: Options) -> None:
    for row in retained.rows:
        stands_elsewhere = verdicts.line_stands(row.run_id, row.digest)
        won = row.placed.id in result.exported[row.dataset]
        verdict = verdicts.of(row.dataset, row.run_id)
        revoked = row.placed.id is not None and revoking(row.dataset, verdict, options)
        forbidden = row.told is not None and options.forbids(row.dataset, row.told)
        decided = row.is_orphan and (forbidden or verdicts.rows_naming[row.run_id])
        if not (stands_elsewhere or won or revoked or decided):
            result.put(row.dataset, row.placed)
            result.retained_rows.append(row)


def _add_retained_pairs(result: FullPass, retained: Retained, verdicts: Verdicts, options: Options) -> None:
    for pair in retained.pairs:
        overruled = options.revoke and any(
            said is not None and said not in categories
            for run_id, categories in pair.sides
            for said in verdicts.of_run(run_id)
        )
        won = pair.placed.id in result.exported[Dataset.PREFERENCE]
        decided = pair.is_orphan and any(verdicts.rows_naming[run_id] for run_id, _ in pair.sides)
        if pair.placed.id is None or not (overruled or won or decided):
            result.put(Dataset.PREFERENCE, pair.placed)
            result.retained_pairs.append(pair)


def verdicts_in_force(lines: Lake, options: Options, retained: Retained = NOTHING_RETAINED) -> Verdicts:
    """Return the current verdict of each run, over all partitions (SPEC 3.4)."""
    rests: list[tuple[RowRef, bytes]] = []
    rows = all_rows(lines, options, rests)
    keep_lines = bool(retained.verdicts or retained.rows)
    return Verdicts(rows, rests, options, absent=retained.verdicts, keep_lines=keep_lines)


class _Tasks:
    """The rows that can be paired, by task. Tasks are in the order of their first rows (SPEC 3.3)."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[Category, list[RowRef]]] = {}

    def add(self, row: Row) -> None:
        """Add a row of the lake. Only the first ``PAIRS_PER_TASK`` of a task and a category can be in a pair."""
        if row.run and row.run.task_id and row.evidence:
            of = self._tasks.setdefault(row.run.task_id, {})
            if row.run.category and len(of.setdefault(row.run.category, [])) < preference.PAIRS_PER_TASK:
                of[row.run.category].append(row.at)

    def pairs(self) -> list[tuple[RowRef, RowRef]]:
        """Return the pairs that are tried: the chosen and the rejected row of each."""
        return [
            pair
            for of in self._tasks.values()
            for pair in preference.pair_up(
                of.get(Category.ACCEPTED, []), of.get(Category.REJECTED, []), of.get(Category.PARTIALLY_ACCEPTED, [])
            )
        ]


class _ExportsOfRuns:
    """The first exports of each run, up to ``max_exports_per_run`` (SPEC 3.12).

    A run with no more rows than that cannot exceed the limit, so nothing is remembered for it.
    """

    def __init__(self, options: Options, verdicts: Verdicts) -> None:
        self._most = options.max_exports_per_run
        self._verdicts = verdicts
        self._first: dict[str, set[tuple[str | None, str | None]]] = {}

    def add(self, row: Row) -> None:
        """Add the next row of the lake, in walk order."""
        if row.run and row.run.run_id and 0 < self._most < self._verdicts.rows_naming[row.run.run_id]:
            first = self._first.setdefault(row.run.run_id, set())
            if len(first) < self._most:
                first.add(self._export_of(row.run))

    def over_limit(self, run: ScoredRun) -> bool:
        """Return whether a row that was added belongs to none of the first exports of its run."""
        return run.run_id in self._first and self._export_of(run) not in self._first[run.run_id]

    def _export_of(self, run: ScoredRun) -> tuple[str | None, str | None]:
        return id_digits(run.run_id or "", run.sig_hash) if run.sig_hash else None, run.task_id


@dataclass(frozen=True, slots=True)
class _Judge:
    """Decides the outcome of a row or a pair, by what was exported before it."""

    result: FullPass
    verdicts: Verdicts
    exports: _ExportsOfRuns
    options: Options
    missing_files: MissingFiles | None

    def row(self, dataset: Dataset, row: Row) -> Outcome:
        if row.run is None:
            return quarantine_malformed(
                dataset,
                row.raw.decode(errors="replace"),
                row.malformed or Malformed.NOT_JSON,
                row.at,
                source_file=tree_path(InputKind.SCORED, row.at.partition),
                max_line_bytes=self.options.max_line_bytes,
            )
        run_id, signature = row.run.run_id or "", row.run.sig_hash or ""
        verdict, over = self.verdicts.of(dataset, run_id), self.exports.over_limit(row.run)
        taken = f"{dataset}-{id_digits(run_id, signature)}" in self.result.exported[dataset]
        case = RowCase(row.run, row.evidence, verdict, taken, self.options, self.missing_files, over)
        return rag.judge(case, row.at) if dataset is Dataset.RAG else sft.judge(case, row.at)

    def pair(self, chosen: Row, rejected: Row) -> Outcome:
        better, worse = self._side(chosen), self._side(rejected)
        task_id = better.scored.task_id or ""
        digits = preference.id_digits(better.scored.run_id or "", worse.scored.run_id or "", task_id)
        taken = f"pref-{digits}" in self.result.exported[Dataset.PREFERENCE]
        return preference.judge(PairCase(better, worse, taken, self.options, self.missing_files), chosen.at)

    def _side(self, row: Row) -> PairSide:
        assert row.run is not None and row.evidence is not None  # noqa: S101, PT018  _Tasks.add() takes no others
        return PairSide(row.run, row.evidence, self.verdicts.of_side(row.run), self.exports.over_limit(row.run))


def _placed(outcome: Outcome) -> Placed:
    return Placed(outcome.id, outcome.line(STAMP))
