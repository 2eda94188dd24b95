"""Reads the exports of one committed batch while a writer may run; all readers use this module (SPEC 3.10).

The store has the length and the sha256 of each export. A reader reads that many bytes and hashes them. If the hash does
not match, either a batch was committed meanwhile, and all is read again, or the export is damaged. There may be white
space around a row, where a withdrawn one was (SPEC 3.8); it is no part of the line that a reader gets.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from distilld.core.model import EXPORT_PATHS, Committed, DistilldError, OperatorError
from distilld.core.remedies import remedy_of
from distilld.files.regular import open_regular
from distilld.publish.pins import pinned
from distilld.publish.reading import ExportTamperedError, committed_blocks, whole_lines
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecord, ExportRecords
from distilld.store.queries import reading
from distilld.store.receipts import BatchRecord, Receipts

ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.05
_WHITE: Final = b" \t\r\n"

T = TypeVar("T")


class BatchMovedError(OperatorError):
    """A batch was committed, or its files were renamed, while the one before it was read."""

    def __init__(self) -> None:
        super().__init__(
            f"a batch was committed whenever the exports were read, {ATTEMPTS} times",
            hint="try again when it is quieter",
        )


class RecoveryPendingError(OperatorError):
    """The writer was stopped after a commit, before it had overwritten all withdrawn rows."""

    def __init__(self) -> None:
        super().__init__(
            "the last batch is committed but not completed: rows that it withdrew are still in the exports",
            hint="'distilld run --once' completes it, and so does a daemon; see 'distilld status'",
        )


class ExportDamagedError(OperatorError):
    """An export is not what its last commit left, and no writer was at work."""

    def __init__(self, shown: str, problem: str) -> None:
        super().__init__(f"{shown} {problem}", hint="'distilld run --once' restores it; see 'distilld status'")


@dataclass(frozen=True, slots=True)
class Writing:
    """The writer's progress on the exports at one moment."""

    batch: int
    undone_at: str | None
    versions: Mapping[str, tuple[int, Committed]]
    appending: frozenset[str] = field(compare=False)
    """The exports that an uncommitted append may have made longer."""
    overwriting: bool
    """Whether rows that a batch withdrew are still to be overwritten."""

    @classmethod
    def of(cls, store: Store) -> Writing:
        """Return the progress that the store records."""
        newest, export_records = Receipts(store).last_batch(), ExportRecords(store)
        records = export_records.exports()
        return cls(
            newest.batch if newest else 0,
            store.recall("batch_undone_at"),
            {name: (record.generation, record.committed) for name, record in records.items()},
            frozenset(intent.name for intent in export_records.intents() if intent.temp is None),
            bool(export_records.overwrites_due()),
        )

    def moved_on(self, before: Writing) -> bool:
        """Return whether an export may have other bytes than ``before``, or is being overwritten."""
        return self.overwriting or before.overwriting or self != before


class CommittedExport:
    """An export as of one batch, held open and pinned: a rewrite replaces the file and leaves this one unchanged.

    ``problem`` says why it cannot be read, if so; it then has no lines. ``denied`` is set if the system refuses to open
    it, which no run mends.
    """

    def __init__(self, root: Path, record: ExportRecord) -> None:
        self.name = record.name
        self.shown = EXPORT_PATHS[record.name]
        self.committed = record.committed
        self.file: BinaryIO | None = None
        self.problem: str | None = None
        self.denied: OSError | None = None
        self.line_count = 0
        """How many lines the committed part has, once :attr:`intact` has read it."""
        try:
            self.file = _open(root / self.shown, record.pending_temp)
        except FileNotFoundError:
            if self.committed.size:
                self.problem = "is gone"
        except OSError as error:
            # Our own messages ('is no regular file') are about an export that was replaced: a run restores it.
            if error.errno is not None and error.strerror == os.strerror(error.errno):
                self.denied = error
            self.problem = f"cannot be read: {error.strerror}"

    def blocks(self) -> Iterator[bytes]:
        """Return the committed bytes, in blocks.

        Raises:
            BatchMovedError: At the end: the bytes are not the committed ones.
            OperatorError: The bytes cannot be read.
        """
        if self.denied is not None:
            raise self._unreadable(self.denied) from self.denied
        if self.problem:
            raise BatchMovedError
        if self.file is None:
            return
        try:
            yield from committed_blocks(self.file.fileno(), self.committed, self.shown)
        except ExportTamperedError:
            raise BatchMovedError from None
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> OperatorError:
        self.problem = f"cannot be read: {error.strerror}"
        return OperatorError(f"cannot read {self.shown}: {error.strerror}", hint=remedy_of(error))

    def rows(self) -> Iterator[list[bytes]]:
        """Return the committed rows, some at a time, without line feeds and white space around them.

        Raises:
            BatchMovedError, OperatorError: As :meth:`blocks`.
        """
        return map(rows_of, whole_lines(self.blocks()))

    def lines(self) -> Iterator[bytes]:
        """Return the committed rows one by one, each with its line feed."""
        return (row + b"\n" for rows in self.rows() for row in rows)

    @cached_property
    def intact(self) -> bool:
        """Return whether the committed part is unchanged, as of the first access."""
        try:
            self.line_count = sum(block.count(b"\n") for block in self.blocks())
        except OperatorError:
            return False
        return True

    @cached_property
    def behind(self) -> int:
        """Return how many bytes follow the committed part, as of the first access."""
        return max(os.fstat(self.file.fileno()).st_size - self.committed.size, 0) if self.file else 0

    def close(self) -> None:
        """Close the file, if it is open."""
        if self.file is not None:
            self.file.close()


