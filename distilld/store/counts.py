"""The store's counts: known rows, and rows of each dataset by outcome."""

from __future__ import annotations

from collections.abc import Iterable

from distilld.store.connection import Store


class Counts:
    """Updates the counts in the transactions that change the rows."""

    def __init__(self, store: Store) -> None:
        self._run = store.connection.execute
        self._many = store.connection.executemany

    def count_rows(self, rows: int, unjudged: int) -> None:
        """Add scored rows to the counts, or subtract with negative numbers; ``unjudged`` of them were never judged."""
        self._many(
            "UPDATE counters SET value = value + ? WHERE name = ?", [(rows, "scored_rows"), (unjudged, "unjudged_rows")]
        )

    def is_fresh(self) -> bool:
        """Return whether nothing was ever judged, so that new facts cannot change an outcome."""
        counters = dict(self._run("SELECT name, value FROM counters").fetchall())
        if counters["scored_rows"] != counters["unjudged_rows"]:
            return False
        judged = "SELECT EXISTS (SELECT 1 FROM retained_rows) OR EXISTS (SELECT 1 FROM pairs)"
        return not self._run(judged).fetchone()[0]

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


def count(store: Store, query: str, *values: object) -> int:
    """Return the number that a query selects."""
    return int(store.connection.execute(query, values).fetchone()[0])
