"""Retained rows: what is kept although no present input gives it, absent, vanished or orphaned (SPEC 3, 3.11)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from distilld.core.line_facts import LINES_END, SHIPPED
from distilld.core.model import Dataset
from distilld.store.connection import Store
from distilld.store.counts import Counts, count

if TYPE_CHECKING:
    # Those who only look at the store do without it.
    from distilld.store.ledger import Totals

KEPT_BITS: Final = {Dataset.RAG: 1, Dataset.SFT: 2}
KEPT_FOR_GOOD: Final = 4
_ABSENT_FILE: Final = "EXISTS (SELECT 1 FROM files f WHERE f.state = 'absent' AND f.partition_id IN (chosen_partition, rejected_partition))"


def without_evidence(dataset: Dataset) -> str:
    """A query for the shipped rows that are kept although their evidence is gone: why, and where in the walk order."""
    ships = f"s.{dataset} = {SHIPPED} AND s.evidence_found = 0"
    return (
        "SELECT 'evidence vanished' AS kind, s.walk, s.kept FROM scored_rows s INDEXED BY kept_rows"
        f" WHERE s.kept <> 0 AND {ships} UNION ALL"
        # Else SQLite makes an index of its own for the shipped rows, and reads all of them for each absent file.
        " SELECT 'evidence absent', s.walk, s.kept FROM files f CROSS JOIN partitions p USING (partition_id)"
        f" CROSS JOIN scored_rows s NOT INDEXED ON s.walk >= p.walk_base AND s.walk < p.walk_base + {LINES_END}"
        f" WHERE f.kind = 'evidence' AND f.state = 'absent' AND s.kept = 0 AND {ships}"
    )


def shipped_by_exception(totals: Totals, without_evidence: Mapping[Dataset, Mapping[str, int]]) -> dict[str, int]:
    """How many rows of each dataset ship by way of exception: frozen ones, and those whose evidence is gone."""
    return {
        dataset.value: totals.frozen(dataset) + sum(without_evidence.get(dataset, {}).values()) for dataset in Dataset
    }


def has_exceptions(store: Store) -> bool:
    """Whether anything is absent, kept by way of exception, or about to depart."""
    return bool(
        store.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM frozen_rows) OR EXISTS (SELECT 1 FROM departures)"
            " OR EXISTS (SELECT 1 FROM files WHERE state = 'absent')"
            " OR EXISTS (SELECT 1 FROM pairs WHERE frozen IS NOT NULL)"
        ).fetchone()[0]
    )


class Frozen:
    """The part of the store that knows retained rows, gives them back to inputs that return, and lets them depart."""

    def __init__(self, store: Store) -> None:
        self._run = store.connection.execute
        self._count = partial(count, store)
        self._counts = Counts(store)

    def held_by_tripwire(self) -> dict[str, int]:
        """Rows that the tripwire keeps and nobody has decided on, by dataset; datasets without any are left out."""
        found = {
            dataset.value: self._count(
                f"SELECT count(*) FROM frozen_rows WHERE kind = 'vanished' AND accepted = 0 AND {dataset} = {SHIPPED}"
            )
            + self._count(
                f"SELECT count(*) FROM scored_rows INDEXED BY kept_rows WHERE kept <> 0"
                f" AND kept & {bit | KEPT_FOR_GOOD} = {bit} AND {dataset} = {SHIPPED}"
            )
            for dataset, bit in KEPT_BITS.items()
        }
        found[Dataset.PREFERENCE.value] = self._count(
            "SELECT count(*) FROM pairs WHERE frozen = 'vanished' AND accepted = 0"
        )
        return {dataset: rows for dataset, rows in found.items() if rows}

    def counts_without_evidence(self) -> dict[Dataset, dict[str, int]]:
        """Shipped rows that are kept although their evidence is gone, by dataset and kind."""
        return {
            dataset: dict(
                self._run(f"SELECT kind, count(*) FROM ({without_evidence(dataset)}) GROUP BY kind").fetchall()
            )
            for dataset in KEPT_BITS
        }

    def frozen_counts(self) -> dict[str, int]:
        """Frozen shipped rows and pairs by kind, over all datasets: what ships in two of them counts twice."""
        rows = self._run(
            f"SELECT kind, sum((rag IS {SHIPPED}) + (sft IS {SHIPPED})) FROM frozen_rows GROUP BY kind"
            f" UNION ALL SELECT frozen, count(*) FROM pairs WHERE frozen IS NOT NULL AND outcome = {SHIPPED} GROUP BY frozen"
        )
        found: dict[str, int] = {}
        for kind, shipped in rows:
            if shipped:
                found[kind] = found.get(kind, 0) + shipped
        return found

    def thaw(self) -> None:
        """What returned, or is gone for good, is as live as before (SPEC 3, 'A path that returns')."""
        self._run(
            "DELETE FROM rejudge_frozen WHERE NOT EXISTS"
            " (SELECT 1 FROM frozen_rows f WHERE f.frozen_id = rejudge_frozen.frozen_id)"
        )
        self._thaw_pairs()
        for dataset, other in ((Dataset.RAG, Dataset.SFT), (Dataset.SFT, Dataset.RAG)):
            self._thaw_half(dataset, other)

    def _thaw_half(self, dataset: Dataset, other: Dataset) -> None:
        """Rows that returned and have an outcome in one dataset alone, because a present row took their other id over.

        They count as never judged. The line that they have goes back to them when they are judged, if they still ship it.
        """
        half = (
            "SELECT s.walk FROM rejudge_rows q CROSS JOIN scored_rows s USING (walk)"
            f" WHERE s.{dataset} IS NOT NULL AND s.{other} IS NULL"
        )
        counts = self._run(f"SELECT {dataset}, count(*) FROM scored_rows WHERE walk IN ({half}) GROUP BY 1").fetchall()
        if not counts:
            return
        self._counts.shift(dataset.value, "live", "departing", counts)
        self._run(
            "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, task_id, category, cause,"
            f" partition_id, row_line, row) SELECT '{dataset}', {dataset}, sample_key, {dataset}_line, {dataset}_batch,"
            " run_id, task_id, category, 'displaced', partition_id, line, digest"
            f" FROM row_places WHERE walk IN ({half})"
        )
        rows = self._run(
            f"UPDATE scored_rows SET {dataset} = NULL, {dataset}_line = NULL, {dataset}_batch = NULL WHERE walk IN ({half})"
        ).rowcount
        if dataset is Dataset.RAG:  # a row without an outcome in RAG counts as unjudged already
            self._run("UPDATE counters SET value = value + ? WHERE name = 'unjudged_rows'", (rows,))

    def _thaw_pairs(self) -> None:
        """Frozen pairs of which no file is absent any more are formed anew.

        Their tasks wait in the queue already: the rows that returned, or are gone for good, have put them there.
        """
        where = f"frozen = 'absent' AND task_id IN (SELECT task_id FROM rejudge_tasks) AND NOT {_ABSENT_FILE}"
        counts = self._run(f"SELECT outcome, count(*) FROM pairs WHERE {where} GROUP BY 1").fetchall()
        self._counts.shift(Dataset.PREFERENCE.value, "frozen", "live", counts)
        if counts:
            self._run(f"UPDATE pairs SET frozen = NULL WHERE {where}")

    def depart_rows(self, dataset: Dataset, where: str, values: tuple[object, ...], cause: str) -> None:
        """Let the lines of frozen rows depart from a dataset; ``cause`` is SQL."""
        counts = self._run(
            f"SELECT {dataset}, count(*) FROM frozen_rows WHERE {dataset} IS NOT NULL AND {where} GROUP BY 1", values
        ).fetchall()
        self._counts.shift(dataset.value, "frozen", "departing", counts)
        self._run(
            "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, task_id, category, cause, partition_id,"
            f" row_line, row) SELECT '{dataset}', {dataset}, sample_key, {dataset}_line, {dataset}_batch, run_id, task_id,"
            f" category, {cause}, partition_id, line, digest FROM frozen_rows WHERE {dataset} IS NOT NULL AND {where}",
            values,
        )

    def empty_rows(self, dataset: Dataset, where: str) -> None:
        """Frozen rows have no outcome in a dataset any more."""
        self._run(
            f"UPDATE frozen_rows SET {dataset} = NULL, {dataset}_line = NULL, {dataset}_batch = NULL WHERE {where}"
        )

    def depart_pairs(self, where: str, values: tuple[object, ...], cause: str) -> int:
        """Let frozen pairs depart; returns how many of them ship."""
        counts = self._run(f"SELECT outcome, count(*) FROM pairs WHERE {where} GROUP BY 1", values).fetchall()
        self._counts.shift(Dataset.PREFERENCE.value, "frozen", "departing", counts)
        self._run(
            "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, other_run_id, task_id, cause)"
            f" SELECT 'preference', outcome, sample_key, line, batch, chosen_run_id, rejected_run_id, task_id, {cause}"
            f" FROM pairs WHERE {where}",
            values,
        )
        self._run(f"DELETE FROM pairs WHERE {where}", values)
        return sum(rows for outcome, rows in counts if outcome == SHIPPED)
