"""The facts of scored rows, as their files hold them, and what rows affect that come, go or return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from distilld.core.line_facts import DUPLICATE, EXPORTED, RowFacts
from distilld.core.model import ROW_DATASETS, Options
from distilld.store.connection import Store
from distilld.store.departures import Departures
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
        self._departures = Departures(store)
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
        self._queues.add_retained(f"SELECT run_id, digest FROM scored_rows WHERE walk >= {low} AND walk < {high}")

    # rewritten files

    def stage(self) -> None:
        """Begin to stage a rewritten scored file."""
        self._stage(
            "incoming",
            "(line INTEGER PRIMARY KEY, start_byte INTEGER, length_bytes INTEGER, digest BLOB, run_id TEXT, task_id TEXT,"
            " category INTEGER, malformed INTEGER, sample_key INTEGER, old_walk INTEGER)",
        )

    def add_staged(self, rows: list[RowFacts]) -> None:
        """Stage some lines of the rewritten file."""
        self._many(f"INSERT INTO incoming (line, {ROW_FACTS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def replace(self, record: FileRecord, options: Options) -> None:
        """Replace the known rows of the file with the staged lines.

        A line whose bytes were in the file before keeps its outcomes. If it moved, it is judged again only for what
        its place decides: a quarantine row's location, and which row holds an id.
        """
        low = record.walk_base
        self._match(record)
        runs = self._column(
            "SELECT i.run_id FROM incoming i LEFT JOIN scored_rows s ON s.walk = i.old_walk WHERE i.run_id IS NOT NULL"
            " AND (i.old_walk IS NULL OR i.old_walk <> i.line + ?1 OR s.category IS NOT i.category)"
            f" UNION {named_in_malformed('incoming')} UNION {runs_of('departing', '1')}",
            low,
        )
        with self._verdicts.changing(runs, options):
            self._depart()
            self._move(low)
            self._insert_new(record, low)
            self._run("UPDATE scored_rows SET start_byte = i.start_byte FROM incoming i WHERE walk = i.line + ?1"
                      " AND i.old_walk = i.line + ?1 AND scored_rows.start_byte <> i.start_byte", (low,))  # fmt: skip
            self._run("UPDATE scored_rows SET category = i.category FROM incoming i WHERE walk = i.line + ?1"
                      " AND scored_rows.category IS NOT i.category", (low,))  # fmt: skip
            self._queues.add_retained("SELECT run_id, digest FROM incoming")
        self._queue_unjudged(record)
        self._unstage("incoming", "departing")

    def drop(self, record: FileRecord, options: Options) -> None:
        """Drop the rows of a scored file that is gone for good, as if it had become empty."""
        self.stage()
        self.replace(record, options)

    def _match(self, record: FileRecord) -> None:
        """Match staged lines with known rows of the same bytes, in place or else in order; unmatched rows depart."""
        low, high = record.walks
        # With another line limit, the same bytes can be too long or no longer too long: then they do not match.
        self._stage_rows(
            "paired",
            "SELECT i.line AS line, s.walk AS walk FROM incoming i CROSS JOIN scored_rows s"
            " ON s.walk = i.line + ?1 AND s.digest = i.digest AND s.malformed IS i.malformed",
            low,
        )
        self._run(
            "INSERT INTO paired WITH"
            " o AS (SELECT walk, digest, malformed, row_number() OVER (PARTITION BY digest ORDER BY walk) AS nth"
            "       FROM scored_rows WHERE walk >= ?1 AND walk < ?2 AND walk NOT IN (SELECT walk FROM paired)),"
            " n AS (SELECT line, digest, malformed, row_number() OVER (PARTITION BY digest ORDER BY line) AS nth"
            "       FROM incoming WHERE line NOT IN (SELECT line FROM paired))"
            " SELECT n.line, o.walk FROM n JOIN o ON n.digest = o.digest AND n.nth = o.nth"
            " AND n.malformed IS o.malformed",
            (low, high),
        )
        self._run("UPDATE incoming SET old_walk = paired.walk FROM paired WHERE paired.line = incoming.line")
        self._stage_rows(
            "departing",
            "SELECT *, ?3 AS partition_id, walk - ?1 AS line FROM scored_rows WHERE walk >= ?1 AND walk < ?2"
            " AND walk NOT IN (SELECT walk FROM paired)",
            low,
            high,
            record.partition_id,
        )
        self._unstage("paired")

    def _depart(self) -> None:
        """Delete rows that the file no longer holds; add their lines in the exports to ``departures``."""
        same_run = "run_id = (SELECT i.run_id FROM incoming i WHERE i.line = departing.line)"
        for dataset in ROW_DATASETS:
            cause = f"CASE WHEN {same_run} THEN 'rescored' ELSE 'row_removed' END"
            self._departures.add_rows(dataset, "departing", "live", "1", cause)
        self._queues.add_tasks("departing", CAN_HAVE_PAIRS.format("departing"))
        self._queues.drop_rows("walk IN (SELECT walk FROM departing)")

    def _move(self, low: int) -> None:
        """Move rows whose lines have another place in the file, with their outcomes."""
        self._stage_rows(
            "moving",
            f"SELECT i.line + ?1 AS walk, s.walk AS old_walk, i.start_byte AS new_start,"
            f" s.{', s.'.join(ROW_FACTS.split(', '))}, {ROW_OUTCOMES}, s.evidence_found"
            " FROM incoming i CROSS JOIN scored_rows s ON s.walk = i.old_walk WHERE i.old_walk <> i.line + ?1",
            low,
        )
        self._stage_rows(
            "waiting",
            "SELECT m.walk, q.forced, q.evidence_changed FROM moving m JOIN rejudge_rows q ON q.walk = m.old_walk",
        )
        self._run("DELETE FROM rejudge_rows WHERE walk IN (SELECT old_walk FROM moving)")
        self._run("DELETE FROM scored_rows WHERE walk IN (SELECT old_walk FROM moving)")
        facts = ROW_FACTS.replace("start_byte", "new_start")
        self._run(
            f"INSERT INTO scored_rows (walk, {ROW_FACTS}, {ROW_OUTCOMES}, evidence_found)"
            f" SELECT walk, {facts}, {ROW_OUTCOMES}, evidence_found FROM moving"
        )
        self._run("INSERT INTO rejudge_rows SELECT walk, forced, evidence_changed FROM waiting")
        self._unstage("waiting")
        self._queues.add_rows(f"moving WHERE rag IS NOT {EXPORTED} OR sft IS NOT {EXPORTED}")
        for dataset in ROW_DATASETS:
            self._queues.add_rows(
                "(SELECT d.walk FROM moving m CROSS JOIN scored_rows d ON d.sample_key = m.sample_key"
                f" AND d.{dataset} = {DUPLICATE} WHERE m.{dataset} = {EXPORTED} AND d.walk < m.walk)"
            )
        self._queues.add_rows_behind("moving", "1")
        self._queues.add_tasks("moving", "task_id IS NOT NULL AND evidence_found = 1")
        self._unstage("moving")

    def _insert_new(self, record: FileRecord, low: int) -> None:
        found = evidence_found(self._store, record.partition_id, "incoming.run_id")
        added = self._run(
            f"INSERT INTO scored_rows (walk, {ROW_FACTS}, evidence_found)"
            f" SELECT line + ?1, {ROW_FACTS}, {found} FROM incoming WHERE old_walk IS NULL",
            (low,),
        ).rowcount
        self._departures.count_rows(added, added)

    def _queue_unjudged(self, record: FileRecord) -> None:
        """Queue rows that were never judged, and their tasks: new rows, and rows that a pass did not reach.

        ``judged_lines`` does not mark them any more (:meth:`Inputs.write_file`), so only the queue has them.
        """
        never = f"{record.holds('walk')} AND rag IS NULL"
        self._queues.add_rows(f"scored_rows WHERE {never}")
        self._queues.add_tasks("scored_rows", f"{never} AND task_id IS NOT NULL AND evidence_found = 1")

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
