"""One row of a dataset and the history of its runs, as ``distilld show`` prints them. Only reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distilld.config.settings import Settings
from distilld.core.line_facts import dataset_of
from distilld.core.model import Dataset, OperatorError, UsageError
from distilld.inspection.explain import RunStory, UnknownRunError, explain
from distilld.publish.committed import CommittedBatch, at_one_batch
from distilld.store.queries import Views


@dataclass(frozen=True, slots=True)
class RowHistory:
    """A row of a dataset (None if it is no longer there), and the runs that it comes from."""

    id: str
    dataset: Dataset
    row: dict[str, Any] | None
    runs: tuple[RunStory, ...]


def find_row(settings: Settings, row_id: str) -> RowHistory:
    """Return a row by its id and the history of its runs; only the runs if the row was withdrawn.

    Raises:
        UsageError: ``row_id`` is no id; or the store is from a newer version, or belongs to another root.
        OperatorError: No dataset ever had the id, or the dataset is being restored; or the store cannot be read.
    """
    dataset = dataset_of(row_id)
    if dataset is None:
        raise UsageError(f"ID = {row_id!r}; allowed: an id of a dataset's row, such as rag-0123456789abcdef")
    start = f'{{"schema_version":1,"id":"{row_id}"'.encode()

    def look(batch: CommittedBatch) -> tuple[bytes | None, list[str]]:
        # Read to the end: only there it is checked that the bytes are the committed ones.
        found = [line for line in batch.exports[dataset.value].lines() if line.startswith(start)]
        if not found:
            batch.refuse_incomplete(dataset)
        return (found[0] if found else None), Views(batch.store).runs_of(row_id)

    line, runs = at_one_batch(settings.root, settings.state, look, names=(dataset.value,))
    row = json.loads(line) if line is not None else None
    if row is not None:
        named = [row.get(key) for key in ("source_run_id", "chosen_run_id", "rejected_run_id")]
        runs = [run_id for run_id in named if run_id]
    if not runs:
        raise OperatorError(f"no row of {dataset} ever had the id {row_id}")
    stories = []
    for run_id in runs:
        try:
            stories.append(explain(settings, run_id))
        except UnknownRunError:
            continue
    return RowHistory(row_id, dataset, row, tuple(stories))
