"""The store's counts: known rows, and rows of each dataset by outcome."""

from __future__ import annotations

from distilld.core.model import ROW_DATASETS, Dataset
from distilld.store.schema import HALF_JUDGED
from distilld.store.statements import Statements


class Counts(Statements):
    """Updates the counts in the transactions that change the rows."""

    def count_rows(self, rows: int, unjudged: int) -> None:
        """Add scored rows to the counts, or subtract with negative numbers; ``unjudged`` of them were never judged."""
        self._many(
            "UPDATE counters SET value = value + ? WHERE name = ?", [(rows, "scored_rows"), (unjudged, "unjudged_rows")]
        )

    def count_rows_of(self, table: str, where: str, sign: int) -> None:
        """Add the rows of a table to the counts, or subtract them with a negative sign."""
        counted = f"SELECT count(*), count(*) FILTER (WHERE rag IS NULL) FROM {table} WHERE {where}"
        rows, unjudged = self._run(counted).fetchone()
        self.count_rows(sign * rows, sign * unjudged)

    def counter(self, name: str) -> int:
        """Return one of the store's counters."""
        return self._number("SELECT value FROM counters WHERE name = ?", name)

    def judged_rows(self, dataset: Dataset) -> int:
        """Return how many scored rows have an outcome in RAG or in SFT; ``unjudged_rows`` counts those without one in RAG."""
        in_rag = self.counter("scored_rows") - self.counter("unjudged_rows")
        if dataset is Dataset.RAG:
            return in_rag
        more = "SELECT coalesce(sum(iif(rag IS NULL, 1, -1)), 0) FROM scored_rows INDEXED BY half_judged_rows"
        return in_rag + self._number(f"{more} WHERE {HALF_JUDGED}")

    def is_fresh(self) -> bool:
        """Return whether no row has an outcome, so that new facts cannot change one."""
        if any(self.judged_rows(dataset) for dataset in ROW_DATASETS):
            return False
        return not self._holds("EXISTS (SELECT 1 FROM retained_rows) OR EXISTS (SELECT 1 FROM pairs)")

    def has_exceptions(self) -> bool:
        """Return whether anything is absent, retained or departing."""
        return self._holds(
            "EXISTS (SELECT 1 FROM retained_rows) OR EXISTS (SELECT 1 FROM departures)"
            " OR EXISTS (SELECT 1 FROM files WHERE state = 'absent')"
            " OR EXISTS (SELECT 1 FROM pairs WHERE retained IS NOT NULL)"
        )

    def add_total(self, dataset: str, state: str, outcome: int, rows: int) -> None:
        """Add rows to a dataset's total in a state; a negative number subtracts."""
        self._run(
            "UPDATE totals SET rows = rows + ? WHERE dataset = ? AND state = ? AND outcome = ?",
            (rows, dataset, state, outcome),
        )

    def shift(self, dataset: str, source: str, target: str, outcome: int, rows: int) -> None:
        """Move a count of rows with one outcome from one state to another."""
        self.add_total(dataset, source, outcome, -rows)
        self.add_total(dataset, target, outcome, rows)

    def shift_rows(self, dataset: Dataset, table: str, source: str, target: str, where: str) -> dict[int, int]:
        """Move the counts of a table's judged rows from one state to another; return the counts, by outcome."""
        outcome = "outcome" if dataset is Dataset.PREFERENCE else dataset
        counts: dict[int, int] = dict(
            self._run(f"SELECT {outcome}, count(*) FROM {table} WHERE {outcome} IS NOT NULL AND {where} GROUP BY 1")
        )
        for code, rows in counts.items():
            self.shift(dataset, source, target, code, rows)
        return counts

    def shift_outcomes(self, table: str, source: str, target: str, where: str) -> None:
        """Do the same for rows that have an outcome in RAG and one in SFT."""
        for dataset in ROW_DATASETS:
            self.shift_rows(dataset, table, source, target, where)
