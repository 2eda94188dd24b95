"""Takes the facts of changed input files into the store. Touches no export.

All changed files are indexed before any row is judged, so that no row ships while a later file, not yet read, forbids
it. Transactions are bounded by rows and may hold several files; a crash between two of them loses nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from typing import Final

from distilld.core.line_facts import LINES_END, EvidenceFacts, OddLines, RowFacts, run_of_evidence
from distilld.core.model import InputChanged, InputKind, OnDelete, OperatorError, Options, StatFacts
from distilld.core.plan import FileKey, Look, compare
from distilld.engine.jobs import ReadJob
from distilld.engine.judge_span import ScoredFile
from distilld.engine.pool import Pool
from distilld.engine.read_file import FileRead, Reading, as_scanned, scored_facts, unreviewed_lines
from distilld.engine.span_queue import UnreadEvidence
from distilld.lake.lines import Line, PartitionReader, Rest, end_of, parse_line, rest_of
from distilld.lake.scan import ListingError, PartitionFile, Scan, open_partition, tree_path
from distilld.store.absent_files import AbsentFiles
from distilld.store.connection import Store
from distilld.store.counts import Counts
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.frozen import has_exceptions
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.moved import forget_unnamed_evidence
from distilld.store.rewritten_file import RewrittenFile
from distilld.store.scored_rows import ScoredRows
from distilld.store.verdicts import Verdicts
from distilld.store.walk_order import place_partitions

ROWS_PER_TRANSACTION: Final = 20_000
READ_WHOLE_BYTES: Final = 64 << 20
"""Bytes of a file whose facts are held in memory as a whole; one that is larger is read block by block, here."""
TURN_BYTES: Final = 256 << 20
"""Evidence files that are larger are read one in a pass, and behind all others: these do not wait until it is read."""
LEAVE_FROM: Final = 4 << 20
"""Bytes of new files from which their evidence is left unread until it is judged with; less is read at once."""
LEAVE_BYTES: Final = 8 << 20
LEAVE_ROWS: Final = 20_000
"""The most that an evidence file which is left unread and its scored file may hold, each, and their rows."""
LEAVE_REPEATED_BYTES: Final = 64 << 20
"""What its text may come to at most where several rows of a run repeat it, for all of it is held in memory."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """One input file that changed, as logs and receipts name it."""

    kind: InputKind
    path: str
    change: str
    lines: int = 0


@dataclass(slots=True)
class Indexed:
    """What one scan brought."""

    changes: list[FileChange] = field(default_factory=list)
    unsettled: list[FileKey] = field(default_factory=list)
    """Files that were rewritten a moment ago and are left alone until they have been still for a while."""
    postponed: list[FileKey] = field(default_factory=list)
    """Large files that are left to the passes that follow at once."""
    problems: list[OperatorError] = field(default_factory=list)
    malformed: list[OddLines] = field(default_factory=list)
    unreviewed: dict[str, OddLines] = field(default_factory=dict)
    """Scored rows with none of the four categories, by partition."""
    unreadable: list[FileKey] = field(default_factory=list)
    """The files behind the problems."""
    unread: dict[int, UnreadEvidence] = field(default_factory=dict)
    """New evidence files that are read when their rows are judged, by partition."""
    files_seen: int = 0
    rows_indexed: int = 0
    bytes_read: int = 0

    def add(self, later: Indexed) -> None:
        """Add what another scan brought behind this one."""
        self.changes += later.changes
        self.problems += later.problems
        self.malformed += later.malformed
        self.unreviewed |= later.unreviewed
        self.unread |= later.unread
        self.unsettled, self.unreadable, self.postponed = later.unsettled, later.unreadable, later.postponed
        self.rows_indexed += later.rows_indexed
        self.bytes_read += later.bytes_read


class Indexer:
    """Brings the store's facts up to date with one scan."""

    def __init__(
        self,
        root: Path,
        store: Store,
        inputs: Inputs,
        options: Options,
        pool: Pool,
        *,
        batch_rows: int,
        is_still: Callable[[FileKey, StatFacts], bool] = lambda *_: True,
        progress: Callable[[int, int], None] = lambda _files, _bytes: None,
        hashed_since_ns: int | None = None,
    ) -> None:
        """Files that were not hashed since ``hashed_since_ns``, and those whose facts prove nothing yet, are read.

        With None the facts of a file are believed: somebody else looks after the rest.
        """
        self._root = root
        self._store = store
        self._inputs = inputs
        self._scored = ScoredRows(store)
        self._rewritten = RewrittenFile(store)
        self._evidence = EvidenceRows(store, inputs)
        self._absent = AbsentFiles(store, inputs)
        self._verdicts = Verdicts(store)
        self._options = options
        self._pool = pool
        self._batch_rows = batch_rows
        self._is_still = is_still
        self._progress = progress
        self._hashed_since_ns = hashed_since_ns
        self._began_ns = monotonic_ns()
        self._out = Indexed()
        self._rows_in_transaction = 0
        self._fresh = True
        self._read_anew = False
        self._first_malformed: int | None = None
        self._owed: Set[FileKey] = frozenset()

    def take(
        self,
        scan: Scan,
        *,
        read_anew: bool = False,
        owed: Set[FileKey] = frozenset(),
        unread: dict[int, UnreadEvidence] | None = None,
        next_turn: FileKey | None = None,
    ) -> Indexed:
        """Compare the scan with what is recorded and index what changed.

        ``read_anew`` reads every file from its start, whatever its facts say (a rebuild, or another line limit); files
        that are ``owed`` such a reading get it alone. What an earlier scan left ``unread`` stays so, but for the
        partitions that changed since, which are taken from it. ``next_turn`` was postponed, and is not postponed again.

        Raises:
            ListingError: A tree is missing although files of it are known.
        """
        if not (read_anew or owed or self._withdraws or scan.missing) and self._inputs.all_as_recorded(
            scan.files, hashed_since_ns=self._hashed_since_ns
        ):
            return self._out
        known = self._inputs.files()
        refuse_missing_trees(scan.missing, known)
        self._read_anew = read_anew
        self._owed = owed
        seen = {(file.kind, file.path): file for file in scan.files}
        plan = compare(
            {key: file.stat for key, file in seen.items()},
            known,
            scan.is_unknown,
            lambda record: record.is_doubtful(self._hashed_since_ns),
        )
        left = _left_unread(unread or {}, {path for (kind, path), _ in plan.to_read if kind is InputKind.SCORED})
        reads: list[tuple[FileKey, Look]] = [read for read in plan.to_read if read[0] not in left]
        if read_anew or owed:
            planned = {key for key, _ in reads}
            reads = sorted(
                [*reads, *((key, Look.CHANGED) for key in seen if key not in planned and self._is_read_anew(key))],
                key=lambda read: (read[0][1].split("/"), read[0][0]),
            )
        elif not plan.gone:
            reads = self._take_turns(reads, seen, next_turn)
        purge = [
            record
            for record in known.values()
            if self._withdraws and not (record.present or scan.is_unknown(record.kind, record.path))
        ]
        if not (reads or plan.gone or purge):
            return self._out
        self._progress(0, 0)
        with self._transactions():
            self._take_gone(
                [known[key] for key in plan.gone],
                [record for record in purge if (record.kind, record.path) not in seen],
            )
            self._fresh = Counts(self._store).is_fresh()
            places = self._place(reads, known)
            new = [seen[key] for key, look in reads if look is Look.NEW]
            self._pool.expect(sum(seen[key].stat.size for key, _ in reads))
            self._take_files([(seen[key], known[key], look) for key, look in reads if look is not Look.NEW])
            self._take_new(new, places)
        return self._out

    def _take_turns(
        self, reads: list[tuple[FileKey, Look]], seen: Mapping[FileKey, PartitionFile], next_turn: FileKey | None
    ) -> list[tuple[FileKey, Look]]:
        """Postpone large evidence while there is other work.

        Scored files never are, for they may forbid what others allow; nor is evidence that comes with its rows.
        """
        with_rows = {path for (kind, path), _ in reads if kind is InputKind.SCORED}
        large = [key for key, _ in reads if seen[key].stat.size > TURN_BYTES and key[1] not in with_rows]
        if next_turn in large:
            large.remove(next_turn)
        elif len(large) == len(reads):
            del large[:1]
        self._out.postponed = large
        return [read for read in reads if read[0] not in set(large)]

    def take_one(self, file: PartitionFile, out: Indexed) -> None:
        """Take in an evidence file that was left unread, and add what that brings to ``out``."""
        self._out = out
        with self._transactions():
            place = place_partitions(self._store, [file.path])[file.path]
            self._take_file(file, None, Look.NEW, place)

    def _take_files(self, files: list[tuple[PartitionFile, FileRecord, Look]]) -> None:
        """Take in files that are known. One that is read anew and has not changed costs no more than a look."""
        again = [
            file
            for file, record, look in files
            if look is Look.CHANGED and record.present and self._is_read_anew((file.kind, file.path))
        ]
        read = self._read(again)
        for file, record, look in files:
            if file not in read or not self._is_unchanged(record, read.pop(file)):
                self._take_file(file, record, look, (0, 0))
            self._pulse()

    def _read(self, files: list[PartitionFile]) -> _Reads:
        """Have files read as a whole, by workers where there are any; what is too large is left out."""
        return _Reads(self._pool, [file for file in files if file.stat.size <= READ_WHOLE_BYTES], self._options)

    def _is_unchanged(self, record: FileRecord, read: FileRead | None) -> bool:
        """Whether a file that was read anew is, line by line, what is known of it."""
        if read is None:
            return False
        self._out.bytes_read += read.reading.bytes_read
        reading = read.reading
        if (reading.sha256, reading.consumed) != (record.indexed_sha256, record.indexed_bytes):
            return False
        tail = (reading.lines, reading.tail, reading.tail_bytes, reading.tail_digest)
        if tail != (record.indexed_lines, record.tail, record.tail_bytes, record.tail_digest):
            return False
        if (self._scored if record.kind is InputKind.SCORED else self._evidence).facts(record) != sorted(read.facts):
            return False
        self._out.rows_indexed += reading.lines
        record.note_hashed(reading.facts, self._began_ns)
        self._inputs.write_file(record)
        self._take_rest(record, read.rest)
        return True

    def _take_new(self, files: list[PartitionFile], places: dict[str, tuple[int, int]]) -> None:
        """Take in new files; where they are many, evidence is left unread as far as only its own rows need it."""
        if sum(file.stat.size for file in files) < LEAVE_FROM or has_exceptions(self._store):
            self._take_read(files, places)
            return
        scored = {file.path for file in files if file.kind is InputKind.SCORED}
        left = [
            file
            for file in files
            if file.kind is InputKind.EVIDENCE and file.path in scored and file.stat.size <= LEAVE_BYTES
        ]
        leaving = set(left)
        self._take_read([file for file in files if file not in leaving], places)
        records = self._inputs.files()
        rows = min(LEAVE_ROWS, self._batch_rows)
        for file in left:
            record = records.get((InputKind.SCORED, file.path))
            if record is None or not (0 < record.indexed_lines <= rows and record.indexed_bytes <= LEAVE_BYTES):
                continue
            if self._scored.rows_beside_others(record) * file.stat.size <= LEAVE_REPEATED_BYTES:
                leaving.discard(file)
                indexed = ScoredFile(
                    record.indexed_bytes,
                    record.indexed_sha256,
                    record.tail_digest,
                    record.tail_bytes if record.tail_digest else 0,
                    record.indexed_lines,
                )
                self._out.unread[places[file.path][0]] = UnreadEvidence(file.path, file.stat, indexed)
        self._take_read([file for file in left if file in leaving], places)

    def _take_read(self, files: list[PartitionFile], places: dict[str, tuple[int, int]]) -> None:
        read = self._read(files)
        for file in files:
            found = read.pop(file) if file in read else None
            if found is None:
                self._take_file(file, None, Look.NEW, places[file.path])
            else:
                self._add_read(new_record(file.kind, file.path, places[file.path], file.stat), found)
            self._pulse()

    def _add_read(self, record: FileRecord, read: FileRead) -> None:
        """Put a new file, read as a whole, into the store."""
        reading = read.reading
        _refuse_too_many(record, reading.lines)
        self._first_malformed = reading.first_malformed
        self._out.bytes_read += reading.bytes_read
        self._out.rows_indexed += reading.lines
        if record.kind is InputKind.SCORED:
            self._verdicts.add_malformed_runs(read.malformed_runs)
            self._scored.add(record, read.facts)
            self._note_unreviewed(record, read.unreviewed)
        elif self._scored.any_in(record):
            self._evidence.stage()
            self._evidence.add_staged(read.facts)
            self._evidence.apply(record, whole_file=False)
        else:
            self._evidence.add(record, read.facts)
        record_reading(record, reading, self._began_ns)
        self._inputs.write_file(record)
        self._close_over(record, 0, record.indexed_lines)
        self._take_rest(record, read.rest)
        self._note(record, "new", 0, reading.lines, reading.malformed)
        self._breathe(reading.lines)

    def _place(self, reads: list[tuple[FileKey, Look]], known: dict[FileKey, FileRecord]) -> dict[str, tuple[int, int]]:
        """Places in walk order for the partitions of new files; known ones have theirs, and may have to move."""
        new = [path for (kind, path), _ in reads if (kind, path) not in known]
        if not new:
            return {}
        places = place_partitions(self._store, new)
        for record in known.values():
            record.walk_base = places[record.path][1]
        return places

    def _is_read_anew(self, key: FileKey) -> bool:
        return self._read_anew or key in self._owed

    @property
    def _withdraws(self) -> bool:
        return self._options.on_delete is OnDelete.WITHDRAW

    # transactions

    @contextmanager
    def _transactions(self) -> Iterator[None]:
        """Transactions of bounded size around many files; what one file needs as a whole is never cut."""
        self._store.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._store.connection.execute("COMMIT")
        except BaseException:
            self._inputs.forget_files()
            if self._store.connection.in_transaction:
                self._store.connection.execute("ROLLBACK")
            raise

    def _breathe(self, rows: int) -> None:
        self._rows_in_transaction += rows
        if self._rows_in_transaction >= ROWS_PER_TRANSACTION:
            self._store.connection.execute("COMMIT")
            self._store.connection.execute("BEGIN IMMEDIATE")
            self._rows_in_transaction = 0

    # files that are gone

    def _take_gone(self, gone: list[FileRecord], purge: list[FileRecord]) -> None:
        # Scored files first: their rows' evidence may be gone with them, and then only the rows count.
        for record in sorted(gone, key=lambda record: record.kind is InputKind.EVIDENCE):
            self._note(record, "absent", 0, 0, 0)
            if self._withdraws:
                self._drop(record)
            elif record.kind is InputKind.SCORED:
                self._absent.freeze_scored(record, self._options)
            else:
                self._absent.lose_evidence(record)
                record.state = "absent"
                self._inputs.write_file(record)
        for record in purge:
            if record.kind is InputKind.SCORED:
                self._absent.thaw_scored(record, self._options)
            self._note(record, "absent", 0, 0, 0)
            self._drop(record)
        forget_unnamed_evidence(self._store, {record.partition_id for record in gone})

    def _drop(self, record: FileRecord) -> None:
        if record.kind is InputKind.SCORED:
            self._verdicts.set_rest(record, None, self._options)
            self._rewritten.drop(record, self._options)
        else:
            self._evidence.stage()
            self._evidence.apply(record, whole_file=True)
        self._inputs.forget_file(record)

    # files that are there

    def _take_file(self, file: PartitionFile, known: FileRecord | None, look: Look, place: tuple[int, int]) -> None:
        shown = tree_path(file.kind, file.path)
        self._first_malformed = None
        try:
            with open_partition(self._root, file.kind, file.path) as (descriptor, facts):
                reader = PartitionReader(descriptor, facts.size, self._options.max_line_bytes, shown)
                try:
                    self._take_open(reader, facts, file, known, look, place)
                finally:
                    self._out.bytes_read += reader.bytes_read
        except InputChanged:
            self._inputs.forget_files()
            self._out.unsettled.append((file.kind, file.path))
        except OperatorError as error:
            self._inputs.forget_files()
            self._out.problems.append(error)
            self._out.unreadable.append((file.kind, file.path))

    def _take_open(
        self,
        reader: PartitionReader,
        facts: StatFacts,
        file: PartitionFile,
        known: FileRecord | None,
        look: Look,
        place: tuple[int, int],
    ) -> None:
        key = (file.kind, file.path)
        if known is None:
            self._append(reader, facts, new_record(file.kind, file.path, place, file.stat), "new")
            return
        # Of a file that returned, what is known may have moved to another one meanwhile.
        proven = look is Look.CHANGED and reader.prove_prefix(known.indexed_bytes, known.indexed_sha256, self._pulse)
        if not (proven or self._is_still(key, facts)):
            self._out.unsettled.append(key)
            return
        if proven and not self._is_read_anew(key) and self._append(reader, facts, known, "appended"):
            return
        reader.rewind()
        self._rewrite(reader, facts, known, look)

    def _pulse(self) -> None:
        self._progress(len(self._out.changes), self._out.bytes_read)

    def _set_present(self, record: FileRecord) -> None:
        """An absent file is there again, and has been read: nothing else would see that its rows are to come back."""
        if record.present:
            return
        record.state = "present"
        if record.kind is InputKind.SCORED:
            self._verdicts.set_rest(record, None, self._options)
            self._absent.thaw_scored(record, self._options)
        self._inputs.write_file(record)

    def _append(self, reader: PartitionReader, facts: StatFacts, record: FileRecord, change: str) -> bool:
        """Index what stands behind the consumed prefix; False where a provisional last line became another one."""
        from_offset, first_line = record.indexed_bytes, record.indexed_lines
        provisional = record.tail_digest if record.tail == "provisional" else None
        staged = record.kind is InputKind.EVIDENCE and self._scored.any_in(record)
        if staged:
            self._evidence.stage()
        known_tail = (record.tail, record.tail_digest, record.tail_bytes)
        lines, malformed, new_lines = record.indexed_lines - (provisional is not None), 0, 0
        for block in reader.blocks():
            self._pulse()
            if not block:
                continue
            if provisional is not None:
                if (block[0].start, block[0].digest) != (from_offset, provisional):
                    return False
                block, lines, provisional = block[1:], lines + 1, None  # noqa: PLW2901  the first line is known
                record.tail, record.tail_digest, record.tail_bytes = None, None, 0
            _refuse_too_many(record, lines + len(block))
            malformed += self._add(record, block, lines, staged=staged)
            lines, new_lines = lines + len(block), new_lines + len(block)
            record.indexed_lines = lines
            # Until its end is read, the file does not count as unchanged.
            self._record_reading(record, reader, facts.doubted())
            if not staged:
                self._inputs.write_file(record)
                self._close_over(record, first_line, lines)
                first_line = lines
                self._breathe(len(block))
        tail = reader.tail
        if provisional is not None and (tail is None or (tail.start, tail.digest) != (from_offset, provisional)):
            return False
        added = self._take_tail(record, tail, lines, staged=staged, known=provisional is not None)
        self._record_reading(record, reader, facts)
        record.indexed_lines = lines + (record.tail == "provisional")
        record.malformed_lines += malformed
        if staged:
            self._evidence.apply(record, whole_file=False)
        self._inputs.write_file(record)
        self._close_over(record, first_line, record.indexed_lines)
        self._take_rest(record, rest_of(tail))
        moved = record.indexed_bytes != from_offset or added
        tail_moved = known_tail != (record.tail, record.tail_digest, record.tail_bytes)
        if moved or change != "appended":
            self._note(record, change, from_offset, new_lines + added, malformed)
        elif tail_moved:
            self._out.changes.append(FileChange(record.kind, record.path, "tail"))
        return True

    def _close_over(self, record: FileRecord, first_line: int, end_line: int) -> None:
        if record.kind is InputKind.SCORED and end_line > first_line and not self._fresh:
            self._scored.close_over_new(record, first_line, end_line, self._options)

    def _add(self, record: FileRecord, block: list[Line], first_line: int, *, staged: bool) -> int:
        """Insert a block's facts; returns how many lines are malformed."""
        if record.kind is InputKind.SCORED:
            rows, malformed = self._scored_facts(record, block, first_line)
            self._scored.add(record, rows)
            self._out.rows_indexed += len(rows)
            return malformed
        found, malformed = self._evidence_facts(block, first_line)
        self._out.rows_indexed += len(block)
        (self._evidence.add_staged if staged else lambda rows: self._evidence.add(record, rows))(found)
        return malformed

    def _take_tail(self, record: FileRecord, tail: Line | None, line: int, *, staged: bool, known: bool) -> int:
        """Judge the unterminated end of a file (SPEC 2): a complete object counts, anything else is pending."""
        record.tail, record.tail_bytes, record.tail_digest = end_of(tail)
        if tail is None or record.tail_digest is None or known:
            return 0
        self._add(record, [tail], line, staged=staged)
        return 1

    def _take_rest(self, record: FileRecord, rest: Rest | None) -> None:
        """Obey what the rest behind the last line feed forbids, once it does not change (SPEC 2)."""
        if record.kind is not InputKind.SCORED:
            return
        key = (record.kind, record.path)
        if rest is not None and not self._is_still(key, record.facts):
            self._out.unsettled.append(key)
            self._inputs.doubt([key])
            return
        if rest is not None:
            self._verdicts.add_malformed_runs([(run_id, rest.digest) for run_id in rest.verdict.run_ids])
        self._verdicts.set_rest(record, rest and (rest.digest, rest.verdict.category), self._options)

    def _rewrite(self, reader: PartitionReader, facts: StatFacts, record: FileRecord, look: Look) -> None:
        """Take a file in from its start, in the place of what was known of it."""
        scored = record.kind is InputKind.SCORED
        (self._rewritten.stage if scored else self._evidence.stage)()
        lines = malformed = 0
        for block in reader.blocks():
            self._pulse()
            malformed += self._stage(record, block, lines)
            lines += len(block)
            _refuse_too_many(record, lines)
        tail = reader.tail
        record.tail, record.tail_bytes, record.tail_digest = end_of(tail)
        if tail is not None and record.tail_digest is not None:
            self._stage(record, [tail], lines)
            lines += 1
        self._set_present(record)
        same = record.indexed_sha256 == reader.sha256 and record.indexed_bytes == reader.consumed
        self._record_reading(record, reader, facts)
        record.indexed_lines, record.malformed_lines = lines, malformed
        if scored:
            self._rewritten.replace(record, self._options)
        else:
            self._evidence.apply(record, whole_file=True, returned=look is Look.RETURNED)
        self._inputs.write_file(record, judged=True)
        self._take_rest(record, rest_of(tail))
        if not (same and self._is_read_anew((record.kind, record.path)) and look is Look.CHANGED):
            self._note(record, "returned" if look is Look.RETURNED else "rewritten", 0, lines, malformed)
        self._breathe(lines)

    def _record_reading(self, record: FileRecord, reader: PartitionReader, facts: StatFacts) -> None:
        record.indexed_bytes, record.indexed_sha256 = reader.consumed, reader.sha256
        record.note_hashed(facts, self._began_ns)

    def _stage(self, record: FileRecord, block: list[Line], first_line: int) -> int:
        self._out.rows_indexed += len(block)
        if record.kind is InputKind.SCORED:
            rows, malformed = self._scored_facts(record, block, first_line)
            self._rewritten.add(rows)
            return malformed
        found, malformed = self._evidence_facts(block, first_line)
        self._evidence.add_staged(found)
        return malformed

    def _scored_facts(self, record: FileRecord, block: list[Line], first_line: int) -> tuple[list[RowFacts], int]:
        runs: list[tuple[str, bytes]] = []
        rows = [scored_facts(line, number, runs) for number, line in enumerate(block, first_line)]
        malformed = [row.line for row in rows if row.malformed is not None]
        if malformed and self._first_malformed is None:
            self._first_malformed = malformed[0]
        self._verdicts.add_malformed_runs(runs)
        self._note_unreviewed(record, unreviewed_lines(rows))
        return rows, len(malformed)

    def _note_unreviewed(self, record: FileRecord, lines: list[int]) -> None:
        if lines:
            of = self._out.unreviewed.setdefault(record.path, OddLines(InputKind.SCORED, record.path, 0, lines[0]))
            self._out.unreviewed[record.path] = of._replace(lines=of.lines + len(lines))

    def _evidence_facts(self, block: list[Line], first_line: int) -> tuple[list[EvidenceFacts], int]:
        found, malformed = evidence_facts(block, first_line)
        if malformed and self._first_malformed is None:
            self._first_malformed = malformed[0]
        return found, len(malformed)

    def _note(self, record: FileRecord, change: str, from_offset: int, lines: int, malformed: int) -> None:
        self._inputs.note_input(record, change, from_offset, lines, malformed)
        if self._first_malformed is not None:
            self._out.malformed.append(OddLines(record.kind, record.path, malformed, self._first_malformed))
        self._out.changes.append(FileChange(record.kind, record.path, change, lines))


