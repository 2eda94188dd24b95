"""Input files that become absent, and absent files that return (SPEC 3, 'Absent partitions')."""

from __future__ import annotations

from distilld.core.line_facts import LINES_END
from distilld.core.model import Options
from distilld.store.connection import Store
from distilld.store.counts import Counts
from distilld.store.evidence_rows import evidence_found
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.queues import CAN_HAVE_PAIRS, Queues
from distilld.store.scored_rows import ROW_FACTS, ROW_OUTCOMES
from distilld.store.statements import Statements
from distilld.store.verdicts import Verdicts, runs_of


class AbsentFiles(Statements):
    """Retains the outcomes of an absent file's rows, and restores them when the file returns."""

    def __init__(self, store: Store, inputs: Inputs) -> None:
        super().__init__(store)
        self._inputs = inputs
        self._counts = Counts(store)
        self._queues = Queues(store)
        self._verdicts = Verdicts(store)

    def retain_scored(self, record: FileRecord, options: Options) -> None:
        """Retain the outcomes of the rows of a scored file that became absent (SPEC 3, 'Absent partitions')."""
        low, high = record.walk_base, record.walk_base + LINES_END
        span = "walk >= ?1 AND walk < ?2"
        runs = self._column(runs_of("scored_rows", f"n.walk >= {low} AND n.walk < {high}"))
        runs += self._verdicts.runs_of_rest(record)
        with self._verdicts.changing(runs, options):
            self._queues.add_tasks(
                "scored_rows", f"{CAN_HAVE_PAIRS.format('scored_rows')} AND walk >= {low} AND walk < {high}"
            )
            self._run(
                f"INSERT INTO retained_rows (kind, accepted, partition_id, line, {ROW_FACTS}, {ROW_OUTCOMES})"
                f" SELECT 'absent', kept, ?3, walk - ?1, {ROW_FACTS}, {ROW_OUTCOMES} FROM scored_rows WHERE {span}",
                (low, high, record.partition_id),
            )
            for dataset in ("rag", "sft"):
                self._counts.shift_rows(dataset, "scored_rows", "live", "retained", f"walk >= {low} AND walk < {high}")
            self._drop_span(low, high)
            self._queues.wake_waiters(f"FROM retained_rows g WHERE g.partition_id = {record.partition_id}")
            self._run("INSERT OR IGNORE INTO rejudge_retained SELECT retained_id FROM retained_rows WHERE partition_id = ?"
                      " AND EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = retained_rows.run_id)", (record.partition_id,))  # fmt: skip
            self._run("INSERT OR IGNORE INTO rejudge_retained SELECT retained_id FROM retained_rows WHERE partition_id = ?"
                      " AND run_id IS NULL", (record.partition_id,))  # fmt: skip
            record.state = "absent"
            self._inputs.write_file(record)

    def _drop_span(self, low: int, high: int) -> None:
        removed, unjudged = self._run(
            "SELECT count(*), count(*) FILTER (WHERE rag IS NULL) FROM scored_rows WHERE walk >= ? AND walk < ?",
            (low, high),
        ).fetchone()
        self._counts.count_rows(-removed, -unjudged)
        woken = self._queues.woken(f"(SELECT * FROM scored_rows WHERE walk >= {low} AND walk < {high})")
        self._run("DELETE FROM scored_rows WHERE walk >= ? AND walk < ?", (low, high))
        self._run("DELETE FROM rejudge_rows WHERE walk >= ? AND walk < ?", (low, high))
        self._queues.wake_next(woken)

    def make_scored_live(self, record: FileRecord, options: Options) -> None:
        """Put a returned file's rows back in their places, to be compared with the file, and queue all for judging."""
        low = record.walk_base
        where = f"partition_id = {record.partition_id} AND kind = 'absent'"
        with self._verdicts.changing(self._column(runs_of("retained_rows", where)), options):
            found = evidence_found(self._store, record.partition_id, "retained_rows.run_id")
            for dataset in ("rag", "sft"):
                self._counts.shift_rows(dataset, "retained_rows", "retained", "live", where)
            rows, unjudged = self._run(
                f"SELECT count(*), count(*) FILTER (WHERE rag IS NULL) FROM retained_rows WHERE {where}"
            ).fetchone()
            self._counts.count_rows(rows, unjudged)
            self._run(
                f"INSERT INTO scored_rows (walk, {ROW_FACTS}, {ROW_OUTCOMES}, evidence_found, kept)"
                f" SELECT line + {low}, {ROW_FACTS}, {ROW_OUTCOMES}, {found}, CASE {found} WHEN 1 THEN 0 ELSE accepted END"
                f" FROM retained_rows WHERE {where}"
            )
            self._run(f"DELETE FROM retained_rows WHERE {where}")
            self._run("INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM scored_rows WHERE walk >= ? AND walk < ?",
                      (low, low + LINES_END))  # fmt: skip
            for dataset in ("rag", "sft"):
                self._queues.add_rows_behind(
                    dataset, "scored_rows m", f"m.walk >= {low} AND m.walk < {low + LINES_END}"
                )
            self._queues.add_tasks("scored_rows", f"task_id IS NOT NULL AND walk >= {low} AND walk < {low + LINES_END}")
            self._queues.add_copied(
                f"scored_rows n CROSS JOIN retained_rows f ON f.digest = n.digest AND n.walk >= {low} AND n.walk < {low + LINES_END}"
            )

    def lose_evidence(self, record: FileRecord) -> None:
        """Mark an absent file's evidence as not found; its rows stay unless a present row waits for their id.

        No new pair is formed from them.
        """
        low, high = record.walk_base, record.walk_base + LINES_END
        self._queues.add_tasks(
            "scored_rows", f"task_id IS NOT NULL AND evidence_found = 1 AND walk >= {low} AND walk < {high}"
        )
        self._run(
            "UPDATE scored_rows SET evidence_found = 0 WHERE walk >= ? AND walk < ? AND evidence_found = 1", (low, high)
        )
        self._queues.wake_waiters(
            f"FROM scored_rows g WHERE g.walk >= {low} AND g.walk < {high} AND g.evidence_found = 0"
        )
