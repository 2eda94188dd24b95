"""Put the facts of lines into the store, and collect what is logged about their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from typing import Final

from distilld.core.line_facts import OddLines, RowFacts
from distilld.core.model import InputKind, OperatorError, Options, StatFacts
from distilld.core.plan import FileKey
from distilld.engine.read_file import Reading, scored_facts, unreviewed_lines
from distilld.engine.span_queue import UnreadEvidence
from distilld.lake.lines import Line
from distilld.store.absent_files import AbsentFiles
from distilld.store.connection import Store
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.rewritten_file import RewrittenFile
from distilld.store.scored_rows import ScoredRows
from distilld.store.verdicts import Verdicts

ROWS_PER_TRANSACTION: Final = 20_000


@dataclass(frozen=True, slots=True)
class FileChange:
    """One input file that changed, as logs and receipts name it."""

    kind: InputKind
    path: str
    change: str
    lines: int = 0


@dataclass(slots=True)
class Indexed:
    """What one scan found."""

    changes: list[FileChange] = field(default_factory=list)
    unsettled: list[FileKey] = field(default_factory=list)
    """Files that were rewritten just now; they are read once they stay unchanged for the settling time."""
    postponed: list[FileKey] = field(default_factory=list)
    """Large files that are left to the passes that follow at once."""
    problems: list[OperatorError] = field(default_factory=list)
    malformed: list[OddLines] = field(default_factory=list)
    unreviewed: dict[str, OddLines] = field(default_factory=dict)
    """Scored rows with none of the four categories, by partition."""
    unreadable: list[FileKey] = field(default_factory=list)
    """The files that the problems are about."""
    unread: dict[int, UnreadEvidence] = field(default_factory=dict)
    """New evidence files that are read when their rows are judged, by partition."""
    names_gone: bool = False
    """Whether files are absent, or were gone before they were read: nothing may need their partitions any more."""
    files_seen: int = 0
    rows_indexed: int = 0
    bytes_read: int = 0

    @property
    def left(self) -> list[FileKey]:
        """Return the files that are left to later passes."""
        return [*self.unsettled, *self.postponed]

    def add(self, later: Indexed) -> None:
        """Add what was found later."""
        self.changes += later.changes
        self.unsettled += later.unsettled
        self.postponed += later.postponed
        self.problems += later.problems
        self.malformed += later.malformed
        self.unreviewed |= later.unreviewed
        self.unreadable += later.unreadable
        self.unread |= later.unread
        self.names_gone |= later.names_gone
        self.rows_indexed += later.rows_indexed
        self.bytes_read += later.bytes_read

    def left_by(self, later: Indexed) -> None:
        """Take over from a later scan of all files which ones are left to the next."""
        self.unsettled, self.unreadable, self.postponed = later.unsettled, later.unreadable, later.postponed


class LineIndexer:
    """Indexes lines of one file at a time, inside the caller's transactions."""

    def __init__(
        self,
        root: Path,
        store: Store,
        inputs: Inputs,
        options: Options,
        *,
        is_still: Callable[[FileKey, StatFacts], bool],
        progress: Callable[[int, int], None],
    ) -> None:
        self._root = root
        self._store = store
        self._inputs = inputs
        self._scored = ScoredRows(store)
        self._rewritten = RewrittenFile(store)
        self._evidence = EvidenceRows(store, inputs)
        self._absent = AbsentFiles(store, inputs)
        self._verdicts = Verdicts(store)
        self._options = options
        self._is_still = is_still
        self._progress = progress
        self._began_ns = monotonic_ns()
        self._out = Indexed()
        self._rows_in_transaction = 0
        self._fresh = True
        self._read_again = False
        self._first_malformed: int | None = None
        self._owed: Set[FileKey] = frozenset()

    def _is_read_again(self, key: FileKey) -> bool:
        return self._read_again or key in self._owed

    @contextmanager
    def _transactions(self) -> Iterator[None]:
        """Run transactions of bounded size around many files; what one file needs as a whole is never split."""
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

    def _scored_facts(self, record: FileRecord, block: list[Line], first_line: int) -> tuple[list[RowFacts], int]:
        runs: list[tuple[str, bytes]] = []
        rows = [scored_facts(line, number, runs) for number, line in enumerate(block, first_line)]
        malformed = [row.line for row in rows if row.malformed is not None]
        if malformed and self._first_malformed is None:
            self._first_malformed = malformed[0]
        self._verdicts.add_malformed_runs(runs)
        self._note_unreviewed(record, unreviewed_lines(rows))
        return rows, len(malformed)

    def _close_over(self, record: FileRecord, first_line: int, end_line: int) -> None:
        if record.kind is InputKind.SCORED and end_line > first_line and not self._fresh:
            self._scored.close_over_new(record, first_line, end_line, self._options)

    def _note_unreviewed(self, record: FileRecord, lines: list[int]) -> None:
        if lines:
            of = self._out.unreviewed.setdefault(record.path, OddLines(InputKind.SCORED, record.path, 0, lines[0]))
            self._out.unreviewed[record.path] = of._replace(lines=of.lines + len(lines))

    def _note(self, record: FileRecord, change: str, from_offset: int, lines: int, malformed: int) -> None:
        self._inputs.note_input(record, change, from_offset, lines, malformed)
        self._tell(record, change, lines, malformed)

    def _tell(self, record: FileRecord, change: str, lines: int, malformed: int) -> None:
        if self._first_malformed is not None:
            self._out.malformed.append(OddLines(record.kind, record.path, malformed, self._first_malformed))
        self._out.changes.append(FileChange(record.kind, record.path, change, lines))


def record_reading(record: FileRecord, reading: Reading, began_ns: int) -> None:
    """Note in a file's record how far it was read, not before ``began_ns``, and what it contained."""
    record.note_hashed(reading.facts, began_ns)
    record.indexed_bytes, record.indexed_sha256 = reading.consumed, reading.sha256
    record.indexed_lines, record.malformed_lines = reading.lines, reading.malformed
    record.tail, record.tail_bytes, record.tail_digest = reading.tail, reading.tail_bytes, reading.tail_digest


def new_record(kind: InputKind, path: str, place: tuple[int, int], facts: StatFacts) -> FileRecord:
    """Return the record of a file that was not read yet; ``place`` is its partition's id and base."""
    empty = hashlib.sha256().hexdigest()
    return FileRecord(*place, path, kind, "present", facts.doubted(), 0, empty, 0, 0, None, 0, None)


def tail_of(record: FileRecord) -> tuple[str | None, bytes | None, int]:
    """Return what is recorded of a file's unterminated end."""
    return record.tail, record.tail_digest, record.tail_bytes
