"""The facts of scored rows, as their files hold them, and what rows affect that come, go or return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from distilld.core.model import Options
from distilld.store.connection import Store
from distilld.store.evidence_rows import evidence_found
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.queues import CAN_HAVE_PAIRS, Queues
from distilld.store.statements import Statements
from distilld.store.verdicts import Verdicts, named_in_malformed, runs_of

ROW_FACTS: Final = "start_byte, length_bytes, digest, run_id, task_id, category, malformed, sample_key"
ROW_OUTCOMES: Final = "rag, rag_line, rag_batch, sft, sft_line, sft_batch"


class ScoredRows(Statements):
    """Stores the facts of scored rows."""

    def __init__(self, store: Store, inputs: Inputs) -> None:
        super().__init__(store)
        self._inputs = inputs
        self._queues = Queues(store)
        self._verdicts = Verdicts(store)

    def add(self, record: FileRecord, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert unjudged rows after the file's known rows."""
        found = evidence_found(self._store, record.partition_id, "?5")
        base = record.walk_base
        self._many(
            f"INSERT INTO scored_rows (walk, {ROW_FACTS}, evidence_found)"
            f" VALUES (?1 + {base}, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, {found})",
            rows,
        )
        self._queues.count_rows(len(rows), len(rows))

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
        self._verdicts.queue_added(runs, options, (low, high))
        self._queues.add_copied(
            f"scored_rows n CROSS JOIN retained_rows f ON f.digest = n.digest AND n.walk >= {low} AND n.walk < {high}"
        )
        self._queues.doubt_orphans(f"scored_rows WHERE walk >= {low} AND walk < {high}")

    # absent files

    def retain(self, record: FileRecord, options: Options) -> None:
        """Retain the outcomes of the rows of a file that became absent (SPEC 3, 'Absent partitions')."""
        rows, partition = record.holds("walk"), f"partition_id = {record.partition_id}"
        runs = self._column(runs_of("scored_rows", record.holds("n.walk")))
        runs += self._verdicts.runs_of_rest(record)
        with self._verdicts.changing(runs, options):
            self._queues.add_tasks("scored_rows", f"{CAN_HAVE_PAIRS.format('scored_rows')} AND {rows}")
            self._run(
                f"INSERT INTO retained_rows (kind, partition_id, line, {ROW_FACTS}, {ROW_OUTCOMES})"
                f" SELECT 'absent', {record.partition_id}, walk - {record.walk_base}, {ROW_FACTS}, {ROW_OUTCOMES}"
                f" FROM scored_rows WHERE {rows}"
            )
            self._queues.shift_outcomes("scored_rows", "live", "retained", rows)
            self._queues.drop_rows(rows)
            self._queues.wake_waiters("retained_rows", f"g.{partition}")
            self._run(
                f"INSERT OR IGNORE INTO rejudge_retained SELECT retained_id FROM retained_rows WHERE {partition}"
                " AND (run_id IS NULL OR EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = retained_rows.run_id))"
            )
            record.state = "absent"
            self._inputs.write_file(record)

    def make_live(self, record: FileRecord, options: Options) -> None:
        """Put a returned file's rows back in their places, to be compared with the file, and queue all for judging."""
        rows, retained = record.holds("walk"), f"partition_id = {record.partition_id} AND kind = 'absent'"
        with self._verdicts.changing(self._column(runs_of("retained_rows", retained)), options):
            found = evidence_found(self._store, record.partition_id, "retained_rows.run_id")
            self._queues.shift_outcomes("retained_rows", "retained", "live", retained)
            self._queues.count_rows_of("retained_rows", retained, 1)
            self._run(
                f"INSERT INTO scored_rows (walk, {ROW_FACTS}, {ROW_OUTCOMES}, evidence_found)"
                f" SELECT line + {record.walk_base}, {ROW_FACTS}, {ROW_OUTCOMES}, {found}"
                f" FROM retained_rows WHERE {retained}"
            )
            self._run(f"DELETE FROM retained_rows WHERE {retained}")
            self._queues.add_rows(f"scored_rows WHERE {rows}")
            self._queues.add_rows_behind("scored_rows", record.holds("m.walk"))
            self._queues.add_tasks("scored_rows", f"task_id IS NOT NULL AND {rows}")
