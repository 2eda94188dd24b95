"""What a snapshot and a change feed ask of the store; a change of its tables touches this one place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from distilld.core.line_facts import SHIPPED
from distilld.core.model import Dataset
from distilld.store.connection import Store

_TASKS: Final = (
    "SELECT j.value, t.task_id FROM json_each(?1) j CROSS JOIN {} t ON t.sample_key = j.value"
    f" WHERE t.{{}} = {SHIPPED} AND t.task_id IS NOT NULL"
)


def tasks_of(store: Store, dataset: Dataset, keys: Iterable[int]) -> dict[int, str]:
    """The task ids of rows that stand in a dataset, by their sample keys; a row without a task is left out.

    Few rows are retained or about to leave: only those that no present row accounts for are looked for among them.
    """
    found: dict[int, str] = {}
    tables = ("pairs",) if dataset is Dataset.PREFERENCE else ("scored_rows", "frozen_rows")
    outcome = "outcome" if dataset is Dataset.PREFERENCE else dataset.value
    queries = [_TASKS.format(table, outcome) for table in tables]
    queries.append(f"{_TASKS.format('departures', 'outcome')} AND t.dataset = '{dataset}'")
    for query in queries:
        if wanted := [key for key in keys if key not in found]:
            found.update(store.connection.execute(query, (f"[{','.join(map(str, wanted))}]",)))
    return found


def knows_batch(store: Store, batch_id: str) -> bool:
    """Whether the store holds the id of a batch, be it that its receipt was dropped."""
    found = store.connection.execute("SELECT EXISTS (SELECT 1 FROM batches WHERE batch_id = ?)", (batch_id,))
    return bool(found.fetchone()[0])