def _left_unread(unread: dict[int, UnreadEvidence], changed: Set[str]) -> set[FileKey]:
    """Take the partitions that changed from what was left unread; return the evidence files that stay so."""
    for partition_id in [number for number, each in unread.items() if each.path in changed]:
        del unread[partition_id]
    return {(InputKind.EVIDENCE, each.path) for each in unread.values()}


class _Reads:
    """Files that are being read as a whole; each is asked for in the order in which they were given."""

    def __init__(self, pool: Pool, files: list[PartitionFile], options: Options) -> None:
        self._files = frozenset(files)
        self._results = pool.run((ReadJob(file.kind, file.path, file.stat.size) for file in files), options)

    def __contains__(self, file: PartitionFile) -> bool:
        return file in self._files

    def pop(self, file: PartitionFile) -> FileRead | None:
        """What was read of the next file; None where it could not be read as scanned: who reads it then tells of it."""
        done = next(self._results)
        assert done.job.path == file.path  # noqa: S101  they are asked for in order
        return as_scanned(done.result, file.stat) if isinstance(done.result, FileRead) else None


def record_reading(record: FileRecord, reading: Reading, began_ns: int) -> None:
    """Note in a file's record how far it was read, not before ``began_ns``, and what stood there."""
    record.note_hashed(reading.facts, began_ns)
    record.indexed_bytes, record.indexed_sha256 = reading.consumed, reading.sha256
    record.indexed_lines, record.malformed_lines = reading.lines, reading.malformed
    record.tail, record.tail_bytes, record.tail_digest = reading.tail, reading.tail_bytes, reading.tail_digest


