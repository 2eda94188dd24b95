"""The outcomes of rows and pairs that each batch decided, and their totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from distilld.core.line_facts import EXPORTED, REASONS
from distilld.core.model import Dataset
from distilld.store.counts import Counts
from distilld.store.moved import forget_moved_rows
from distilld.store.statements import array
from distilld.store.tasks import unjudged_in
from distilld.store.verdicts import last_verdict

if TYPE_CHECKING:
    # Readers of the store do not need it.
    from distilld.store.decisions import Decisions


class Totals:
    """Row counts by dataset, state and outcome code."""

    def __init__(self, rows: list[tuple[str, str, int, int]]) -> None:
        self._rows = {(Dataset(dataset), state, outcome): count for dataset, state, outcome, count in rows}

    def exported(self, dataset: Dataset) -> int:
        """Return how many rows are in the dataset's file."""
        return sum(count for (of, _, outcome), count in self._rows.items() if of is dataset and outcome == EXPORTED)

    def quarantined(self, dataset: Dataset) -> int:
        """Return how many rows are in the dataset's quarantine file."""
        return sum(count for (of, _, outcome), count in self._rows.items() if of is dataset and outcome != EXPORTED)

    def live(self, dataset: Dataset) -> int:
        """Return how many present rows are judged, with any outcome (preference: pairs tried)."""
        return sum(count for (of, state, _), count in self._rows.items() if of is dataset and state == "live")

    def retained(self, dataset: Dataset) -> int:
        """Return how many exported rows are retained."""
        return self._rows[dataset, "retained", EXPORTED]

    def by_reason(self, dataset: Dataset) -> dict[str, int]:
        """Return the counts of quarantined rows by reason; reasons without rows are left out."""
        found: Counter[str] = Counter()
        for (of, _, outcome), count in sorted(self._rows.items(), key=lambda item: item[0][2]):
            if of is dataset and outcome != EXPORTED and count:
                found[REASONS[outcome].value] += count
        return found


class Ledger(Counts):
    """Records outcomes."""

    def apply(self, decisions: Decisions) -> None:
        """Record what the batch decided: outcomes, pairs, departures, queues, totals, missing lines."""
        for dataset, walks in decisions.released.items():
            # Ids are always unique among exported rows: a row gives up its id before another takes it.
            self._many(f"UPDATE scored_rows SET {dataset} = NULL WHERE walk = ?", [(walk,) for walk in walks])
        for dataset, retained_id in decisions.retained_left:
            self._run(
                f"UPDATE retained_rows SET {dataset} = NULL, {dataset}_line = NULL, {dataset}_batch = NULL WHERE retained_id = ?",
                (retained_id,),
            )
        self._many("DELETE FROM departures WHERE departure_id = ?", [(each,) for each in decisions.departures])
        self._many("DELETE FROM rejudge_retained WHERE retained_id = ?", [(each,) for each in decisions.retained_seen])
        self._many(
            "UPDATE scored_rows SET rag = ?, rag_line = ?, rag_batch = ?, sft = ?, sft_line = ?, sft_batch = ? WHERE walk = ?",
            decisions.rows,
        )
        self._apply_fresh(decisions)
        self._clear_queue(decisions)
        self._apply_pairs(decisions)
        self._many(
            "DELETE FROM adopted_rows WHERE dataset = ? AND sample_key = ?",
            [(dataset.value, key) for dataset, key in decisions.unadopted],
        )
        for (dataset, state, outcome), rows in decisions.totals.items():
            self.add_total(dataset.value, state, outcome, rows)
        self._run("DELETE FROM retained_rows WHERE kind <> 'absent' AND rag IS NULL AND sft IS NULL")
        forget_moved_rows(self._store, decisions.retained_seen)
        self._apply_missing(decisions)

    def _apply_fresh(self, decisions: Decisions) -> None:
        batch = decisions.sequence
        outcomes = f"rag = ?, rag_line = ?, rag_batch = {batch}, sft = ?, sft_line = ?, sft_batch = {batch}"
        self._many(f"UPDATE scored_rows SET {outcomes} WHERE walk = ?", decisions.fresh)
        self._many(f"UPDATE scored_rows SET {outcomes}, evidence_found = ? WHERE walk = ?", decisions.fresh_found)
        self._many("UPDATE scored_rows SET evidence_found = ? WHERE walk = ?", decisions.found)

    def _apply_missing(self, decisions: Decisions) -> None:
        taken = [(name, *each) for name, change in decisions.files() for each in change.taken.items()]
        self._many("UPDATE missing_lines SET copies = copies - ?3 WHERE name = ?1 AND digest = ?2", taken)
        self._many(
            "DELETE FROM missing_lines WHERE name = ?1 AND digest = ?2 AND copies <= 0", [each[:2] for each in taken]
        )

    def _clear_queue(self, decisions: Decisions) -> None:
        if self._holds("EXISTS (SELECT 1 FROM rejudge_rows)"):
            self._many("DELETE FROM rejudge_rows WHERE walk = ?", [(walk,) for walk in decisions.judged_walks])
        self._many(
            "INSERT OR IGNORE INTO rejudge_rows (walk, forced) VALUES (?, 0)",
            [(walk,) for walk in decisions.rows_to_queue],
        )
        self.count_rows(0, -decisions.newly_judged)
        if decisions.judged is not None:
            self._run(
                "UPDATE files SET judged_lines = min(indexed_lines, max(judged_lines,"
                " 1 + ?2 - (SELECT walk_base FROM partitions p WHERE p.partition_id = files.partition_id)))"
                f" WHERE partition_id IN (SELECT f.partition_id FROM {unjudged_in(decisions.judged)})"
                " AND kind = 'scored' AND state = 'present'",
                decisions.judged,
            )

    def _apply_pairs(self, decisions: Decisions) -> None:
        self._many(
            "UPDATE pairs SET retained = 'absent' WHERE pair_id = ?", [(each,) for each in decisions.retained_pairs]
        )
        self._many("DELETE FROM pairs WHERE pair_id = ?", [(each,) for each in set(decisions.dropped_pairs)])
        self._many(
            "INSERT INTO pairs (task_id, slot, chosen_run_id, rejected_run_id, rejected_category, chosen_partition,"
            " rejected_partition, sample_key, outcome, line, batch) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            decisions.pairs,
        )
        self._many("DELETE FROM rejudge_tasks WHERE task_id = ?", [(task,) for task in decisions.tasks])
        self._many("INSERT OR IGNORE INTO rejudge_tasks VALUES (?, 0)", [(task,) for task in decisions.tasks_to_queue])

    # accounting

    def totals(self) -> Totals:
        """Return the row counts of all datasets."""
        return Totals(self._run("SELECT dataset, state, outcome, rows FROM totals").fetchall())

    def verdicts_among(self, walks: Iterable[int], codes: Iterable[int], *, but: int = 0) -> list[tuple[int, int]]:
        """Return (walk, code) of rows whose run's last present verdict is in ``codes``: the second firewall check.

        Verdicts with the code ``but`` do not count.
        """
        return self._run(
            f"SELECT s.walk, {last_verdict('s.run_id', but=but)} AS code FROM json_each(?) j CROSS JOIN scored_rows s"
            f" ON s.walk = j.value WHERE code IN ({','.join(map(str, codes))})",
            (array(walks),),
        ).fetchall()
