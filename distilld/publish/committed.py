"""Reads the exports of one committed batch, beside a running writer: the one way in which anybody does (SPEC 3.10).

The store says how long each export is and what its sha256 is. A reader takes that many bytes, and hashes what it reads:
what does not match is either of a batch that came meanwhile, and then all is read again, or is damaged. There may be
white space around a row, where a withdrawn one stood (SPEC 3.8); it is no part of the line that a reader gets.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from distilld.core.model import EXPORT_PATHS, Committed, OperatorError
from distilld.core.remedies import remedy_of
from distilld.files.regular import open_regular
from distilld.files.segments import SegmentHash, blocks_of
from distilld.publish.pins import pinned
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecord, ExportRecords
from distilld.store.queries import reading
from distilld.store.receipts import BatchRecord, Receipts
from distilld.store.segments import Segments

ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.05
_WHITE: Final = b" \t\r\n"

T = TypeVar("T")


class BatchMovedError(OperatorError):
    """A batch was committed, or put in place, while its predecessor was being read."""

    def __init__(self) -> None:
        super().__init__(
            f"a batch was committed whenever the exports were read, {ATTEMPTS} times",
            hint="try again when it is quieter",
        )


class ExportDamagedError(OperatorError):
    """An export is not what its last commit left, and no writer is to blame."""

    def __init__(self, shown: str, problem: str) -> None:
        super().__init__(f"{shown} {problem}", hint="'distilld run --once' restores it; see 'distilld status'")


@dataclass(frozen=True, slots=True)
class Writing:
    """How far the writer is with the exports, at one moment."""

    batch: int
    undone_at: str | None
    versions: Mapping[str, tuple[int, Committed]]
    appending: frozenset[str]
    """The exports that an append which no transaction has committed may have made longer."""
    overwriting: bool
    """Whether rows that a batch withdrew are yet to be overwritten."""

    @classmethod
    def of(cls, store: Store) -> Writing:
        """What the store says of it."""
        newest, export_records = Receipts(store).last_batch(), ExportRecords(store)
        records = export_records.exports()
        return cls(
            newest.batch if newest else 0,
            store.recall("batch_undone_at"),
            {name: (record.generation, record.committed) for name, record in records.items()},
            frozenset(intent.name for intent in export_records.intents() if intent.temp is None),
            bool(Segments(store).due()),
        )

    def moved_on(self, before: Writing) -> bool:
        """Whether an export may have been committed or cut back since ``before``, or is in the making."""
        return self.overwriting or (self.batch, self.undone_at, self.versions) != (
            before.batch,
            before.undone_at,
            before.versions,
        )


class CommittedExport:
    """An export as of one batch. It is held open, and pinned: a rewrite puts another file in its place.

    ``problem`` is why it cannot be read, if so; then it has no lines.
    """

    def __init__(self, root: Path, record: ExportRecord) -> None:
        self.name = record.name
        self.shown = EXPORT_PATHS[record.name]
        self.committed = record.committed
        self.file: BinaryIO | None = None
        self.problem: str | None = None
        try:
            self.file = _open(root / self.shown, record.pending_temp)
        except FileNotFoundError:
            if self.committed.size:
                self.problem = "is gone"
        except OSError as error:
            self.problem = f"cannot be read: {error.strerror}"

    def blocks(self) -> Iterator[bytes]:
        """The committed bytes, in blocks.

        Raises:
            BatchMovedError: At the end: they are not the committed ones.
            OperatorError: The system refuses to read them.
        """
        if self.problem:
            raise BatchMovedError
        if self.file is None:
            return
        sha = SegmentHash(self.committed.segment_bytes)
        try:
            for block in blocks_of(self.file.fileno(), self.committed.size):
                sha.update(block)
                yield block
        except OSError as error:
            raise OperatorError(f"cannot read {self.shown}: {error.strerror}", hint=remedy_of(error)) from error
        if sha.hexdigest() != self.committed.sha256:
            raise BatchMovedError

    def rows(self) -> Iterator[list[bytes]]:
        """The committed rows, some at a time, without what stands around them.

        Raises:
            BatchMovedError, OperatorError: As :meth:`blocks`.
        """
        return map(rows_of, whole_lines(self.blocks()))

    def lines(self) -> Iterator[bytes]:
        """The same, each with its line feed."""
        return (row + b"\n" for rows in self.rows() for row in rows)

    @cached_property
    def intact(self) -> bool:
        """Whether its committed part is what was committed, as of the first time that this is asked."""
        try:
            for _ in self.blocks():
                pass
        except BatchMovedError:
            return False
        except OperatorError as error:
            self.problem = str(error).removeprefix(f"cannot read {self.shown}: ")
            self.problem = f"cannot be read: {self.problem}"
            return False
        return True

    @cached_property
    def behind(self) -> int:
        """How many bytes stand behind its committed part, as of the first time that this is asked."""
        return max(os.fstat(self.file.fileno()).st_size - self.committed.size, 0) if self.file else 0

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def _open(path: Path, pending_temp: str | None) -> BinaryIO:
    """Open the committed version, which may wait beside the live file to be put in its place."""
    if pending_temp is not None:
        try:
            return open_regular(path.with_name(pending_temp))
        except FileNotFoundError:
            pass  # it has been put in place since the store was asked
    return open_regular(path)


def whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of whole lines; of the last one the end may be missing."""
    held: list[bytes] = []
    for block in blocks:
        if end := block.rfind(b"\n") + 1:
            yield b"".join((*held, memoryview(block)[:end]))
            held = []
        held.append(block[end:])
    if rest := b"".join(held):
        yield rest


