"""Index scored files: their rows, and the verdicts of lines that are no rows."""

from __future__ import annotations

from distilld.core.line_facts import OddLines, RowFacts
from distilld.core.model import InputKind
from distilld.engine.file_reading import FileReading
from distilld.engine.index_context import IndexContext
from distilld.engine.read_file import FileRead, scored_facts, unreviewed_lines
from distilld.lake.lines import Line, Rest
from distilld.store.inputs import FileRecord
from distilld.store.scored_rows import ScoredRows
from distilld.store.verdicts import Verdicts


class ScoredFiles:
    """Puts the rows of one scored file at a time into the store, inside the caller's transactions.

    New lines are stored block by block. A rewritten file replaces its known rows as a whole.
    """

    def __init__(self, context: IndexContext) -> None:
        self._context = context
        self.rows = ScoredRows(context.store, context.inputs)
        self._verdicts = Verdicts(context.store)

    def add_read(self, record: FileRecord, read: FileRead) -> None:
        """Index a new file that was read as a whole."""
        context = self._context
        self._verdicts.add_malformed_runs(read.malformed_runs)
        self.rows.add(record, read.facts)
        self._note_unreviewed(record, read.unreviewed)
        context.inputs.write_file(record)
        self._affect_others(record, 0, record.content.lines)
        self.take_rest(record, read.rest)
        context.note_read(record, read.reading)

    def take(self, reading: FileReading, record: FileRecord) -> None:
        """Index a file that is read block by block."""
        context = self._context
        for block in context.blocks(reading):
            rows = self._facts(reading, record, block)
            if reading.appended:
                self._append(reading, record, rows)
            else:
                if reading.first_line == 0:
                    self.rows.stage()
                self.rows.add_staged(rows)
        if reading.unsettled:
            context.found.unsettled.append(record.key)
        elif reading.appended:
            self._end_append(reading, record)
        else:
            self._replace(reading, record)

    def take_rest(self, record: FileRecord, rest: Rest | None) -> None:
        """Apply what the rest after the last line feed forbids, once it no longer changes (SPEC 2)."""
        context = self._context
        if rest is not None and not context.is_still(record.key, record.facts):
            context.found.unsettled.append(record.key)
            context.inputs.doubt([record.key])
            return
        if rest is not None:
            self._verdicts.add_malformed_runs([(run_id, rest.digest) for run_id in rest.verdict.run_ids])
        self._verdicts.set_rest(record, rest and (rest.digest, rest.verdict.category), context.options)

    def retain(self, record: FileRecord) -> None:
        """Retain what the rows of a file that is gone have given."""
        self.rows.retain(record, self._context.options)

    def drop(self, record: FileRecord) -> None:
        """Drop the rows of a file that is gone for good, retained ones too."""
        if not record.present:
            self.rows.make_live(record, self._context.options)
        self._verdicts.set_rest(record, None, self._context.options)
        self.rows.drop(record, self._context.options)

    def _facts(self, reading: FileReading, record: FileRecord, block: list[Line]) -> list[RowFacts]:
        runs: list[tuple[str, bytes]] = []
        rows = [scored_facts(line, number, runs) for number, line in enumerate(block, reading.first_line)]
        reading.note_malformed([row.line for row in rows if row.malformed is not None])
        self._verdicts.add_malformed_runs(runs)
        self._note_unreviewed(record, unreviewed_lines(rows))
        self._context.found.rows_indexed += len(rows)
        return rows

    def _append(self, reading: FileReading, record: FileRecord, rows: list[RowFacts]) -> None:
        context, from_offset = self._context, record.content.size
        malformed = sum(row.malformed is not None for row in rows)
        self.rows.add(record, rows)
        reading.note_in(record)
        context.inputs.write_file(record)
        change = "new" if reading.known is None else "appended"
        context.inputs.note_input(record, change, from_offset, len(rows), malformed)
        self._affect_others(record, reading.first_line, reading.lines)
        context.count_rows(len(rows))

    def _end_append(self, reading: FileReading, record: FileRecord) -> None:
        reading.note_in(record)
        self._context.inputs.write_file(record)
        self.take_rest(record, reading.rest)
        self._context.note_reading(record, reading, noted=True)

    def _replace(self, reading: FileReading, record: FileRecord) -> None:
        """Replace what is known of a file by what was staged of it."""
        context, known = self._context, reading.known
        assert known is not None  # noqa: S101  a new file replaces nothing
        if not known.present:
            # Nothing else would make the rows of an absent file live again.
            record.state = "present"
            self._verdicts.set_rest(record, None, context.options)
            self.rows.make_live(record, context.options)
            context.inputs.write_file(record)
        reading.note_in(record)
        if reading.lines:
            self.rows.replace(record, context.options)
        else:
            self.rows.drop(record, context.options)
        context.inputs.write_file(record, judged=True)
        self.take_rest(record, reading.rest)
        context.note_reading(record, reading)
        context.count_rows(reading.lines)

    def _affect_others(self, record: FileRecord, first_line: int, end_line: int) -> None:
        """Queue what new rows affect."""
        if end_line > first_line and not self._context.is_fresh:
            self.rows.close_over_new(record, first_line, end_line, self._context.options)

    def _note_unreviewed(self, record: FileRecord, lines: list[int]) -> None:
        if lines:
            found = self._context.found.unreviewed
            of = found.setdefault(record.path, OddLines(InputKind.SCORED, record.path, 0, lines[0]))
            found[record.path] = of._replace(lines=of.lines + len(lines))
