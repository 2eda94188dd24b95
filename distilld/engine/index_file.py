"""Index one input file: from its start, from where it was read to, or in place of its earlier content."""

from __future__ import annotations

import hashlib

from distilld.core.line_facts import LINES_END
from distilld.core.model import InputChanged, InputKind, OperatorError, StatFacts, UnreadableError
from distilld.core.plan import Look
from distilld.engine.index_lines import FileChange, LineIndexer
from distilld.engine.read_file import FileRead, Reading
from distilld.lake.lines import Line, PartitionReader, Rest, end_of, rest_of
from distilld.lake.scan import PartitionFile, open_partition, tree_path
from distilld.store.inputs import FileRecord


class FileIndexer(LineIndexer):
    """Indexes one file at a time, inside the caller's transactions."""

    # a file that was read as a whole

    def _add_read(self, record: FileRecord, read: FileRead) -> None:
        """Index a new file that was read as a whole."""
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

    # a file that is read block by block

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
            self._out.names_gone = True
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
        # The known rows of a returned file may have moved to another file meanwhile.
        proven = (
            look is Look.CHANGED
            and facts.size >= known.indexed_bytes + known.tail_bytes
            and reader.prove_prefix(known.indexed_bytes, known.indexed_sha256, self._pulse)
        )
        again = self._is_read_again(key)
        if proven and not again and self._append(reader, facts, known, "appended"):
            return
        if not ((proven and again) or self._is_still(key, facts)):
            self._out.unsettled.append(key)
            return
        reader.rewind()
        self._rewrite(reader, facts, known, look)

    def _pulse(self) -> None:
        self._progress(len(self._out.changes), self._out.bytes_read)

    def _set_present(self, record: FileRecord) -> None:
        """Mark an absent file that was read again as present: nothing else would make its rows live again."""
        if record.present:
            return
        record.state = "present"
        if record.kind is InputKind.SCORED:
            self._verdicts.set_rest(record, None, self._options)
            self._absent.make_scored_live(record, self._options)
        self._inputs.write_file(record)

    def _append(self, reader: PartitionReader, facts: StatFacts, record: FileRecord, change: str) -> bool:
        """Index the lines after the consumed prefix; return False if a provisional last line became another one."""
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
            malformed_here = self._add(record, block, lines, staged=staged)
            lines, new_lines, malformed = lines + len(block), new_lines + len(block), malformed + malformed_here
            record.indexed_lines = lines
            record.malformed_lines += malformed_here
            # Until its end is read, the file does not count as unchanged.
            self._record_reading(record, reader, facts.doubted())
            if not staged:
                self._inputs.write_file(record)
                self._inputs.note_input(record, change, from_offset, len(block), malformed_here)
                self._close_over(record, first_line, lines)
                first_line = lines
                self._breathe(len(block))
        tail = reader.tail
        if provisional is not None and (tail is None or (tail.start, tail.digest) != (from_offset, provisional)):
            return False
        added = self._take_tail(record, tail, lines, staged=staged, known=provisional is not None)
        self._record_reading(record, reader, facts)
        record.indexed_lines = lines + (record.tail == "provisional")
        if staged:
            self._evidence.apply(record, whole_file=False)
        self._inputs.write_file(record)
        self._close_over(record, first_line, record.indexed_lines)
        self._take_rest(record, rest_of(tail))
        moved = record.indexed_bytes != from_offset or added
        tail_moved = known_tail != (record.tail, record.tail_digest, record.tail_bytes)
        if moved or change != "appended":
            lines_here, malformed_here = (new_lines, malformed) if staged else (0, 0)
            self._inputs.note_input(record, change, from_offset, lines_here + added, malformed_here)
            self._tell(record, change, new_lines + added, malformed)
        elif tail_moved:
            self._out.changes.append(FileChange(record.kind, record.path, "tail"))
        return True

    def _take_tail(self, record: FileRecord, tail: Line | None, line: int, *, staged: bool, known: bool) -> int:
        """Index the unterminated end of a file (SPEC 2): a complete object is a line, anything else is pending."""
        record.tail, record.tail_bytes, record.tail_digest = end_of(tail)
        if tail is None or record.tail_digest is None or known:
            return 0
        self._add(record, [tail], line, staged=staged)
        return 1

    def _take_rest(self, record: FileRecord, rest: Rest | None) -> None:
        """Apply what the rest after the last line feed forbids, once it no longer changes (SPEC 2)."""
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
        """Index a file from its start, in place of what was known about it."""
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
        if not (same and self._is_read_again((record.kind, record.path)) and look is Look.CHANGED):
            self._note(record, "returned" if look is Look.RETURNED else "rewritten", 0, lines, malformed)
        self._breathe(lines)

    def _record_reading(self, record: FileRecord, reader: PartitionReader, facts: StatFacts) -> None:
        record.indexed_bytes, record.indexed_sha256 = reader.consumed, reader.sha256
        record.note_hashed(facts, self._began_ns)


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


def _refuse_too_many(record: FileRecord, lines: int) -> None:
    if lines >= LINES_END:
        why = OSError(f"it has {LINES_END} lines or more, and must be split")
        raise UnreadableError(tree_path(record.kind, record.path), why, hint="split it")
