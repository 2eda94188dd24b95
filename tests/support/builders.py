"""Rows as producers write them, cases as the gates see them, and one naive pass over a lake in memory.

Each builder makes a row that ships everywhere; a test names only what is special about its own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import settings

from distilld.core.datasets import preference, rag, sft
from distilld.core.firewall import MissingFiles, PairCase, PairSide, RowCase
from distilld.core.json_text import parse_object
from distilld.core.model import Category, Dataset, Options, RowRef
from distilld.core.outcome import Outcome, quarantine_malformed
from distilld.core.records import EvidenceRecord, ScoredRun, evidence_record, id_digits, scored_run
from distilld.inspection.oracle_verdicts import verdicts_of

AT: Final = RowRef("2026/04/27/scrum_reviews.jsonl", 7)
STAMP: Final = "2026-04-27T03:57:40.123Z"


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""As the value of a change: the key is left out."""

PROPERTY: Final = settings(derandomize=True, deadline=None, database=None, max_examples=200)
"""Of every property test: the same examples in each run, no clock, no files."""


def changed(row: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``row``; a dot in a change's name goes one level down."""
    row = copy.deepcopy(row)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = row
        for parent in parents:
            place = place[parent]
        if value is ABSENT:
            del place[last]
        else:
            place[last] = value
    return row


def scored(**changes: Any) -> dict[str, Any]:
    """A scored row, accepted; ``provenance__sig_hash=…`` changes what is nested."""
    row = {
        "schema_version": 1,
        "evidence_run_id": "run-1",
        "evidence_task_id": "scrum_review:src/lib.rs",
        "category": "accepted",
        "reasons": ["observer verdict accept", "attempts=1"],
        "scored_at": "2026-04-27T01:00:00.000Z",
        "provenance": {
            "source_file": "data/_kb/scrum_reviews.jsonl",
            "line_offset": 41,
            "sig_hash": "5f0c",
            "recorded_at": "2026-04-27T01:00:00.000Z",
        },
    }
    return changed(row, {name.replace("__", "."): value for name, value in changes.items()})


def evidence(**changes: Any) -> dict[str, Any]:
    """The evidence of that run."""
    row = {
        "run_id": "run-1",
        "task_id": "scrum_review:src/lib.rs",
        "model_role": "executor",
        "model_name": "qwen3:32b",
        "text": "# Review\n\nOne finding, high severity.",
        "source_files": ["src/lib.rs", "src/main.rs"],
        "retrieved_context": {"matrix_corpora": ["arch_v1", "symbols_v1"], "pathway_fingerprints_seen": 3},
        "metadata": {"contractor": "Acme"},
        "provenance": {"source_file": "data/_kb/scrum_reviews.jsonl", "line_offset": 41, "sig_hash": "5f0c"},
    }
    return changed(row, {name.replace("__", "."): value for name, value in changes.items()})


@dataclass(frozen=True)
class Flaw:
    """What makes a row faulty: changes of its scored row and of its evidence, and what holds around it."""

    scored: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] | None = field(default_factory=dict)
    around: dict[str, Any] = field(default_factory=dict)

    def over(self, other: Flaw) -> Flaw:
        """Both flaws in one row; where they speak of one thing, this one's word holds."""
        mine, theirs = self.evidence, other.evidence
        return Flaw(
            other.scored | self.scored,
            None if mine is None or theirs is None else theirs | mine,
            other.around | self.around,
        )

    def case(self) -> RowCase:
        """The row with this flaw, as the gates of RAG and SFT see it."""
        given = None if self.evidence is None else evidence_record(evidence(**self.evidence))
        return row_case(scored_run(scored(**self.scored)), given, **self.around)


def row_case(
    run: ScoredRun | None = None,
    given: EvidenceRecord | None = None,
    *,
    verdict: Category | None = None,
    id_taken: bool = False,
    options: Options | None = None,
    missing_files: MissingFiles | None = None,
    over_limit: bool = False,
) -> RowCase:
    """A case around a scored row and its evidence (None: it has none)."""
    return RowCase(
        run or scored_run(scored()), given, verdict, id_taken, options or Options(), missing_files, over_limit
    )


