"""Read-only queries about one run (SPEC 5, 'explain') and about what is retained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from unicodedata import normalize

from distilld.core.line_facts import DUPLICATE, EXPORTED, LIKE_REJECTED, REASONS, UNREVIEWED, VERDICTS, id_of
from distilld.core.model import ROW_DATASETS, Category, Dataset, Reason, RowRef
from distilld.store.statements import Statements
from distilld.store.tasks import EVIDENCE_OF_ROWS


class Recorded(NamedTuple):
    """A row's outcome in a dataset. ``reason`` is None if it is exported; ``line`` is its line's digest."""

    id: str | None
    reason: Reason | None
    line: bytes
    batch_id: str | None
    recorded_at: str | None
    holder: RowRef | None
    """For a duplicate: the row that holds the id."""


LIVE: Final = "live"
"""The state of a pair that present rows give."""
_UNUSUAL: Final = {
    LIKE_REJECTED: "for its category is 'rejected' in another spelling",
    UNREVIEWED: "for its category is none of the four",
}
_MALFORMED: Final = "for the malformed line says so"


class RunRow(NamedTuple):
    """A scored row of a run: present, or of a retained kind. An outcome is None if there is none (any more)."""

    at: RowRef | None
    """None for an orphan, whose place is not known."""
    walk: int
    state: str
    category: Category | None
    evidence: str
    waits: bool
    outcomes: dict[Dataset, Recorded | None]
    """By dataset; a vanished row or an orphan has only the datasets that it is kept in, and a rest none."""
    unusual: str | None = None
    """How it gives its verdict, if not as a whole row with one of the four categories."""


class RunEvidence(NamedTuple):
    """An evidence row of a run."""

    partition: str
    line: int
    present: bool


class RunPair(NamedTuple):
    """A pair that a run is in; ``state`` is 'live' or how it is retained."""

    task_id: str
    state: str
    chosen_run_id: str
    rejected_run_id: str
    outcome: Recorded


class RunWithdrawal(NamedTuple):
    """A row of a run that was withdrawn from a dataset, or replaced under its id."""

    dataset: str
    id: str
    cause: str
    replaced: bool
    verdict: dict[str, Any] | None
    shipped_batch: str | None
    withdrawn_batch: str
    withdrawn_at: str


_OUTCOMES: Final = ", ".join(
    f"{{alias}}.{dataset}, {{alias}}.{dataset}_line, {dataset}_batch.batch_id, {dataset}_batch.recorded_at"
    for dataset in ROW_DATASETS
)
_BATCHES: Final = " ".join(
    f"LEFT JOIN batches {dataset}_batch ON {dataset}_batch.batch = {{alias}}.{dataset}_batch"
    for dataset in ROW_DATASETS
)


_BY_DATASET: Final = ("vanished", "orphan")
"""Kinds of retained rows that have one record for each dataset in which they are kept."""


def _with_other(row: RunRow, other: RunRow | None) -> RunRow:
    """Merge a row's record with the record of its other dataset, if there is one."""
    found = {**row.outcomes, **(other.outcomes if other else {})}
    kept: dict[Dataset, Recorded | None] = {
        dataset: recorded for dataset, recorded in found.items() if recorded is not None
    }
    return row._replace(waits=row.waits or (other is not None and other.waits), outcomes=kept)


