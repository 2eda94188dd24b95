"""The facts of the inputs: partitions, files, scored rows, evidence rows.

Every method runs inside the caller's transaction and touches no export. What a change of facts can change in the
datasets is put into the queues ``rejudge_rows``, ``rejudge_tasks``, ``rejudge_frozen`` and ``departures``, in the same
transaction, so that a crash between indexing and judging loses nothing.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from distilld.core.line_facts import (
    CATEGORY_CODES,
    DUPLICATE,
    LINES_END,
    REASON_CODES,
    SHIPPED,
    VERDICTS,
    RowFacts,
)
from distilld.core.model import Category, Dataset, InputKind, Options, ProgramError, Reason, StatFacts
from distilld.core.plan import FileKey
from distilld.store.connection import Store
from distilld.store.schema import BASE_END, BASE_STEP, BEHIND_ID, REST, last_verdict, rest_moved

_MASK = LINES_END - 1
_FACTS = "start_byte, length_bytes, digest, run_id, task_id, category, malformed, sample_key"
_CAN_HAVE_PAIRS = "{0}.task_id IS NOT NULL AND ({0}.evidence_found = 1 OR EXISTS (SELECT 1 FROM pairs p WHERE p.task_id = {0}.task_id))"
"""Rows whose task may have pairs: of one whose evidence is absent, pairs can be frozen."""
ORDER_MATTERS: Final = (
    "EXISTS (SELECT 1 FROM totals WHERE dataset = 'preference' AND state = 'live' AND rows > 0"
    f" AND outcome IN ({DUPLICATE}, {REASON_CODES[Reason.SCHEMA_VIOLATION]}))"
)
"""SQL for whether any pair could have another outcome if its task came earlier or later; answered once a statement."""
_RESTS = (
    "SELECT p.walk_base + f.indexed_lines, f.rest_category FROM malformed_runs m CROSS JOIN files f"
    f" ON {REST} CROSS JOIN partitions p USING (partition_id) WHERE m.run_id = ?1"
)
_OUTCOMES = "rag, rag_line, rag_batch, sft, sft_line, sft_batch"


SURE_AFTER_NS: Final = 2_000_000_000
"""Bytes that were hashed so long after our first look at a file's facts cannot change later under the same facts."""


@dataclass(slots=True)
class FileRecord:
    """What the store knows of one input file: its stat facts as of its last reading, and how far it is indexed."""

    partition_id: int
    walk_base: int
    path: str
    kind: InputKind
    state: str
    facts: StatFacts
    indexed_bytes: int
    indexed_sha256: str
    indexed_lines: int
    malformed_lines: int
    tail: str | None
    tail_bytes: int
    tail_digest: bytes | None
    unsure_since_ns: int | None = None
    """Our first look that saw these facts, by the monotonic clock; None once its bytes were hashed long enough after."""
    hashed_at_ns: int = 0
    """When its bytes were hashed last, by our clock."""

    def note_hashed(self, facts: StatFacts, began_ns: int) -> None:
        """Note that its bytes were hashed while it had these facts, and not before ``began_ns`` (monotonic)."""
        now_ns = time.monotonic_ns()
        since_ns = now_ns if facts != self.facts else self.unsure_since_ns
        sure = since_ns is None or began_ns - since_ns >= SURE_AFTER_NS
        self.facts, self.unsure_since_ns, self.hashed_at_ns = facts, None if sure else since_ns, time.time_ns()

    def is_doubtful(self, hashed_since_ns: int | None) -> bool:
        """Whether it is to be read though it has its facts: they do not prove its bytes, or it is overdue to be hashed."""
        if hashed_since_ns is None:
            return False
        return self.unsure_since_ns is not None or self.hashed_at_ns <= hashed_since_ns

    @property
    def present(self) -> bool:
        """Whether the file stood in its tree when it was last looked for."""
        return self.state == "present"


def file_records(store: Store, which: str = "", values: tuple[int, ...] = ()) -> list[FileRecord]:
    """The records of all files, or of those that an SQL clause selects."""
    rows = store.connection.execute(
        "SELECT partition_id, p.walk_base, p.path, kind, state, device, inode, size_bytes, mtime_ns, ctime_ns,"
        " indexed_bytes, indexed_sha256, indexed_lines, malformed_lines, tail, tail_bytes, tail_digest,"
        f" unsure_since_ns, hashed_at_ns FROM files f CROSS JOIN partitions p USING (partition_id) {which}",
        values,
    )
    kinds = {kind.value: kind for kind in InputKind}
    return [
        FileRecord(row[0], row[1], row[2], kinds[row[3]], row[4], StatFacts._make(row[5:10]), *row[10:]) for row in rows
    ]


class InForce(NamedTuple):
    """The categories that decide over a run: per dataset, and among the present verdicts alone."""

    rag: Category | None
    sft: Category | None
    present: Category | None