def passing_case(**around: Any) -> RowCase:
    """A case that every gate lets pass."""
    return row_case(given=evidence_record(evidence()), **around)


def side(verdict: Category | object | None = ABSENT, *, over_limit: bool = False, **changes: Any) -> PairSide:
    """One side of a pair; ``e_text=…`` changes its evidence, other names its scored row."""
    ours = {name: value for name, value in changes.items() if not name.startswith("e_")}
    theirs = {name.removeprefix("e_"): value for name, value in changes.items() if name.startswith("e_")}
    run = scored_run(scored(**ours))
    given = evidence_record(evidence(**{"run_id": run.run_id, **theirs}))
    in_force = run.category if verdict is ABSENT else verdict
    assert in_force is None or isinstance(in_force, Category)
    return PairSide(run, given, in_force, over_limit)


def pair_case(
    chosen: Mapping[str, Any] | None = None,
    rejected: Mapping[str, Any] | None = None,
    *,
    id_taken: bool = False,
    options: Options | None = None,
    missing_files: MissingFiles | None = None,
) -> PairCase:
    """A pair that ships: run-1, accepted, over run-2, rejected, of one task."""
    worse = {"evidence_run_id": "run-2", "category": "rejected", "e_text": "I cannot read the file.", "reasons": []}
    return PairCase(
        side(**(chosen or {})), side(**{**worse, **(rejected or {})}), id_taken, options or Options(), missing_files
    )


def all_missing(names: Sequence[Any]) -> tuple[str, ...]:
    """A path check on a root where nothing exists."""
    return tuple(str(name) for name in names)


def none_missing(_: Sequence[Any]) -> tuple[str, ...]:
    """A path check on a root where everything exists."""
    return ()


def held(outcome: Outcome) -> dict[str, Any]:
    """The quarantine row of an outcome that must be a hold."""
    assert outcome.gate is not None, outcome
    row = json.loads(outcome.line(STAMP))
    assert isinstance(row, dict)
    return row


def gate_of(outcome: Outcome) -> str:
    """The gate that holds the outcome."""
    assert outcome.gate is not None, outcome
    return outcome.gate


def exported(outcome: Outcome) -> dict[str, Any]:
    """The sample of an outcome that must ship, stamped."""
    assert outcome.gate is None, held(outcome)
    row = json.loads(outcome.line(STAMP))
    assert isinstance(row, dict)
    return row


def bytes_of(outcome: Outcome) -> bytes:
    """What an outcome writes, to compare two of them."""
    return outcome.line(STAMP)


def jsonl(rows: Iterable[dict[str, Any] | bytes]) -> bytes:
    """Rows as a producer writes them; bytes go in as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row, separators=(",", ":")).encode() for row in rows)
    return b"".join(line + b"\n" for line in lines)


@dataclass
class Export:
    """What one pass gives: the outcomes of each dataset in walk order, and how many lines it judged."""

    lines: int
    outcomes: dict[Dataset, list[Outcome]]

    def exported(self, dataset: Dataset) -> list[dict[str, Any]]:
        """The dataset's rows."""
        return [exported(outcome) for outcome in self.outcomes[dataset] if outcome.gate is None]

    def quarantined(self, dataset: Dataset) -> list[dict[str, Any]]:
        """The dataset's quarantine rows."""
        return [held(outcome) for outcome in self.outcomes[dataset] if outcome.gate is not None]

    def files(self, stamp: str = STAMP) -> dict[str, bytes]:
        """The six files, by the dataset's name, quarantine with a ``-`` before it."""
        named: dict[str, bytes] = {}
        for dataset, outcomes in self.outcomes.items():
            for name, wanted in ((dataset.value, True), (f"-{dataset.value}", False)):
                named[name] = b"".join(each.line(stamp) for each in outcomes if (each.gate is None) is wanted)
        return named


