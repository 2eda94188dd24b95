"""What was done: outcomes, exports, batches, receipts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import orjson

from distilld.core.line_facts import REASONS, SHIPPED
from distilld.core.model import (
    EXPORT_PATHS,
    HOUR_NS,
    TAMPERINGS_AN_HOUR,
    WHOLE_FILE,
    Committed,
    Dataset,
    InputKind,
    StatFacts,
)
from distilld.store.connection import Store
from distilld.store.moved import forget_moved_rows
from distilld.store.verdicts import last_verdict

if TYPE_CHECKING:
    # Those who only look at the store do without it.
    from distilld.core.decisions import Decisions


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
    """When it was changed before it was read, by its file system's clock; None where it is gone or to be read anew."""


class BatchRecord(NamedTuple):
    """A committed batch."""

    batch: int
    batch_id: str
    trigger: str
    recorded_at: str


class Totals:
    """Rows at rest, by dataset, state and outcome code."""

    def __init__(self, rows: list[tuple[str, str, int, int]]) -> None:
        self._rows = {(Dataset(dataset), state, outcome): count for dataset, state, outcome, count in rows}

    def shipped(self, dataset: Dataset) -> int:
        """Rows that stand in the dataset's file."""
        return sum(count for (of, _, outcome), count in self._rows.items() if of is dataset and outcome == SHIPPED)

    def held(self, dataset: Dataset) -> int:
        """Rows that stand in the dataset's quarantine file."""
        return sum(count for (of, _, outcome), count in self._rows.items() if of is dataset and outcome != SHIPPED)

    def live(self, dataset: Dataset) -> int:
        """Judged present rows (of preference: pairs tried), whatever became of them."""
        return sum(count for (of, state, _), count in self._rows.items() if of is dataset and state == "live")

    def frozen(self, dataset: Dataset) -> int:
        """Shipped rows that are frozen."""
        return self._rows[dataset, "frozen", SHIPPED]

    def by_reason(self, dataset: Dataset) -> dict[str, int]:
        """Held rows by reason, reasons without rows left out."""
        found: dict[str, int] = {}
        for (of, _, outcome), count in sorted(self._rows.items(), key=lambda item: item[0][2]):
            if of is dataset and outcome != SHIPPED and count:
                found[REASONS[outcome].value] = found.get(REASONS[outcome].value, 0) + count
        return found


