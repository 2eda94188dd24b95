"""Index evidence that is read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from distilld.core.model import InputChanged, OperatorError
from distilld.core.plan import FileKey, Look
from distilld.engine.evidence_reading import EvidenceReading
from distilld.engine.index_lines import FileChange, LineIndexer, record_reading, tail_of
from distilld.lake.scan import PartitionFile
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.inputs import FileRecord


class EvidenceIndexer(LineIndexer):
    """Reads evidence files, and applies what they say when all was read."""

    @contextmanager
    def _noting_problems(self, key: FileKey) -> Iterator[None]:
        """Note that a file changed or could not be read, and go on with others."""
        try:
            yield
        except InputChanged:
            self._inputs.forget_files()
            self._out.unsettled.append(key)
            self._out.names_gone = True
        except OperatorError as error:
            self._inputs.forget_files()
            self._out.problems.append(error)
            self._out.unreadable.append(key)

    def _pulse(self) -> None:
        self._show(self._out.bytes_read)

    def _show(self, bytes_read: int) -> None:
        self._progress(len(self._out.changes), bytes_read)

    def _reading(
        self, file: PartitionFile, known: FileRecord | None, look: Look, evidence: EvidenceRows
    ) -> EvidenceReading:
        return EvidenceReading(
            self._root,
            file,
            known,
            look,
            evidence,
            self._options,
            whole=self._is_read_again(file.key),
            is_still=self._is_still,
            began_ns=self._began_ns,
        )

    def _read_on(self, reading: EvidenceReading, most_bytes: int | None) -> bool:
        """Read on in a file, at most so many bytes; return whether the reading has ended."""
        others, before = self._out.bytes_read, reading.bytes_read
        try:
            # Of a file that is read in turns, all that was read so far is shown.
            return reading.read(lambda: self._show(others + reading.bytes_read), most_bytes)
        finally:
            self._out.bytes_read += reading.bytes_read - before

    def _apply(self, reading: EvidenceReading, record: FileRecord) -> None:
        """Apply the facts of evidence that was read block by block."""
        if reading.unsettled:
            self._out.unsettled.append(record.key)
            return
        appended, read, known = reading.appended, reading.reading, replace(record)
        self._first_malformed = reading.first_malformed
        self._out.rows_indexed += reading.new_lines
        record.state = "present"
        record_reading(record, read, reading.began_ns)
        if appended:
            record.malformed_lines += known.malformed_lines
        reading.evidence.apply(record, whole_file=not appended, returned=reading.look is Look.RETURNED)
        self._inputs.write_file(record)
        same = (record.indexed_bytes, record.indexed_sha256) == (known.indexed_bytes, known.indexed_sha256)
        if not appended:
            if not (same and reading.whole and reading.look is Look.CHANGED):
                change = "returned" if reading.look is Look.RETURNED else "rewritten"
                self._note(record, change, 0, read.lines, reading.malformed)
        elif not same or reading.new_lines or reading.look is Look.NEW:
            change = "new" if reading.look is Look.NEW else "appended"
            self._note(record, change, known.indexed_bytes, reading.new_lines, reading.malformed)
        elif tail_of(record) != tail_of(known):
            self._out.changes.append(FileChange(record.kind, record.path, "tail"))
        self._breathe(reading.new_lines)
