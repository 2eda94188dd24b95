"""The segments of exports, and what must still be overwritten in them (docs/design.md, 'The commit protocol')."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import Final

from distilld.core.model import Committed, StatFacts
from distilld.files.segments import Segment, Span
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecords
from distilld.store.statements import Statements

_FEW: Final = 8
"""Up to this many marks are looked for one by one; more are looked for all at once."""


class Segments(Statements):
    """The segments of all exports, and the spans that a committed batch overwrites."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._records = ExportRecords(store)

    def recorded(self, name: str) -> tuple[StatFacts, bytes] | None:
        """Return an export's facts as of its last commit, and its segments' digests; None if they are not known."""
        facts, digests = self._records.exports()[name].facts, self.digests(name)
        return (facts, digests) if facts is not None and digests else None

    def digests(self, name: str) -> bytes:
        """Return the digests of an export's segments, joined in order; empty if they are not known."""
        return b"".join(self._column("SELECT sha256 FROM export_segments WHERE name = ? ORDER BY segment", name))

    def longest_line(self, name: str, committed: Committed) -> int:
        """Return a length in bytes that no line of an export exceeds."""
        between = self._run(
            "SELECT max(segment - before) FROM (SELECT segment, lag(segment, 1, 0) OVER (ORDER BY segment) AS before"
            " FROM export_segments WHERE name = ? AND length(line_marks) > 0)",
            (name,),
        ).fetchone()[0]
        return committed.size if between is None else min((between + 1) * committed.segment_bytes, committed.size)

    def holding(self, name: str, marks: Collection[bytes]) -> list[Segment]:
        """Return the segments in which a line with one of these marks ends, in order."""
        rows = self._run(
            "SELECT segment, sha256, line_marks, space_bytes FROM export_segments WHERE name = ? ORDER BY segment",
            (name,),
        )
        if len(marks) <= _FEW:
            return [Segment._make(row) for row in rows if any(mark in row[2] for mark in marks)]
        wanted = {int.from_bytes(mark, sys.byteorder) for mark in marks}
        return [Segment._make(row) for row in rows if not wanted.isdisjoint(memoryview(row[2]).cast("I"))]

    def line_before(self, name: str, number: int) -> int:
        """Return the last segment before another one in which a line ends; 0 if there is none."""
        query = (
            "SELECT coalesce(max(segment), 0) FROM export_segments WHERE name = ? AND segment < ? AND line_marks <> x''"
        )
        return self._number(query, name, number)

    def some(self, name: str, numbers: Iterable[int]) -> list[Segment]:
        """Return the segments with these numbers."""
        query = "SELECT segment, sha256, line_marks, space_bytes FROM export_segments WHERE name = ? AND segment = ?"
        return [Segment._make(row) for number in numbers for row in self._run(query, (name, number))]

    def begin_again(self, name: str) -> None:
        """Forget the segments of an export, which is another file now."""
        self._run("DELETE FROM export_segments WHERE name = ?", (name,))

    def append(self, name: str, segments: Iterable[Segment]) -> None:
        """Record the segments that an export grew by; the first may continue one that was not full."""
        self._many(
            "INSERT INTO export_segments VALUES (?1, ?2, ?3, ?5, ?4) ON CONFLICT (name, segment) DO UPDATE SET"
            " sha256 = ?3, line_marks = CAST(line_marks || ?4 AS BLOB)",
            [(name, *segment) for segment in segments],
        )

    def overwrite(self, name: str, segments: Iterable[Segment], spans: Iterable[Span], size: int, width: int) -> None:
        """Record what segments are once ``spans`` are overwritten; drop the segments from ``size`` on."""
        self._many(
            "UPDATE export_segments SET sha256 = ?3, line_marks = ?4, space_bytes = ?5 WHERE name = ?1 AND segment = ?2",
            [(name, *segment) for segment in segments],
        )
        self._run("DELETE FROM export_segments WHERE name = ? AND segment * ? >= max(?, 1)", (name, width, size))
        self._many("INSERT INTO overwrites VALUES (?, ?, ?)", [(name, *span) for span in spans])

    def due(self) -> dict[str, list[Span]]:
        """Return what committed batches must still overwrite, by export."""
        found: dict[str, list[Span]] = {}
        for name, start, length in self._run("SELECT name, start_byte, length_bytes FROM overwrites"):
            found.setdefault(name, []).append(Span(start, length))
        return found

    def done(self, name: str) -> None:
        """Forget an export's spans: they are overwritten, or the export will be restored."""
        self._run("DELETE FROM overwrites WHERE name = ?", (name,))
