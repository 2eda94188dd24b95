"""A/B: compare one of our datasets with the same dataset from another exporter (SPEC 5, 'diff').

Rows are matched by id and compared as JSON values. The exporters' timestamps and the order of rows and keys do not
count. Our file is read up to its committed length, also while a writer runs. The other file is read once from its
start, so it may be a pipe.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from distilld.config.settings import Settings
from distilld.core.json_text import parse_object
from distilld.core.line_facts import ID_PREFIX
from distilld.core.model import DATASET_PATHS, Dataset, OperatorError, UsageError
from distilld.core.remedies import remedy_of
from distilld.inspection.reading import Reading, Tell
from distilld.publish.committed import CommittedBatch, at_one_batch, placed_lines

TIMES: Final = frozenset({"created_at", "provenance.recorded_at"})
_GUESS_WITHIN: Final = 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DifferentRow:
    """A row whose content differs between the files. Keys in ``provenance`` are written with a dot."""

    id: str
    keys: tuple[str, ...]


@dataclass(slots=True)
class Difference:
    """The differences between our dataset and another file. The lists are cut at a limit; the counts are complete.

    ``unreadable`` counts lines of the other file that are no dataset rows, ``repeated`` those whose id occurred before.
    Both are left out of the comparison.
    """

    dataset: Dataset
    ours: str
    theirs: str
    rows_here: int = 0
    rows_there: int = 0
    same: int = 0
    only_here: int = 0
    only_there: int = 0
    different: int = 0
    unreadable: int = 0
    repeated: int = 0
    by_key: Counter[str] = field(default_factory=Counter)
    """The number of rows in which each key differs."""
    ids_only_here: list[str] = field(default_factory=list)
    ids_only_there: list[str] = field(default_factory=list)
    different_rows: list[DifferentRow] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Return whether both files hold the same rows."""
        return not (self.only_here or self.only_there or self.different or self.unreadable or self.repeated)


def compare(
    settings: Settings, theirs: Path, dataset: Dataset | None, limit: int | None, progress: Tell | None = None
) -> Difference:
    """Compare our dataset with another file. ``limit`` is the maximum length of each list; None lists all.

    Raises:
        UsageError: ``dataset`` is None, and no id in the first 100 lines of the other file says which it is.
        OperatorError: One of the files cannot be read, or ours changed meanwhile or is being restored.
    """
    try:
        with theirs.open("rb") as file:
            head: list[bytes] = []
            dataset = dataset or _guess(file, head)
            if dataset is None:
                raise UsageError(
                    f"{theirs} does not tell which dataset it is: none of its first {_GUESS_WITHIN} lines has an id"
                    f" that begins with {', '.join(ID_PREFIX.values())}",
                    hint=f"give --dataset {'|'.join(Dataset)}",
                )
            files = (theirs, settings.root / DATASET_PATHS[dataset])
            reading = Reading(progress, sum(path.stat().st_size for path in files if path.exists()))
            found = Difference(dataset, DATASET_PATHS[dataset], str(theirs))
            ours = _Ours(settings, dataset, reading)
            with ours.file:
                _compare(found, _rows(chain(head, file), reading), ours, limit)
            return found
    except OSError as error:
        text = f"cannot read {error.filename or theirs}: {error.strerror}"
        raise OperatorError(text, hint=remedy_of(error)) from error


def _guess(lines: Iterable[bytes], head: list[bytes]) -> Dataset | None:
    """Return the dataset that the first known id belongs to; put the lines that were read for that into ``head``."""
    for line in islice(lines, _GUESS_WITHIN):
        head.append(line)
        sample_id = (parse_object(line.rstrip(b"\r\n")).value or {}).get("id")
        for dataset, prefix in ID_PREFIX.items():
            if isinstance(sample_id, str) and sample_id.startswith(prefix):
                return dataset
    return None


def _rows(lines: Iterable[bytes], reading: Reading) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of another exporter's file, None for a line that is no row."""
    for line in lines:
        reading.add(len(line))
        if text := line.rstrip(b"\r\n"):
            yield parse_object(text).value


def _compare(found: Difference, rows: Iterable[dict[str, Any] | None], ours: _Ours, limit: int | None) -> None:
    def name(names: list[T], one: T) -> None:
        if limit is None or len(names) < limit:
            names.append(one)

    found.rows_here = len(ours.places)
    seen: set[str] = set()
    for row in rows:
        sample_id = row.get("id") if row is not None else None
        if row is None or not isinstance(sample_id, str):
            found.unreadable += 1
            continue
        found.rows_there += 1
        if sample_id in seen:
            found.repeated += 1
            continue
        seen.add(sample_id)
        if sample_id not in ours.places:
            found.only_there += 1
            name(found.ids_only_there, sample_id)
        elif keys := differing_keys(ours.row(sample_id), row):
            found.different += 1
            found.by_key.update(keys)
            name(found.different_rows, DifferentRow(sample_id, keys))
        else:
            found.same += 1
    for sample_id in ours.places:
        if sample_id not in seen:
            found.only_here += 1
            name(found.ids_only_here, sample_id)


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys in which two rows differ, except timestamps. A missing key differs from one that is null."""
    left, right = dict(_flat(one)), dict(_flat(other))
    return tuple(
        key
        for key in dict.fromkeys((*left, *right))
        if key not in TIMES and not (key in left and key in right and _same(left[key], right[key]))
    )


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if key == "provenance" and isinstance(value, dict):
            yield from ((f"provenance.{name}", each) for name, each in value.items())
        else:
            yield key, value


def _same(one: Any, other: Any) -> bool:
    # In Python, True == 1.
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


class _Ours:
    """Our dataset as of the last commit, open in ``file``. ``places`` has the offset of each id's row."""

    def __init__(self, settings: Settings, dataset: Dataset, reading: Reading) -> None:
        self._dataset = dataset
        self._reading = reading
        self.places: dict[str, int] = {}
        self.file = at_one_batch(settings.root, settings.state, self._look, names=(dataset.value,))

    def _look(self, batch: CommittedBatch) -> BinaryIO:
        batch.refuse_incomplete(self._dataset)
        export = batch.exports[self._dataset.value]
        self.places = {}
        for start, line in placed_lines(export.blocks()):
            self._reading.add(len(line))
            self.places[str((parse_object(line[:-1]).value or {}).get("id"))] = start
        return BytesIO() if export.file is None else os.fdopen(os.dup(export.file.fileno()), "rb")

    def row(self, sample_id: str) -> dict[str, Any]:
        """Return our row with this id."""
        self.file.seek(self.places[sample_id])
        row = parse_object(self.file.readline().strip()).value or {}
        if row.get("id") != sample_id:
            raise OperatorError(f"{DATASET_PATHS[self._dataset]} changed while it was compared", hint="run it again")
        return row
