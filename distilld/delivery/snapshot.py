"""Writes an immutable copy of one committed batch in the forms that trainers read (``distilld snapshot DIR``).

It is written to a temporary folder next to DIR, fsynced and renamed, so DIR is complete or does not exist. Rows are
streamed: only hashes of them, and the tasks of validation rows, stay in memory.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from itertools import compress
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import orjson

from distilld import __version__
from distilld.core.card import CardConfig, card_text
from distilld.core.line_facts import key_of
from distilld.core.model import CARD, Dataset, OperatorError, UsageError
from distilld.delivery.files import FileFacts, JsonLines, Parquet, RowFile, refuse_without_parquet, write_file
from distilld.delivery.forms import COMPARED, Form, Row, chosen_forms, provenance_of
from distilld.delivery.rows import content_sha256, id_of_line
from distilld.delivery.split import SALT, TRAIN, VALIDATION, Sides, is_validation
from distilld.files.durable import FOLDER_MODE, sync_folder
from distilld.files.spool import LineSpool
from distilld.publish.committed import CommittedBatch, at_one_batch, rows_of
from distilld.publish.reading import FileRefusedError
from distilld.store.queries import Views
from distilld.store.row_tasks import RowTasks

MANIFEST: Final = "manifest.json"
MANIFEST_VERSION: Final = 1
PROVENANCE: Final = "provenance"
_FIREWALL: Final = (
    "When this batch was committed, no row in a dataset had a run whose current verdict forbade it, and every input"
    " row was exported or quarantined with a reason. Nothing is said of near duplicates or of benchmarks."
)


class SnapshotWriteError(FileRefusedError):
    """The snapshot could not be written; what was written is removed."""

    doing = "write"
    then = "; or choose another folder"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a snapshot contains: forms, share of tasks for validation, Parquet or JSONL."""

    forms: tuple[str, ...] = ("trl",)
    validation: float = 0.0
    parquet: bool = False


@dataclass(slots=True)
class Counts:
    """What became of a dataset's rows.

    Duplicates and validation rows that are left out are in no form but ``raw``; rows of unknown tasks are in none.
    """

    rows: int = 0
    train: int = 0
    validation: int = 0
    duplicates_dropped: int = 0
    validation_left_out: int = 0
    unknown_task_left_out: int = 0


