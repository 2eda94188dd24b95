"""The texts of rows that are to be judged, read again by byte span."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from distilld.core.json_text import Malformed, parse_object
from distilld.core.line_facts import LINE_BITS, MALFORMED_CODES
from distilld.core.model import InputChanged, InputKind, UnreadableError
from distilld.core.records import EvidenceRecord, ScoredRun, evidence_record, scored_run
from distilld.lake.lines import SpanReader
from distilld.lake.scan import open_partition, tree_path
from distilld.store.work import Work, WorkRow

_OPEN_AT_MOST: Final = 24
_TOO_LONG: Final = MALFORMED_CODES[Malformed.TOO_LONG]


class Texts:
    """Opens partitions as they are needed and reads rows from them; at most two dozen are open at a time."""

    def __init__(self, root: Path, work: Work) -> None:
        self._root = root
        self._work = work
        self._open: dict[tuple[InputKind, int], tuple[ExitStack, SpanReader]] = {}
        self._read_and_closed = 0
        self._near: dict[InputKind, tuple[int, SpanReader]] = {}
        self._refused: dict[tuple[InputKind, int], tuple[str, str]] = {}

    @property
    def bytes_read(self) -> int:
        """How many bytes were read so far."""
        return self._read_and_closed + sum(reader.bytes_read for _, reader in self._open.values())

    def scored(self, row: WorkRow) -> ScoredRun:
        """The scored row, which is no malformed one.

        Raises:
            InputChanged: The file no longer holds it there.
        """
        raw = self._reader(InputKind.SCORED, row.walk).read(row.start, row.length, row.digest)
        value, marked, _ = parse_object(raw)
        if value is None:
            raise InputChanged(tree_path(InputKind.SCORED, self._work.place(row.walk).path))
        return scored_run(value, marked=marked)

    def evidence(self, row: WorkRow) -> EvidenceRecord | None:
        """The evidence of the row's run in the mirrored partition; None where there is none."""
        if not row.evidence_found or row.evidence_start is None or row.evidence_digest is None:
            return None
        reader = self._reader(InputKind.EVIDENCE, row.walk)
        raw = reader.read(row.evidence_start, row.evidence_length or 0, row.evidence_digest)
        value, marked, _ = parse_object(raw)
        if value is None:
            raise InputChanged(tree_path(InputKind.EVIDENCE, self._work.place(row.walk).path))
        return evidence_record(value, marked=marked)

    def malformed_head(self, row: WorkRow) -> str:
        """The text of a malformed line, or the beginning of an over-long one; bad text replaced by U+FFFD.

        Raises:
            InputChanged: The file no longer holds it there.
        """
        reader = self._reader(InputKind.SCORED, row.walk)
        if row.malformed == _TOO_LONG:
            raw = reader.read_head(row.start, row.length, row.digest)
        else:
            raw = reader.read(row.start, row.length, row.digest)
        return raw.decode(errors="replace")

    def _reader(self, kind: InputKind, walk: int) -> SpanReader:
        base = walk >> LINE_BITS
        near = self._near.get(kind)
        if near is not None and near[0] == base:
            return near[1]
        if (kind, base) in self._refused:
            path, why = self._refused[kind, base]
            raise UnreadableError(path, OSError(why))
        found = self._open.pop((kind, base), None)
        if found is None:
            if len(self._open) >= _OPEN_AT_MOST:
                self._close_oldest()
            path = self._work.place(walk).path
            stack = ExitStack()
            try:
                descriptor, _ = stack.enter_context(open_partition(self._root, kind, path))
            except UnreadableError as error:
                # Not the error itself: its traceback would keep what its callers iterate over.
                self._refused[kind, base] = error.path, error.why
                raise
            found = (stack, SpanReader(descriptor, tree_path(kind, path)))
        self._open[kind, base] = found  # put behind the others: the oldest is closed first
        self._near[kind] = (base, found[1])
        return found[1]

    def _close_oldest(self) -> None:
        (kind, base), (stack, reader) = next(iter(self._open.items()))
        del self._open[kind, base]
        if self._near.get(kind, (None,))[0] == base:
            del self._near[kind]
        self._read_and_closed += reader.bytes_read
        stack.close()

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._close_oldest()