Lake = Mapping[str, tuple[bytes, bytes]]
"""Scored bytes and evidence bytes by partition."""


def lake_of(
    rows: Iterable[dict[str, Any] | bytes],
    given: Iterable[dict[str, Any] | bytes],
    partition: str = "2026/04/27/scrum_reviews.jsonl",
) -> dict[str, tuple[bytes, bytes]]:
    """A lake of one partition."""
    return {partition: (jsonl(rows), jsonl(given))}


def export(lake: Lake, options: Options | None = None, missing_files: MissingFiles | None = None) -> Export:
    """The naive full pass: every line of a lake judged in walk order, nothing remembered from an earlier pass."""
    options = options or Options()
    walk = sorted(lake, key=lambda path: path.split("/"))
    rows = [(RowRef(path, line), raw) for path in walk for line, raw in enumerate(_lines(lake[path][0]))]
    runs = {at: _scored(raw) for at, raw in rows}
    given = {path: _evidence(lake[path][1]) for path in walk}
    verdicts = {run_id: category for at, raw in rows for run_id, category in verdicts_of(raw, runs[at])}
    outcomes: dict[Dataset, list[Outcome]] = {dataset: [] for dataset in Dataset}
    taken: set[tuple[Dataset, str]] = set()

    def settle(dataset: Dataset, outcome: Outcome) -> None:
        outcomes[dataset].append(outcome)
        if outcome.id is not None:
            taken.add((dataset, outcome.id.rpartition("-")[2]))

    tasks: dict[str, list[tuple[RowRef, PairSide]]] = {}
    for at, raw in rows:
        run = runs[at]
        if run is None:
            malformed = parse_object(raw).malformed
            assert malformed is not None
            for dataset in (Dataset.RAG, Dataset.SFT):
                source_file = f"data/scored-runs/{at.partition}"
                head = raw.decode(errors="replace")
                settle(
                    dataset,
                    quarantine_malformed(
                        dataset,
                        head,
                        malformed,
                        at,
                        source_file=source_file,
                        max_line_bytes=options.max_line_bytes,
                    ),
                )
            continue
        joined = given[at.partition].get(run.run_id or "")
        verdict = verdicts.get(run.run_id or "")
        digits = id_digits(run.run_id or "", run.sig_hash or "")
        for dataset, judge in ((Dataset.RAG, rag.judge), (Dataset.SFT, sft.judge)):
            case = RowCase(run, joined, verdict, (dataset, digits) in taken, options, missing_files)
            settle(dataset, judge(case, at))
        if run.task_id and joined:
            a_side = PairSide(run, joined, verdict)
            tasks.setdefault(run.task_id, []).append((at, a_side))
    for task_id, sides in tasks.items():
        accepted, rejected, partial = (
            [(at, one) for at, one in sides if one.scored.category is category]
            for category in (Category.ACCEPTED, Category.REJECTED, Category.PARTIALLY_ACCEPTED)
        )
        for (at, better), (_, worse) in preference.pair_up(accepted, rejected, partial):
            digits = preference.id_digits(better.scored.run_id or "", worse.scored.run_id or "", task_id)
            held_already = (Dataset.PREFERENCE, digits) in taken
            pair = PairCase(better, worse, held_already, options, missing_files)
            settle(Dataset.PREFERENCE, preference.judge(pair, at))
    return Export(len(rows), outcomes)


def _lines(content: bytes) -> list[bytes]:
    return [line for line in content.split(b"\n") if line]


def _scored(raw: bytes) -> ScoredRun | None:
    line = parse_object(raw)
    return None if line.value is None else scored_run(line.value, marked=line.marked)


def _evidence(content: bytes) -> dict[str, EvidenceRecord]:
    read = [parse_object(raw) for raw in _lines(content)]
    found = [evidence_record(line.value, marked=line.marked) for line in read if line.value is not None]
    return {one.run_id: one for one in found if one.run_id}