class Stories(Statements):
    """Reads the store; each method answers one question about one run, or about what is retained."""

    def look_alikes(self, paths: Iterable[str]) -> list[tuple[str, str]]:
        """Return (path, other) for partitions that look like a path but differ in Unicode normal form."""
        by_look = {normalize("NFC", path): path for path in sorted(paths) if not path.isascii()}
        if not by_look:
            return []
        others = self._column(
            "SELECT path FROM partitions WHERE length(path) <> length(CAST(path AS BLOB)) ORDER BY path"
        )
        found = ((by_look.get(normalize("NFC", other)), other) for other in others)
        return [(path, other) for path, other in found if path is not None and path != other]

    def rows(self, run_id: str) -> list[RunRow]:
        """Return all scored rows of a run in walk order; orphans come last."""
        present = self._run(
            "SELECT p.path, s.walk - p.walk_base, s.walk, 'present', s.category, s.digest,"
            " CASE WHEN s.evidence_found THEN 'found' WHEN e.digest IS NOT NULL THEN 'absent' ELSE 'missing' END,"
            " EXISTS (SELECT 1 FROM rejudge_rows q WHERE q.walk = s.walk) OR s.rag IS NULL,"
            f" s.run_id IS NULL, s.sample_key, {_OUTCOMES.format(alias='s')} FROM scored_rows s"
            f"{EVIDENCE_OF_ROWS} {_BATCHES.format(alias='s')} WHERE s.run_id = ?1 OR s.run_id IS NULL"
            " AND s.digest IN (SELECT digest FROM malformed_runs WHERE run_id = ?1)",
            (run_id,),
        ).fetchall()
        retained = self._run(
            "SELECT p.path, f.line, coalesce(p.walk_base + f.line, 1 << 62), f.kind, f.category, f.digest, 'unknown',"
            " EXISTS (SELECT 1 FROM rejudge_retained q WHERE q.retained_id = f.retained_id),"
            f" f.run_id IS NULL, f.sample_key, {_OUTCOMES.format(alias='f')} FROM retained_rows f LEFT JOIN partitions p USING (partition_id)"
            f" {_BATCHES.format(alias='f')} WHERE f.run_id = ?1 OR f.run_id IS NULL"
            " AND f.digest IN (SELECT digest FROM malformed_runs WHERE run_id = ?1)",
            (run_id,),
        ).fetchall()
        found: dict[object, RunRow] = {row.at: row for row in self._rests(run_id)}
        for path, line, walk, state, category, digest, evidence, waits, malformed, key, *outcomes in [
            *present,
            *retained,
        ]:
            recorded = {
                dataset: self._recorded(dataset, key, *outcomes[start : start + 4])
                for dataset, start in ((Dataset.RAG, 0), (Dataset.SFT, 4))
            }
            at = RowRef(path, line) if path is not None else None
            unusual = _MALFORMED if malformed else _UNUSUAL.get(category)
            row = RunRow(at, walk, state, VERDICTS.get(category), evidence, bool(waits), recorded, unusual)
            if state in _BY_DATASET:
                which = (state, at, digest, key)
                found[which] = _with_other(row, found.get(which))
            else:
                found[len(found)] = row
        return sorted(found.values(), key=lambda row: (row.walk, row.state))

    def _rests(self, run_id: str) -> Iterator[RunRow]:
        """Yield the unterminated rests of files that forbid the run: verdicts without a row."""
        for path, line, walk, state, category in self._run(
            "SELECT p.path, f.indexed_lines, p.walk_base + f.indexed_lines, f.state, f.rest_category"
            " FROM malformed_runs m CROSS JOIN files f ON f.rest_digest = m.digest AND f.rest_category IS NOT NULL"
            " CROSS JOIN partitions p USING (partition_id) WHERE m.run_id = ?",
            (run_id,),
        ):
            unusual = "said by the unfinished last line of the file"
            yield RunRow(RowRef(path, line), walk, state, VERDICTS[category], "unknown", False, {}, unusual)

    def _recorded(
        self,
        dataset: Dataset,
        key: int | None,
        code: int | None,
        line: bytes | None,
        batch_id: str | None,
        recorded_at: str | None,
    ) -> Recorded | None:
        if code is None:
            return None
        holder = self._holder(dataset, key) if code == DUPLICATE and dataset is not Dataset.PREFERENCE else None
        sample_id = id_of(dataset, key) if key is not None else None
        return Recorded(sample_id, REASONS.get(code), line or b"", batch_id, recorded_at, holder)

    def _holder(self, dataset: Dataset, key: int | None) -> RowRef | None:
        found = self._run(
            f"SELECT partition, line FROM row_places WHERE sample_key = ? AND {dataset} = {EXPORTED}", (key,)
        ).fetchone()
        return RowRef(*found) if found else None

    def evidence(self, run_id: str) -> list[RunEvidence]:
        """Return a run's evidence rows in walk order: for each partition, the one that counts."""
        rows = self._run(
            "SELECT p.path, e.line, f.state = 'present' FROM partitions p CROSS JOIN evidence_rows e"
            " ON e.partition_id = p.partition_id AND e.run_id = ?"
            " LEFT JOIN files f ON f.partition_id = p.partition_id AND f.kind = 'evidence' ORDER BY p.walk_base",
            (run_id,),
        )
        return [RunEvidence(path, line, bool(present)) for path, line, present in rows]

    def pairs(self, run_id: str) -> list[RunPair]:
        """Return the pairs that a run is in, on either side."""
        rows = self._run(
            f"SELECT r.sample_key, r.task_id, coalesce(r.retained, '{LIVE}'), r.chosen_run_id, r.rejected_run_id,"
            " r.outcome, r.line, b.batch_id, b.recorded_at FROM pairs r LEFT JOIN batches b ON b.batch = r.batch"
            " WHERE r.pair_id IN (SELECT pair_id FROM pairs WHERE chosen_run_id = ?1"
            " UNION SELECT pair_id FROM pairs WHERE rejected_run_id = ?1) ORDER BY r.task_id, r.slot, r.pair_id",
            (run_id,),
        )
        found = []
        for key, task_id, state, chosen, rejected, *outcome in rows:
            recorded = self._recorded(Dataset.PREFERENCE, key, *outcome)
            assert recorded is not None  # noqa: S101  a pair always has an outcome
            found.append(RunPair(task_id, state, chosen, rejected, recorded))
        return found

    def withdrawals(self, run_id: str) -> list[RunWithdrawal]:
        """Return a run's withdrawals, oldest first."""
        columns = ", ".join(RunWithdrawal._fields)
        rows = self._run(
            f"SELECT {columns} FROM withdrawals WHERE source_run_id = ?1 OR chosen_run_id = ?1 OR rejected_run_id = ?1"
            " ORDER BY withdrawal_id",
            (run_id,),
        )
        return [
            RunWithdrawal(dataset, id_, cause, bool(replaced), json.loads(verdict) if verdict else None, *batches)
            for dataset, id_, cause, replaced, verdict, *batches in rows
        ]

    def leaving(self, run_id: str) -> list[tuple[str, str]]:
        """Return dataset and cause of a run's exported lines whose rows are gone; the next batch withdraws them."""
        return self._run(
            f"SELECT dataset, cause FROM departures WHERE outcome = {EXPORTED} AND ? IN (run_id, other_run_id)",
            (run_id,),
        ).fetchall()

    def absent_files(self, partition_glob: str | None) -> int:
        """Return how many absent input files ``prune`` would forget, with the verdicts of their rows."""
        return self._number(
            "SELECT count(*) FROM files f CROSS JOIN partitions p USING (partition_id)"
            " WHERE f.state = 'absent' AND (?1 IS NULL OR p.path GLOB ?1)",
            partition_glob,
        )