def make(root: Path, state: Path, folder: Path, wanted: Wanted) -> dict[str, Any]:
    """Write a snapshot of the newest batch; return its manifest.

    Raises:
        UsageError: The folder exists, or pyarrow is needed and not installed.
        SnapshotWriteError: The snapshot cannot be written.
        OperatorError: There is no batch, or it cannot be read.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists; a snapshot is never changed", hint="give a folder that does not exist")
    if wanted.parquet:
        refuse_without_parquet()
    temp = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")

    def write(batch: CommittedBatch) -> dict[str, Any]:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(mode=FOLDER_MODE)
        return _Writer(temp, batch, wanted).write()

    try:
        with SnapshotWriteError.about(str(folder)):
            manifest = at_one_batch(root, state, write, names=tuple(Dataset))
            for path, _, _ in os.walk(temp):
                sync_folder(Path(path))
            os.rename(temp, folder)
            sync_folder(folder.parent)
            return manifest
    finally:
        shutil.rmtree(temp, ignore_errors=True)


class _Printed:
    """Some rows of one side, as JSON in each form, and their lines for provenance/."""

    def __init__(self, forms: list[Form], side: str) -> None:
        self.made = [(form, list[bytes]()) for form in forms]
        self.told: list[bytes] = []
        self.side = side

    def add(self, line: bytes, id_: str, task: str, row: Row | None) -> None:
        """Add a row in each form; if ``row`` is None, only in ``raw``, if that is one of the forms."""
        told = None
        for form, made in self.made:
            if form.make is None:
                made.append(line)
            elif row is not None:
                made.append(orjson.dumps(form.make(row)))
            else:
                continue
            told = told or self._provenance(line, id_, task)
        if told is not None:
            if row is not None:
                told.update(provenance_of(row))
            self.told.append(orjson.dumps(told))

    def add_all(self, lines: list[bytes], ids: list[str], tasks: list[str]) -> None:
        """Add rows in ``raw``, which is the only form here."""
        for _, made in self.made:
            made.extend(lines)
        self.told += map(orjson.dumps, map(self._provenance, lines, ids, tasks))

    def _provenance(self, line: bytes, id_: str, task: str) -> dict[str, Any]:
        return {"id": id_, "split": self.side, "task_id": task, "row_sha256": content_sha256(line)}


@dataclass(slots=True)
class _Waiting:
    """Validation rows, spooled until all train rows are known; ``told`` has the task and answer hash of each."""

    spool: LineSpool
    told: list[tuple[str, int | None]] = field(default_factory=list)


class _Writer:
    """Writes one snapshot into a folder."""

    def __init__(self, folder: Path, batch: CommittedBatch, wanted: Wanted) -> None:
        self._folder = folder
        self._batch = batch
        self._wanted = wanted
        self._forms = chosen_forms(wanted.forms)
        self._open: dict[str, RowFile] = {}
        self._files: list[FileFacts] = []
        self._configs: dict[str, tuple[Form, dict[str, str]]] = {}
        self._counts = {dataset: Counts() for dataset in Dataset}
        self._tasks, self._texts = Sides(), Sides()

    def write(self) -> dict[str, Any]:
        """Write all files; return the manifest."""
        if self._batch.batch is None:
            raise OperatorError("no batch was committed yet", hint="distilld run --once")
        waiting = {}
        for dataset, forms in self._forms.items():
            if forms:
                self._batch.refuse_incomplete(dataset)
                waiting[dataset] = _Waiting(LineSpool(self._folder))
                self._stream(dataset, forms, waiting[dataset])
                self._close(forms, TRAIN)
        # Only now all texts in train are known, of SFT and of the pairs.
        on_both = self._texts.on_both()
        for dataset, rows in waiting.items():
            self._validate(dataset, self._forms[dataset], rows, on_both)
        self._files += [file.close() for file in self._open.values()]
        return self._describe()

    # rows

    def _stream(self, dataset: Dataset, forms: list[Form], waiting: _Waiting) -> None:
        counts, seen = self._counts[dataset], set[int]()
        shaped = any(form.make for form in forms)
        texts = itemgetter(*COMPARED[dataset]) if dataset in COMPARED else None
        known = RowTasks(self._batch.store, dataset)
        for lines in self._batch.exports[dataset.value].rows():
            counts.rows += len(lines)
            train = _Printed(forms, TRAIN)
            lines, ids, tasks = self._with_tasks(dataset, lines, known)  # noqa: PLW2901  those that go into a file
            sides = self._sides_of(dataset, tasks)
            are_alike = not shaped and VALIDATION not in sides
            if are_alike:
                train.add_all(lines, ids, tasks)
            for line, id_, task, side in () if are_alike else zip(lines, ids, tasks, sides, strict=True):
                row: Row | None = orjson.loads(line) if shaped else None
                answer = None
                if row is not None and texts is not None:
                    # Equal texts have equal hashes, and 64 bits are enough to distinguish millions of texts.
                    before = len(seen)
                    seen.add(hash(compared := texts(row)))
                    if len(seen) == before:
                        counts.duplicates_dropped += 1
                        row = None
                    else:
                        answer = compared[0]
                        self._texts.add(side, answer)
                if side == TRAIN:
                    train.add(line, id_, task, row)
                else:
                    waiting.spool.add(line + b"\n")
                    waiting.told.append((task, None if answer is None else hash(answer)))
            self._put(dataset, train)

    def _is_split(self, dataset: Dataset) -> bool:
        return self._wanted.validation > 0 and dataset is not Dataset.RAG

    def _with_tasks(
        self, dataset: Dataset, lines: list[bytes], known: RowTasks
    ) -> tuple[list[bytes], list[str], list[str]]:
        """Return rows, their ids and their tasks: the scored row's, or the run if it has none.

        A split leaves out rows whose task is unknown: they may belong to a task that is on the other side.
        """
        run = "chosen_run_id" if dataset is Dataset.PREFERENCE else "source_run_id"
        ids = list(map(id_of_line, lines))
        keys = [key_of(id_.rpartition("-")[2]) for id_ in ids]
        tasks = known.of(keys)
        if self._is_split(dataset) and (unknown := known.unknown(key for key in keys if key not in tasks)):
            self._counts[dataset].unknown_task_left_out += len(unknown)
            stay = [key not in unknown for key in keys]
            lines, ids, keys = list(compress(lines, stay)), list(compress(ids, stay)), list(compress(keys, stay))
        told = zip(lines, map(tasks.get, keys), strict=True)
        return lines, ids, [str(orjson.loads(line)[run]) if task is None else task for line, task in told]

    def _sides_of(self, dataset: Dataset, tasks: list[str]) -> list[str]:
        """Return the side of each row, by its task; record the tasks unless all rows are for train."""
        if not self._is_split(dataset):
            return [TRAIN] * len(tasks)
        sides = [VALIDATION if is_validation(task, self._wanted.validation) else TRAIN for task in tasks]
        for side, task in zip(sides, tasks, strict=True):
            self._tasks.add(side, task)
        return sides

    def _validate(self, dataset: Dataset, forms: list[Form], waiting: _Waiting, on_both: set[int]) -> None:
        told = iter(waiting.told)
        for block in waiting.spool.blocks():
            rows = _Printed(forms, VALIDATION)
            for line in rows_of(block):
                task, answer = next(told)
                leaks = answer in on_both
                if answer is not None and leaks:
                    self._counts[dataset].validation_left_out += 1
                    self._texts.validation.discard(answer)
                row = None if answer is None or leaks else orjson.loads(line)
                rows.add(line, id_of_line(line), task, row)
            self._put(dataset, rows)
        waiting.spool.close()

    def _put(self, dataset: Dataset, rows: _Printed) -> None:
        """Write rows in each form."""
        if not rows.told:
            return
        for form, lines in rows.made:
            if lines:
                self._file(form, rows.side).add(lines)
        if rows.side == TRAIN:
            self._counts[dataset].train += len(rows.told)
        else:
            self._counts[dataset].validation += len(rows.told)
        path = f"{PROVENANCE}/{dataset}.jsonl"
        if path not in self._open:
            self._open[path] = JsonLines(self._folder, path)
        self._open[path].add(rows.told)

    def _file(self, form: Form, side: str) -> RowFile:
        key = f"{form.folder}/{side}"
        file = self._open.get(key)
        if file is None:
            if self._wanted.parquet:
                file = Parquet(self._folder, f"{key}.parquet", form.columns)
            else:
                file = JsonLines(self._folder, f"{key}.jsonl")
            self._open[key] = file
            self._configs.setdefault(form.config, (form, {}))[1][side] = file.path
        return file

    def _close(self, forms: list[Form], side: str) -> None:
        """Close the files of these forms on a side, which writes the rows that they hold in memory."""
        self._files += [file.close() for form in forms if (file := self._open.pop(f"{form.folder}/{side}", None))]

    # the manifest

    def _describe(self) -> dict[str, Any]:
        if infos := self._dataset_infos():
            self._files.append(write_file(self._folder, "dataset_info.json", _json(infos)))
        self._files.append(write_file(self._folder, CARD, self._card().encode()))
        manifest = self._manifest()
        write_file(self._folder, MANIFEST, _json(manifest))
        return manifest

    def _dataset_infos(self) -> dict[str, Any]:
        """Return dataset_info.json for LLaMA-Factory, by file: given a folder, it would train on validation rows."""
        infos = {}
        for form, files in self._configs.values():
            if form.llama_factory is not None:
                for side, path in files.items():
                    infos[form.config + ("" if side == TRAIN else f"_{side}")] = {
                        "file_name": path,
                        **form.llama_factory,
                    }
        return infos

    def _card(self) -> str:
        configs = [CardConfig(name, files, form.columns) for name, (form, files) in self._configs.items()]
        assert self._batch.batch is not None  # noqa: S101  refused before
        body = (
            f"An immutable copy of batch {self._batch.batch.batch_id}, made by `distilld snapshot`. `{MANIFEST}` says"
            f" what it was made of, `{PROVENANCE}/` where each row comes from, by id. `distilld snapshot"
            " --check` names the rows that were withdrawn or replaced since.\n\nThe prompt of an SFT row ends in its"
            " context, which may name the model that answered."
        )
        return card_text("distilld snapshot", configs, body) if configs else f"# distilld snapshot\n\n{body}\n"

    def _manifest(self) -> dict[str, Any]:
        batch = self._batch.batch
        assert batch is not None  # noqa: S101  refused before
        newest = next(Views(self._batch.store).receipts(1), None)
        receipt = newest.facts() if newest is not None else {}
        return {
            "schema_version": MANIFEST_VERSION,
            "distilld_version": __version__,
            "batch_id": batch.batch_id,
            "sequence": batch.batch,
            "recorded_at": batch.recorded_at,
            "receipt_sha256": self._batch.receipts.last_receipt_sha256(),
            "options": receipt.get("options"),
            "options_sha256": receipt.get("options_sha256"),
            "firewall": {"statement": _FIREWALL, "checks": receipt.get("checks")},
            "sources": [{"path": export.shown, **asdict(export.committed)} for export in self._batch.exports.values()],
            "forms": list(self._wanted.forms),
            "split": {
                "function": "validation if the first 8 bytes of sha256(salt NUL task), big-endian, / 2^64 < share",
                "salt": SALT,
                "share": self._wanted.validation,
                "tasks_on_both_sides": len(self._tasks.on_both()),
                "texts_on_both_sides": len(self._texts.on_both()),
            },
            "datasets": {dataset.value: asdict(counts) for dataset, counts in self._counts.items()},
            "files": [facts._asdict() for facts in sorted(self._files)],
        }


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
