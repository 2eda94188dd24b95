"""What a snapshot and a change feed ask of the store; a change of its tables touches this one place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Dataset
from distilld.store.connection import Store

_TASKS: Final = (
    "SELECT j.value, t.task_id FROM json_each(?1) j CROSS JOIN {} t ON t.sample_key = j.value"
    f" WHERE t.{{}} = {EXPORTED} AND t.task_id IS NOT NULL"
)
_MOST_AHEAD: Final = 20_000
"""So many rows are remembered at most whose lines come later in the file."""


class RowTasks:
    """The task ids of a dataset's rows, for whoever reads its file from the beginning.

    A file is mostly in walk order, as the store is, so both are read side by side. Other rows are looked up.
    """

    def __init__(self, store: Store, dataset: Dataset) -> None:
        self._run = store.connection.execute
        table, outcome, place = "scored_rows", dataset.value, "walk"
        if dataset is Dataset.PREFERENCE:
            table, outcome, place = "pairs", "outcome", "pair_id"
        # Few rows are retained or about to leave: only those that no present row accounts for are looked for there.
        tables = (table,) if dataset is Dataset.PREFERENCE else (table, "retained_rows")
        self._look_ups = [_TASKS.format(each, outcome) for each in tables]
        self._look_ups.append(f"{_TASKS.format('departures', 'outcome')} AND t.dataset = '{dataset}'")
        self._coming = self._run(
            f"SELECT sample_key, task_id FROM {table} NOT INDEXED WHERE {outcome} = {EXPORTED} AND task_id IS NOT NULL"
            f" ORDER BY {place}"
        )
        self._ahead: dict[int, str] = {}
        self._late = 0

    def of(self, keys: Sequence[int]) -> dict[int, str]:
        """The tasks of the next rows of the file by their sample keys; a row without a task is left out."""
        ahead = self._ahead
        ahead.update(islice(self._coming, len(keys) + self._late))
        found = {key: ahead.pop(key) for key in keys if key in ahead}
        self._late = len(keys) - len(found)
        if len(ahead) > _MOST_AHEAD:
            ahead.clear()
        for query in self._look_ups:
            if wanted := [key for key in keys if key not in found]:
                found.update(self._run(query, (f"[{','.join(map(str, wanted))}]",)))
        return found


def knows_batch(store: Store, batch_id: str) -> bool:
    """Whether the store holds the id of a batch, even if its receipt was dropped."""
    found = store.connection.execute("SELECT EXISTS (SELECT 1 FROM batches WHERE batch_id = ?)", (batch_id,))
    return bool(found.fetchone()[0])