class Ledger:
    """The part of the store that records what was done."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._run = store.connection.execute
        self._many = store.connection.executemany

    # batches and receipts

    def last_batch(self) -> BatchRecord | None:
        """The newest committed batch."""
        row = self._run(
            "SELECT batch, batch_id, trigger, recorded_at FROM batches ORDER BY batch DESC LIMIT 1"
        ).fetchone()
        return BatchRecord._make(row) if row else None

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

    def lost_ids(self, dataset: str) -> list[str]:
        """The ids of the rows that a damaged dataset lost for good."""
        rows = self._run("SELECT DISTINCT id FROM withdrawals WHERE dataset = ? AND cause = 'lost'", (dataset,))
        return [sample_id for (sample_id,) in rows]

    def lacks(self, sequence: int, batch_id: str) -> bool:
        """Whether the store should know a batch and does not: it is from before it, or went another way.

        A new store knows none yet, and one that began at a receipt need not know those before it.
        """
        first, known = self._run(
            "SELECT (SELECT batch FROM batches ORDER BY batch LIMIT 1),"
            " EXISTS (SELECT 1 FROM batches WHERE batch_id = ?)",
            (batch_id,),
        ).fetchone()
        if first is None:
            return self._store.recall("taken_over") is not None
        return not known and sequence >= first

    def last_receipt_sha256(self) -> str | None:
        """The digest that the next receipt names: of the newest receipt, or of the chain's anchor."""
        row = self._run("SELECT receipt_sha256 FROM receipts ORDER BY batch DESC LIMIT 1").fetchone()
        return row[0] if row else self._store.recall("receipt_anchor_sha256")

    def chain_anchor(self) -> str | None:
        """The digest that the oldest kept receipt names: of the last one that was removed, or taken over from."""
        return self._store.recall("receipt_anchor_sha256")

    def add_batch(
        self,
        sequence: int,
        batch_id: str,
        trigger: str,
        recorded_at: str,
        decisions: Decisions,
        rows_judged: int,
        bytes_read: int,
        duration_ms: int,
    ) -> None:
        """Record the batch; its number stands for its time in every row that it wrote."""
        self._run(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                sequence, batch_id, trigger, recorded_at,
                sum(change.shipped.rows for change in decisions.changes.values()),
                sum(change.held.rows for change in decisions.changes.values()),
                len(decisions.withdrawals), rows_judged, bytes_read, duration_ms,
            ),
        )  # fmt: skip

    def add_receipt(self, sequence: int, receipt: str, sha256: str) -> None:
        """Keep a receipt; its file is yet to be written."""
        self._run("INSERT INTO receipts VALUES (?, ?, ?, 0)", (sequence, receipt, sha256))
        self._run("DELETE FROM unreported_inputs")

    def anchor(self, sequence: int, batch_id: str, sha256: str, recorded_at: str) -> None:
        """Let the receipt chain of a store without batches go on from a receipt that stands on disk."""
        self._run(
            "INSERT OR IGNORE INTO batches VALUES (?, ?, 'recovery', ?, 0, 0, 0, 0, 0, 0)",
            (sequence, batch_id, recorded_at),
        )
        self._store.remember("receipt_anchor_id", batch_id)
        self._store.remember("receipt_anchor_sha256", sha256)
        self._store.remember("last_recorded_at", recorded_at)

    def unwritten_receipts(self) -> list[tuple[int, str, str]]:
        """Receipts whose files are not known to be written: batch number, batch id, text."""
        return self._run(
            "SELECT r.batch, b.batch_id, r.receipt FROM receipts r CROSS JOIN batches b USING (batch) WHERE r.written = 0 ORDER BY 1"
        ).fetchall()

    def mark_written(self, sequence: int) -> None:
        """The receipt's file is on disk."""
        self._run("UPDATE receipts SET written = 1 WHERE batch = ?", (sequence,))

    def receipts_beyond(self, keep: int) -> list[tuple[int, str, str]]:
        """The oldest receipts beyond ``keep``: batch number, batch id, sha256."""
        if keep == 0:
            return []
        return self._run(
            "SELECT r.batch, b.batch_id, r.receipt_sha256 FROM receipts r CROSS JOIN batches b USING (batch)"
            " WHERE r.batch <= (SELECT batch FROM receipts ORDER BY batch DESC LIMIT 1 OFFSET ?) ORDER BY r.batch",
            (keep,),
        ).fetchall()

    def drop_receipts(self, dropped: list[tuple[int, str, str]]) -> None:
        """Forget old receipts; the last one leaves its id and digest as the chain's anchor."""
        if dropped:
            self._many("DELETE FROM receipts WHERE batch = ?", [(batch,) for batch, _, _ in dropped])
            self._store.remember("receipt_anchor_id", dropped[-1][1])
            self._store.remember("receipt_anchor_sha256", dropped[-1][2])

    def receipts(self, limit: int) -> list[tuple[str, str, str]]:
        """The newest receipts, newest first: batch id, text, sha256."""
        return self._run(
            "SELECT b.batch_id, r.receipt, r.receipt_sha256 FROM receipts r CROSS JOIN batches b USING (batch)"
            " ORDER BY r.batch DESC LIMIT ?",
            (limit,),
        ).fetchall()

    def has_news(self) -> bool:
        """Whether something is yet to be told in a receipt, although nothing may wait to be judged."""
        return bool(self._run("SELECT EXISTS (SELECT 1 FROM unreported_inputs)").fetchone()[0]) or bool(
            self.replaced_files()
        )

    def replaced_files(self) -> list[str]:
        """Exports that were written anew as a whole since the last receipt."""
        return [str(name) for name in orjson.loads(self._store.recall("replaced_files") or "[]")]

    def note_replaced(self, names: list[str]) -> None:
        """Remember for the next receipt that exports were written anew as a whole; an empty list forgets."""
        known = sorted({*self.replaced_files(), *names}) if names else []
        self._store.remember("replaced_files", orjson.dumps(known).decode())

    def unreported_inputs(self) -> list[InputNote]:
        """Input changes that no receipt has told yet, in walk order."""
        rows = self._run(
            "SELECT p.path, u.kind, u.change, u.sha256, u.size_bytes, u.from_offset, u.to_offset, u.lines,"
            " u.malformed_lines, CASE WHEN f.state = 'present' AND f.ctime_ns > 0 THEN f.ctime_ns END"
            " FROM unreported_inputs u CROSS JOIN partitions p USING (partition_id)"
            " LEFT JOIN files f USING (partition_id, kind) ORDER BY p.walk_base, u.kind"
        )
        return [InputNote(row[0], InputKind(row[1]), *row[2:]) for row in rows]

    def pending_tails(self) -> list[tuple[str, InputKind, int]]:
        """Files that end in something which is no complete line yet: path, tree, bytes."""
        rows = self._run(
            "SELECT p.path, f.kind, f.tail_bytes FROM files f CROSS JOIN partitions p USING (partition_id)"
            " WHERE f.tail = 'pending' AND f.state = 'present' ORDER BY p.walk_base, f.kind"
        )
        return [(path, InputKind(kind), size) for path, kind, size in rows]

    # exports

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

    # outcomes

    def apply(self, decisions: Decisions) -> None:
        """Record what the batch decided: outcomes, pairs, queues, totals, withdrawals."""
        for dataset, walks in decisions.released.items():
            # Ids are unique among shipped rows at every moment: who gives one up does so before another takes it.
            self._many(f"UPDATE scored_rows SET {dataset} = NULL WHERE walk = ?", [(walk,) for walk in walks])
        for dataset, frozen_id in decisions.frozen_left:
            self._run(
                f"UPDATE frozen_rows SET {dataset} = NULL, {dataset}_line = NULL, {dataset}_batch = NULL WHERE frozen_id = ?",
                (frozen_id,),
            )
        self._many("DELETE FROM departures WHERE departure_id = ?", [(each,) for each in set(decisions.departures)])
        self._many("DELETE FROM rejudge_frozen WHERE frozen_id = ?", [(each,) for each in decisions.frozen_seen])
        self._many(
            "UPDATE scored_rows SET rag = ?, rag_line = ?, rag_batch = ?, sft = ?, sft_line = ?, sft_batch = ? WHERE walk = ?",
            decisions.rows,
        )
        self._apply_fresh(decisions)
        self._clear_queue(decisions)
        self._apply_pairs(decisions)
        self._many(
            "DELETE FROM adopted_rows WHERE dataset = ? AND sample_key = ?",
            [(dataset.value, key) for dataset, key in decisions.unadopted],
        )
        self._many(
            "UPDATE totals SET rows = rows + ? WHERE dataset = ? AND state = ? AND outcome = ?",
            [
                (rows, dataset.value, state, outcome)
                for (dataset, state, outcome), rows in decisions.totals.items()
                if rows
            ],
        )
        self._run("DELETE FROM frozen_rows WHERE kind <> 'absent' AND rag IS NULL AND sft IS NULL")
        forget_moved_rows(self._store, decisions.frozen_seen)
        self._apply_missing(decisions)

    def _apply_fresh(self, decisions: Decisions) -> None:
        batch = decisions.sequence
        outcomes = f"rag = ?, rag_line = ?, rag_batch = {batch}, sft = ?, sft_line = ?, sft_batch = {batch}"
        self._many(f"UPDATE scored_rows SET {outcomes} WHERE walk = ?", decisions.fresh)
        self._many(f"UPDATE scored_rows SET {outcomes}, evidence_found = ? WHERE walk = ?", decisions.fresh_found)
        self._many("UPDATE scored_rows SET evidence_found = ? WHERE walk = ?", decisions.found)

    def _apply_missing(self, decisions: Decisions) -> None:
        if not self._run("SELECT EXISTS (SELECT 1 FROM missing_lines)").fetchone()[0]:
            return
        self._run("DELETE FROM missing_lines")
        for dataset, change in decisions.changes.items():
            for name, missing in (
                (dataset.value, change.missing_shipped),
                (f"quarantine_{dataset}", change.missing_held),
            ):
                self._many(
                    "INSERT INTO missing_lines VALUES (?, ?, ?)",
                    [(name, digest, copies) for digest, copies in missing.items() if copies > 0],
                )

    def missing_rows(self, name: str) -> int:
        """How many lines an export lost that are yet to be written again."""
        query = "SELECT coalesce(sum(copies), 0) FROM missing_lines WHERE name = ?"
        return int(self._run(query, (name,)).fetchone()[0])

    def _clear_queue(self, decisions: Decisions) -> None:
        if self._run("SELECT EXISTS (SELECT 1 FROM rejudge_rows)").fetchone()[0]:
            self._many("DELETE FROM rejudge_rows WHERE walk = ?", [(walk,) for walk in decisions.judged_walks])
        self._many(
            "INSERT OR IGNORE INTO rejudge_rows (walk, forced) VALUES (?, 0)",
            [(walk,) for walk in decisions.rows_to_queue],
        )
        self._run("UPDATE counters SET value = value - ? WHERE name = 'unjudged_rows'", (decisions.newly_judged,))
        if decisions.judged_to is not None:
            self._run(
                "UPDATE files SET judged_lines = min(indexed_lines, max(judged_lines,"
                " 1 + ?1 - (SELECT walk_base FROM partitions p WHERE p.partition_id = files.partition_id)))"
                " WHERE partition_id IN (SELECT f.partition_id FROM files f INDEXED BY unjudged_files"
                " CROSS JOIN partitions p USING (partition_id) WHERE f.kind = 'scored' AND f.judged_lines < f.indexed_lines"
                " AND f.state = 'present' AND p.walk_base <= ?1) AND kind = 'scored' AND state = 'present'",
                (decisions.judged_to,),
            )

    def _apply_pairs(self, decisions: Decisions) -> None:
        self._many("UPDATE pairs SET frozen = 'absent' WHERE pair_id = ?", [(each,) for each in decisions.frozen_pairs])
        self._many("DELETE FROM pairs WHERE pair_id = ?", [(each,) for each in set(decisions.dropped_pairs)])
        self._many(
            "INSERT INTO pairs (task_id, slot, chosen_run_id, rejected_run_id, rejected_category, chosen_partition,"
            " rejected_partition, sample_key, outcome, line, batch) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            decisions.pairs,
        )
        self._many("DELETE FROM rejudge_tasks WHERE task_id = ?", [(task,) for task in decisions.tasks])
        self._many("INSERT OR IGNORE INTO rejudge_tasks VALUES (?, 0)", [(task,) for task in decisions.tasks_to_queue])

    def batch_id_of(self, batch: int | None) -> str | None:
        """The id of a batch; None for an adopted row's."""
        if not batch:
            return None
        row = self._run("SELECT batch_id FROM batches WHERE batch = ?", (batch,)).fetchone()
        return row[0] if row else None

    # accounting

    def totals(self) -> Totals:
        """Rows at rest."""
        return Totals(self._run("SELECT dataset, state, outcome, rows FROM totals").fetchall())

    def counter(self, name: str) -> int:
        """One of the store's counters."""
        return int(self._run("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()[0])

    def verdicts_among(self, walks: Iterable[int], codes: Iterable[int]) -> list[tuple[int, int]]:
        """Those of these rows whose run's last present verdict has one of the codes, with it: the firewall's second look."""
        return self._run(
            f"SELECT s.walk, {last_verdict('s.run_id')} AS code FROM json_each(?) j CROSS JOIN scored_rows s"
            f" ON s.walk = j.value WHERE code IN ({','.join(map(str, codes))})",
            (f"[{','.join(map(str, walks))}]",),
        ).fetchall()


_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")


def _ns_of(moment: str | int) -> int:
    """A time in nanoseconds, which is also how older versions wrote it."""
    if isinstance(moment, int):
        return moment
    return round(datetime.fromisoformat(moment).timestamp() * 1000) * 1_000_000
