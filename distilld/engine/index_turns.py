"""Read large evidence files in turns, so that other files do not wait for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

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


@dataclass(slots=True)
class Turn:
    """A reading that has not ended, and where its facts are staged."""

    reading: FileReading
    rows: EvidenceRows


@dataclass(slots=True)
class Turns:
    """What one pass leaves to the next: a reading that has not ended, and the file that had the last turn."""

    turn: Turn | None = None
    last: FileKey | None = None

    def end(self, *, failed: bool = False) -> None:
        """End the reading; after a pass that ``failed``, what it staged may be gone, or the store out of reach."""
        if self.turn is not None:
            self.turn.reading.close()
            if not failed:
                self.turn.rows.unstage()
            self.turn = None


class TurnTaker:
    """Reads on in large evidence files where the last pass stopped."""

    def __init__(self, context: IndexContext, evidence: EvidenceFiles, turns: Turns) -> None:
        self._context = context
        self._evidence = evidence
        self._turns = turns

    def take(self, scan: Scan) -> None:
        """Read on in the postponed files, one after the other; what was read to its end is postponed no more."""
        found, turns = self._context.found, self._turns
        postponed = found.postponed
        files = {key: file for file in scan.files if (key := file.key) in postponed} if postponed else {}
        if turns.turn is not None and not turns.turn.reading.is_of(files.get(turns.turn.reading.key)):
            turns.end()
        left = TURN_BYTES
        while postponed and left > 0:
            goes_on, before = turns.turn is not None, found.bytes_read
            with self._context.transactions():
                turn = turns.turn or self._begin(files[_next_turn(postponed, turns.last)])
                turns.turn, turns.last = turn, turn.reading.key
                has_ended = self._read_on(turn, left)
            file = files[turn.reading.key]
            if not has_ended:
                if not goes_on:
                    log.info("reading_in_turns", path=tree_path(*file.key), bytes=file.stat.size)
                return
            left -= found.bytes_read - before
            # A file that changed since its reading began is read again.
            if not goes_on or turn.reading.is_as_scanned(file):
                postponed.remove(file.key)
            turns.end()

    def _begin(self, file: PartitionFile) -> Turn:
        inputs = self._context.inputs
        known = inputs.files().get(file.key)
        look = Look.NEW if known is None else Look.CHANGED if known.present else Look.RETURNED
        rows = EvidenceRows(self._context.store, inputs, staged="large_evidence")
        rows.stage()
        return Turn(self._context.reading(file, known, look), rows)

    def _read_on(self, turn: Turn, most_bytes: int) -> bool:
        """Read on in a large file; index it if all was read. Return whether the reading has ended."""
        reading = turn.reading
        key = reading.key
        with self._context.noting_problems(key):
            self._evidence.stage(reading, turn.rows, most_bytes)
            if not reading.has_ended:
                return False
            record = self._context.inputs.files().get(key)
            if not reading.is_based_on(record):
                raise InputChanged(tree_path(*key))
            if record is None:
                record = FileRecord.new(*key, self._context.places([key[1]])[key[1]], reading.file.stat)
            self._evidence.apply(reading, turn.rows, record)
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
