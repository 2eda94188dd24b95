"""The times that earlier batches stamped on one dataset's lines: by them a line is made again as it was written."""

from __future__ import annotations

from distilld.core.model import Dataset
from distilld.core.outcome import Rendered
from distilld.store.work import Work


class Stamps:
    """Asks for the time of each batch once."""

    def __init__(self, work: Work, dataset: Dataset) -> None:
        self._work = work
        self._dataset = dataset
        self._known: dict[int, str] = {}

    def of(self, batch: int) -> str:
        """The time that a batch stamped on its lines."""
        if batch not in self._known:
            self._known |= self._work.stamps([batch])
        # A line that stood before this store was: its time is not known, and it is not taken for another's.
        return self._known.get(batch, "")

    def line(self, key: int, exported: Rendered, batch: int) -> bytes:
        """The line of this id as ``batch`` would have written it; 0: with the times that an adopted row brought."""
        if batch == 0:
            adopted = self._work.adopted(self._dataset, key)
            return exported.line(*adopted) if adopted else b""
        return exported.line(self.of(batch))
