"""The times that earlier batches stamped on one dataset's lines, to make a line again as it was written."""

from __future__ import annotations

from distilld.core.model import Dataset
from distilld.core.outcome import Outcome
from distilld.store.work import Work


class Stamps:
    """Looks up the time of each batch once."""

    def __init__(self, work: Work, dataset: Dataset) -> None:
        self._work = work
        self._dataset = dataset
        self._known: dict[int, str] = {}

    def of(self, batch: int) -> str:
        """Return the time that a batch stamped on its lines."""
        if batch not in self._known:
            self._known |= self._work.stamps([batch])
        # A line from before this store has no known time; the empty one gives no recorded line.
        return self._known.get(batch, "")

    def line(self, key: int, exported: Outcome, batch: int) -> bytes:
        """Return the line of this id as ``batch`` would have written it; 0: with the times of the adopted row."""
        if batch == 0:
            adopted = self._work.adopted(self._dataset, key)
            return exported.line(*adopted) if adopted else b""
        return exported.line(self.of(batch))
