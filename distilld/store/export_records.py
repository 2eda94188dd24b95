"""What the store knows about each export file: its last commit, its segments, writes in progress, damage.

Segments and overwrites: see docs/design.md, 'The commit protocol'.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import orjson

from distilld.core.model import EXPORT_PATHS, HOUR_NS, TAMPERINGS_AN_HOUR, WHOLE_FILE, Committed, StatFacts
from distilld.files.segments import Segment, Span
from distilld.store.statements import Statements

_FEW: Final = 8
"""Up to this many marks are looked for one by one; more are looked for all at once."""
_EMPTY: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class Intent(NamedTuple):
    """A write in progress: where the file ends without it, and its temporary file if it is rewritten."""

    name: str
    batch: int
    base_bytes: int
    temp: str | None


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """What the store knows about one export; ``pending_temp`` is a file that will replace the live one."""

    name: str
    committed: Committed
    generation: int
    facts: StatFacts | None
    pending_temp: str | None


class ExportRecords(Statements):
    """Stores the records of exports."""

    def exports(self) -> dict[str, ExportRecord]:
        """Return the records of all nine exports, including those without a file yet."""
        records = {name: ExportRecord(name, Committed(0, 0, _EMPTY), 0, None, None) for name in EXPORT_PATHS}
        for name, generation, temp, size, rows, sha256, segment_bytes, spaces, device, inode, *times in self._run(
            "SELECT name, generation, pending_temp, size_bytes, rows, sha256, segment_bytes, space_bytes, device, inode,"
            " mtime_ns, ctime_ns FROM export_files"
        ):
            committed = Committed(size, rows, sha256, segment_bytes or WHOLE_FILE, spaces)
            facts = StatFacts(device, inode, size, *times) if times[0] is not None else None
            records[name] = ExportRecord(name, committed, generation, facts, temp)
        return records

    def set_export(self, name: str, committed: Committed, facts: StatFacts, temp: str | None) -> None:
        """Record an export's new committed state and facts."""
        self._run(
            "INSERT INTO export_files VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
            " ON CONFLICT (name) DO UPDATE SET generation = generation + (?10 IS NOT NULL), size_bytes = ?3, rows = ?4,"
            " sha256 = ?5, device = ?6, inode = ?7, mtime_ns = ?8, ctime_ns = ?9, pending_temp = ?10,"
            " segment_bytes = ?11, space_bytes = ?12",
            (name, EXPORT_PATHS[name], committed.size, committed.rows, committed.sha256, facts.device, facts.inode,
             facts.mtime_ns, facts.ctime_ns, temp, committed.segment_bytes, committed.spaces),
        )  # fmt: skip

    def set_installed(self, name: str, facts: StatFacts | None) -> None:
        """Record that the temporary file replaced the live one; None: it is lost, and the export must be restored."""
        if facts is None:
            self._run("UPDATE export_files SET pending_temp = NULL, mtime_ns = NULL WHERE name = ?", (name,))
            return
        self._run(
            "UPDATE export_files SET pending_temp = NULL, device = ?, inode = ?, mtime_ns = ?, ctime_ns = ?"
            " WHERE name = ?",
            (facts.device, facts.inode, facts.mtime_ns, facts.ctime_ns, name),
        )

    def missing_rows(self, name: str) -> int:
        """Return how many lost lines of an export must still be written again."""
        return self._number("SELECT coalesce(sum(copies), 0) FROM missing_lines WHERE name = ?", name)

    # segments

    def recorded(self, name: str) -> tuple[StatFacts, bytes] | None:
        """Return an export's facts as of its last commit, and its segments' digests; None if they are not known."""
        facts, digests = self.exports()[name].facts, self.digests(name)
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

    def segments(self, name: str, numbers: Iterable[int]) -> list[Segment]:
        """Return the segments with these numbers."""
        query = "SELECT segment, sha256, line_marks, space_bytes FROM export_segments WHERE name = ? AND segment = ?"
        return [Segment._make(row) for number in numbers for row in self._run(query, (name, number))]

    def forget_segments(self, name: str) -> None:
        """Forget the segments of an export, which is another file now."""
        self._run("DELETE FROM export_segments WHERE name = ?", (name,))

    def add_segments(self, name: str, segments: Iterable[Segment]) -> None:
        """Record the segments that an export grew by; the first may continue one that was not full."""
        self._many(
            "INSERT INTO export_segments VALUES (?1, ?2, ?3, ?5, ?4) ON CONFLICT (name, segment) DO UPDATE SET"
            " sha256 = ?3, line_marks = CAST(line_marks || ?4 AS BLOB)",
            [(name, *segment) for segment in segments],
        )

    def record_overwrites(
        self, name: str, segments: Iterable[Segment], spans: Iterable[Span], size: int, width: int
    ) -> None:
        """Record what segments are once ``spans`` are overwritten; drop the segments from ``size`` on."""
        self._many(
            "UPDATE export_segments SET sha256 = ?3, line_marks = ?4, space_bytes = ?5 WHERE name = ?1 AND segment = ?2",
            [(name, *segment) for segment in segments],
        )
        self._run("DELETE FROM export_segments WHERE name = ? AND segment * ? >= max(?, 1)", (name, width, size))
        self._many("INSERT INTO overwrites VALUES (?, ?, ?)", [(name, *span) for span in spans])

    def overwrites_due(self) -> dict[str, list[Span]]:
        """Return what committed batches must still overwrite, by export."""
        found: dict[str, list[Span]] = {}
        for name, start, length in self._run("SELECT name, start_byte, length_bytes FROM overwrites"):
            found.setdefault(name, []).append(Span(start, length))
        return found

    def overwritten(self, name: str) -> None:
        """Forget an export's spans: they are overwritten, or the export will be restored."""
        self._run("DELETE FROM overwrites WHERE name = ?", (name,))

    # writes in progress

    def intend(self, intents: list[Intent]) -> None:
        """Record what is about to be written; recovery undoes exactly this."""
        self._many("INSERT INTO intents VALUES (?, ?, ?, ?)", intents)

    def intents(self) -> list[Intent]:
        """Return the writes that no transaction has committed."""
        return [Intent._make(row) for row in self._run("SELECT name, batch, base_bytes, temp FROM intents")]

    def drop_intent(self, name: str) -> None:
        """Forget one export's write, so that it is not undone."""
        self._run("DELETE FROM intents WHERE name = ?", (name,))

    def drop_intents(self) -> None:
        """Forget all writes: they are committed or undone."""
        self._run("DELETE FROM intents")

    # damage

    def tamperings(self) -> list[int]:
        """Return when exports were found damaged, in nanoseconds since the epoch."""
        return [_ns_of(each) for each in orjson.loads(self._store.recall("tamperings") or "[]")]

    def recent_tamperings(self, now_ns: int) -> list[int]:
        """Return those of the last hour. A time in the future comes from a wrong clock and does not count."""
        return [each for each in self.tamperings() if 0 <= now_ns - each < HOUR_NS]

    def count_tampering(self, now_ns: int) -> None:
        """Record a change of exports from outside; keep only the newest times, enough to indicate another writer."""
        times = [*self.recent_tamperings(now_ns), now_ns][-TAMPERINGS_AN_HOUR:]
        self._store.remember("tamperings", orjson.dumps([_moment(each) for each in times]).decode())


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")


def _ns_of(moment: str | int) -> int:
    """Return a time in nanoseconds; older versions wrote it as such a number."""
    if isinstance(moment, int):
        return moment
    return round(datetime.fromisoformat(moment).timestamp() * 1000) * 1_000_000
