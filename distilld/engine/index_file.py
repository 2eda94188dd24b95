"""Index one input file: from its start, from where it was read to, or in place of its earlier content."""

from __future__ import annotations

from distilld.core.model import InputKind, StatFacts
from distilld.core.plan import FileKey, Look
from distilld.engine.index_evidence import EvidenceIndexer
from distilld.engine.index_lines import FileChange, new_record, record_reading, tail_of
from distilld.engine.read_file import FileRead, refuse_too_many
from distilld.lake.lines import Line, PartitionReader, Rest, end_of, rest_of
from distilld.lake.scan import PartitionFile, open_partition, tree_path
from distilld.store.inputs import FileRecord
from distilld.store.walk_order import place_partitions


class FileIndexer(EvidenceIndexer):
    """Indexes one file at a time, inside the caller's transactions."""

    # a file that was read as a whole

    def _add_read(self, record: FileRecord, read: FileRead) -> None:
        """Index a new file that was read as a whole."""
        reading = read.reading
        refuse_too_many(tree_path(*record.key), reading.lines)
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
        self._first_malformed = None
        record = new_record(*file.key, place, file.stat) if known is None else known
        with self._noting_problems(file.key):
            if file.kind is InputKind.EVIDENCE:
                reading = self._reading(file, known, look, self._evidence)
                self._read_on(reading, None)
                self._apply(reading, record)
            else:
                self._take_scored(file, look, record)

    def _place(self, reads: list[tuple[FileKey, Look]], known: dict[FileKey, FileRecord]) -> dict[str, tuple[int, int]]:
        """Return places in walk order for partitions of new files; update the records of known ones, which may move."""
        new = [path for (kind, path), _ in reads if (kind, path) not in known]
        if not new:
            return {}
        places = place_partitions(self._store, new)
        for record in known.values():
            record.walk_base = places[record.path][1]
        return places

    # scored files

    def _take_scored(self, file: PartitionFile, look: Look, record: FileRecord) -> None:
        with open_partition(self._root, *file.key) as (descriptor, facts):
            reader = PartitionReader(descriptor, facts.size, self._options.max_line_bytes, tree_path(*file.key))
            try:
                self._take_open(reader, facts, record, look)
            finally:
                self._out.bytes_read += reader.bytes_read

    def _take_open(self, reader: PartitionReader, facts: StatFacts, record: FileRecord, look: Look) -> None:
        key = record.key
        if look is Look.NEW:
            self._append(reader, facts, record, "new")
            return
        # The known rows of a returned file may have moved to another file meanwhile.
        proven = (
            look is Look.CHANGED
            and facts.size >= record.indexed_bytes + record.tail_bytes
            and reader.prove_prefix(record.indexed_bytes, record.indexed_sha256, self._pulse)
        )
        again = self._is_read_again(key)
        if proven and not again and self._append(reader, facts, record, "appended"):
            return
        if not ((proven and again) or self._is_still(key, facts)):
            self._out.unsettled.append(key)
            return
        reader.rewind()
        self._rewrite(reader, facts, record, look)

    def _set_present(self, record: FileRecord) -> None:
        """Mark an absent file that was read again as present: nothing else would make its rows live again."""
        if record.present:
            return
        record.state = "present"
        self._verdicts.set_rest(record, None, self._options)
        self._absent.make_scored_live(record, self._options)
        self._inputs.write_file(record)

    def _append(self, reader: PartitionReader, facts: StatFacts, record: FileRecord, change: str) -> bool:
        """Index the lines after the consumed prefix; return False if a provisional last line became another one."""
        from_offset, first_line = record.indexed_bytes, record.indexed_lines
        provisional = record.tail_digest if record.tail == "provisional" else None
        known_tail = tail_of(record)
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
            refuse_too_many(tree_path(*record.key), lines + len(block))
            malformed_here = self._add(record, block, lines)
            lines, new_lines, malformed = lines + len(block), new_lines + len(block), malformed + malformed_here
            record.indexed_lines = lines
            record.malformed_lines += malformed_here
            # Until its end is read, the file does not count as unchanged.
            self._record_reading(record, reader, facts.doubted())
            self._inputs.write_file(record)
            self._inputs.note_input(record, change, from_offset, len(block), malformed_here)
            self._close_over(record, first_line, lines)
            first_line = lines
            self._breathe(len(block))
        tail = reader.tail
        if provisional is not None and (tail is None or (tail.start, tail.digest) != (from_offset, provisional)):
            return False
        added = self._take_tail(record, tail, lines, known=provisional is not None)
        self._record_reading(record, reader, facts)
        record.indexed_lines = lines + (record.tail == "provisional")
        self._inputs.write_file(record)
        self._close_over(record, first_line, record.indexed_lines)
        self._take_rest(record, rest_of(tail))
        moved = record.indexed_bytes != from_offset or added
        if moved or change != "appended":
            self._inputs.note_input(record, change, from_offset, added, 0)
            self._tell(record, change, new_lines + added, malformed)
        elif known_tail != tail_of(record):
            self._out.changes.append(FileChange(record.kind, record.path, "tail"))
        return True

    def _add(self, record: FileRecord, block: list[Line], first_line: int) -> int:
        """Insert a block's facts; return how many lines are malformed."""
        rows, malformed = self._scored_facts(record, block, first_line)
        self._scored.add(record, rows)
        self._out.rows_indexed += len(rows)
        return malformed

    def _take_tail(self, record: FileRecord, tail: Line | None, line: int, *, known: bool) -> int:
        """Index the unterminated end of a file (SPEC 2): a complete object is a line, anything else is pending."""
        record.tail, record.tail_bytes, record.tail_digest = end_of(tail)
        if tail is None or record.tail_digest is None or known:
            return 0
        self._add(record, [tail], line)
        return 1

    def _take_rest(self, record: FileRecord, rest: Rest | None) -> None:
        """Apply what the rest after the last line feed forbids, once it no longer changes (SPEC 2)."""
        if record.kind is not InputKind.SCORED:
            return
        key = record.key
        if rest is not None and not self._is_still(key, record.facts):
            self._out.unsettled.append(key)
            self._inputs.doubt([key])
            return
        if rest is not None:
            self._verdicts.add_malformed_runs([(run_id, rest.digest) for run_id in rest.verdict.run_ids])
        self._verdicts.set_rest(record, rest and (rest.digest, rest.verdict.category), self._options)

    def _rewrite(self, reader: PartitionReader, facts: StatFacts, record: FileRecord, look: Look) -> None:
        """Index a file from its start, in place of what was known about it."""
        self._rewritten.stage()
        lines = malformed = 0
        for block in reader.blocks_with_end():
            self._pulse()
            malformed += self._stage(record, block, lines)
            lines += len(block)
            refuse_too_many(tree_path(*record.key), lines)
        record.tail, record.tail_bytes, record.tail_digest = reader.end
        self._set_present(record)
        same = record.indexed_sha256 == reader.sha256 and record.indexed_bytes == reader.consumed
        self._record_reading(record, reader, facts)
        record.indexed_lines, record.malformed_lines = lines, malformed
        self._rewritten.replace(record, self._options)
        self._inputs.write_file(record, judged=True)
        self._take_rest(record, rest_of(reader.tail))
        if not (same and self._is_read_again(record.key) and look is Look.CHANGED):
            self._note(record, "returned" if look is Look.RETURNED else "rewritten", 0, lines, malformed)
        self._breathe(lines)

    def _stage(self, record: FileRecord, block: list[Line], first_line: int) -> int:
        rows, malformed = self._scored_facts(record, block, first_line)
        self._rewritten.add(rows)
        self._out.rows_indexed += len(rows)
        return malformed

    def _record_reading(self, record: FileRecord, reader: PartitionReader, facts: StatFacts) -> None:
        record.indexed_bytes, record.indexed_sha256 = reader.consumed, reader.sha256
        record.note_hashed(facts, self._began_ns)
