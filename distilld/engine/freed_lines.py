"""Lines that became free in a batch: other rows may take them over; the rest leaves at the end."""

from __future__ import annotations

from distilld.core.model import Cause, Verdict
from distilld.core.outcome import Outcome
from distilld.engine.dataset_lines import DatasetLines
from distilld.engine.row_batch import RowBatch
from distilld.store.decisions import Withdrawal
from distilld.store.loose_lines import Departure
from distilld.store.work import Recorded


class FreedLines:
    """The lines of one dataset and its quarantine whose rows gave them up or are gone."""

    def __init__(self, batch: RowBatch, lines: DatasetLines) -> None:
        self._batch = batch
        self._lines = lines
        self._dataset = lines.dataset
        self._exported: dict[int, tuple[Recorded, Withdrawal]] = {}
        """By id, with the withdrawal that is published if no row takes the line over."""
        self._quarantined: dict[tuple[int | None, int | None], Departure] = {}
        """By partition and line: the row there now may have the same quarantine line."""

    def add(self, key: int, recorded: Recorded, run_id: str | None, cause: Cause) -> None:
        """Add the dataset line of an id that lost its row."""
        verdict: Verdict | None = None
        if cause is Cause.REVOKED and run_id is not None:
            category = self._batch.verdict_in(self._dataset, run_id)
            verdict = self._batch.work.verdict_place(run_id, category) if category else None
        batch = recorded.batch or None
        withdrawal = Withdrawal(
            self._dataset, key, cause, False, source_run_id=run_id, verdict=verdict, shipped_batch=batch
        )
        self._exported[key] = recorded, withdrawal

    def take(self, key: int) -> Recorded | None:
        """Return the free line of an id, for the row that has the id now."""
        return self._exported.pop(key)[0] if key in self._exported else None

    def add_quarantined(self, departure: Departure) -> None:
        """Add the quarantine line of a row that is gone; it leaves unless the row now in its place has the same one."""
        before = self._quarantined.pop((departure.partition_id, departure.row_line), None)
        if before is not None:
            self._lines.changes.quarantined.drop(before.line)
        self._quarantined[departure.partition_id, departure.row_line] = departure

    def take_quarantined(self, walk: int, code: int, quarantined: Outcome) -> Recorded | None:
        """Return the free quarantine line of a row's place if the row's new line equals it."""
        if not self._quarantined:
            return None
        place = self._batch.work.place(walk)
        left = self._quarantined.get((place.partition_id, walk - place.base))
        if left is None or left.outcome != code:
            return None
        recorded = Recorded(code, left.line, left.batch)
        if not self._lines.keep(recorded, quarantined):
            return None
        del self._quarantined[left.partition_id, left.row_line]
        return recorded

    def finish(self) -> None:
        """Remove the lines that are still free, and publish the withdrawals."""
        for left in self._quarantined.values():
            self._lines.changes.quarantined.drop(left.line)
        for key, (recorded, withdrawal) in self._exported.items():
            self._lines.take_out(recorded.line, key)
            self._batch.out.withdrawals.append(withdrawal)
