"""What a snapshot and a change feed ask of the store; a change of its tables touches this one place."""

from __future__ import annotations

from collections.abc import Sequence

from distilld.core.line_facts import SHIPPED
from distilld.core.model import Dataset
from distilld.store.connection import Store

_ROW_TASKS = " UNION ALL ".join(
    f"SELECT j.value, t.task_id FROM json_each(?1) j CROSS JOIN {table} t ON t.sample_key = j.value"
    f" WHERE t.{{0}} = {SHIPPED} AND t.task_id IS NOT NULL"
    for table in ("scored_rows", "frozen_rows")
)
_PAIR_TASKS = (
    "SELECT j.value, t.task_id FROM json_each(?1) j CROSS JOIN pairs t ON t.sample_key = j.value"
    f" WHERE t.outcome = {SHIPPED}"
)
_LEAVING_TASKS = (
    " UNION ALL SELECT j.value, t.task_id FROM json_each(?1) j CROSS JOIN departures t ON t.sample_key = j.value"
    f" WHERE t.dataset = ?2 AND t.outcome = {SHIPPED} AND t.task_id IS NOT NULL"
)


def tasks_of(store: Store, dataset: Dataset, keys: Sequence[int]) -> dict[int, str]:
    """The task ids of rows that stand in a dataset, by their sample keys; a row without a task is left out."""
    query = _PAIR_TASKS if dataset is Dataset.PREFERENCE else _ROW_TASKS.format(dataset.value)
    wanted = f"[{','.join(map(str, keys))}]"
    return dict(store.connection.execute(query + _LEAVING_TASKS, (wanted, dataset.value)))


def knows_batch(store: Store, batch_id: str) -> bool:
    """Whether the store holds the id of a batch, be it that its receipt was dropped."""
    found = store.connection.execute("SELECT EXISTS (SELECT 1 FROM batches WHERE batch_id = ?)", (batch_id,))
    return bool(found.fetchone()[0])
