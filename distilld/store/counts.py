"""The store's counts: known rows, and rows of each dataset by outcome."""

from __future__ import annotations

from collections.abc import Iterable

from distilld.store.statements import Statements


class Counts(Statements):
    """Updates the counts in the transactions that change the rows."""

    def count_rows(self, rows: int, unjudged: int) -> None:
        """Add scored rows to the counts, or subtract with negative numbers; ``unjudged`` of them were never judged."""
        self._many(
            "UPDATE counters SET value = value + ? WHERE name = ?", [(rows, "scored_rows"), (unjudged, "unjudged_rows")]
        )

    def counter(self, name: str) -> int:
        """Return one of the store's counters."""
        return self._number("SELECT value FROM counters WHERE name = ?", name)

    def is_fresh(self) -> bool:
        """Return whether nothing was ever judged, so that new facts cannot change an outcome."""
        if self.counter("scored_rows") != self.counter("unjudged_rows"):
            return False
        return not self._holds("EXISTS (SELECT 1 FROM retained_rows) OR EXISTS (SELECT 1 FROM pairs)")

    def add_total(self, dataset: str, state: str, outcome: int, rows: int) -> None:
        """Add rows to a dataset's total in a state; a negative number subtracts."""
        self._run(
            "UPDATE totals SET rows = rows + ? WHERE dataset = ? AND state = ? AND outcome = ?",
            (rows, dataset, state, outcome),
        )

    def shift(self, dataset: str, source: str, target: str, counts: Iterable[tuple[int, int]]) -> None:
        """Move counts of rows, by outcome, from one state to another."""
        for outcome, rows in counts:
            self.add_total(dataset, source, outcome, -rows)
            self.add_total(dataset, target, outcome, rows)

    def shift_rows(self, dataset: str, table: str, source: str, target: str, where: str = "1") -> None:
        """Move the counts of a table's judged rows from one state to another."""
        counts = self._run(
            f"SELECT {dataset}, count(*) FROM {table} WHERE {dataset} IS NOT NULL AND {where} GROUP BY {dataset}"
        ).fetchall()
        self.shift(dataset, source, target, counts)
