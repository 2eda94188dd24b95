"""Committed batches, the chain of their receipts, and what the next receipt must report."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from distilld.core.model import InputKind
from distilld.store.statements import Statements


class InputNote(NamedTuple):
    """One input of a receipt."""

    path: str
    kind: InputKind
    change: str
    sha256: str | None
    size: int
    from_offset: int
    to_offset: int
    lines: int
    malformed_lines: int
    changed_ns: int | None
    """Its last change before it was read, by its file system's clock; None if it is gone or must be read again."""


class BatchRecord(NamedTuple):
    """A committed batch."""

    batch: int
    batch_id: str
    trigger: str
    recorded_at: str
    rows_exported: int
    rows_quarantined: int
    rows_withdrawn: int
    rows_judged: int
    bytes_read: int
    duration_ms: int


class Receipts(Statements):
    """Stores batches and their receipts."""

    def last_batch(self) -> BatchRecord | None:
        """Return the newest committed batch, or None."""
        columns = ", ".join(BatchRecord._fields)
        row = self._run(f"SELECT {columns} FROM batches ORDER BY batch DESC LIMIT 1").fetchone()
        return BatchRecord._make(row) if row else None

    def lacks(self, sequence: int, batch_id: str) -> bool:
        """Return whether the store lacks a batch that it should know: it is older, or has another history.

        A new store knows no batch yet, and a store that began at a receipt need not know earlier ones.
        """
        (first,) = self._run("SELECT min(batch) FROM batches").fetchone()
        if first is None:
            return self._store.recall("taken_over") is not None
        return sequence >= first and not self.knows(batch_id)

    def knows(self, batch_id: str) -> bool:
        """Return whether a batch has this id, even if its receipt was dropped."""
        return self._holds("EXISTS (SELECT 1 FROM batches WHERE batch_id = ?)", batch_id)

    def batch_id_of(self, batch: int | None) -> str | None:
        """Return the id of a batch; None for the batch of an adopted row."""
        if not batch:
            return None
        row = self._run("SELECT batch_id FROM batches WHERE batch = ?", (batch,)).fetchone()
        return row[0] if row else None

    def add_batch(self, batch: BatchRecord) -> None:
        """Record a batch; rows that it wrote refer to its time by its number."""
        self._run("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", batch)

    # the chain of receipts

    def sha256s(self) -> list[str]:
        """Return the digests of all receipts that are kept, the oldest first."""
        return self._column("SELECT receipt_sha256 FROM receipts ORDER BY batch")

    def _kept(self, columns: str, which: str, *values: int) -> list[Any]:
        query = f"SELECT {columns} FROM receipts r CROSS JOIN batches b USING (batch) {which}"
        return self._run(query, values).fetchall()

    def last_receipt_sha256(self) -> str | None:
        """Return the digest that the next receipt names: that of the newest receipt, or the chain's anchor."""
        row = self._run("SELECT receipt_sha256 FROM receipts ORDER BY batch DESC LIMIT 1").fetchone()
        return row[0] if row else self._store.recall("receipt_anchor_sha256")

    def anchor(self, sequence: int, batch_id: str, sha256: str, recorded_at: str) -> None:
        """Continue the receipt chain from a receipt on disk, in a store without batches."""
        self._run(
            "INSERT OR IGNORE INTO batches VALUES (?, ?, 'recovery', ?, 0, 0, 0, 0, 0, 0)",
            (sequence, batch_id, recorded_at),
        )
        self._store.remember("receipt_anchor_id", batch_id)
        self._store.remember("receipt_anchor_sha256", sha256)
        self._store.remember("last_recorded_at", recorded_at)

    def begin_copies_after(self, batches: dict[str, str]) -> None:
        """Record by dataset the last batch from which a copy cannot go on (SPEC 7)."""
        self._store.remember("copies_begin_after", orjson.dumps(batches).decode())

    def copies_begin_after(self) -> dict[str, str] | None:
        """Return what :meth:`begin_copies_after` recorded, or None."""
        found = self._store.recall("copies_begin_after")
        return None if found is None else dict(orjson.loads(found))

    def add_receipt(self, sequence: int, receipt: str, sha256: str) -> None:
        """Store a receipt whose file is not written yet, and clear the input changes that it reports."""
        self._run("INSERT INTO receipts VALUES (?, ?, ?, 0)", (sequence, receipt, sha256))
        self._run("DELETE FROM unreported_inputs")

    def unwritten_receipts(self) -> list[tuple[int, str, str]]:
        """Return receipts whose files are not known to be written: batch number, batch id, text."""
        return self._kept("r.batch, b.batch_id, r.receipt", "WHERE r.written = 0 ORDER BY 1")

    def mark_written(self, sequence: int) -> None:
        """Record that the receipt's file is on disk."""
        self._run("UPDATE receipts SET written = 1 WHERE batch = ?", (sequence,))

    def receipts_beyond(self, keep: int) -> list[tuple[int, str, str]]:
        """Return the receipts older than the newest ``keep`` (0: keep all): batch number, batch id, sha256."""
        if keep == 0:
            return []
        # Batches are numbered without a gap. A count of receipts would read them all, at each batch.
        older = "WHERE r.batch <= (SELECT max(batch) FROM receipts) - ? ORDER BY r.batch"
        return self._kept("r.batch, b.batch_id, r.receipt_sha256", older, keep)

    def oldest_kept(self) -> int:
        """Return the number of the oldest batch whose receipt is kept; 0 if none is."""
        return self._number("SELECT coalesce(min(batch), 0) FROM receipts")

    def drop_receipts(self, dropped: list[tuple[int, str, str]]) -> None:
        """Delete old receipts, and record that their files are to be removed.

        The id and digest of the last one become the chain's anchor.
        """
        if dropped:
            self._many("DELETE FROM receipts WHERE batch = ?", [(batch,) for batch, _, _ in dropped])
            self._store.remember("receipt_anchor_id", dropped[-1][1])
            self._store.remember("receipt_anchor_sha256", dropped[-1][2])
            self._to_remove([*self.files_to_remove(), *(batch_id for _, batch_id, _ in dropped)])

    def files_to_remove(self) -> list[str]:
        """Return the ids of dropped batches whose receipts may still be on disk."""
        return [str(batch_id) for batch_id in orjson.loads(self._store.recall("receipts_to_remove") or "[]")]

    def files_removed(self) -> None:
        """Record that the files of all dropped receipts are gone."""
        self._to_remove([])

    def _to_remove(self, batch_ids: list[str]) -> None:
        self._store.remember("receipts_to_remove", orjson.dumps(batch_ids).decode())

    # what the next receipt must report

    def has_news(self) -> bool:
        """Return whether a receipt must report something, even if nothing waits to be judged."""
        return self._holds("EXISTS (SELECT 1 FROM unreported_inputs)") or bool(self.replaced_files())

    def replaced_files(self) -> list[str]:
        """Return the exports that were rewritten as a whole since the last receipt."""
        return [str(name) for name in orjson.loads(self._store.recall("replaced_files") or "[]")]

    def note_replaced(self, names: list[str]) -> None:
        """Record for the next receipt that exports were rewritten as a whole; an empty list clears the record."""
        known = sorted({*self.replaced_files(), *names}) if names else []
        self._store.remember("replaced_files", orjson.dumps(known).decode())

    def unreported_inputs(self) -> list[InputNote]:
        """Return the input changes that no receipt has reported yet, in walk order."""
        rows = self._run(
            "SELECT p.path, u.kind, u.change, u.sha256, u.size_bytes, u.from_offset, u.to_offset, u.lines,"
            " u.malformed_lines, CASE WHEN f.state = 'present' AND f.ctime_ns > 0 THEN f.ctime_ns END"
            " FROM unreported_inputs u CROSS JOIN partitions p USING (partition_id)"
            " LEFT JOIN files f USING (partition_id, kind) ORDER BY p.walk_base, u.kind"
        )
        return [InputNote(row[0], InputKind(row[1]), *row[2:]) for row in rows]

    def pending_tails(self) -> list[tuple[str, InputKind, int]]:
        """Return the files that end in an incomplete line: path, tree, bytes."""
        rows = self._run(
            "SELECT p.path, f.kind, f.tail_bytes FROM files f INDEXED BY pending_tails"
            " CROSS JOIN partitions p USING (partition_id)"
            " WHERE f.tail = 'pending' AND f.state = 'present' ORDER BY p.walk_base, f.kind"
        )
        return [(path, InputKind(kind), size) for path, kind, size in rows]