def evidence_facts(block: list[Line], first_line: int) -> tuple[list[EvidenceFacts], list[int]]:
    """The facts of some evidence lines, and the numbers of those that are malformed."""
    found = []
    malformed = []
    for number, line in enumerate(block, first_line):
        value = parse_line(line).value
        if value is None:
            malformed.append(number)
            continue
        run_id = run_of_evidence(value)
        if run_id is not None:
            found.append(EvidenceFacts(run_id, number, line.start, line.length, line.digest))
    return found, malformed


def new_record(kind: InputKind, path: str, place: tuple[int, int], facts: StatFacts) -> FileRecord:
    """The record of a file of which nothing was read yet; ``place`` is its partition's id and base."""
    empty = hashlib.sha256().hexdigest()
    return FileRecord(*place, path, kind, "present", facts.doubted(), 0, empty, 0, 0, None, 0, None)


def _refuse_too_many(record: FileRecord, lines: int) -> None:
    if lines >= LINES_END:
        raise OperatorError(f"{tree_path(record.kind, record.path)} has {LINES_END} lines or more", hint="split it")


def refuse_missing_trees(missing: Iterable[InputKind], known: Collection[FileKey]) -> None:
    """Refuse to take a tree for empty that is not there at all.

    Raises:
        ListingError: One of those that are ``missing`` held files that are known.
    """
    for kind in missing:
        if any(of is kind for of, _ in known):
            raise ListingError(tree_path(kind, ""), "the folder is missing, and files of it are known")
