"""The known input files: their facts when they were last read, how far they are indexed, and which to hash again."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from distilld.core.line_facts import LINES_END, NO_CONTENT, Content
from distilld.core.model import InputKind, StatFacts
from distilld.core.plan import FileKey
from distilld.store.connection import Store
from distilld.store.statements import Statements

_PAGE: Final = 64
_UNSURE: Final = "state = 'present' AND unsure_since_ns IS NOT NULL AND ctime_ns >= 0"
"""Files with a negative time are left out: they are doubted already, and the next pass reads them."""
SURE_AFTER_NS: Final = 2_000_000_000
"""Nanoseconds: bytes hashed this long after our first look at a file's facts cannot change under the same facts."""


@dataclass(slots=True)
class FileRecord:
    """What the store knows about one input file: its stat facts when last read, and how far it is indexed."""

    partition_id: int
    walk_base: int
    path: str
    kind: InputKind
    state: str
    facts: StatFacts
    content: Content = NO_CONTENT
    malformed_lines: int = 0
    unsure_since_ns: int | None = None
    """When these facts were first seen (monotonic); None once the bytes were hashed long enough after that."""
    hashed_at_ns: int = 0
    """When the bytes were last hashed, by our clock."""

    @classmethod
    def new(cls, kind: InputKind, path: str, place: tuple[int, int], facts: StatFacts) -> FileRecord:
        """Return the record of a file that was not read yet; ``place`` is its partition's id and base."""
        return cls(*place, path, kind, "present", facts.doubted())

    def note_hashed(self, facts: StatFacts, began_ns: int) -> None:
        """Record that the bytes were hashed under these facts, and not before ``began_ns`` (monotonic)."""
        now_ns = time.monotonic_ns()
        since_ns = now_ns if facts != self.facts else self.unsure_since_ns
        sure = since_ns is None or began_ns - since_ns >= SURE_AFTER_NS
        self.facts, self.unsure_since_ns, self.hashed_at_ns = facts, None if sure else since_ns, time.time_ns()

    def is_doubtful(self, hashed_since_ns: int | None) -> bool:
        """Return whether to read a file with unchanged facts: they do not prove its bytes, or its hash is overdue."""
        if hashed_since_ns is None:
            return False
        return self.unsure_since_ns is not None or self.hashed_at_ns <= hashed_since_ns

    @property
    def key(self) -> FileKey:
        """Its tree, and its path below the tree."""
        return self.kind, self.path

    @property
    def walks(self) -> tuple[int, int]:
        """The first place in walk order of its lines, and the end of these places."""
        return self.walk_base, self.walk_base + LINES_END

    def holds(self, walk: str) -> str:
        """Return SQL for whether a place in walk order is in this file."""
        return "{0} >= {1} AND {0} < {2}".format(walk, *self.walks)

    @property
    def present(self) -> bool:
        """Whether the file was in its tree at the last look."""
        return self.state == "present"

    @property
    def is_part(self) -> bool:
        """Whether only the beginning of the file was read, and what follows is not known."""
        return self.facts.are_of_a_part

    @property
    def is_from_quarantine(self) -> bool:
        """Whether the file is known from old quarantine files alone: a takeover noted it, and nothing has read it."""
        return not self.present and not self.content.sha256


_COLUMNS: Final = (
    "partition_id, kind, state, device, inode, size_bytes, mtime_ns, ctime_ns, indexed_bytes, indexed_sha256, indexed_lines,"
    " tail, tail_bytes, tail_digest, malformed_lines, unsure_since_ns, hashed_at_ns"
)
_UPDATES: Final = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[2:])


