"""The facts of evidence rows, and which scored rows a change of them affects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distilld.store.connection import Store
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.queues import CAN_PAIR, HAS_OUTCOME, Queues
from distilld.store.statements import Statements


class EvidenceRows(Statements):
    """Stores the facts of evidence rows."""

    def __init__(self, store: Store, inputs: Inputs, *, staged: str = "staged_evidence") -> None:
        """``staged`` is the temporary table of what is staged: another one for each file that is read at a time."""
        super().__init__(store)
        self._inputs = inputs
        self._staged = staged
        self._queues = Queues(store)

    def add(self, record: FileRecord, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert evidence that no scored row waits for; the last row of a run counts."""
        self._many(f"INSERT OR REPLACE INTO evidence_rows VALUES ({record.partition_id}, ?, ?, ?, ?, ?)", rows)

    def facts(self, record: FileRecord) -> list[tuple[Any, ...]]:
        """Return the known facts of a file's evidence, by run: EvidenceFacts."""
        return self._run(
            "SELECT run_id, line, start_byte, length_bytes, digest FROM evidence_rows WHERE partition_id = ? ORDER BY 1",
            (record.partition_id,),
        ).fetchall()

    def add_unread(self, record: FileRecord, rows: Sequence[tuple[Any, ...]], *, all_judged: bool = False) -> None:
        """Store an evidence file that was first read while scored rows were judged, which set their ``evidence_found``.

        Unless all rows were judged, set it here for the others. Queue the tasks that may form pairs now.
        """
        self.add(record, rows)
        self._inputs.write_file(record)
        if not all_judged:
            found = evidence_found(self._store, record.partition_id, "scored_rows.run_id")
            self._run(
                f"UPDATE scored_rows SET evidence_found = {found} WHERE walk >= ? AND walk < ? AND rag IS NULL",
                record.walks,
            )
        self._inputs.note_input(record, "new", 0, record.content.lines, record.malformed_lines)
        self._queues.add_tasks("scored_rows s", CAN_PAIR, *record.walks)

    def stage(self) -> None:
        """Begin to stage evidence that may affect known scored rows."""
        self._stage(
            self._staged,
            "(run_id TEXT PRIMARY KEY, line INTEGER, start_byte INTEGER, length_bytes INTEGER, digest BLOB)"
            " WITHOUT ROWID",
        )

    def add_staged(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Stage some evidence rows, in order."""
        self._many(f"INSERT OR REPLACE INTO {self._staged} VALUES (?, ?, ?, ?, ?)", rows)

    def unstage(self) -> None:
        """Drop what is staged."""
        self._unstage(self._staged)

    def apply(self, record: FileRecord, *, whole_file: bool, returned: bool = False) -> None:
        """Store the staged evidence; queue the scored rows of runs whose evidence came, changed or went.

        With ``whole_file``, evidence that is not staged is gone. With ``returned``, the file was absent before, and
        every run in it counts as changed.
        """
        partition = record.partition_id
        known = "SELECT run_id, digest FROM evidence_rows WHERE partition_id = ?1"
        self._stage("changed", "(run_id TEXT PRIMARY KEY, found INTEGER) WITHOUT ROWID")
        self._run(
            f"INSERT INTO changed SELECT i.run_id, 1 FROM {self._staged} i LEFT JOIN ({known}) e USING (run_id)"
            " WHERE e.digest IS NULL OR e.digest <> i.digest OR ?2",
            (partition, returned),
        )
        if whole_file:
            self._run(
                f"INSERT INTO changed SELECT e.run_id, 0 FROM ({known}) e"
                f" WHERE e.run_id NOT IN (SELECT run_id FROM {self._staged})",
                (partition,),
            )
            self._run("DELETE FROM evidence_rows WHERE partition_id = ?", (partition,))
        self._run(
            "INSERT OR REPLACE INTO evidence_rows"
            f" SELECT ?, run_id, line, start_byte, length_bytes, digest FROM {self._staged}",
            (partition,),
        )
        self._queue_changed(record.walks)
        self._unstage(self._staged, "changed")

    def drop(self, record: FileRecord) -> None:
        """Drop the evidence of a file that is gone for good, as if it had become empty."""
        self.stage()
        self.apply(record, whole_file=True)

    def lose(self, record: FileRecord) -> None:
        """Mark an absent file's evidence as not found; its rows stay unless a present row waits for their id.

        No new pair is formed from them.
        """
        found = f"evidence_found = 1 AND {record.holds('walk')}"
        self._queues.add_tasks("scored_rows", f"task_id IS NOT NULL AND {found}")
        self._run(f"UPDATE scored_rows SET evidence_found = 0 WHERE {found}")
        self._queues.wake_waiters("scored_rows", f"{record.holds('g.walk')} AND g.evidence_found = 0")

    def _queue_changed(self, span: tuple[int, int]) -> None:
        in_partition = "changed c CROSS JOIN scored_rows s ON s.run_id = c.run_id AND s.walk >= ?1 AND s.walk < ?2"
        self._queues.add_tasks(in_partition, "s.task_id IS NOT NULL", *span)
        self._run(
            f"INSERT INTO rejudge_rows SELECT s.walk, 0, 1 FROM {in_partition} WHERE {HAS_OUTCOME}"
            " ON CONFLICT (walk) DO UPDATE SET evidence_changed = 1",
            span,
        )
        # The span holds all rows of the file, and mostly few of them are of a run that changed.
        self._run(
            "UPDATE scored_rows SET evidence_found = 1 - evidence_found"
            f" WHERE walk IN (SELECT s.walk FROM {in_partition} WHERE s.evidence_found <> c.found)",
            span,
        )


def evidence_found(store: Store, partition_id: int, run: str) -> str:
    """Return SQL for whether a run has evidence in its partition; an absent evidence file counts as none."""
    present = store.connection.execute(
        "SELECT EXISTS (SELECT 1 FROM files WHERE partition_id = ? AND kind = 'evidence' AND state = 'present')",
        (partition_id,),
    ).fetchone()[0]
    if not present:
        return "0"
    return f"EXISTS (SELECT 1 FROM evidence_rows e WHERE e.partition_id = {partition_id} AND e.run_id = {run})"