def _open(path: Path, pending_temp: str | None) -> BinaryIO:
    """Open the committed version: the temporary file if it is not renamed yet, else the live one."""
    if pending_temp is not None:
        try:
            return open_regular(path.with_name(pending_temp))
        except FileNotFoundError:
            pass  # it was renamed after the query
    return open_regular(path)


def rows_of(block: bytes) -> list[bytes]:
    """Return the rows in whole lines, without line feeds and white space around them."""
    return [row for line in BytesIO(block) if (row := line.strip(_WHITE))]


def placed_lines(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Return the rows in blocks of JSONL, each with its line feed, and the offset of its line.

    White space around a row, and lines of white space only, are omitted.
    """
    start = 0
    for block in whole_lines(blocks):
        for line in BytesIO(block):
            if row := line.strip(_WHITE):
                yield start, row + b"\n"
            start += len(line)


class CommittedBatch:
    """The newest batch, the store as of that batch, and the exports that were asked for."""

    def __init__(self, root: Path, store: Store, names: Collection[str]) -> None:
        self.store = store
        self.receipts = Receipts(store)
        self.records = ExportRecords(store)
        self.batch: BatchRecord | None = self.receipts.last_batch()
        self.writing = Writing.of(store)
        records = self.records.exports()
        self.exports = {name: CommittedExport(root, records[name]) for name in names}

    def refuse_incomplete(self, name: str) -> None:
        """Refuse an export that was damaged and is restored in part: the next batch writes the missing rows.

        Raises:
            OperatorError: Rows are missing.
        """
        if missing := self.records.missing_rows(name):
            raise OperatorError(
                f"{EXPORT_PATHS[name]} is being restored: {missing} rows are yet to be written again",
                hint="distilld run --once writes them",
            )


def at_one_batch(
    root: Path, state: Path, look: Callable[[CommittedBatch], T], *, names: Collection[str] = tuple(EXPORT_PATHS)
) -> T:
    """Call ``look`` with the newest committed batch; call it again if another batch was committed meanwhile.

    Raises:
        BatchMovedError: Another batch was committed at each of :data:`ATTEMPTS` attempts.
        RecoveryPendingError: No batch was, but the last one is not completed.
        ExportDamagedError: An export is not what was committed, and no batch was committed meanwhile.
        OperatorError: There is no store, or something cannot be read.
    """
    is_stuck = False
    for attempt in range(ATTEMPTS):
        with pinned(root), reading(state, root) as store, ExitStack() as opened:
            batch = CommittedBatch(root, store, names)
            for export in batch.exports.values():
                opened.callback(export.close)
            try:
                return look(batch)
            except BatchMovedError:
                pass
            except (DistilldError, OSError):
                raise
            except Exception:
                # Only at its end does an export show that it was edited, and a look may stumble over it before.
                if all(export.intact for export in batch.exports.values()):
                    raise
            with reading(state, root) as later:
                now = Writing.of(later)
            if not now.moved_on(batch.writing):
                raise _damaged(batch)
            is_stuck = now == batch.writing
        if attempt < ATTEMPTS - 1:
            time.sleep(_PAUSE_SECONDS)
    raise RecoveryPendingError if is_stuck else BatchMovedError


def _damaged(batch: CommittedBatch) -> OperatorError:
    for export in batch.exports.values():
        if not export.intact:
            return ExportDamagedError(export.shown, export.problem or "is not what the last commit left")
    return BatchMovedError()
