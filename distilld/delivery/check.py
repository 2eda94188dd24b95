"""Checks which rows of a snapshot were withdrawn or replaced since it was made, and why.

The snapshot has a digest of each row, the datasets have the present rows, and exports/withdrawals has the causes. The
store is used only to read one committed batch; if it is lost, corrupt or out of reach, the files are read as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from distilld.core.model import EXPORT_PATHS, Dataset, OperatorError, UsageError
from distilld.core.remedies import remedy_of
from distilld.delivery.files import facts_of
from distilld.delivery.rows import content_sha256, id_of_line
from distilld.delivery.snapshot import MANIFEST, MANIFEST_VERSION, PROVENANCE
from distilld.files.regular import open_regular, read_regular
from distilld.files.segments import blocks_of
from distilld.publish.committed import CommittedBatch, at_one_batch, rows_of
from distilld.publish.reading import ROW_ID, whole_lines
from distilld.store.connection import StoreCorruptError, StoreFaultError
from distilld.store.queries import reading
from distilld.store.receipts import Receipts

Rows = Callable[[str], Iterator[list[bytes]]]


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row of a snapshot that is no longer in its dataset as it was; the last withdrawal of its id has the cause."""

    dataset: Dataset
    id: str
    replaced: bool
    cause: str | None
    withdrawn_batch: str | None


@dataclass(slots=True)
class Checked:
    """The result of a check."""

    folder: Path
    batch_id: str
    rows: int = 0
    damaged: list[str] = field(default_factory=list)
    changed: list[ChangedRow] = field(default_factory=list)
    without_store: str | None = None
    """Why the files were read as they are, if the store could not be used."""


def check(root: Path, state: Path, folder: Path) -> Checked:
    """Compare a snapshot with the datasets as they are now.

    Raises:
        UsageError: The folder is no snapshot, or another version made it.
        OperatorError: Something cannot be read, or a dataset is being restored.
    """
    manifest = _manifest(folder)
    found = Checked(folder, str(manifest["batch_id"]), damaged=list(_damages(folder, manifest)))
    if found.damaged:
        return found
    found.rows = sum(file["rows"] or 0 for file in manifest["files"] if file["path"].startswith(f"{PROVENANCE}/"))
    names = [name for name in EXPORT_PATHS if not name.startswith("quarantine_")]
    found.without_store = _why_lost(root, state)
    if found.without_store is None:
        try:
            found.changed = at_one_batch(root, state, partial(_changed_since, folder), names=names)
        except (StoreCorruptError, StoreFaultError) as error:
            found.without_store = str(error)
    if found.without_store is not None:
        found.changed = _changed(folder, partial(_rows_as_they_stand, root))
    return found


def _why_lost(root: Path, state: Path) -> str | None:
    """Return why the store says nothing of the exports, if it does not."""
    try:
        with reading(state, root) as store:
            known = Receipts(store).last_batch() is not None
            return None if known else f"the state store {state} knows no batch"
    except OperatorError as error:
        return str(error)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = orjson.loads(read_regular(folder / MANIFEST))
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        manifest = None
    except OSError as error:
        raise OperatorError(f"cannot read {folder / MANIFEST}: {error.strerror}", hint=remedy_of(error)) from error
    if not isinstance(manifest, dict) or not {"schema_version", "batch_id", "files"} <= manifest.keys():
        raise UsageError(
            f"{folder} is no snapshot: it has no {MANIFEST} of one", hint="'distilld snapshot DIR' makes one"
        )
    if manifest["schema_version"] != MANIFEST_VERSION:
        raise UsageError(
            f"{folder} was made by distilld {manifest.get('distilld_version')}, and this one cannot read it"
        )
    return manifest


def _is_file(entry: object) -> bool:
    """Return whether an entry of the manifest describes a file."""
    match entry:
        case {"path": str(path), "rows": int() | None, "sha256": str()}:
            return "\0" not in path
    return False


def _damages(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    files = manifest["files"]
    if not (isinstance(files, list) and all(map(_is_file, files))):
        yield f"{MANIFEST}: does not describe the files"
        return
    named = {file["path"] for file in files}
    for path in (f"{PROVENANCE}/{dataset}.jsonl" for dataset in Dataset):
        if path not in named and (folder / path).exists():
            yield f"{path}: is not in {MANIFEST}"
    for file in files:
        try:
            facts = facts_of(folder, file["path"], file["rows"])
        except OSError as error:
            yield f"{file['path']}: {error.strerror or error}"
            continue
        if facts.sha256 != file["sha256"]:
            yield f"{file['path']}: has other bytes than when it was made"


def _changed_since(folder: Path, batch: CommittedBatch) -> list[ChangedRow]:
    """Return the changed rows as of a batch; refuse a dataset whose missing rows are yet to be written again."""
    for dataset in _told_of(folder):
        batch.refuse_incomplete(dataset)
    return _changed(folder, lambda name: batch.exports[name].rows())


def _changed(folder: Path, rows: Rows) -> list[ChangedRow]:
    return [row for dataset, path in _told_of(folder).items() for row in _changed_of(dataset, path, rows)]


def _told_of(folder: Path) -> dict[Dataset, Path]:
    """Return the datasets that a snapshot holds, each with the file that records its rows."""
    paths = {dataset: folder / PROVENANCE / f"{dataset}.jsonl" for dataset in Dataset}
    return {dataset: path for dataset, path in paths.items() if path.exists()}


def _changed_of(dataset: Dataset, path: Path, rows: Rows) -> Iterator[ChangedRow]:
    """Return the changed rows of one dataset, in the snapshot's order; hold a 64-bit digest of each row."""
    left = {_short(row["row_sha256"]) for row in _told(path)}
    for block in rows(dataset.value):
        left.difference_update(_short(content_sha256(row)) for row in block)
    ids = [told["id"] for told in _told(path) if _short(told["row_sha256"]) in left]
    if not ids:
        return
    wanted = set(ids)
    standing = {id_ for block in rows(dataset.value) for id_ in wanted.intersection(map(id_of_line, block))}
    withdrawn = {
        each["id"]: each
        for block in rows(f"withdrawals_{dataset}")
        for each in map(orjson.loads, block)
        if each["id"] in wanted
    }
    for id_ in ids:
        why = withdrawn.get(id_, {})
        yield ChangedRow(dataset, id_, id_ in standing, why.get("cause"), why.get("withdrawn_batch"))


def _short(sha256: str) -> int:
    return int(sha256[:16], 16)


def _told(path: Path) -> Iterator[dict[str, Any]]:
    """Return what the snapshot records of its rows."""
    with open_regular(path) as file:
        yield from map(orjson.loads, file)


def _rows_as_they_stand(root: Path, name: str) -> Iterator[list[bytes]]:
    """Return the complete rows of an export whose committed length is unknown. Other programs may have edited it."""
    path = root / EXPORT_PATHS[name]
    is_row = _is_withdrawal if name.startswith("withdrawals_") else _is_sample
    try:
        with open_regular(path) as file:
            for block in whole_lines(blocks_of(file.fileno(), sys.maxsize)):
                yield [row for row in rows_of(block) if is_row(row)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}", hint=remedy_of(error)) from error


def _is_sample(line: bytes) -> bool:
    return ROW_ID.match(line) is not None and _parsed(line) is not None


def _is_withdrawal(line: bytes) -> bool:
    match _parsed(line):
        case {"id": str(), "cause": str(), "withdrawn_batch": str()}:
            return True
    return False


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
