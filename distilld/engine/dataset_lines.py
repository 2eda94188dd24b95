"""The lines of one dataset and its quarantine in a batch: an unchanged one stays as an earlier batch wrote it."""

from __future__ import annotations

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Cause, Dataset, Verdict
from distilld.core.outcome import Outcome
from distilld.engine.row_batch import RowBatch
from distilld.lake.lines import digest_of
from distilld.store.decisions import Decisions, ExportChanges, Withdrawal
from distilld.store.loose_lines import Departure
from distilld.store.work import Recorded, Work


class DatasetLines:
    """Writes the lines that outcomes give, keeps those that stand already, and takes others out."""

    def __init__(self, work: Work, dataset: Dataset, out: Decisions) -> None:
        self._work = work
        self._out = out
        self._stamps: dict[int, str] = {}
        """The times that earlier batches stamped on their lines: each is looked up once."""
        self.dataset = dataset
        self.changes = out.changes[dataset]

    def write(self, code: int, outcome: Outcome) -> Recorded:
        """Add the line of an outcome; return what is recorded of it."""
        line = outcome.line(self._out.recorded_at)
        self._file_of(code).lines.add(line)
        return Recorded(code, digest_of(line), self._out.sequence)

    def keep(self, standing: Recorded, outcome: Outcome, key: int | None = None) -> bool:
        """Keep a line if an outcome gives the same one, with the times that it has; return whether it does.

        The row of an exported line has the id ``key``.
        """
        line = self._as_written(standing, outcome, key)
        if digest_of(line) != standing.line:
            return False
        self._file_of(standing.code).keep(standing.line, line)
        return True

    def take_out(self, line: bytes, key: int) -> None:
        """Take the line of an id out of the dataset."""
        self.changes.exported.drop(line, key)
        self._out.unadopted.append((self.dataset, key))

    def _file_of(self, code: int | None) -> ExportChanges:
        return self.changes.exported if code == EXPORTED else self.changes.quarantined

    def _as_written(self, standing: Recorded, outcome: Outcome, key: int | None) -> bytes:
        """Return the line of an outcome as the batch of a standing line wrote it; an adopted row has its own times."""
        batch = standing.batch
        if batch == 0 and key is not None:
            adopted = self._work.adopted(self.dataset, key)
            return outcome.line(*adopted) if adopted else b""
        if batch not in self._stamps:
            self._stamps |= self._work.stamps([batch])
        # A line from before this store has no known time; the empty one gives no recorded line.
        return outcome.line(self._stamps.get(batch, ""))


class FreedLines:
    """Lines whose rows gave them up or are gone: other rows may take them over, and the rest leaves at the end."""

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
