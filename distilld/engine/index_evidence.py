"""Index evidence files: their facts are staged, and take effect together when all of a file was read."""

from __future__ import annotations

from distilld.core.line_facts import EvidenceFacts, run_of_evidence
from distilld.core.plan import Look
from distilld.engine.file_reading import FileReading
from distilld.engine.index_context import IndexContext
from distilld.engine.read_file import FileRead
from distilld.lake.lines import Line, parse_line
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.inputs import FileRecord
from distilld.store.scored_rows import ScoredRows


class EvidenceFiles:
    """Puts the facts of evidence files into the store, inside the caller's transactions."""

    def __init__(self, context: IndexContext) -> None:
        self._context = context
        self.rows = EvidenceRows(context.store, context.inputs)
        self._scored = ScoredRows(context.store, context.inputs)

    def add_read(self, record: FileRecord, read: FileRead) -> None:
        """Index a new file that was read as a whole."""
        if self._scored.any_in(record):
            self.rows.stage()
            self.rows.add_staged(read.facts)
            self.rows.apply(record, whole_file=False)
        else:
            self.rows.add(record, read.facts)
        self._context.inputs.write_file(record)
        self._context.note_read(record, read.reading)

    def take(self, reading: FileReading, record: FileRecord) -> None:
        """Index a file that is read block by block."""
        self.rows.stage()
        self.stage(reading, self.rows)
        self.apply(reading, self.rows, record)

    def stage(self, reading: FileReading, rows: EvidenceRows, most_bytes: int | None = None) -> None:
        """Read on in a file, to its end or so many bytes further; add the facts to those that ``rows`` stage."""
        for block in self._context.blocks(reading, most_bytes):
            found, malformed = _evidence_facts(block, reading.first_line)
            rows.add_staged(found)
            reading.note_malformed(malformed)

    def apply(self, reading: FileReading, rows: EvidenceRows, record: FileRecord) -> None:
        """Apply what ``rows`` stage of a file, once all of it was read."""
        context = self._context
        if reading.unsettled:
            context.found.unsettled.append(record.key)
            return
        context.found.rows_indexed += reading.new_lines
        record.state = "present"
        reading.note_in(record)
        rows.apply(record, whole_file=not reading.appended, returned=reading.look is Look.RETURNED)
        context.inputs.write_file(record)
        context.note_reading(record, reading)
        context.count_rows(reading.new_lines)

    def retain(self, record: FileRecord) -> None:
        """Note that a file is gone; what its rows have given stays."""
        self.rows.lose(record)
        record.state = "absent"
        self._context.inputs.write_file(record)

    def drop(self, record: FileRecord) -> None:
        """Drop the facts of a file that is gone for good."""
        self.rows.drop(record)


def _evidence_facts(block: list[Line], first_line: int) -> tuple[list[EvidenceFacts], list[int]]:
    """Return the facts of evidence lines, and the numbers of malformed ones."""
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
