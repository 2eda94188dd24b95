"""Begin a batch: empty decisions, and spools for their lines until these are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from distilld.core.decisions import DatasetChanges, Decisions, MissingLines
from distilld.core.model import Dataset
from distilld.files.spool import LineSpool


def empty_decisions(
    sequence: int, recorded_at: str, spool_folder: Path, missing: Mapping[str, Counter[bytes]]
) -> Decisions:
    """Return decisions that do nothing yet.

    ``missing`` counts the lines that damaged exports lost; what the batch takes is subtracted.
    """
    changes = {
        dataset: DatasetChanges(
            LineSpool(spool_folder),
            LineSpool(spool_folder),
            MissingLines(missing.get(dataset.value)),
            MissingLines(missing.get(f"quarantine_{dataset}")),
        )
        for dataset in Dataset
    }
    return Decisions(sequence, recorded_at, changes)
