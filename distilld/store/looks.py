"""Which files to hash again although their facts are unchanged, and the results (SPEC 4)."""

from __future__ import annotations

from collections.abc import Iterable

from distilld.store.connection import Store
from distilld.store.inputs import SURE_AFTER_NS, FileRecord, Inputs, file_records
from distilld.store.statements import Statements

_PAGE = 64
_UNSURE = "state = 'present' AND unsure_since_ns IS NOT NULL AND ctime_ns >= 0"
"""Files with a negative time are left out: they are doubted already, and the next pass reads them."""


class Looks(Statements):
    """Records how far the facts of files prove their bytes."""

    def __init__(self, store: Store, inputs: Inputs) -> None:
        super().__init__(store)
        self._inputs = inputs

    def begin(self, boot_id: str, now_ns: int, time_ns: int) -> None:
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
        self._inputs.forget_files()

    def unsure(self, now_ns: int) -> list[FileRecord]:
        """Return some files whose facts were first seen long enough ago that a hash proves them now."""
        rows = f"WHERE {_UNSURE} AND unsure_since_ns <= ? ORDER BY unsure_since_ns LIMIT {_PAGE}"
        return file_records(self._store, rows, (now_ns - SURE_AFTER_NS,))

    def sure_at_ns(self) -> int | None:
        """Return when the next file can be proven (monotonic), or None if no file waits."""
        (since_ns,) = self._run(f"SELECT min(unsure_since_ns) FROM files WHERE {_UNSURE}").fetchone()
        return None if since_ns is None else since_ns + SURE_AFTER_NS

    def hashed_before(self, before_ns: int, most: int = _PAGE) -> list[FileRecord]:
        """Return up to ``most`` files that were last hashed by ``before_ns``, the oldest first."""
        rows = f"WHERE state = 'present' AND ctime_ns >= 0 AND hashed_at_ns <= ? ORDER BY hashed_at_ns LIMIT {most}"
        return file_records(self._store, rows, (before_ns,))

    def oldest(self) -> tuple[int, int]:
        """Return how many files are present, and the earliest time at which one of them was last hashed."""
        files, hashed_at_ns = self._run(
            "SELECT count(*), min(hashed_at_ns) FROM files WHERE state = 'present'"
        ).fetchone()
        return files, hashed_at_ns or 0

    def note(self, hashed: Iterable[tuple[FileRecord, bool]]) -> bool:
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
                 *record.facts, record.indexed_sha256),
            ).rowcount  # fmt: skip
            if changed:
                doubted |= not same
                record.facts = facts
                self._inputs.note_facts(record)
        return doubted
