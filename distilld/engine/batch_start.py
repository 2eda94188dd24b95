"""Begin a batch: empty decisions, and spools for their lines until these are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from distilld.core.model import Dataset
from distilld.files.spool import LineSpool
from distilld.store.decisions import DatasetChanges, Decisions, FileChanges


def empty_decisions(
    sequence: int, recorded_at: str, spool_folder: Path, missing: Mapping[str, Counter[bytes]]
) -> Decisions:
    """Return decisions that do nothing yet.

    ``missing`` counts the lines that damaged exports lost; what the batch takes is subtracted.
    """

    def changes_of(name: str) -> FileChanges:
        return FileChanges(LineSpool(spool_folder), missing.get(name, Counter()))

    changes = {
        dataset: DatasetChanges(
            changes_of(dataset), changes_of(f"quarantine_{dataset}"), changes_of(f"withdrawals_{dataset}")
        )
        for dataset in Dataset
    }
    return Decisions(sequence, recorded_at, changes)
