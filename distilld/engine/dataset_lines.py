"""The lines of one dataset and its quarantine in a batch: an unchanged one stays as an earlier batch wrote it."""

from __future__ import annotations

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Dataset
from distilld.core.outcome import Outcome
from distilld.lake.lines import digest_of
from distilld.store.decisions import Decisions, ExportChanges
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
