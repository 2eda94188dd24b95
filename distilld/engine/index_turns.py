"""Read large evidence files in turns, so that other files do not wait for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from distilld.core.model import InputChanged, InputKind
from distilld.core.plan import FileKey, Look
from distilld.engine.evidence_reading import EvidenceReading
from distilld.engine.index_file import FileIndexer
from distilld.engine.index_lines import new_record
from distilld.lake.scan import PartitionFile, Scan, tree_path
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.inputs import FileRecord

log = structlog.get_logger()

TURN_BYTES: Final = 256 << 20
"""Evidence files that are larger are read in turns of so many bytes, one in a pass."""
WITH_ROWS_BYTES: Final = 4 << 30
"""The same for evidence that comes with its rows, which would be quarantined until it is read."""


class TurnIndexer(FileIndexer):
    """Reads on in large files where the last pass stopped."""

    def take_turn(self, scan: Scan, reading: EvidenceReading | None) -> EvidenceReading | None:
        """Read on in the evidence files that :meth:`take` postponed; return the reading that has not ended.

        ``reading`` is the one that the last turn returned. It goes on if its file is still postponed.
        """
        postponed = self._out.postponed
        files = {key: file for file in scan.files if (key := file.key) in postponed} if postponed else {}
        if reading is not None and not (reading.key in files and reading.is_of(files[reading.key])):
            reading.close()
            reading = None
        left = TURN_BYTES
        while postponed and left > 0:
            goes_on, before = reading is not None, self._out.bytes_read
            with self._transactions():
                reading = reading or self._reading_in_turns(files[postponed[0]])
                if not self._read_large(reading, left):
                    if not goes_on:
                        size = files[reading.key].stat.size
                        log.info("reading_in_turns", path=tree_path(*reading.key), bytes=size)
                    return reading
            left -= self._out.bytes_read - before
            # A file that changed since its reading began is read again.
            if not goes_on or reading.is_as_scanned(files[reading.key]):
                postponed.remove(reading.key)
            reading.close()
            reading = None
        return None

    def _reading_in_turns(self, file: PartitionFile) -> EvidenceReading:
        known = self._inputs.files().get(file.key)
        look = Look.NEW if known is None else Look.CHANGED if known.present else Look.RETURNED
        return self._reading(file, known, look, EvidenceRows(self._store, self._inputs, staged="large_evidence"))

    def _read_large(self, reading: EvidenceReading, most_bytes: int) -> bool:
        """Read on in a large file; index it if all was read. Return whether the reading has ended."""
        key = reading.key
        with self._noting_problems(key):
            if not self._read_on(reading, most_bytes):
                return False
            known = self._inputs.files()
            record = known.get(key)
            if not reading.is_based_on(record):
                raise InputChanged(tree_path(*key))
            if record is None:
                place = self._place([(key, Look.NEW)], known)[reading.file.path]
                record = new_record(*key, place, reading.file.stat)
            self._apply(reading, record)
        return True


def large_evidence(
    reads: list[tuple[FileKey, Look]], seen: Mapping[FileKey, PartitionFile], gone: Iterable[FileRecord]
) -> list[FileKey]:
    """Return the large evidence files to postpone.

    Scored files are never postponed, for they may forbid what others allow; nor is evidence that may only have moved.
    """
    with_rows = {path for (kind, path), _ in reads if kind is InputKind.SCORED}
    moved = {record.facts.size for record in gone if record.kind is InputKind.EVIDENCE}
    return [
        key
        for key, _ in reads
        if key[0] is InputKind.EVIDENCE
        and (size := seen[key].stat.size) > (WITH_ROWS_BYTES if key[1] in with_rows else TURN_BYTES)
        and size not in moved
    ]


def turns_of(size: int) -> int:
    """Return how many turns a file of so many bytes takes at most: it may be hashed, and then read from its start."""
    return 2 * (size // TURN_BYTES + 1)
