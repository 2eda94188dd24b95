"""The tripwire: count the rows that would leave only because they vanished from the inputs; keep them if too many."""

from __future__ import annotations

from typing import Final

from distilld.core.line_facts import CATEGORY_CODES, EXPORTED, ignored
from distilld.core.model import Category, Dataset, Options
from distilld.store.connection import Store
from distilld.store.departures import Departures
from distilld.store.queues import EVIDENCE_PRUNED, Queues
from distilld.store.schema import ON_PARTITION
from distilld.store.statements import Statements
from distilld.store.tasks import Tasks
from distilld.store.verdicts import forbidding_codes, last_verdict, overruled

_DEPARTED: Final = "(SELECT DISTINCT run_id FROM departures) r"
_ABSENT: Final = "(SELECT DISTINCT f.run_id FROM rejudge_retained q CROSS JOIN retained_rows f USING (retained_id)) r"
_LINES: Final = "(SELECT s.run_id, s.digest FROM {} CROSS JOIN scored_rows s ON s.run_id = r.run_id)"
_WITH_EVIDENCE: Final = (
    "(SELECT r.run_id FROM {} WHERE EXISTS"
    " (SELECT 1 FROM scored_rows s WHERE s.run_id = r.run_id AND s.evidence_found = 1))"
)
"""SQL for the runs ``r`` that have evidence; ``_LINES``: their lines. Evaluated once: a run may have many rows."""
_PAIR_GONE: Final = (
    "SELECT p.pair_id, p.task_id, p.chosen_partition, p.chosen_run_id, p.rejected_partition, p.rejected_run_id,"
    " p.rejected_category, EXISTS (SELECT 1 FROM files f WHERE f.state = 'absent'"
    "  AND f.partition_id IN (p.chosen_partition, p.rejected_partition)) FROM rejudge_tasks t CROSS JOIN pairs p"
    f" USING (task_id) WHERE p.outcome = {EXPORTED} AND (p.retained IS NULL OR p.retained = 'absent') AND ("
    " NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = p.chosen_run_id AND s.evidence_found = 1)"
    " OR NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = p.rejected_run_id AND s.evidence_found = 1))"
)


