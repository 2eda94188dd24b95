"""What the store knows of each export as a file: its last commit, writes that are under way, damage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import orjson

from distilld.core.model import EXPORT_PATHS, HOUR_NS, TAMPERINGS_AN_HOUR, WHOLE_FILE, Committed, StatFacts
from distilld.store.connection import Store

_EMPTY: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class Intent(NamedTuple):
    """A write that is under way: where the file ends without it, and its temporary file if it is rewritten."""

    name: str
    batch: int
    base_bytes: int
    temp: str | None


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """What the store knows of one export; ``pending_temp`` waits to be put in the live file's place."""

    name: str
    committed: Committed
    generation: int
    inode: int | None
    facts: StatFacts | None
    pending_temp: str | None


class ExportRecords:
    """The part of the store that keeps these."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._run = store.connection.execute
        self._many = store.connection.executemany

    def exports(self) -> dict[str, ExportRecord]:
        """All nine, those that have no file yet included."""
        records = {name: ExportRecord(name, Committed(0, 0, _EMPTY), 0, None, None, None) for name in EXPORT_PATHS}
        for row in self._run(
            "SELECT name, size_bytes, rows, sha256, generation, device, inode, mtime_ns, ctime_ns, pending_temp,"
            " segment_bytes, space_bytes FROM export_files"
        ):
            facts = StatFacts(row[5], row[6], row[1], row[7], row[8]) if row[7] is not None else None
            committed = Committed(row[1], row[2], row[3], row[10] or WHOLE_FILE, row[11])
            records[row[0]] = ExportRecord(row[0], committed, row[4], row[6], facts, row[9])
        return records

    def set_export(self, name: str, committed: Committed, facts: StatFacts, temp: str | None) -> None:
        """Record what an export is from now on."""
        self._run(
            "INSERT INTO export_files VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
            " ON CONFLICT (name) DO UPDATE SET generation = generation + (?10 IS NOT NULL), size_bytes = ?3, rows = ?4,"
            " sha256 = ?5, device = ?6, inode = ?7, mtime_ns = ?8, ctime_ns = ?9, pending_temp = ?10,"
            " segment_bytes = ?11, space_bytes = ?12",
            (name, EXPORT_PATHS[name], committed.size, committed.rows, committed.sha256, facts.device, facts.inode,
             facts.mtime_ns, facts.ctime_ns, temp, committed.segment_bytes, committed.spaces),
        )  # fmt: skip

    def set_installed(self, name: str, facts: StatFacts | None) -> None:
        """The temporary file stands in the live one's place now; None: it is lost, and the live one to be restored."""
        if facts is None:
            self._run("UPDATE export_files SET pending_temp = NULL, mtime_ns = NULL WHERE name = ?", (name,))
            return
        self._run(
            "UPDATE export_files SET pending_temp = NULL, device = ?, inode = ?, mtime_ns = ?, ctime_ns = ?"
            " WHERE name = ?",
            (facts.device, facts.inode, facts.mtime_ns, facts.ctime_ns, name),
        )

    def missing_rows(self, name: str) -> int:
        """How many lines an export lost that are yet to be written again."""
        query = "SELECT coalesce(sum(copies), 0) FROM missing_lines WHERE name = ?"
        return int(self._run(query, (name,)).fetchone()[0])

    # writes that are under way

    def intend(self, intents: list[Intent]) -> None:
        """Say what is about to be written; recovery undoes exactly this."""
        self._many("INSERT INTO intents VALUES (?, ?, ?, ?)", intents)

    def intents(self) -> list[Intent]:
        """Writes that no transaction has committed."""
        return [Intent._make(row) for row in self._run("SELECT name, batch, base_bytes, temp FROM intents")]

    def drop_intent(self, name: str) -> None:
        """The write of one export is not to be undone."""
        self._run("DELETE FROM intents WHERE name = ?", (name,))

    def drop_intents(self) -> None:
        """The writes are committed, or undone."""
        self._run("DELETE FROM intents")

    # damage

    def tamperings(self) -> list[int]:
        """When exports were found damaged, in nanoseconds since the epoch."""
        return [_ns_of(each) for each in orjson.loads(self._store.recall("tamperings") or "[]")]

    def recent_tamperings(self, now_ns: int) -> list[int]:
        """Those of the last hour. One that lies ahead of the clock is of a clock that went wrong, and does not count."""
        return [each for each in self.tamperings() if 0 <= now_ns - each < HOUR_NS]

    def count_tampering(self, now_ns: int) -> None:
        """Exports were found changed from outside; the newest times that make another writer are kept."""
        times = [*self.recent_tamperings(now_ns), now_ns][-TAMPERINGS_AN_HOUR:]
        self._store.remember("tamperings", orjson.dumps([_moment(each) for each in times]).decode())


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")


def _ns_of(moment: str | int) -> int:
    """A time in nanoseconds, which is also how older versions wrote it."""
    if isinstance(moment, int):
        return moment
    return round(datetime.fromisoformat(moment).timestamp() * 1000) * 1_000_000