def rows_of(block: bytes) -> list[bytes]:
    """The rows in whole lines, without line feeds and white space around them."""
    return [row for line in BytesIO(block) if (row := line.strip(_WHITE))]


def placed_lines(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """The rows in blocks of JSONL, each with its line feed, and where their lines begin.

    White space around a row, and a line of nothing else, is left out.
    """
    start = 0
    for block in whole_lines(blocks):
        for line in BytesIO(block):
            if row := line.strip(_WHITE):
                yield start, row + b"\n"
            start += len(line)


class CommittedBatch:
    """The newest batch, the store as it was then, and the exports that were asked for."""

    def __init__(self, root: Path, store: Store, names: Collection[str]) -> None:
        self.store = store
        self.receipts = Receipts(store)
        self.records = ExportRecords(store)
        self.batch: BatchRecord | None = self.receipts.last_batch()
        self.writing = Writing.of(store)
        records = self.records.exports()
        self.exports = {name: CommittedExport(root, records[name]) for name in names}

    def refuse_incomplete(self, name: str) -> None:
        """Refuse an export that was damaged and restored in part: the next batch writes what is missing.

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
    """Let ``look`` read one committed batch; again where it raises :class:`BatchMovedError` since another one came.

    Raises:
        BatchMovedError: Another batch came each time.
        ExportDamagedError: An export is not what was committed, though no batch came.
        OperatorError: There is no store, or something cannot be read.
    """
    for attempt in range(ATTEMPTS):
        with pinned(root), reading(state, root) as store, ExitStack() as opened:
            batch = CommittedBatch(root, store, names)
            for export in batch.exports.values():
                opened.callback(export.close)
            try:
                return look(batch)
            except BatchMovedError:
                with reading(state, root) as later:
                    moved = Writing.of(later).moved_on(batch.writing)
                if not moved:
                    raise _damaged(batch) from None
        if attempt < ATTEMPTS - 1:
            time.sleep(_PAUSE_SECONDS)
    raise BatchMovedError


def _damaged(batch: CommittedBatch) -> OperatorError:
    for export in batch.exports.values():
        if not export.intact:
            return ExportDamagedError(export.shown, export.problem or "is not what the last commit left")
    return BatchMovedError()
