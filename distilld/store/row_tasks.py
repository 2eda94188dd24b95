"""The tasks of rows, for snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Dataset
from distilld.store.connection import Store
from distilld.store.statements import Statements, array

_TASKS: Final = (
    "SELECT j.value, t.task_id FROM json_each(?1) j CROSS JOIN {} t ON t.sample_key = j.value"
    f" WHERE t.{{}} = {EXPORTED} AND t.task_id IS NOT NULL"
)
_MOST_AHEAD: Final = 20_000
"""The most rows to remember whose lines come later in the file."""


class RowTasks(Statements):
    """Finds the task ids of a dataset's rows for a reader that reads its file from the beginning.

    A file is mostly in walk order, like the store, so both are read in parallel. Other rows are looked up.
    """

    def __init__(self, store: Store, dataset: Dataset) -> None:
        super().__init__(store)
        table, outcome, place = "scored_rows", dataset.value, "walk"
        if dataset is Dataset.PREFERENCE:
            table, outcome, place = "pairs", "outcome", "pair_id"
        # Few rows are retained or departing: only keys without a present row are looked up there.
        tables = (table,) if dataset is Dataset.PREFERENCE else (table, "retained_rows")
        self._look_ups = [_TASKS.format(each, outcome) for each in tables]
        # Only a scored row tells the task; an orphan has none. A pair tells its own.
        known = f"SELECT 1 FROM {{}} t WHERE t.sample_key = j.value AND t.{outcome} = {EXPORTED}"
        self._untold = (
            f"SELECT j.value FROM json_each(?1) j WHERE NOT EXISTS ({known.format('scored_rows')})"
            f" AND NOT EXISTS ({known.format('retained_rows')} AND t.kind <> 'orphan')"
        )
        self._dataset = dataset
        self._look_ups.append(f"{_TASKS.format('departures', 'outcome')} AND t.dataset = '{dataset}'")
        self._coming = self._run(
            f"SELECT sample_key, task_id FROM {table} NOT INDEXED WHERE {outcome} = {EXPORTED} AND task_id IS NOT NULL"
            f" ORDER BY {place}"
        )
        self._ahead: dict[int, str] = {}
        self._late = 0

    def of(self, keys: Sequence[int]) -> dict[int, str]:
        """Return the tasks of the file's next rows by sample key; a row without a task is left out."""
        ahead = self._ahead
        ahead.update(islice(self._coming, len(keys) + self._late))
        found = {key: ahead.pop(key) for key in keys if key in ahead}
        self._late = len(keys) - len(found)
        if len(ahead) > _MOST_AHEAD:
            ahead.clear()
        for query in self._look_ups:
            if len(found) == len(keys):
                break
            found.update(self._run(query, (array(key for key in keys if key not in found),)))
        return found

    def unknown(self, keys: Iterable[int]) -> set[int]:
        """Return which of some rows without a task may have one that is not known: orphans."""
        if self._dataset is Dataset.PREFERENCE:
            return set()
        return set(self._column(self._untold, array(keys)))