class Inputs(Statements):
    """Stores the records of input files."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._files: dict[FileKey, FileRecord] | None = None

    def files(self) -> dict[FileKey, FileRecord]:
        """Return every known file, present or absent.

        The records are read once and cached: this process is the store's only writer. After a failure, or a write by
        another part of the store, call :meth:`forget_files` first.
        """
        if self._files is None:
            self._files = {record.key: record for record in self._records()}
        return self._files

    def _records(self, which: str = "", *values: int) -> list[FileRecord]:
        """Return the records of all files, or of those that an SQL clause selects."""
        rows = self._run(
            f"SELECT p.walk_base, p.path, {_COLUMNS} FROM files f CROSS JOIN partitions p USING (partition_id) {which}",
            values,
        )
        kinds = {kind.value: kind for kind in InputKind}
        return [
            FileRecord(
                number, base, path, kinds[kind], state, StatFacts._make(more[:5]), Content._make(more[5:11]), *more[11:]
            )
            for base, path, number, kind, state, *more in rows
        ]

    def all_as_recorded(
        self, files: Collection[tuple[InputKind, str, StatFacts]], *, hashed_since_ns: int | None = None
    ) -> bool:
        """Return whether these files are exactly the known present ones, each with its recorded facts.

        With ``hashed_since_ns``, each must also have been hashed since then, and its facts must prove its bytes.
        True means that :func:`distilld.core.plan.compare` would find no change; this check has a third of its cost at a
        start, since it builds no records. Return False if the records are cached: the caller can compare those.
        """
        if self._files is not None:
            return False
        if len(files) != self._number("SELECT count(*) FROM files WHERE state = 'present'"):
            return False
        seen = {(kind, path, *facts) for kind, path, facts in files}
        proven = "" if hashed_since_ns is None else f" AND unsure_since_ns IS NULL AND hashed_at_ns > {hashed_since_ns}"
        recorded = self._run(
            "SELECT f.kind, p.path, f.device, f.inode, f.size_bytes, f.mtime_ns, f.ctime_ns"
            " FROM files f CROSS JOIN partitions p USING (partition_id)"
            f" WHERE f.state = 'present'{proven}"
        )
        return sum(map(seen.__contains__, recorded)) == len(files)

    def forget_files(self) -> None:
        """Drop the cached records, so that the next call reads them again."""
        self._files = None

    def write_file(self, record: FileRecord, *, judged: bool = False) -> None:
        """Store a file's record; ``judged``: ``judged_lines`` covers all rows, and the queue has the unjudged ones."""
        values = (
            record.partition_id, record.kind.value, record.state, *record.facts, *record.content,
            record.malformed_lines, record.unsure_since_ns, record.hashed_at_ns,
            record.content.lines if judged else 0,
        )  # fmt: skip
        self._run(
            f"INSERT INTO files ({_COLUMNS}, judged_lines) VALUES ({', '.join('?' * len(values))}) ON CONFLICT"
            f" (partition_id, kind) DO UPDATE SET {_UPDATES}{', judged_lines = excluded.judged_lines' if judged else ''}",
            values,
        )
        self.files()[record.key] = record

    def doubt(self, keys: Iterable[FileKey]) -> None:
        """Make the next look read known files again, even if stat shows the recorded facts."""
        for key in keys:
            record = self.files()[key]
            record.facts = record.facts.doubted()
            self.write_file(record)

    def forget_file(self, record: FileRecord) -> None:
        """Delete the record of a file that is gone for good."""
        self._run("DELETE FROM files WHERE partition_id = ? AND kind = ?", (record.partition_id, record.kind.value))
        self.files().pop(record.key, None)

    def note_input(self, record: FileRecord, change: str, from_offset: int, lines: int, malformed: int) -> None:
        """Record an input's change for the next receipt."""
        self._run(
            "INSERT INTO unreported_inputs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (partition_id, kind) DO UPDATE SET"
            " change = CASE WHEN excluded.change = 'absent' OR change IN ('appended', 'absent') THEN excluded.change ELSE change END,"
            " sha256 = excluded.sha256,"
            " size_bytes = excluded.size_bytes, from_offset = min(from_offset, excluded.from_offset),"
            " to_offset = excluded.to_offset, lines = lines + excluded.lines,"
            " malformed_lines = malformed_lines + excluded.malformed_lines",
            (record.partition_id, record.kind.value, change, record.content.sha256, record.content.size, from_offset,
             record.content.size, lines, malformed),
        )  # fmt: skip

    # which files to hash again although their facts are unchanged (SPEC 4)

    def begin_looks(self, boot_id: str, now_ns: int, time_ns: int) -> None:
        """Reset times that our clocks cannot be compared with: monotonic times of another boot, and future times.

        A file that was hashed in the future counts as hashed now: our clock was set back since.
        """
        future = "state = 'present' AND hashed_at_ns > ?"
        started = self._store.recall("boot_id") != boot_id
        if not started and not self._holds(f"EXISTS (SELECT 1 FROM files WHERE {future})", time_ns):
            return
        with self._store.transaction():
            self._run(f"UPDATE files SET hashed_at_ns = ? WHERE {future}", (time_ns, time_ns))
            if started:
                self._run("UPDATE files SET unsure_since_ns = ?", (now_ns,))
                self._store.remember("boot_id", boot_id)
        self.forget_files()

    def unsure(self, now_ns: int) -> list[FileRecord]:
        """Return some files whose facts were first seen long enough ago that a hash proves them now."""
        rows = f"WHERE {_UNSURE} AND unsure_since_ns <= ? ORDER BY unsure_since_ns LIMIT {_PAGE}"
        return self._records(rows, now_ns - SURE_AFTER_NS)

    def sure_at_ns(self) -> int | None:
        """Return when the next file can be proven (monotonic), or None if no file waits."""
        (since_ns,) = self._run(f"SELECT min(unsure_since_ns) FROM files WHERE {_UNSURE}").fetchone()
        return None if since_ns is None else since_ns + SURE_AFTER_NS

    def hashed_before(self, before_ns: int, most: int = _PAGE) -> list[FileRecord]:
        """Return up to ``most`` files that were last hashed by ``before_ns``, the oldest first."""
        rows = f"WHERE state = 'present' AND ctime_ns >= 0 AND hashed_at_ns <= ? ORDER BY hashed_at_ns LIMIT {most}"
        return self._records(rows, before_ns)

    def oldest_hash(self) -> tuple[int, int]:
        """Return how many files are present, and the earliest time at which one of them was last hashed."""
        hashes = "SELECT count(*), coalesce(min(hashed_at_ns), 0) FROM files WHERE state = 'present'"
        files, oldest_ns = self._run(hashes).fetchone()
        return files, oldest_ns

    def note_hashed(self, hashed: Iterable[tuple[FileRecord, bool]]) -> bool:
        """Record which files still have their bytes, and doubt all others; return whether there were any.

        A file that was indexed further meanwhile is left unchanged.
        """
        doubted = False
        for record, same in hashed:
            facts = record.facts if same else record.facts.doubted()
            changed = self._run(
                "UPDATE files SET ctime_ns = ?, unsure_since_ns = ?, hashed_at_ns = ? WHERE partition_id = ? AND kind = ?"
                " AND state = 'present' AND (device, inode, size_bytes, mtime_ns, ctime_ns) = (?, ?, ?, ?, ?)"
                " AND indexed_sha256 = ?",
                (facts.ctime_ns, record.unsure_since_ns, record.hashed_at_ns, record.partition_id, record.kind.value,
                 *record.facts, record.content.sha256),
            ).rowcount  # fmt: skip
            if not changed:
                continue
            doubted |= not same
            # Its place may have changed since, so the cached record is another one.
            if cached := (self._files or {}).get(record.key):
                cached.facts, cached.hashed_at_ns = facts, record.hashed_at_ns
                cached.unsure_since_ns = record.unsure_since_ns
        return doubted
