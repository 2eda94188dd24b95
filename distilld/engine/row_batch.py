"""One batch of rows, shared by the classes that judge it: what it is judged with, and which row is next."""

from __future__ import annotations

import heapq

from distilld.core.model import Category, Dataset, Options
from distilld.store.decisions import Decisions
from distilld.store.work import Work


class RowBatch:
    """The rows of one batch: queued rows come in walk order; rows that their outcomes concern join in turn."""

    def __init__(self, work: Work, options: Options, decisions: Decisions, *, options_changed: bool) -> None:
        self.work = work
        self.options = options
        self.out = decisions
        self.options_changed = options_changed
        self.has_loose_lines = work.has_loose_lines()
        """Whether exports hold lines that belong to no present row."""
        self.done: set[int] = set()
        """The rows that were judged one by one, not by span."""
        self.displaced: set[int] = set()
        self._joined: list[int] = []

    def next_joined(self, before: int) -> int | None:
        """Take the first joined row that comes before a place; return None if there is none."""
        while self._joined and self._joined[0] < before:
            walk = heapq.heappop(self._joined)
            if walk not in self.done:
                return walk
        return None

    def join(self, walk: int) -> None:
        """Add a row to the batch."""
        heapq.heappush(self._joined, walk)

    def displace(self, walk: int) -> None:
        """Add a row that lost its id to another row: it cannot be left for a later batch."""
        self.displaced.add(walk)
        self.join(walk)

    def wake(self, dataset: Dataset, key: int, after: int) -> None:
        """Add the first row after ``after`` that is quarantined because an earlier row had this id."""
        waiter = self.work.waiter_after(dataset, key, after)
        while waiter is not None and waiter in self.done:
            waiter = self.work.waiter_after(dataset, key, waiter)
        if waiter is not None:
            self.join(waiter)

    def verdict_in(self, dataset: Dataset, run_id: str) -> Category | None:
        """Return the current verdict for a run in a dataset."""
        in_rag, in_sft, _ = self.work.verdicts(run_id, self.options)
        return in_rag if dataset is Dataset.RAG else in_sft

    def forbids(self, dataset: Dataset, run_id: str | None) -> bool:
        """Return whether the current verdict for a run takes its rows out of a dataset."""
        if run_id is None or not self.options.revoke:
            return False
        verdict = self.verdict_in(dataset, run_id)
        return verdict is not None and self.options.forbids(dataset, verdict)
