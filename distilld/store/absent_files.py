"""Input files that become absent, and absent files that return (SPEC 3, 'Absent partitions')."""

from __future__ import annotations

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
            self._counts.shift_outcomes("scored_rows", "live", "retained", rows)
            self._queues.drop_rows(rows)
            self._queues.wake_waiters("retained_rows", f"g.{partition}")
            self._run(
                f"INSERT OR IGNORE INTO rejudge_retained SELECT retained_id FROM retained_rows WHERE {partition}"
                " AND (run_id IS NULL OR EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = retained_rows.run_id))"
            )
            record.state = "absent"
            self._inputs.write_file(record)

    def make_scored_live(self, record: FileRecord, options: Options) -> None:
        """Put a returned file's rows back in their places, to be compared with the file, and queue all for judging."""
        rows, retained = record.holds("walk"), f"partition_id = {record.partition_id} AND kind = 'absent'"
        with self._verdicts.changing(self._column(runs_of("retained_rows", retained)), options):
            found = evidence_found(self._store, record.partition_id, "retained_rows.run_id")
            self._counts.shift_outcomes("retained_rows", "retained", "live", retained)
            self._counts.count_rows_of("retained_rows", retained, 1)
            self._run(
                f"INSERT INTO scored_rows (walk, {ROW_FACTS}, {ROW_OUTCOMES}, evidence_found)"
                f" SELECT line + {record.walk_base}, {ROW_FACTS}, {ROW_OUTCOMES}, {found}"
                f" FROM retained_rows WHERE {retained}"
            )
            self._run(f"DELETE FROM retained_rows WHERE {retained}")
            self._run(f"INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM scored_rows WHERE {rows}")
            self._queues.add_rows_behind("scored_rows", record.holds("m.walk"))
            self._queues.add_tasks("scored_rows", f"task_id IS NOT NULL AND {rows}")
            self._queues.add_copied(
                f"scored_rows n CROSS JOIN retained_rows f ON f.digest = n.digest AND {record.holds('n.walk')}"
            )

    def lose_evidence(self, record: FileRecord) -> None:
        """Mark an absent file's evidence as not found; its rows stay unless a present row waits for their id.

        No new pair is formed from them.
        """
        found = f"evidence_found = 1 AND {record.holds('walk')}"
        self._queues.add_tasks("scored_rows", f"task_id IS NOT NULL AND {found}")
        self._run(f"UPDATE scored_rows SET evidence_found = 0 WHERE {found}")
        self._queues.wake_waiters("scored_rows", f"{record.holds('g.walk')} AND g.evidence_found = 0")
