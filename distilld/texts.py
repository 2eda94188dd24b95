"""The texts of rows that are to be judged, read again by byte span (DESIGN 3, step 4)."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from distilld.json_text import Malformed, parse_object
from distilld.lake import open_partition, tree_path
from distilld.model import InputChanged, InputKind
from distilld.records import EvidenceRecord, ScoredRun, evidence_record, scored_run
from distilld.store.schema import MALFORMED_CODES
from distilld.store.work import WorkRow
from distilld.tail import SpanReader

_OPEN_AT_MOST: Final = 12


class Texts:
    """Opens partitions as they are needed and reads rows from them; at most a dozen are open at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: OrderedDict[tuple[InputKind, str], tuple[ExitStack, SpanReader]] = OrderedDict()
        self._read_and_closed = 0

    @property
    def bytes_read(self) -> int:
        """How many bytes were read so far."""
        return self._read_and_closed + sum(reader.bytes_read for _, reader in self._open.values())

    def scored(self, row: WorkRow) -> ScoredRun:
        """The scored row, which is no malformed one.

        Raises:
            InputChanged: The file no longer holds it there.
        """
        raw = self._reader(InputKind.SCORED, row.path).read(row.start, row.length, row.digest)
        parsed = parse_object(raw)
        if parsed.value is None:
            raise InputChanged(tree_path(InputKind.SCORED, row.path))
        return scored_run(parsed.value, marked=parsed.marked)

    def evidence(self, row: WorkRow) -> EvidenceRecord | None:
        """The evidence of the row's run in the mirrored partition; None where there is none."""
        if not row.evidence_found or row.evidence_start is None or row.evidence_digest is None:
            return None
        reader = self._reader(InputKind.EVIDENCE, row.path)
        raw = reader.read(row.evidence_start, row.evidence_length or 0, row.evidence_digest)
        parsed = parse_object(raw)
        if parsed.value is None:
            raise InputChanged(tree_path(InputKind.EVIDENCE, row.path))
        return evidence_record(parsed.value, marked=parsed.marked)

    def malformed_head(self, row: WorkRow) -> str:
        """The text of a malformed line, or the beginning of an over-long one; bad text replaced by U+FFFD."""
        reader = self._reader(InputKind.SCORED, row.path)
        if row.malformed == MALFORMED_CODES[Malformed.TOO_LONG]:
            raw = reader.read_head(row.start, row.length)
        else:
            raw = reader.read(row.start, row.length, row.digest)
        return raw.decode(errors="replace")

    def _reader(self, kind: InputKind, path: str) -> SpanReader:
        key = (kind, path)
        found = self._open.get(key)
        if found is None:
            if len(self._open) >= _OPEN_AT_MOST:
                self._close_oldest()
            stack = ExitStack()
            descriptor, _ = stack.enter_context(open_partition(self._root, kind, path))
            found = self._open[key] = (stack, SpanReader(descriptor, tree_path(kind, path)))
        else:
            self._open.move_to_end(key)
        return found[1]

    def _close_oldest(self) -> None:
        _, (stack, reader) = self._open.popitem(last=False)
        self._read_and_closed += reader.bytes_read
        stack.close()

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._close_oldest()
