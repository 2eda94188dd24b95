"""What the store knows about each export file: its last commit, writes in progress, damage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import orjson

from distilld.core.model import EXPORT_PATHS, HOUR_NS, TAMPERINGS_AN_HOUR, WHOLE_FILE, Committed, StatFacts
from distilld.store.statements import Statements

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
