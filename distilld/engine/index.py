"""Put the facts of changed input files into the store. Touch no export.

All changed files are indexed before any row is judged, so that no row is exported while a later, unread file
forbids it. Transactions are bounded by rows and may hold several files; a crash between two loses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from typing import Final

from distilld.core.model import InputKind, OnDelete
from distilld.core.plan import FileKey, Look, compare
from distilld.engine.index_context import IndexContext
from distilld.engine.index_evidence import EvidenceFiles
from distilld.engine.index_scored import ScoredFiles
from distilld.engine.index_turns import Turns, large_evidence
from distilld.engine.indexed import Indexed
from distilld.engine.jobs import ReadJob
from distilld.engine.pool import Pool
from distilld.engine.read_file import FileRead, as_scanned, record_reading, refuse_too_many
from distilld.engine.span_queue import UnreadEvidence
from distilld.lake.scan import ListingError, PartitionFile, Scan, tree_path
from distilld.store.counts import Counts
from distilld.store.inputs import FileRecord
from distilld.store.moved import forget_unnamed_evidence

READ_WHOLE_BYTES: Final = 64 << 20
"""Bytes of a file whose facts are held in memory; one that is larger, or of short rows, is read block by block."""
LEAVE_FROM: Final = 4 << 20
"""Bytes of new files from which evidence is left unread until its rows are judged; less is read at once."""
LEAVE_BYTES: Final = 8 << 20
LEAVE_ROWS: Final = 20_000
"""The most bytes, each, of an evidence file that is left unread and of its scored file, and the most scored rows."""
LEAVE_REPEATED_BYTES: Final = 64 << 20
"""The most bytes that further rows of a run may add in memory with its evidence: their count times file size."""


class Indexer:
    """Brings the store's facts up to date with one scan."""

    def __init__(
        self,
        context: IndexContext,
        pool: Pool,
        *,
        batch_rows: int,
        hashed_since_ns: int | None,
        left: Iterable[FileKey],
    ) -> None:
        """Read files that were not hashed since ``hashed_since_ns``, and those whose facts prove nothing yet.

        With None the facts of a file are believed: somebody else looks after the rest. Files that the last look
        ``left`` are read whatever their facts say.
        """
        self._context = context
        self._scored = ScoredFiles(context)
        self._evidence = EvidenceFiles(context)
        self._store = context.store
        self._inputs = context.inputs
        self._options = context.options
        self.found = context.found
        """What this look has found so far."""
        self._pool = pool
        self._batch_rows = batch_rows
        self._hashed_since_ns = hashed_since_ns
        self._left = frozenset(left)

    def take(
        self,
        scan: Scan,
        *,
        read_again: bool = False,
        owed: Set[FileKey] = frozenset(),
        unread: dict[int, UnreadEvidence] | None = None,
    ) -> Indexed:
        """Compare the scan with what is recorded, and index what changed.

        ``read_again`` reads every file from its start, whatever its facts say (a rebuild, or another line limit); files
        that are ``owed`` such a reading get it alone. What an earlier scan left ``unread`` stays so, but for the
        partitions that changed since, which are taken from it. Large evidence files are postponed: :meth:`take_turn`.

        Raises:
            ListingError: A tree is missing although files in it are known.
        """
        withdraws = self._options.on_delete is OnDelete.WITHDRAW
        if not (read_again or owed or self._left or withdraws or scan.missing) and self._inputs.all_as_recorded(
            scan.files, hashed_since_ns=self._hashed_since_ns
        ):
            return self.found
        known = self._inputs.files()
        refuse_missing_trees(scan.missing, known)
        self._context.read_again, self._context.owed = read_again, owed
        seen = {file.key: file for file in scan.files}
        reads, gone = self._plan(scan, seen, known, unread or {})
        dropped = [
            record
            for key, record in known.items()
            if withdraws and not (record.present or key in seen or scan.is_unknown(*key))
        ]
        if not (reads or gone or dropped):
            return self.found
        self._context.pulse()
        with self._context.transactions():
            self._take_gone([known[key] for key in gone], dropped)
            self._context.is_fresh = Counts(self._store).is_fresh()
            new = [seen[key] for key, look in reads if look is Look.NEW]
            places = self._context.places([file.path for file in new])
            self._pool.expect(sum(seen[key].stat.size for key, _ in reads))
            self._take_files([(seen[key], known[key], look) for key, look in reads if look is not Look.NEW])
            self._take_new(new, places)
        return self.found

    def _plan(
        self,
        scan: Scan,
        seen: Mapping[FileKey, PartitionFile],
        known: Mapping[FileKey, FileRecord],
        unread: dict[int, UnreadEvidence],
    ) -> tuple[list[tuple[FileKey, Look]], Sequence[FileKey]]:
        """Return the files to read in this pass, and those that are gone."""
        plan = compare(
            {key: file.stat for key, file in seen.items()},
            known,
            scan.is_unknown,
            lambda record: record.key in self._left or record.is_doubtful(self._hashed_since_ns),
        )
        for key, look in plan.to_read:
            if look is not Look.NEW:
                # It may take long until the file is hashed and this is asked: it has to settle from now on.
                self._context.is_still(key, seen[key].stat)
        left = _left_unread(unread, {path for (kind, path), _ in plan.to_read if kind is InputKind.SCORED})
        reads = [read for read in plan.to_read if read[0] not in left]
        if self._context.read_again or self._context.owed:
            planned = {key for key, _ in reads}
            reads = sorted(
                [
                    *reads,
                    *((key, Look.CHANGED) for key in seen if key not in planned and self._context.is_read_again(key)),
                ],
                key=lambda read: (read[0][1].split("/"), read[0][0]),
            )
        self.found.postponed = [
            key
            for key in large_evidence((key for key, _ in reads), seen, known, plan.gone)
            if not self._context.is_read_again(key)
        ]
        if self.found.postponed:
            reads = [read for read in reads if read[0] not in self.found.postponed]
        return reads, plan.gone

    def take_one(self, file: PartitionFile) -> None:
        """Index an evidence file that was left unread."""
        with self._context.transactions():
            self._take_new_file(file, self._context.places([file.path]))

    def take_turn(self, scan: Scan, turns: Turns) -> None:
        """Read on in the evidence files that :meth:`take` postponed."""
        turns.take(self._context, self._evidence, scan)

    def _take_files(self, files: list[tuple[PartitionFile, FileRecord, Look]]) -> None:
        """Index known files. One that is read again and has not changed is only noted as hashed."""
        again = [
            file
            for file, record, look in files
            if look is Look.CHANGED and record.present and self._context.is_read_again(file.key)
        ]
        read, whole = self._read(again), set(again)
        for file, record, look in files:
            found = next(read) if file in whole else None
            if found is None or not self._is_unchanged(record, found):
                self._take_file(file, record, look)
            self._context.pulse()

    def _read(self, files: list[PartitionFile]) -> Iterator[FileRead | None]:
        """Read files as a whole, by workers where there are any; yield the reading of each.

        It is None if the file is too large, cannot be read, has short rows, or differs from the scan.
        """
        whole = [file for file in files if file.stat.size <= READ_WHOLE_BYTES]
        results = self._pool.run((ReadJob(file.kind, file.path, file.stat.size) for file in whole), self._options)
        for file in files:
            result = next(results).result if file.stat.size <= READ_WHOLE_BYTES else None
            yield as_scanned(result, file.stat) if isinstance(result, FileRead) else None

    def _is_unchanged(self, record: FileRecord, read: FileRead) -> bool:
        """Return whether a file that was read again equals its record, line by line; if so, note its hash."""
        self.found.bytes_read += read.reading.bytes_read
        reading = read.reading
        if reading.content != record.content:
            return False
        if self._files_of(record.kind).rows.facts(record) != sorted(read.facts):
            return False
        self.found.rows_indexed += reading.content.lines
        record.note_hashed(reading.facts, self._context.began_ns)
        self._inputs.write_file(record)
        if record.kind is InputKind.SCORED:
            self._scored.take_rest(record, read.rest)
        return True

    def _take_new(self, files: list[PartitionFile], places: dict[str, tuple[int, int]]) -> None:
        """Index new files; where they are large in all, leave evidence unread that only its own rows need."""
        if sum(file.stat.size for file in files) < LEAVE_FROM or Counts(self._store).has_exceptions():
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
            if record is None or not (0 < record.content.lines <= rows and record.content.size <= LEAVE_BYTES):
                continue
            if self._scored.rows.rows_beside_others(record) * file.stat.size <= LEAVE_REPEATED_BYTES:
                leaving.discard(file)
                self.found.unread[places[file.path][0]] = UnreadEvidence(file.path, file.stat, record.content)
        self._take_read([file for file in left if file in leaving], places)

    def _take_read(self, files: list[PartitionFile], places: dict[str, tuple[int, int]]) -> None:
        for file, found in zip(files, self._read(files), strict=True):
            if found is None:
                self._take_new_file(file, places)
            else:
                self._add_read(FileRecord.new(*file.key, places[file.path], file.stat), found)
            self._context.pulse()

    def _take_new_file(self, file: PartitionFile, places: dict[str, tuple[int, int]]) -> None:
        self._take_file(file, FileRecord.new(*file.key, places[file.path], file.stat), Look.NEW)

    def _take_file(self, file: PartitionFile, record: FileRecord, look: Look) -> None:
        """Index a file that is read block by block."""
        known = None if look is Look.NEW else record
        with (
            self._context.noting_problems(file.key),
            closing(self._context.reading(file, known, look)) as reading,
        ):
            self._files_of(file.kind).take(reading, record)

    def _add_read(self, record: FileRecord, read: FileRead) -> None:
        """Index a new file that was read as a whole."""
        reading, lines = read.reading, read.reading.content.lines
        refuse_too_many(tree_path(*record.key), lines)
        self.found.bytes_read += reading.bytes_read
        self.found.rows_indexed += lines
        record_reading(record, reading, self._context.began_ns)
        self._files_of(record.kind).add_read(record, read)
        self._context.count_rows(lines)

    def _take_gone(self, gone: Sequence[FileRecord], dropped: Sequence[FileRecord]) -> None:
        """Retain files that are gone, or drop them if the options say so, as what was retained of others."""
        self.found.names_gone |= bool(gone or dropped)
        # Scored files first: if their evidence is gone too, only the rows count.
        for record in [*sorted(gone, key=lambda record: record.kind is InputKind.EVIDENCE), *dropped]:
            self._context.note_gone(record)
            if self._options.on_delete is OnDelete.WITHDRAW:
                self._files_of(record.kind).drop(record)
                self._inputs.forget_file(record)
            else:
                self._files_of(record.kind).retain(record)
        forget_unnamed_evidence(self._store, {record.partition_id for record in gone})

    def _files_of(self, kind: InputKind) -> ScoredFiles | EvidenceFiles:
        return self._scored if kind is InputKind.SCORED else self._evidence


def _left_unread(unread: dict[int, UnreadEvidence], changed: Set[str]) -> set[FileKey]:
    """Drop changed partitions from what was left unread; return the evidence files that stay unread."""
    for partition_id in [number for number, each in unread.items() if each.path in changed]:
        del unread[partition_id]
    return {(InputKind.EVIDENCE, each.path) for each in unread.values()}


def refuse_missing_trees(missing: Iterable[InputKind], known: Collection[FileKey]) -> None:
    """Refuse to treat a missing tree as an empty one.

    Raises:
        ListingError: A ``missing`` tree held files that are known.
    """
    for kind in missing:
        if any(of is kind for of, _ in known):
            raise ListingError(tree_path(kind, ""), "the folder is missing, and files of it are known")