class Tripwire(Statements):
    """Counts the rows that are about to vanish, or keeps them."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._departures = Departures(store)
        self._queues = Queues(store)

    def vanishing(self, dataset: Dataset, options: Options) -> int:
        """Return how many rows of a dataset are about to leave only because they vanished from the inputs."""
        if dataset is Dataset.PREFERENCE:
            return len(self._pairs_gone(options))
        departed = self._number(
            f"SELECT count(*) FROM departures d WHERE d.dataset = ? AND {_vanished(dataset, options)}", dataset.value
        )
        moved = self._number(f"SELECT count(*) FROM ({_moved_alone(dataset, options)})")
        return departed + moved + self._number(f"SELECT count(*) {_evidence_gone(dataset, options)}")

    def keep(self, dataset: Dataset, options: Options) -> None:
        """Retain the vanishing rows instead: they stay until an operator decides on them."""
        if dataset is Dataset.PREFERENCE:
            gone = self._pairs_gone(options)
            live = self._many(
                "UPDATE pairs SET retained = 'vanished' WHERE pair_id = ? AND retained IS NULL", gone
            ).rowcount
            self._many("UPDATE pairs SET retained = 'vanished' WHERE pair_id = ?", gone)
            self._departures.shift(dataset.value, "live", "retained", EXPORTED, live)
            return
        where = f"d.dataset = '{dataset}' AND {_vanished(dataset, options)}"
        row = (
            f"partition_id, row_line AS line, row AS digest, run_id, task_id, category, sample_key, outcome AS {dataset},"
            f" line AS {dataset}_line, batch AS {dataset}_batch"
        )
        departed = self._departures.keep_rows(dataset, f"(SELECT {row} FROM departures d WHERE {where})")
        self._run(f"DELETE FROM departures AS d WHERE {where}")
        self._departures.shift(dataset.value, "departing", "retained", EXPORTED, departed)
        self._keep_moved(dataset, options)
        self._keep_without_evidence(dataset, options)
        self._queues.wake_waiters("retained_rows", "g.kind = 'vanished'")

    def _keep_moved(self, dataset: Dataset, options: Options) -> None:
        """Give the lines of moved absent rows to new vanished rows; the absent rows keep their verdicts."""
        self._stage_rows("moved", _moved_alone(dataset, options))
        self._departures.empty_rows(dataset, "retained_rows", "retained_id IN (SELECT retained_id FROM moved)")
        self._departures.keep_rows(dataset, "moved")
        self._unstage("moved")

    def _keep_without_evidence(self, dataset: Dataset, options: Options) -> None:
        """Give the lines of rows whose evidence is gone to new vanished rows; the rows are judged without them."""
        self._stage_rows("without_evidence", f"SELECT s.walk {_evidence_gone(dataset, options)}")
        where = "walk IN (SELECT walk FROM without_evidence)"
        rows = self._departures.keep_rows(dataset, "row_places", where)
        self._departures.empty_rows(dataset, "scored_rows", where)
        if dataset is Dataset.RAG:
            # A row without an outcome in RAG counts as never judged.
            self._departures.count_rows(0, rows)
        self._departures.shift(dataset.value, "live", "retained", EXPORTED, rows)
        self._unstage("without_evidence")

    def _pairs_gone(self, options: Options) -> list[tuple[int]]:
        """Return pairs with a vanished side and no absent side; a pair with an absent side is retained anyway."""
        gone = f"{_PAIR_GONE} AND NOT ({overruled('p')})" if options.revoke else _PAIR_GONE
        tasks, accepted = Tasks(self._store), CATEGORY_CODES[Category.ACCEPTED]
        return [
            (pair_id,)
            for pair_id, task_id, chosen_in, chosen, rejected_in, rejected, category, near in self._run(gone)
            if not near
            or not (
                tasks.side_is_absent(chosen_in, chosen, task_id, accepted)
                or tasks.side_is_absent(rejected_in, rejected, task_id, category)
            )
        ]


def _not_forbidden(run: str, dataset: Dataset, options: Options) -> str:
    """Return SQL for whether no present verdict forbids a run anyway; ``run`` is an SQL expression."""
    if not options.revoke:
        return "1"
    verdict = last_verdict(run, but=ignored(dataset, options))
    return f"coalesce({verdict} IN ({forbidding_codes(options, dataset)}), 0) = 0"


def _vanished(dataset: Dataset, options: Options) -> str:
    """Return SQL for departed rows whose run no present row names, or whose line is elsewhere without any evidence."""
    return (
        f"d.outcome = {EXPORTED} AND d.cause IN ('row_removed', 'rescored') AND d.partition_id IS NOT NULL"
        " AND (NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = d.run_id)"
        f"  OR (d.run_id, d.row) IN {_LINES.format(_DEPARTED)} AND d.run_id NOT IN {_WITH_EVIDENCE.format(_DEPARTED)})"
        f" AND {_not_forbidden('d.run_id', dataset, options)}"
    )


def _moved_alone(dataset: Dataset, options: Options) -> str:
    """Return SQL for absent rows whose lines are in a present partition now, but without their evidence."""
    return (
        "SELECT f.* FROM rejudge_retained q CROSS JOIN retained_rows f USING (retained_id)"
        f" WHERE f.kind = 'absent' AND f.{dataset} = {EXPORTED}"
        f" AND f.run_id NOT IN {_WITH_EVIDENCE.format(_ABSENT)}"
        f" AND ((f.run_id, f.digest) IN {_LINES.format(_ABSENT)}"
        "  OR EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id IS NULL AND s.digest = f.digest))"
        f" AND {_not_forbidden('f.run_id', dataset, options)}"
    )


def _evidence_gone(dataset: Dataset, options: Options) -> str:
    """Return SQL for rows whose evidence row is gone; an evidence row in an absent file is absent, not gone.

    There can be as many absent files as rows, so the file is found by the row's partition.
    """
    return (
        f"FROM rejudge_rows q CROSS JOIN scored_rows s USING (walk) WHERE s.{dataset} = {EXPORTED} AND s.evidence_found = 0"
        f" AND q.evidence_changed <> {EVIDENCE_PRUNED}"
        " AND NOT EXISTS (SELECT 1 FROM partitions p CROSS JOIN files f USING (partition_id)"
        " CROSS JOIN evidence_rows e ON e.partition_id = f.partition_id AND e.run_id = s.run_id"
        f" WHERE {ON_PARTITION} AND f.kind = 'evidence' AND f.state = 'absent')"
        f" AND {_not_forbidden('s.run_id', dataset, options)}"
    )