class Inputs:
    """The part of the store that knows the input files."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._run = store.connection.execute
        self._many = store.connection.executemany
        self._files: dict[FileKey, FileRecord] | None = None

    # files and partitions

    def files(self) -> dict[FileKey, FileRecord]:
        """Every file that is known, present or absent.

        Read once and kept: this process is the store's only writer. After a failure, or where another part of the store
        wrote, :meth:`forget_files` lets the next call read anew.
        """
        if self._files is None:
            self._files = {(record.kind, record.path): record for record in file_records(self._store)}
        return self._files

    def all_as_recorded(
        self, files: Collection[tuple[InputKind, str, StatFacts]], *, hashed_since_ns: int | None = None
    ) -> bool:
        """Whether these files are all that are known and present, each as when it was read.

        With ``hashed_since_ns``, each must have been hashed since then as well, and its facts prove its bytes.
        The same as that :func:`distilld.core.plan.compare` finds nothing in them, at a third of the price at a start: no
        record is made of what mostly did not change. Where the records are at hand it says False, for them to be asked.
        """
        if self._files is not None:
            return False
        (present,) = self._run("SELECT count(*) FROM files WHERE state = 'present'").fetchone()
        if len(files) != present:
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
        """Read the files anew at the next call."""
        self._files = None

    def write_file(self, record: FileRecord, *, judged: bool = False) -> None:
        """Record what is known of a file; ``judged`` says that its rows wait in the queue, not behind a mark."""
        values = (
            record.partition_id, record.kind.value, record.state, *record.facts[:2], *record.facts[2:],
            record.indexed_bytes, record.indexed_sha256, record.indexed_lines, record.indexed_lines if judged else 0,
            record.malformed_lines, record.tail, record.tail_bytes, record.tail_digest, record.unsure_since_ns,
            record.hashed_at_ns,
        )  # fmt: skip
        columns = (
            "partition_id, kind, state, device, inode, size_bytes, mtime_ns, ctime_ns, indexed_bytes,"
            " indexed_sha256, indexed_lines, judged_lines, malformed_lines, tail, tail_bytes, tail_digest,"
            " unsure_since_ns, hashed_at_ns"
        )
        kept = ("partition_id", "kind") if judged else ("partition_id", "kind", "judged_lines")
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns.split(", ") if name.strip() not in kept)
        self._run(
            f"INSERT INTO files ({columns}) VALUES ({', '.join('?' * len(values))})"
            f" ON CONFLICT (partition_id, kind) DO UPDATE SET {updates}",
            values,
        )
        self.files()[record.kind, record.path] = record

    def take(self, record: FileRecord) -> None:
        """Have what is held in memory follow what another part of the store wrote of a file."""
        if self._files is not None:
            self._files[record.kind, record.path] = record

    def set_rest(self, record: FileRecord, rest: tuple[bytes, int] | None, options: Options) -> None:
        """Record what a scored file's unterminated rest forbids, by its digest and category; None: nothing."""
        place = (record.partition_id, InputKind.SCORED.value)
        query = "SELECT rest_digest, rest_category FROM files WHERE partition_id = ? AND kind = ? AND rest_category IS NOT NULL"
        known = self._run(query, place).fetchone()
        if known == rest:
            return
        digests = [each[0] for each in (known, rest) if each is not None]
        runs = {
            run_id
            for digest in digests
            for (run_id,) in self._run("SELECT run_id FROM malformed_runs WHERE digest = ?", (digest,))
        }
        before = [(run_id, self.in_force(run_id, options)) for run_id in sorted(runs)]
        self._run(
            "UPDATE files SET rest_digest = ?, rest_category = ? WHERE partition_id = ? AND kind = ?",
            (*(rest or (None, None)), *place),
        )
        for run_id, old in before:
            self.queue_verdict_change(run_id, old, self.in_force(run_id, options), options)

    def doubt(self, keys: Iterable[FileKey]) -> None:
        """Have known files read at the next look, though a stat should say that they are as recorded."""
        for key in keys:
            record = self.files()[key]
            record.facts = record.facts.doubted()
            self.write_file(record)

    def forget_file(self, record: FileRecord) -> None:
        """Drop a file that is gone for good."""
        self._run("DELETE FROM files WHERE partition_id = ? AND kind = ?", (record.partition_id, record.kind.value))
        self.files().pop((record.kind, record.path), None)

    def place_partitions(self, paths: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Give new partitions their place in the walk order; returns (partition_id, walk_base) of each path.

        A place between two neighbours is found in the gap that their bases leave; where a gap is used up, all bases
        are spread anew (counted in ``counters.walk_relabels``).
        """
        known = {
            path: (number, base)
            for number, path, base in self._run("SELECT partition_id, path, walk_base FROM partitions")
        }
        wanted = sorted((path for path in set(paths) if path not in known), key=_components)
        if not wanted:
            return known
        order = sorted(known, key=_components)
        keys = [_components(path) for path in order]
        groups: dict[int, list[str]] = {}
        for path in wanted:
            groups.setdefault(bisect.bisect(keys, _components(path)), []).append(path)
        for at, group in groups.items():
            low = known[order[at - 1]][1] if at else 0
            high = known[order[at]][1] if at < len(order) else min(low + BASE_STEP * (len(group) + 1), BASE_END)
            step = (high - low) // (len(group) + 1) & ~_MASK
            if step < LINES_END:
                self._spread_bases(wanted)
                return self.place_partitions(wanted)
            for number, path in enumerate(group, 1):
                base = low + step * number
                partition_id = self._run(
                    "INSERT INTO partitions (path, walk_base) VALUES (?, ?)", (path, base)
                ).lastrowid
                known[path] = (partition_id or 0, base)
        return known

    def _spread_bases(self, coming: list[str]) -> None:
        """Spread all bases evenly, with room for what comes; rows move with their partitions."""
        old = self._run("SELECT partition_id, path, walk_base FROM partitions").fetchall()
        order = sorted([*(path for _, path, _ in old), *coming], key=_components)
        step = BASE_END // (len(order) + 2) & ~_MASK
        step = min(step, BASE_STEP) if len(order) * BASE_STEP < BASE_END // 2 else step
        if step < 2 * LINES_END:
            raise ProgramError(f"{len(order)} partitions are more than a state store can order")
        new = {path: step * (number + 1) for number, path in enumerate(order)}
        # Two passes through negative numbers: a new base may be another partition's old one.
        for sign in (-1, 1):
            for partition_id, path, base in old:
                source = base if sign < 0 else -new[path]
                self._move_walks(source, sign * new[path])
                self._run(
                    "UPDATE partitions SET walk_base = ? WHERE partition_id = ?", (sign * new[path], partition_id)
                )
        self._run("UPDATE counters SET value = value + 1 WHERE name = 'walk_relabels'")

    def _move_walks(self, source: int, target: int) -> None:
        for table in ("scored_rows", "rejudge_rows"):
            self._run(
                f"UPDATE {table} SET walk = walk + ? WHERE walk >= ? AND walk < ?",
                (target - source, source, source + LINES_END),
            )

    # scored rows

    def add_scored(self, record: FileRecord, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows behind those that are known of the file; they are unjudged."""
        found = self._evidence_found(record.partition_id, "?5")
        base = record.walk_base
        self._many(
            f"INSERT INTO scored_rows (walk, {_FACTS}, evidence_found)"
            f" VALUES (?1 + {base}, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, {found})",
            rows,
        )
        self.count_rows(len(rows), len(rows))

    def add_malformed_runs(self, runs: list[tuple[str, bytes]]) -> None:
        """Remember the runs that malformed lines name, by the lines' digests; before the lines are added or applied."""
        if runs:
            self._many("INSERT OR IGNORE INTO malformed_runs VALUES (?, ?)", runs)

    def _evidence_found(self, partition_id: int, run: str) -> str:
        """SQL for whether a run has evidence in the mirrored partition; an absent evidence file has none to give."""
        present = self._run(
            "SELECT EXISTS (SELECT 1 FROM files WHERE partition_id = ? AND kind = 'evidence' AND state = 'present')",
            (partition_id,),
        ).fetchone()[0]
        if not present:
            return "0"
        return f"EXISTS (SELECT 1 FROM evidence_rows e WHERE e.partition_id = {partition_id} AND e.run_id = {run})"

    def facts_of(self, record: FileRecord) -> list[tuple[Any, ...]]:
        """The facts of a file's rows as they are known, in their order: RowFacts by line, or EvidenceFacts by run."""
        if record.kind is InputKind.EVIDENCE:
            return self._run(
                "SELECT run_id, line, start_byte, length_bytes, digest FROM evidence_rows WHERE partition_id = ? ORDER BY 1",
                (record.partition_id,),
            ).fetchall()
        low = record.walk_base
        return self._run(
            f"SELECT walk - ?1, {_FACTS} FROM scored_rows WHERE walk >= ?1 AND walk < ?2 ORDER BY walk",
            (low, low + LINES_END),
        ).fetchall()

    def rows_beside_others(self, record: FileRecord) -> int:
        """How many rows of a scored file there are beyond one for each run."""
        low = record.walk_base
        return int(
            self._run(
                "SELECT count(run_id) - count(DISTINCT run_id) FROM scored_rows WHERE walk >= ? AND walk < ?",
                (low, low + LINES_END),
            ).fetchone()[0]
        )

    def has_exceptions(self) -> bool:
        """Whether anything is absent, kept by way of exception, or about to depart."""
        return bool(
            self._run(
                "SELECT EXISTS (SELECT 1 FROM frozen_rows) OR EXISTS (SELECT 1 FROM departures)"
                " OR EXISTS (SELECT 1 FROM files WHERE state = 'absent')"
                " OR EXISTS (SELECT 1 FROM pairs WHERE frozen IS NOT NULL)"
            ).fetchone()[0]
        )

    def add_unread_evidence(
        self, record: FileRecord, rows: Sequence[tuple[Any, ...]], *, all_judged: bool = False
    ) -> None:
        """Take in an evidence file that was read when its rows were judged, which know already whether they have any.

        Unless all were judged, the others learn it here. Queue the tasks that may form pairs now.
        """
        self.add_evidence(record, rows)
        self.write_file(record)
        low = record.walk_base
        if not all_judged:
            found = self._evidence_found(record.partition_id, "scored_rows.run_id")
            self._run(
                f"UPDATE scored_rows SET evidence_found = {found} WHERE walk >= ? AND walk < ? AND rag IS NULL",
                (low, low + LINES_END),
            )
        self.note_input(record, "new", 0, record.indexed_lines, record.malformed_lines)
        self._run(
            f"INSERT OR IGNORE INTO rejudge_tasks SELECT DISTINCT s.task_id, 0 FROM scored_rows s WHERE {CAN_PAIR}",
            (low, low + LINES_END),
        )

    def count_rows(self, rows: int, unjudged: int) -> None:
        """Count scored rows in, or with negative numbers out; ``unjudged`` of them were never judged."""
        self._many(
            "UPDATE counters SET value = value + ? WHERE name = ?", [(rows, "scored_rows"), (unjudged, "unjudged_rows")]
        )

    def is_fresh(self) -> bool:
        """Whether nothing was ever judged, so that new facts can change no outcome."""
        counters = dict(self._run("SELECT name, value FROM counters").fetchall())
        return (
            counters["scored_rows"] == counters["unjudged_rows"]
            and not self._run("SELECT EXISTS (SELECT 1 FROM frozen_rows) OR EXISTS (SELECT 1 FROM pairs)").fetchone()[0]
        )

    def close_over_new(self, record: FileRecord, first_line: int, end_line: int, options: Options) -> None:
        """Queue what rows [first_line, end_line) of a scored file change elsewhere: verdicts, frozen copies."""
        low, high = record.walk_base + first_line, record.walk_base + end_line
        runs = self._run(
            "SELECT DISTINCT n.run_id FROM scored_rows n WHERE n.walk >= ?1 AND n.walk < ?2 AND n.run_id IS NOT NULL"
            " AND n.category IS NOT NULL AND ("
            " EXISTS (SELECT 1 FROM scored_rows o WHERE o.run_id = n.run_id AND o.walk < ?1)"
            " OR EXISTS (SELECT 1 FROM scored_rows o WHERE o.run_id = n.run_id AND o.walk >= ?2)"
            " OR EXISTS (SELECT 1 FROM frozen_rows f WHERE f.run_id = n.run_id)"
            " OR EXISTS (SELECT 1 FROM pairs p WHERE p.chosen_run_id = n.run_id AND p.frozen IS NOT NULL)"
            " OR EXISTS (SELECT 1 FROM pairs p WHERE p.rejected_run_id = n.run_id AND p.frozen IS NOT NULL)"
            " OR EXISTS (SELECT 1 FROM malformed_runs m WHERE m.run_id = n.run_id))"
            f" UNION {_named_in_malformed('scored_rows')} AND n.walk >= ?1 AND n.walk < ?2",
            (low, high),
        ).fetchall()
        for (run_id,) in runs:
            before = self.in_force(run_id, options, without=(low, high))
            self.queue_verdict_change(run_id, before, self.in_force(run_id, options), options)
        self._queue_copied(
            f"scored_rows n CROSS JOIN frozen_rows f ON f.digest = n.digest AND n.walk >= {low} AND n.walk < {high}"
        )
        self._doubt_orphans(f"scored_rows WHERE walk >= {low} AND walk < {high}")

    def _doubt_orphans(self, source: str) -> None:
        """Orphans of runs that new rows name are to be decided on anew: the inputs speak of them now (SPEC 3.11)."""
        named = f"(SELECT run_id FROM {source})"
        if self._run("SELECT EXISTS (SELECT 1 FROM frozen_rows WHERE kind = 'orphan' AND accepted = 1)").fetchone()[0]:
            self._run(
                "UPDATE frozen_rows INDEXED BY frozen_rows_by_run SET accepted = 0"
                f" WHERE kind = 'orphan' AND run_id IN {named}"
            )
        if self._run("SELECT EXISTS (SELECT 1 FROM pairs WHERE frozen = 'orphan' AND accepted = 1)").fetchone()[0]:
            for side in ("chosen", "rejected"):
                self._run(
                    f"UPDATE pairs INDEXED BY pairs_by_{side}_run SET accepted = 0"
                    f" WHERE frozen = 'orphan' AND {side}_run_id IN {named}"
                )

    def _queue_copied(self, source: str) -> None:
        """Frozen rows ``f`` whose very lines stand in a present partition count only there, and so do pairs of them."""
        if not self._run("SELECT EXISTS (SELECT 1 FROM frozen_rows)").fetchone()[0]:
            return
        self._run(f"INSERT OR IGNORE INTO rejudge_frozen SELECT f.frozen_id FROM {source} WHERE f.kind <> 'orphan'")
        for side in ("chosen", "rejected"):
            self._run(
                f"INSERT OR IGNORE INTO rejudge_tasks SELECT p.task_id, 0 FROM {source} CROSS JOIN pairs p"
                f" ON p.{side}_run_id = f.run_id WHERE f.kind <> 'orphan' AND p.frozen = 'absent'"
            )

    def in_force(self, run_id: str, options: Options, without: tuple[int, int] | None = None) -> InForce:
        """The verdicts in force of a run (SPEC 3.4; absent ones forbid and never clear)."""
        low, high = without or (0, 0)
        present = self._run(
            "SELECT walk, category FROM (SELECT * FROM (SELECT walk, category FROM scored_rows WHERE run_id = ?1 AND"
            " category IS NOT NULL AND walk >= ?3 ORDER BY walk DESC LIMIT 1)"
            " UNION ALL SELECT * FROM (SELECT walk, category FROM scored_rows WHERE run_id = ?1 AND"
            " category IS NOT NULL AND walk < ?2 ORDER BY walk DESC LIMIT 1)"
            " UNION ALL SELECT s.walk, s.category FROM malformed_runs m CROSS JOIN scored_rows s"
            "  ON s.digest = m.digest AND s.run_id IS NULL WHERE m.run_id = ?1 AND s.category IS NOT NULL"
            "  AND NOT (s.walk >= ?2 AND s.walk < ?3)"
            f" UNION ALL {_RESTS.format('present')}) ORDER BY walk DESC LIMIT 1",
            (run_id, low, high),
        ).fetchone()
        elsewhere = "s.digest = f.digest AND NOT (s.walk >= ?2 AND s.walk < ?3)"
        codes = forbidding_codes(options, Dataset.RAG, Dataset.SFT)  # of absent ones no other counts
        absent = self._run(
            "SELECT p.walk_base + f.line, f.category FROM frozen_rows f CROSS JOIN partitions p USING (partition_id)"
            f" WHERE f.run_id = ?1 AND f.kind = 'absent' AND f.category IN ({codes}) AND NOT EXISTS"
            f" (SELECT 1 FROM scored_rows s WHERE s.run_id = ?1 AND {elsewhere})"
            " UNION ALL SELECT p.walk_base + f.line, f.category FROM malformed_runs m CROSS JOIN frozen_rows f"
            " ON f.digest = m.digest AND f.run_id IS NULL CROSS JOIN partitions p USING (partition_id)"
            f" WHERE m.run_id = ?1 AND f.kind = 'absent' AND f.category IN ({codes}) AND NOT EXISTS"
            f" (SELECT 1 FROM scored_rows s WHERE s.run_id IS NULL AND {elsewhere})"
            f" UNION ALL {_RESTS.format('absent')} AND NOT {rest_moved('NOT (s.walk >= ?2 AND s.walk < ?3)')} ORDER BY 1 DESC",
            (run_id, low, high),
        ).fetchall()
        return InForce(
            _last(Dataset.RAG, present, absent, options),
            _last(Dataset.SFT, present, absent, options),
            VERDICTS[present[1]] if present else None,
        )

    def queue_verdict_change(self, run_id: str, before: InForce, after: InForce, options: Options) -> None:
        """Queue what a change of the verdicts in force can change: the run's rows, its frozen rows, its pairs."""
        if not options.revoke or before == after:
            return
        flips = [
            options.forbids(dataset, new) if new else False
            for dataset, old, new in ((Dataset.RAG, before.rag, after.rag), (Dataset.SFT, before.sft, after.sft))
            if old is not new and any(category and options.forbids(dataset, category) for category in (old, new))
        ]
        if flips:
            self._run(
                "INSERT INTO rejudge_rows (walk, forced) SELECT walk, ?2 FROM scored_rows WHERE run_id = ?1"
                " ON CONFLICT (walk) DO UPDATE SET forced = max(forced, excluded.forced)",
                (run_id, int(any(flips))),
            )
        # What was taken over leaves for a verdict that forbids it, for no other: a first pass would queue it all.
        forbids = any(
            new is not None and options.forbids(dataset, new)
            for dataset, new in ((Dataset.RAG, after.rag), (Dataset.SFT, after.sft))
        )
        some = "" if forbids else " AND kind <> 'orphan'"
        self._run(
            f"INSERT OR IGNORE INTO rejudge_frozen SELECT frozen_id FROM frozen_rows WHERE run_id = ?{some}", (run_id,)
        )
        self._run(
            "INSERT OR REPLACE INTO rejudge_tasks SELECT task_id, 1 FROM pairs WHERE chosen_run_id = ?1"
            " UNION SELECT task_id, 1 FROM pairs WHERE rejected_run_id = ?1",
            (run_id,),
        )

    # rewriting a scored file

    def stage_scored(self) -> None:
        """Begin to take in a rewritten scored file."""
        self._run("DROP TABLE IF EXISTS temp.incoming")
        self._run(
            "CREATE TEMP TABLE incoming (line INTEGER PRIMARY KEY, start_byte INTEGER, length_bytes INTEGER, digest BLOB,"
            " run_id TEXT, task_id TEXT, category INTEGER, malformed INTEGER, sample_key INTEGER, old_walk INTEGER)"
        )

    def add_staged(self, rows: list[RowFacts]) -> None:
        """Stage some lines of the rewritten file."""
        self._many(f"INSERT INTO incoming (line, {_FACTS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def replace_scored(self, record: FileRecord, options: Options) -> None:
        """Put the staged lines in the place of what was known of the file.

        A line whose bytes stood in the file before keeps its outcomes and is not judged anew for having moved, but for
        what its place decides: a quarantine row's location, and who holds an id.
        """
        low, high = record.walk_base, record.walk_base + LINES_END
        self._match(low, high)
        runs = [
            run_id
            for (run_id,) in self._run(
                "SELECT i.run_id FROM incoming i LEFT JOIN scored_rows s ON s.walk = i.old_walk WHERE i.run_id IS NOT NULL"
                " AND (i.old_walk IS NULL OR i.old_walk <> i.line + ?1 OR s.category IS NOT i.category)"
                " UNION SELECT run_id FROM departing WHERE run_id IS NOT NULL"
                f" UNION {_named_in_malformed('incoming')} UNION {_named_in_malformed('departing')}",
                (low,),
            )
        ]
        before = [self.in_force(run_id, options) for run_id in runs]
        self._depart(record.partition_id, low)
        self._move(low)
        self._insert_new(record, low)
        self._run("UPDATE scored_rows SET start_byte = i.start_byte FROM incoming i WHERE walk = i.line + ?1"
                  " AND i.old_walk = i.line + ?1 AND scored_rows.start_byte <> i.start_byte", (low,))  # fmt: skip
        self._run("UPDATE scored_rows SET category = i.category FROM incoming i WHERE walk = i.line + ?1"
                  " AND scored_rows.category IS NOT i.category", (low,))  # fmt: skip
        self._queue_copied("incoming n CROSS JOIN frozen_rows f ON f.digest = n.digest")
        self._doubt_orphans("incoming")
        for run_id, old in zip(runs, before, strict=True):
            self.queue_verdict_change(run_id, old, self.in_force(run_id, options), options)
        self._queue_unjudged(low, high)
        self._run("DROP TABLE temp.incoming")
        self._run("DROP TABLE temp.departing")

    def _match(self, low: int, high: int) -> None:
        """Pair staged lines with known rows of the same bytes, in place or else in order; unpaired known rows depart."""
        self._run("DROP TABLE IF EXISTS temp.paired")
        # Another line limit makes a line too long that was not, or the other way round: then its bytes alone say nothing.
        self._run(
            "CREATE TEMP TABLE paired AS SELECT i.line AS line, s.walk AS walk FROM incoming i CROSS JOIN scored_rows s"
            " ON s.walk = i.line + ?1 AND s.digest = i.digest AND s.malformed IS i.malformed",
            (low,),
        )
        self._run(
            "INSERT INTO paired WITH"
            " o AS (SELECT walk, digest, malformed, row_number() OVER (PARTITION BY digest ORDER BY walk) AS nth"
            "       FROM scored_rows WHERE walk >= ?1 AND walk < ?2 AND walk NOT IN (SELECT walk FROM paired)),"
            " n AS (SELECT line, digest, malformed, row_number() OVER (PARTITION BY digest ORDER BY line) AS nth"
            "       FROM incoming WHERE line NOT IN (SELECT line FROM paired))"
            " SELECT n.line, o.walk FROM n JOIN o ON n.digest = o.digest AND n.nth = o.nth"
            " AND n.malformed IS o.malformed",
            (low, high),
        )
        self._run("UPDATE incoming SET old_walk = paired.walk FROM paired WHERE paired.line = incoming.line")
        self._run("DROP TABLE IF EXISTS temp.departing")
        self._run(
            "CREATE TEMP TABLE departing AS SELECT * FROM scored_rows WHERE walk >= ?1 AND walk < ?2"
            " AND walk NOT IN (SELECT walk FROM paired)",
            (low, high),
        )
        self._run("DROP TABLE temp.paired")

    def _depart(self, partition_id: int, low: int) -> None:
        """Rows that the file no longer holds: their lines in the exports wait in ``departures``."""
        for dataset in ("rag", "sft"):
            self._run(
                "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, task_id, category, cause,"
                " partition_id, row_line, row)"
                f" SELECT '{dataset}', d.{dataset}, d.sample_key, d.{dataset}_line, d.{dataset}_batch, d.run_id, d.task_id,"
                " d.category, CASE WHEN i.run_id = d.run_id THEN 'rescored' ELSE 'row_removed' END, ?1, d.walk - ?2,"
                " d.digest FROM departing d LEFT JOIN incoming i ON i.line = d.walk - ?2"
                f" WHERE d.{dataset} IS NOT NULL",
                (partition_id, low),
            )
            self._shift_totals(dataset, "departing", "live", "departing")
        self._touch_tasks("departing", _CAN_HAVE_PAIRS.format("departing"))
        removed, unjudged = self._run("SELECT count(*), count(*) FILTER (WHERE rag IS NULL) FROM departing").fetchone()
        self.count_rows(-removed, -unjudged)
        woken = self._woken("departing")
        self._run("DELETE FROM rejudge_rows WHERE walk IN (SELECT walk FROM departing)")
        self._run("DELETE FROM scored_rows WHERE walk IN (SELECT walk FROM departing)")
        self._wake_next(woken)

    def _shift_totals(self, dataset: str, table: str, source: str, target: str, where: str = "1") -> None:
        counts = self._run(
            f"SELECT {dataset}, count(*) FROM {table} WHERE {dataset} IS NOT NULL AND {where} GROUP BY {dataset}"
        ).fetchall()
        for outcome, rows in counts:
            self.add_total(dataset, source, outcome, -rows)
            self.add_total(dataset, target, outcome, rows)

    def add_total(self, dataset: str, state: str, outcome: int, rows: int) -> None:
        """Count rows of a dataset in or out of a state."""
        self._run(
            "UPDATE totals SET rows = rows + ? WHERE dataset = ? AND state = ? AND outcome = ?",
            (rows, dataset, state, outcome),
        )

    def _touch_tasks(self, table: str, where: str) -> None:
        self._run(f"INSERT OR IGNORE INTO rejudge_tasks SELECT DISTINCT task_id, 0 FROM {table} WHERE {where}")

    def _move(self, low: int) -> None:
        """Lines whose bytes stood elsewhere in the file take their outcomes along."""
        self._run("DROP TABLE IF EXISTS temp.moving")
        self._run(
            f"CREATE TEMP TABLE moving AS SELECT i.line + ?1 AS walk, s.walk AS old_walk, i.start_byte AS new_start,"
            f" s.{', s.'.join(_FACTS.split(', '))}, {_OUTCOMES}, s.evidence_found, s.kept"
            " FROM incoming i CROSS JOIN scored_rows s ON s.walk = i.old_walk WHERE i.old_walk <> i.line + ?1",
            (low,),
        )
        self._run("DROP TABLE IF EXISTS temp.waiting")
        self._run(
            "CREATE TEMP TABLE waiting AS SELECT m.walk, q.forced, q.evidence_changed FROM moving m JOIN rejudge_rows q"
            " ON q.walk = m.old_walk"
        )
        self._run("DELETE FROM rejudge_rows WHERE walk IN (SELECT old_walk FROM moving)")
        self._run("DELETE FROM scored_rows WHERE walk IN (SELECT old_walk FROM moving)")
        facts = _FACTS.replace("start_byte", "new_start")
        self._run(
            f"INSERT INTO scored_rows (walk, {_FACTS}, {_OUTCOMES}, evidence_found, kept)"
            f" SELECT walk, {facts}, {_OUTCOMES}, evidence_found, kept FROM moving"
        )
        self._run("INSERT INTO rejudge_rows SELECT walk, forced, evidence_changed FROM waiting")
        self._run("DROP TABLE temp.waiting")
        self._run(
            "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM moving"
            f" WHERE rag IS NULL OR rag <> {SHIPPED} OR sft IS NULL OR sft <> {SHIPPED}"
        )
        for dataset in ("rag", "sft"):
            self._run(
                "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT d.walk, 0 FROM moving m CROSS JOIN scored_rows d"
                f" ON d.sample_key = m.sample_key AND d.{dataset} = {DUPLICATE}"
                f" WHERE m.{dataset} = {SHIPPED} AND d.walk < m.walk"
            )
            self._queue_behind(dataset, "moving m", "1")
        self._touch_tasks("moving", "task_id IS NOT NULL AND evidence_found = 1")
        self._run("DROP TABLE temp.moving")

    def _queue_behind(self, dataset: str, source: str, where: str) -> None:
        """Rows that a later gate holds are duplicates now, if a row of ``source`` ships their id from an earlier place."""
        held = BEHIND_ID[dataset].replace(f"{dataset} IN", f"b.{dataset} IN")
        held = held.replace("sample_key", "b.sample_key").replace("evidence_found", "b.evidence_found")
        self._run(
            f"INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT b.walk, 0 FROM {source} CROSS JOIN scored_rows b"
            f" ON b.sample_key = m.sample_key WHERE {where} AND m.{dataset} = {SHIPPED} AND b.walk > m.walk AND {held}"
        )

    def _insert_new(self, record: FileRecord, low: int) -> None:
        found = self._evidence_found(record.partition_id, "incoming.run_id")
        self._run(
            f"INSERT INTO scored_rows (walk, {_FACTS}, evidence_found)"
            f" SELECT line + ?1, {_FACTS}, {found} FROM incoming WHERE old_walk IS NULL",
            (low,),
        )
        added = self._run("SELECT count(*) FROM incoming WHERE old_walk IS NULL").fetchone()[0]
        self.count_rows(added, added)

    def _queue_unjudged(self, low: int, high: int) -> None:
        """Rows that were never judged, new ones and those that a pass did not get to, wait in the queues with their tasks.

        No mark stands before them any more (:meth:`write_file`), so nobody else would ask for them.
        """
        never = f"walk >= {low} AND walk < {high} AND rag IS NULL"
        self._run(f"INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM scored_rows WHERE {never}")
        self._touch_tasks("scored_rows", f"{never} AND task_id IS NOT NULL AND evidence_found = 1")

    # evidence rows

    def add_evidence(self, record: FileRecord, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert evidence that no scored row waits for: the last row of a run counts."""
        self._many(
            f"INSERT OR REPLACE INTO evidence_rows VALUES ({record.partition_id}, ?, ?, ?, ?, ?)",
            rows,
        )

    def stage_evidence(self) -> None:
        """Begin to take in evidence whose effect on known scored rows matters."""
        self._run("DROP TABLE IF EXISTS temp.incoming")
        self._run(
            "CREATE TEMP TABLE incoming (run_id TEXT PRIMARY KEY, line INTEGER, start_byte INTEGER, length_bytes INTEGER,"
            " digest BLOB) WITHOUT ROWID"
        )

    def add_staged_evidence(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Stage some evidence rows, in order."""
        self._many("INSERT OR REPLACE INTO incoming VALUES (?, ?, ?, ?, ?)", rows)

    def apply_evidence(self, record: FileRecord, *, whole_file: bool, returned: bool = False) -> None:
        """Take the staged evidence in; queue the scored rows of runs whose evidence came, changed or went.

        ``whole_file`` says that what is not staged is gone; ``returned`` that the file was absent before, so that every
        run of it counts as changed.
        """
        partition, low = record.partition_id, record.walk_base
        known = "SELECT run_id, digest FROM evidence_rows WHERE partition_id = ?1"
        self._run("DROP TABLE IF EXISTS temp.changed")
        self._run("CREATE TEMP TABLE changed (run_id TEXT PRIMARY KEY, found INTEGER) WITHOUT ROWID")
        self._run(
            f"INSERT INTO changed SELECT i.run_id, 1 FROM incoming i LEFT JOIN ({known}) e USING (run_id)"
            " WHERE e.digest IS NULL OR e.digest <> i.digest OR ?2",
            (partition, returned),
        )
        if whole_file:
            self._run(
                f"INSERT INTO changed SELECT e.run_id, 0 FROM ({known}) e WHERE e.run_id NOT IN (SELECT run_id FROM incoming)",
                (partition,),
            )
            self._run("DELETE FROM evidence_rows WHERE partition_id = ?", (partition,))
        self._run(
            "INSERT OR REPLACE INTO evidence_rows SELECT ?, run_id, line, start_byte, length_bytes, digest FROM incoming",
            (partition,),
        )
        self._queue_changed_evidence(low)
        self._run("DROP TABLE temp.incoming")
        self._run("DROP TABLE temp.changed")

    def _queue_changed_evidence(self, low: int) -> None:
        in_partition = "FROM changed c CROSS JOIN scored_rows s ON s.run_id = c.run_id AND s.walk >= ?1 AND s.walk < ?2"
        span = (low, low + LINES_END)
        self._run(
            f"INSERT OR IGNORE INTO rejudge_tasks SELECT DISTINCT s.task_id, 0 {in_partition} WHERE s.task_id IS NOT NULL",
            span,
        )
        self._run(
            f"INSERT INTO rejudge_rows SELECT s.walk, 0, 1 {in_partition} WHERE s.rag IS NOT NULL"
            " ON CONFLICT (walk) DO UPDATE SET evidence_changed = 1",
            span,
        )
        self._run(
            "UPDATE scored_rows SET evidence_found = c.found, kept = CASE c.found WHEN 1 THEN 0 ELSE kept END FROM changed c WHERE scored_rows.run_id = c.run_id"
            " AND scored_rows.walk >= ?1 AND scored_rows.walk < ?2 AND scored_rows.evidence_found <> c.found",
            span,
        )

    def has_scored_rows(self, record: FileRecord) -> bool:
        """Whether scored rows of the mirrored partition are known."""
        low = record.walk_base
        found = self._run(
            "SELECT EXISTS (SELECT 1 FROM scored_rows WHERE walk >= ? AND walk < ?)", (low, low + LINES_END)
        )
        return bool(found.fetchone()[0])

    # files that went and came back

    def freeze_scored(self, record: FileRecord, options: Options) -> None:
        """A scored file became absent: what became of its rows is frozen (SPEC 3, 'Absent partitions')."""
        low, high = record.walk_base, record.walk_base + LINES_END
        span = "walk >= ?1 AND walk < ?2"
        runs = self._runs_of(low, high)
        runs += self._runs_of_rest(record)
        before = [self.in_force(run_id, options) for run_id in runs]
        self._touch_tasks("scored_rows", f"{_CAN_HAVE_PAIRS.format('scored_rows')} AND walk >= {low} AND walk < {high}")
        self._run(
            f"INSERT INTO frozen_rows (kind, accepted, partition_id, line, {_FACTS}, {_OUTCOMES})"
            f" SELECT 'absent', kept, ?3, walk - ?1, {_FACTS}, {_OUTCOMES} FROM scored_rows WHERE {span}",
            (low, high, record.partition_id),
        )
        for dataset in ("rag", "sft"):
            self._shift_totals(dataset, "scored_rows", "live", "frozen", f"walk >= {low} AND walk < {high}")
        self._drop_span(low, high)
        self._wake_waiters(f"FROM frozen_rows g WHERE g.partition_id = {record.partition_id}")
        self._run("INSERT OR IGNORE INTO rejudge_frozen SELECT frozen_id FROM frozen_rows WHERE partition_id = ?"
                  " AND EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = frozen_rows.run_id)", (record.partition_id,))  # fmt: skip
        self._run("INSERT OR IGNORE INTO rejudge_frozen SELECT frozen_id FROM frozen_rows WHERE partition_id = ?"
                  " AND run_id IS NULL", (record.partition_id,))  # fmt: skip
        record.state = "absent"
        self.write_file(record)
        for run_id, old in zip(runs, before, strict=True):
            self.queue_verdict_change(run_id, old, self.in_force(run_id, options), options)

    def _runs_of_rest(self, record: FileRecord) -> list[str]:
        found = self._run(
            "SELECT m.run_id FROM files f CROSS JOIN malformed_runs m ON m.digest = f.rest_digest"
            " WHERE f.partition_id = ? AND f.kind = 'scored' AND f.rest_category IS NOT NULL",
            (record.partition_id,),
        )
        return [run_id for (run_id,) in found]

    def _runs_of(self, low: int, high: int) -> list[str]:
        found = self._run(
            "SELECT run_id FROM scored_rows WHERE walk >= ?1 AND walk < ?2 AND run_id IS NOT NULL"
            f" UNION {_named_in_malformed('scored_rows')} AND n.walk >= ?1 AND n.walk < ?2",
            (low, high),
        )
        return [run_id for (run_id,) in found]

    def _drop_span(self, low: int, high: int) -> None:
        removed, unjudged = self._run(
            "SELECT count(*), count(*) FILTER (WHERE rag IS NULL) FROM scored_rows WHERE walk >= ? AND walk < ?",
            (low, high),
        ).fetchone()
        self.count_rows(-removed, -unjudged)
        woken = self._woken(f"(SELECT * FROM scored_rows WHERE walk >= {low} AND walk < {high})")
        self._run("DELETE FROM scored_rows WHERE walk >= ? AND walk < ?", (low, high))
        self._run("DELETE FROM rejudge_rows WHERE walk >= ? AND walk < ?", (low, high))
        self._wake_next(woken)

    def _woken(self, rows: str) -> list[tuple[str, int]]:
        """The ids, by dataset, that queued ones of these rows wait for: nobody else may have been woken for them."""
        return [
            (dataset, key)
            for dataset in ("rag", "sft")
            for (key,) in self._run(
                f"SELECT DISTINCT d.sample_key FROM {rows} d CROSS JOIN rejudge_rows q ON q.walk = d.walk"
                f" WHERE d.{dataset} = {DUPLICATE}"
            )
        ]

    def _wake_next(self, woken: list[tuple[str, int]]) -> None:
        """Rows that were woken for these ids are gone: the next that waits is judged in their place."""
        for dataset, key in woken:
            self._run(
                "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM scored_rows"
                f" WHERE sample_key = ? AND {dataset} = {DUPLICATE} ORDER BY walk LIMIT 1",
                (key,),
            )

    def _wake_waiters(self, source: str) -> None:
        for dataset in ("rag", "sft"):
            self._run(
                "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT min(d.walk), 0"
                f" {source.replace(' WHERE ', f' CROSS JOIN scored_rows d ON d.sample_key = g.sample_key AND d.{dataset} = {DUPLICATE} WHERE ')}"
                f" AND g.{dataset} = {SHIPPED} GROUP BY d.sample_key"
            )

    def thaw_scored(self, record: FileRecord, options: Options) -> None:
        """An absent scored file returned: its rows stand where they stood, to be compared with the file, and all judged."""
        low = record.walk_base
        runs = [
            run_id
            for (run_id,) in self._run(
                "SELECT run_id FROM frozen_rows WHERE partition_id = ?1 AND kind = 'absent' AND run_id IS NOT NULL"
                f" UNION {_named_in_malformed('frozen_rows')} AND n.partition_id = ?1 AND n.kind = 'absent'",
                (record.partition_id,),
            )
        ]
        before = [self.in_force(run_id, options) for run_id in runs]
        where = f"partition_id = {record.partition_id} AND kind = 'absent'"
        found = self._evidence_found(record.partition_id, "frozen_rows.run_id")
        for dataset in ("rag", "sft"):
            self._shift_totals(dataset, "frozen_rows", "frozen", "live", where)
        rows, unjudged = self._run(
            f"SELECT count(*), count(*) FILTER (WHERE rag IS NULL) FROM frozen_rows WHERE {where}"
        ).fetchone()
        self.count_rows(rows, unjudged)
        self._run(
            f"INSERT INTO scored_rows (walk, {_FACTS}, {_OUTCOMES}, evidence_found, kept)"
            f" SELECT line + {low}, {_FACTS}, {_OUTCOMES}, {found}, CASE {found} WHEN 1 THEN 0 ELSE accepted END"
            f" FROM frozen_rows WHERE {where}"
        )
        self._run(f"DELETE FROM frozen_rows WHERE {where}")
        self._run("INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM scored_rows WHERE walk >= ? AND walk < ?",
                  (low, low + LINES_END))  # fmt: skip
        for dataset in ("rag", "sft"):
            self._queue_behind(dataset, "scored_rows m", f"m.walk >= {low} AND m.walk < {low + LINES_END}")
        self._touch_tasks("scored_rows", f"task_id IS NOT NULL AND walk >= {low} AND walk < {low + LINES_END}")
        self._queue_copied(
            f"scored_rows n CROSS JOIN frozen_rows f ON f.digest = n.digest AND n.walk >= {low} AND n.walk < {low + LINES_END}"
        )
        for run_id, old in zip(runs, before, strict=True):
            self.queue_verdict_change(run_id, old, self.in_force(run_id, options), options)

    def drop_scored(self, record: FileRecord, options: Options) -> None:
        """A scored file is gone for good: as if it had become empty."""
        self.stage_scored()
        self.replace_scored(record, options)

    def lose_evidence(self, record: FileRecord) -> None:
        """An evidence file became absent: what was built on it stays, unless a present row waits to ship the same id.

        No pair is formed from it any more.
        """
        low, high = record.walk_base, record.walk_base + LINES_END
        self._touch_tasks(
            "scored_rows", f"task_id IS NOT NULL AND evidence_found = 1 AND walk >= {low} AND walk < {high}"
        )
        self._run(
            "UPDATE scored_rows SET evidence_found = 0 WHERE walk >= ? AND walk < ? AND evidence_found = 1", (low, high)
        )
        self._wake_waiters(f"FROM scored_rows g WHERE g.walk >= {low} AND g.walk < {high} AND g.evidence_found = 0")

    # queues

    def queue_everything(self, options: Options) -> None:
        """Every row and every task is to be judged anew; what ships and a verdict may now forbid comes first."""
        self._run(
            "INSERT INTO rejudge_rows (walk, forced) SELECT walk, "
            f"CASE WHEN rag = {SHIPPED} OR sft = {SHIPPED} THEN {_forbids('s.run_id', options, Dataset.RAG, Dataset.SFT)}"
            " ELSE 0 END FROM scored_rows s WHERE rag IS NOT NULL"
            " ON CONFLICT (walk) DO UPDATE SET forced = max(forced, excluded.forced)"
        )
        self._run(
            f"INSERT INTO rejudge_tasks SELECT DISTINCT task_id, 1 FROM pairs WHERE outcome = {SHIPPED}"
            f" AND {_forbids('pairs.chosen_run_id', options, Dataset.PREFERENCE)}"
            " ON CONFLICT (task_id) DO UPDATE SET forced = 1"
        )
        self._run("INSERT OR IGNORE INTO rejudge_tasks SELECT DISTINCT task_id, 0 FROM pairs")
        self._run(
            "INSERT OR IGNORE INTO rejudge_tasks SELECT task_id, 0 FROM scored_rows"
            " WHERE task_id IS NOT NULL AND evidence_found = 1 AND category IS NOT NULL GROUP BY task_id"
            f" HAVING max(category = {CATEGORY_CODES[Category.ACCEPTED]}) AND max(category IN"
            f" ({CATEGORY_CODES[Category.REJECTED]}, {CATEGORY_CODES[Category.PARTIALLY_ACCEPTED]}))"
        )
        self._run("INSERT OR IGNORE INTO rejudge_frozen SELECT frozen_id FROM frozen_rows WHERE kind <> 'orphan'")
        self._run("UPDATE frozen_rows SET accepted = 0 WHERE kind = 'orphan' AND accepted = 1")
        self._run("UPDATE pairs SET accepted = 0 WHERE frozen = 'orphan' AND accepted = 1")

    def note_input(self, record: FileRecord, change: str, from_offset: int, lines: int, malformed: int) -> None:
        """Remember an input's change for the next receipt."""
        self._run(
            "INSERT INTO unreported_inputs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (partition_id, kind) DO UPDATE SET"
            " change = CASE WHEN excluded.change = 'absent' OR change IN ('appended', 'absent') THEN excluded.change ELSE change END,"
            " sha256 = excluded.sha256,"
            " size_bytes = excluded.size_bytes, from_offset = min(from_offset, excluded.from_offset),"
            " to_offset = excluded.to_offset, lines = lines + excluded.lines,"
            " malformed_lines = malformed_lines + excluded.malformed_lines",
            (record.partition_id, record.kind.value, change, record.indexed_sha256, record.indexed_bytes, from_offset,
             record.indexed_bytes, lines, malformed),
        )  # fmt: skip


def _components(path: str) -> tuple[str, ...]:
    return tuple(path.split("/"))


def _last(
    dataset: Dataset, present: tuple[int, int] | None, absent: list[tuple[int, int]], options: Options
) -> Category | None:
    """The last verdict among the present one and the absent ones that forbid; ``absent`` is in falling walk order."""
    for walk, code in absent:
        if present and walk < present[0]:
            break
        if options.forbids(dataset, VERDICTS[code]):
            return VERDICTS[code]
    return VERDICTS[present[1]] if present else None


def forbidding_codes(options: Options, *datasets: Dataset) -> str:
    """SQL for a list of the categories that revoke a run in one of the datasets."""
    return ",".join(
        str(code)
        for code, category in VERDICTS.items()
        if any(options.forbids(dataset, category) for dataset in datasets)
    )


def _forbids(run: str, options: Options, *datasets: Dataset) -> str:
    """SQL for whether the last present verdict of a run, or any absent one, forbids it in one of the datasets."""
    if not options.revoke:
        return "0"
    codes = forbidding_codes(options, *datasets)
    return (
        f"(coalesce({last_verdict(run)} IN ({codes}), 0) OR EXISTS (SELECT 1 FROM frozen_rows f WHERE f.run_id = {run}"
        f" AND f.kind = 'absent' AND f.category IN ({codes})) OR EXISTS (SELECT 1 FROM malformed_runs m"
        f" CROSS JOIN frozen_rows f ON f.digest = m.digest AND f.run_id IS NULL WHERE m.run_id = {run}"
        f" AND f.kind = 'absent' AND f.category IN ({codes})) OR EXISTS (SELECT 1 FROM malformed_runs m CROSS JOIN files f"
        f" ON {REST.format('absent')} AND f.rest_category IN ({codes}) WHERE m.run_id = {run}))"
    )


def _named_in_malformed(rows: str) -> str:
    """SQL for the runs that malformed lines among these rows, called ``n``, forbid."""
    return (
        f"SELECT m.run_id FROM {rows} n CROSS JOIN malformed_runs m INDEXED BY malformed_runs_by_digest"
        " ON m.digest = n.digest WHERE n.run_id IS NULL AND n.category IS NOT NULL"
    )


def _can_pair() -> str:
    other = "SELECT 1 FROM scored_rows o WHERE o.task_id = s.task_id AND o.evidence_found = 1 AND o.category = {}"
    accepted, partial, rejected = (
        other.format(CATEGORY_CODES[category])
        for category in (Category.ACCEPTED, Category.PARTIALLY_ACCEPTED, Category.REJECTED)
    )
    shares = (
        "SELECT 1 FROM pairs p CROSS JOIN pairs q ON q.sample_key = p.sample_key AND q.task_id <> p.task_id"
        " WHERE p.task_id = s.task_id"
    )
    return (
        "s.walk >= ?1 AND s.walk < ?2 AND s.task_id IS NOT NULL AND s.evidence_found = 1"
        f" AND (s.category <= 3 AND EXISTS ({accepted}) AND (EXISTS ({rejected}) OR EXISTS ({partial}))"
        f" OR {ORDER_MATTERS} AND EXISTS ({shares}))"
    )


CAN_PAIR: Final = _can_pair()
"""SQL for rows of a span that may change pairs: their task has an accepted row and another one to set it against.

A row of any category may be the first of its task. That matters where pairs of two tasks have one id.
"""
