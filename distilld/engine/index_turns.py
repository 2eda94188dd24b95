"""Read large evidence files in turns, so that other files do not wait for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import structlog

from distilld.core.model import InputChanged, InputKind
from distilld.core.plan import FileKey, Look, has_come
from distilld.engine.file_reading import FileReading
from distilld.engine.index_context import IndexContext
from distilld.engine.index_evidence import EvidenceFiles
from distilld.lake.scan import PartitionFile, Scan, tree_path
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.inputs import FileRecord

log = structlog.get_logger()

TURN_BYTES: Final = 256 << 20
"""Evidence files that are larger are read in turns of so many bytes, one in a pass."""
WITH_ROWS_BYTES: Final = 1 << 30
"""The same for evidence that comes with its rows or moved: until it is read, rows would be quarantined or withdrawn."""


class Turn(NamedTuple):
    """A reading that has not ended, and where its facts are staged."""

    reading: FileReading
    rows: EvidenceRows


class Turns:
    """Reads on in large evidence files where the last pass stopped."""

    def __init__(self) -> None:
        self._turn: Turn | None = None
        """What one pass leaves to the next."""
        self._last: FileKey | None = None
        """The file that had the last turn."""

    def end(self, *, failed: bool = False) -> None:
        """End the reading; after a pass that ``failed``, what it staged may be gone, or the store out of reach."""
        if self._turn is not None:
            self._turn.reading.close()
            if not failed:
                self._turn.rows.unstage()
            self._turn = None

    def take(self, context: IndexContext, evidence: EvidenceFiles, scan: Scan) -> None:
        """Read on in the postponed files, one after the other; what was read to its end is postponed no more."""
        found, postponed = context.found, context.found.postponed
        files = {key: file for file in scan.files if (key := file.key) in postponed} if postponed else {}
        if self._turn is not None and not self._turn.reading.is_of(files.get(self._turn.reading.key)):
            self.end()
        left = TURN_BYTES
        while postponed and left > 0:
            goes_on, before = self._turn is not None, found.bytes_read
            with context.transactions():
                turn = self._turn or _begin(context, files[_next_turn(postponed, self._last)])
                self._turn, self._last = turn, turn.reading.key
                has_ended = _read_on(context, evidence, turn, left)
            file = files[turn.reading.key]
            if not has_ended:
                if not goes_on:
                    log.info("reading_in_turns", path=tree_path(*file.key), bytes=file.stat.size)
                return
            left -= found.bytes_read - before
            # A file that changed since its reading began is read again.
            if not goes_on or turn.reading.is_as_scanned(file):
                postponed.remove(file.key)
            self.end()


def _begin(context: IndexContext, file: PartitionFile) -> Turn:
    known = context.inputs.files().get(file.key)
    look = Look.NEW if known is None else Look.CHANGED if known.present else Look.RETURNED
    rows = EvidenceRows(context.store, context.inputs, staged="large_evidence")
    rows.stage()
    return Turn(context.reading(file, known, look), rows)


def _read_on(context: IndexContext, evidence: EvidenceFiles, turn: Turn, most_bytes: int) -> bool:
    """Read on in a large file; index it if all was read. Return whether the reading has ended."""
    reading, key = turn.reading, turn.reading.key
    with context.noting_problems(key):
        evidence.stage(reading, turn.rows, most_bytes)
        if not reading.has_ended:
            return False
        record = context.inputs.files().get(key)
        if not reading.is_based_on(record):
            raise InputChanged(tree_path(*key))
        if record is None:
            record = FileRecord.new(*key, context.places([key[1]])[key[1]], reading.file.stat)
        evidence.apply(reading, turn.rows, record)
    return True


def _next_turn(postponed: list[FileKey], last: FileKey | None) -> FileKey:
    """Return the file behind the last one, in walk order: one that changes all the time takes no other's turn."""
    behind = [key for key in postponed if last is not None and key[1].split("/") > last[1].split("/")]
    return (behind or postponed)[0]


def large_evidence(
    reads: Iterable[FileKey],
    seen: Mapping[FileKey, PartitionFile],
    known: Mapping[FileKey, FileRecord],
    gone: Iterable[FileKey],
) -> list[FileKey]:
    """Return the large evidence files to postpone, in walk order.

    Scored files are never postponed, for they may forbid what others allow.
    """
    moved = {known[key].facts.size for key in gone if key[0] is InputKind.EVIDENCE}

    def comes(kind: InputKind, path: str) -> bool:
        """Return whether a file is there and new or changed; others are only hashed again."""
        file = seen.get((kind, path))
        return file is not None and has_come(known.get((kind, path)), file.stat)

    def is_large(path: str, size: int) -> bool:
        with_rows = comes(InputKind.EVIDENCE, path) and comes(InputKind.SCORED, path)
        return size > (WITH_ROWS_BYTES if with_rows or size in moved else TURN_BYTES)

    return [key for key in reads if key[0] is InputKind.EVIDENCE and is_large(key[1], seen[key].stat.size)]


def turns_of(size: int) -> int:
    """Return how many turns a file that does not change takes at most: it is hashed, and then read from its start."""
    return 2 * (size // TURN_BYTES + 1)
