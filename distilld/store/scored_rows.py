"""The facts of scored rows, as their files hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from distilld.core.model import Options
from distilld.store.connection import Store
from distilld.store.counts import Counts
from distilld.store.evidence_rows import evidence_found
from distilld.store.inputs import FileRecord
from distilld.store.queues import Queues
from distilld.store.run_exports import RunExports
from distilld.store.statements import Statements
from distilld.store.verdicts import Verdicts, named_in_malformed

ROW_FACTS: Final = "start_byte, length_bytes, digest, run_id, task_id, category, malformed, sample_key"
ROW_OUTCOMES: Final = "rag, rag_line, rag_batch, sft, sft_line, sft_batch"


class ScoredRows(Statements):
    """Stores the facts of scored rows."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._counts = Counts(store)
        self._queues = Queues(store)
        self._verdicts = Verdicts(store)
        self._exports = RunExports(store)

    def add(self, record: FileRecord, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert unjudged rows after the file's known rows."""
        found = evidence_found(self._store, record.partition_id, "?5")
        base = record.walk_base
        self._many(
            f"INSERT INTO scored_rows (walk, {ROW_FACTS}, evidence_found)"
            f" VALUES (?1 + {base}, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, {found})",
            rows,
        )
        self._counts.count_rows(len(rows), len(rows))

    def facts(self, record: FileRecord) -> list[tuple[Any, ...]]:
        """Return the known facts of a scored file's rows, by line: RowFacts."""
        facts = f"SELECT walk - ?1, {ROW_FACTS} FROM scored_rows WHERE walk >= ?1 AND walk < ?2 ORDER BY walk"
        return self._run(facts, record.walks).fetchall()

    def rows_beside_others(self, record: FileRecord) -> int:
        """Return how many rows a scored file has beyond one for each run."""
        return self._number(
            "SELECT count(run_id) - count(DISTINCT run_id) FROM scored_rows WHERE walk >= ? AND walk < ?", *record.walks
        )

    def any_in(self, record: FileRecord) -> bool:
        """Whether scored rows of the mirrored partition are known."""
        return self._holds("EXISTS (SELECT 1 FROM scored_rows WHERE walk >= ? AND walk < ?)", *record.walks)

    def close_over_new(self, record: FileRecord, first_line: int, end_line: int, options: Options) -> None:
        """Queue what rows [first_line, end_line) of a file affect elsewhere: by verdicts, export limit, copies."""
        low, high = record.walk_base + first_line, record.walk_base + end_line
        runs = self._column(
            "SELECT DISTINCT n.run_id FROM scored_rows n WHERE n.walk >= ?1 AND n.walk < ?2 AND n.run_id IS NOT NULL"
            " AND n.category IS NOT NULL AND ("
            " EXISTS (SELECT 1 FROM scored_rows o WHERE o.run_id = n.run_id AND o.walk < ?1)"
            " OR EXISTS (SELECT 1 FROM scored_rows o WHERE o.run_id = n.run_id AND o.walk >= ?2)"
            " OR EXISTS (SELECT 1 FROM retained_rows f WHERE f.run_id = n.run_id)"
            " OR EXISTS (SELECT 1 FROM pairs p WHERE p.chosen_run_id = n.run_id AND p.retained IS NOT NULL)"
            " OR EXISTS (SELECT 1 FROM pairs p WHERE p.rejected_run_id = n.run_id AND p.retained IS NOT NULL)"
            " OR EXISTS (SELECT 1 FROM malformed_runs m WHERE m.run_id = n.run_id))"
            f" UNION {named_in_malformed('scored_rows', 'n.walk >= ?1 AND n.walk < ?2')}",
            low,
            high,
        )
        within = self._exports.within(runs, options)
        self._exports.queue_changes(self._exports.within(within, options, without=(low, high)), within)
        for run_id in runs:
            before = self._verdicts.in_force(run_id, options, without=(low, high))
            self._verdicts.queue_change(run_id, before, self._verdicts.in_force(run_id, options), options)
        self._queues.add_copied(
            f"scored_rows n CROSS JOIN retained_rows f ON f.digest = n.digest AND n.walk >= {low} AND n.walk < {high}"
        )
        self._queues.doubt_orphans(f"scored_rows WHERE walk >= {low} AND walk < {high}")
