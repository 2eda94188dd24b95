"""Lists what changed in a dataset since a batch: rows that left, then new and replaced rows (``distilld changes``).

A row's ``created_at`` is the time of the batch that wrote it, and a batch's id is its time. The log of withdrawals says
which rows left in which batch. So the dataset and its log, read as of one batch, show all changes since another.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final

import orjson

from distilld.core.model import Dataset, OperatorError, UsageError
from distilld.delivery.rows import CREATED, id_of_line
from distilld.files.regular import is_there
from distilld.files.spool import LineSpool
from distilld.publish.committed import CommittedBatch, at_one_batch
from distilld.publish.reading import whole_lines

ALL: Final = "0"
_STAMP: Final = re.compile(rb"(\d{4})-(\d{2})-(\d{2}T\d{2}):(\d{2}):(\d{2}\.\d{3}Z)")


@contextmanager
def changes(root: Path, state: Path, dataset: Dataset, since: str) -> Iterator[Iterator[bytes]]:
    """Return the changes from the batch ``since`` to the newest one, as lines in blocks; all rows since :data:`ALL`.

    Raises:
        UsageError: ``since`` is no batch of this lake, or none from which a copy can go on.
        OperatorError: There is no batch, or it cannot be read.
    """
    with ExitStack() as spools:

        def look(batch: CommittedBatch) -> Iterator[bytes]:
            spool = spools.enter_context(closing(LineSpool(Path(tempfile.gettempdir()))))
            return _changes(root, batch, dataset, since, spool)

        yield at_one_batch(root, state, look, names=(dataset.value, f"withdrawals_{dataset}"))


def _changes(root: Path, batch: CommittedBatch, dataset: Dataset, since: str, upserts: LineSpool) -> Iterator[bytes]:
    """Read the changes now, spool the rows, because there may be many, and return the lines."""
    if batch.batch is None:
        raise OperatorError("no batch was committed yet", hint="distilld run --once")
    if since != ALL:
        _refuse(root, batch, dataset, since)
    batch.refuse_incomplete(dataset)
    left = {} if since == ALL else _withdrawn(batch, dataset, since)
    for row, batch_id in _news(batch.exports[dataset.value].blocks(), since):
        id_ = id_of_line(row)
        upserts.add(_line({"type": "upsert", "id": id_, "batch": batch_id})[:-2] + b',"row":' + row + b"}\n")
        left.pop(id_, None)
    through = batch.batch.batch_id
    begin = _line({"type": "begin", "dataset": dataset, "since": since, "through": through})
    deletes = [_line({"type": "delete", **each}) for each in left.values()]
    end = _line({"type": "end", "through": through, "deletes": len(deletes), "upserts": upserts.rows})
    return chain((begin, *deletes), upserts.blocks(), (end,))


def _news(blocks: Iterator[bytes], since: str) -> Iterator[tuple[bytes, str | None]]:
    """Return the rows that were written after a batch, each with its batch. Adopted rows without one always count.

    Most rows of a large dataset are older; only their time is read.
    """
    old: set[bytes] = set()
    for block in whole_lines(blocks):
        start = 0
        while start < len(block):
            if (end := block.find(b"\n", start)) < 0:
                end = len(block)
            at = block.rfind(CREATED, start, end) + len(CREATED)
            written = block[at : block.find(b'"', at)]
            if written not in old:
                stamp = _STAMP.fullmatch(written)
                batch_id = b"".join(stamp.groups()).decode() if stamp else None
                if batch_id is not None and batch_id <= since:
                    old.add(written)
                elif row := block[start:end].strip():
                    yield row, batch_id
            start = end + 1


def _refuse(root: Path, batch: CommittedBatch, dataset: Dataset, since: str) -> None:
    """Refuse a batch that is not known, and one from which a copy of the dataset cannot go on."""
    hint = "load the dataset again, with --since 0, into an empty copy"
    if not (batch.receipts.knows(since) or _has_receipt(root, batch, since)):
        raise UsageError(f"--since = {since!r} is no batch that this lake knows", hint=hint)
    begins_after = batch.receipts.copies_begin_after() or {}
    if dataset in begins_after and since <= begins_after[dataset]:
        problem = f"the exports of {dataset} were changed after that batch, while there was no state store"
        raise UsageError(f"--since = {since!r}: {problem}", hint=hint)


def _has_receipt(root: Path, batch: CommittedBatch, since: str) -> bool:
    from distilld.publish.receipt_files import BATCH_ID, receipt_path  # rarely needed, and slow to import

    assert batch.batch is not None  # noqa: S101  refused before
    is_older = BATCH_ID.fullmatch(since) is not None and since <= batch.batch.batch_id
    return is_older and is_there(root / receipt_path(since))


def _withdrawn(batch: CommittedBatch, dataset: Dataset, since: str) -> dict[str, dict[str, Any]]:
    """Return the last withdrawal of each id since a batch; some ids may be in the dataset again."""
    found = {}
    for row in map(orjson.loads, batch.exports[f"withdrawals_{dataset}"].lines()):
        if row["withdrawn_batch"] > since:
            found[row["id"]] = {name: row[name] for name in ("id", "cause", "withdrawn_batch")}
    return found


def _line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
