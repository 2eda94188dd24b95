"""Retained rows, which are kept although no present input gives them: absent, vanished, orphan (SPEC 3, 3.11)."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from distilld.core.line_facts import EXPORTED, LINES_END
from distilld.core.model import ROW_DATASETS, Dataset
from distilld.store.counts import Counts
from distilld.store.schema import ON_PARTITION

if TYPE_CHECKING:
    # Readers of the store do not need it.
    from distilld.store.ledger import Totals

_ABSENT_FILE: Final = "EXISTS (SELECT 1 FROM files f WHERE f.state = 'absent' AND f.partition_id IN (chosen_partition, rejected_partition))"


class Only(StrEnum):
    """A kind of retained rows that ``prune`` may be limited to."""

    ORPHAN = "orphan"
    VANISHED = "vanished"
    """Rows that the tripwire keeps and no operator accepted."""


def only_kind(only: Only | None, column: str = "kind") -> str:
    """Return SQL for whether a retained row or pair is of this kind; ``column`` has why it is retained."""
    if only is None:
        return "1"
    return f"{column} = '{only}'{' AND accepted = 0' if only is Only.VANISHED else ''}"


class RetainedCount(NamedTuple):
    """Retained exported rows or pairs, by kind: absent, vanished, orphan, evidence absent."""

    dataset: Dataset
    kind: str
    rows: int


def without_evidence(dataset: Dataset) -> str:
    """Return a query for exported rows that are kept on absent evidence: kind, walk order place."""
    return (
        # Otherwise SQLite builds its own index of exported rows, and reads all of them for each absent file.
        "SELECT 'evidence absent' AS kind, s.walk FROM files f CROSS JOIN partitions p USING (partition_id)"
        f" CROSS JOIN scored_rows s NOT INDEXED ON s.walk >= p.walk_base AND s.walk < p.walk_base + {LINES_END}"
        f" WHERE f.kind = 'evidence' AND f.state = 'absent' AND s.{dataset} = {EXPORTED} AND s.evidence_found = 0"
    )


class Retained(Counts):
    """Reads retained rows, and makes pairs live when inputs return."""

    def counts(self, partition_glob: str | None = None, only: Only | None = None) -> list[RetainedCount]:
        """Count the exported rows and pairs that ``prune`` would withdraw, by dataset and kind."""
        matches = "(?1 IS NULL OR EXISTS (SELECT 1 FROM partitions p WHERE p.path GLOB ?1 AND {which}))"
        counts: list[RetainedCount] = []
        for dataset in ROW_DATASETS:
            retained = (
                f"SELECT kind FROM retained_rows f WHERE {dataset} = {EXPORTED} AND {only_kind(only)}"
                f" AND {matches.format(which='p.partition_id = f.partition_id')}"
            )
            kept = f"SELECT kind FROM ({without_evidence(dataset)}) s WHERE {matches.format(which=ON_PARTITION)}"
            source = retained if only else f"{retained} UNION ALL {kept}"
            counts += self._count(dataset, source, partition_glob)
        pairs = (
            f"SELECT retained AS kind FROM pairs r WHERE retained IS NOT NULL AND outcome = {EXPORTED}"
            f" AND {only_kind(only, 'retained')} AND {matches.format(which='p.partition_id IN (r.chosen_partition, r.rejected_partition)')}"
        )
        return [*counts, *self._count(Dataset.PREFERENCE, pairs, partition_glob)]

    def _count(self, dataset: Dataset, source: str, partition_glob: str | None) -> list[RetainedCount]:
        rows = self._run(f"SELECT kind, count(*) FROM ({source}) GROUP BY kind ORDER BY kind", (partition_glob,))
        return [RetainedCount(dataset, kind, count) for kind, count in rows]

    def kept_by_tripwire(self) -> dict[str, int]:
        """Return how many rows the tripwire keeps undecided, by dataset; datasets without any are left out."""
        return {dataset.value: rows for dataset, _, rows in self.counts(only=Only.VANISHED)}

    def by_dataset(self, totals: Totals) -> dict[str, int]:
        """Return how many rows of each dataset are retained, including those whose evidence is gone; counts few rows."""
        found = {dataset.value: totals.retained(dataset) for dataset in Dataset}
        for dataset in ROW_DATASETS:
            found[dataset.value] += self._number(f"SELECT count(*) FROM ({without_evidence(dataset)})")
        return found

    def make_live(self) -> None:
        """Make pairs live, to be formed again, if none of their files is absent any more (SPEC 3, 'A path that returns')."""
        self._run(
            "DELETE FROM rejudge_retained WHERE NOT EXISTS"
            " (SELECT 1 FROM retained_rows f WHERE f.retained_id = rejudge_retained.retained_id)"
        )
        # The tasks of such pairs are queued already, by the rows that returned or are gone for good.
        where = (
            # Without the index's name, SQLite compares each task with all retained pairs.
            "pair_id IN (SELECT p.pair_id FROM rejudge_tasks t CROSS JOIN pairs p INDEXED BY pairs_by_task"
            f" USING (task_id) WHERE p.retained = 'absent') AND NOT {_ABSENT_FILE}"
        )
        if self.shift_rows(Dataset.PREFERENCE, "pairs", "retained", "live", where):
            self._run(f"UPDATE pairs SET retained = NULL WHERE {where}")
