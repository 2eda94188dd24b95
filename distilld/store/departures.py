"""The lines of rows that are gone: the next batch takes them out of the exports (SPEC 3.9)."""

from __future__ import annotations

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Dataset
from distilld.store.counts import Counts


class Departures(Counts):
    """Adds lines to ``departures``. Each ``cause`` is SQL: a row of the source gives it."""

    def add_rows(self, dataset: Dataset, source: str, state: str, where: str, cause: str) -> int:
        """Add the lines that rows of a source have in a dataset; return how many of them are exported.

        ``state`` is the one that the totals count them in. The caller clears the rows' outcomes, or deletes the rows.
        """
        where = f"{dataset} IS NOT NULL AND {where}"
        counts = self.shift_rows(dataset, source, state, "departing", where)
        if counts:
            self._run(
                "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, task_id, category, cause,"
                f" partition_id, row_line, row) SELECT '{dataset}', {dataset}, sample_key, {dataset}_line, {dataset}_batch,"
                f" run_id, task_id, category, {cause}, partition_id, line, digest FROM {source} WHERE {where}"
            )
        return counts.get(EXPORTED, 0)

    def move_rows(self, dataset: Dataset, where: str, cause: str) -> int:
        """Add the lines of retained rows, and clear the rows' outcomes; return how many of the lines are exported."""
        exported = self.add_rows(dataset, "retained_rows", "retained", where, cause)
        self.empty_rows(dataset, "retained_rows", where)
        return exported

    def keep_rows(self, dataset: Dataset, source: str, where: str = "1") -> int:
        """Keep the exported lines of rows of a source as vanished rows; return how many.

        The caller clears the rows' outcomes, or deletes the rows, and changes the totals.
        """
        columns = (
            "partition_id, line, digest, run_id, task_id, category, sample_key,"
            f" {dataset}, {dataset}_line, {dataset}_batch"
        )
        kept = self._run(
            f"INSERT INTO retained_rows (kind, start_byte, length_bytes, {columns})"
            f" SELECT 'vanished', 0, 0, {columns} FROM {source} WHERE {where} RETURNING retained_id"
        ).fetchall()
        self._many("INSERT OR IGNORE INTO rejudge_retained VALUES (?)", kept)
        return len(kept)

    def empty_rows(self, dataset: Dataset, table: str, where: str) -> None:
        """Clear the outcomes of rows in a dataset."""
        nothing = f"{dataset} = NULL, {dataset}_line = NULL, {dataset}_batch = NULL"
        self._run(f"UPDATE {table} SET {nothing} WHERE {where}")

    def move_pairs(self, where: str, cause: str) -> int:
        """Add the lines of retained pairs, and delete the pairs; return how many of them are exported."""
        counts = self.shift_rows(Dataset.PREFERENCE, "pairs", "retained", "departing", where)
        self._run(
            "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, other_run_id, task_id, cause)"
            f" SELECT 'preference', outcome, sample_key, line, batch, chosen_run_id, rejected_run_id, task_id, {cause}"
            f" FROM pairs WHERE {where}"
        )
        self._run(f"DELETE FROM pairs WHERE {where}")
        return counts.get(EXPORTED, 0)
