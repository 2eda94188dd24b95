"""Read one input file block by block: from its start, or from where it was read to if nothing before that changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

from distilld.core.model import InputChanged, Options, StatFacts
from distilld.core.plan import FileKey, Look
from distilld.engine.read_file import Reading, record_reading, refuse_too_many
from distilld.lake.lines import Line, PartitionReader, Rest, rest_of
from distilld.lake.scan import PartitionFile, open_partition, tree_path
from distilld.store.inputs import FileRecord


class FileReading:
    """One reading of a file, which may be interrupted between two blocks.

    A change is never trusted to be an append: what was read before is hashed first (SPEC 4).
    """

    def __init__(
        self,
        root: Path,
        file: PartitionFile,
        known: FileRecord | None,
        look: Look,
        options: Options,
        *,
        whole: bool,
        is_still: Callable[[FileKey, StatFacts], bool],
        began_ns: int,
    ) -> None:
        """``whole`` reads it from its start in any case; a file that was rewritten is read if it ``is_still``.

        ``began_ns`` is a monotonic time before the first byte is read.
        """
        self.file = file
        self.key: FileKey = file.key
        self.look = look
        self.known = None if known is None else replace(known)
        """Its record when the reading began."""
        self.began_ns = began_ns
        self.whole = whole
        self.appended = True
        """Whether only what stands behind the known lines is read; settled before the first line."""
        self.unsettled = False
        """Whether the reading was given up because the file was rewritten just now."""
        self.has_ended = False
        self.first_line = 0
        """The number of the first line of the current block."""
        self.lines = 0
        """The lines of the file up to the end of the current block."""
        self.new_lines = self.malformed = 0
        self.first_malformed: int | None = None
        self.blocks = self._read()
        """Its new lines, block by block; None or an empty block where there is none, but the caller may do other work.

        Raises:
            InputChanged: The file is gone, or changed since it was opened, other than by growing.
            UnreadableError: The system refuses to read it, or it has too many lines.
        """
        self._root = root
        self._shown = tree_path(*file.key)
        self._options = options
        self._is_still = is_still
        self._reader: PartitionReader | None = None
        self._facts = file.stat

    @property
    def bytes_read(self) -> int:
        """Return how many bytes were read so far."""
        return 0 if self._reader is None else self._reader.bytes_read

    @property
    def result(self) -> Reading:
        """Return what was read so far."""
        assert self._reader is not None  # noqa: S101  set by the first step
        content = self._reader.content(self.lines)
        return Reading(self._facts, content, self.malformed, self.first_malformed, self._reader.bytes_read)

    @property
    def rest(self) -> Rest | None:
        """Return what the unterminated end of a scored file forbids, once all was read."""
        return None if self._reader is None else rest_of(self._reader.tail)

    def note_in(self, record: FileRecord) -> None:
        """Note in the file's record how far it was read; before its end, the facts prove nothing."""
        read = self.result
        record_reading(record, read if self.has_ended else read._replace(facts=read.facts.of_a_part()), self.began_ns)
        if self.appended and self.known is not None:
            record.malformed_lines += self.known.malformed_lines

    def change(self, record: FileRecord) -> str | None:
        """Return what became of the file, once its record says what was read; None if its content is as it was."""
        known = self.known
        if known is None:
            return "new"
        same = record.content[:2] == known.content[:2]
        if self.appended:
            if self.new_lines or not same:
                return "appended"
            return "tail" if record.content.end != known.content.end else None
        if same and self.whole and self.look is Look.CHANGED:
            return None
        return "returned" if self.look is Look.RETURNED else "rewritten"

    @property
    def from_offset(self) -> int:
        """Return where the bytes begin that are read for the first time."""
        return self.known.content.size if self.appended and self.known is not None else 0

    def note_malformed(self, numbers: list[int]) -> None:
        """Count malformed lines."""
        self.malformed += len(numbers)
        if numbers and self.first_malformed is None:
            self.first_malformed = numbers[0]

    def is_of(self, file: PartitionFile | None) -> bool:
        """Return whether a scan found the file at its path; it may have grown since it was opened, but not changed."""
        if file is None or self._facts[:2] != file.stat[:2]:
            return False
        return self.is_as_scanned(file) or file.stat.size > self._facts.size

    def is_as_scanned(self, file: PartitionFile) -> bool:
        """Return whether a scan found the file as it was when it was opened."""
        return self._facts == file.stat

    def is_based_on(self, record: FileRecord | None) -> bool:
        """Return whether the file's record says of its content what it said when the reading began."""
        return _content_of(record) == _content_of(self.known)

    def close(self) -> None:
        """Close the file."""
        self.blocks.close()

    def _read(self) -> Generator[list[Line] | None]:
        with open_partition(self._root, *self.key) as (descriptor, facts):
            self._facts = facts
            reader = self._reader = PartitionReader(descriptor, facts.size, self._options.max_line_bytes, self._shown)
            yield from self._read_lines(reader)
            # The beginning of what it was and the rest of what it is would lack lines that both have.
            if StatFacts.of(os.fstat(descriptor)) != facts and not (
                self.unsettled or (yield from reader.proof(reader.consumed, reader.sha256))
            ):
                raise InputChanged(self._shown)
            self.has_ended = True

    def _read_lines(self, reader: PartitionReader) -> Generator[list[Line] | None]:
        known = self.known
        if known is not None:
            # The known rows of a returned file may have moved to another file meanwhile.
            proven = (
                self.look is Look.CHANGED
                and self._facts.size >= known.content.size + known.content.tail_bytes
                and (yield from reader.proof(known.content.size, known.content.sha256))
            )
            self.appended = proven and not self.whole
            if self.appended and (yield from self._new_lines(reader, known)):
                return
            self.appended = False
            if not ((proven and self.whole) or self._is_still(self.key, self._facts)):
                self.unsettled = True
                return
            reader.rewind()
        yield from self._new_lines(reader, None)

    def _new_lines(self, reader: PartitionReader, known: FileRecord | None) -> Generator[list[Line], None, bool]:
        """Yield the lines behind what was consumed; return False, without any, if the known end became another line."""
        end = None if known is None else known.content.tail_digest
        self.lines = 0 if known is None else known.content.lines - (end is not None)
        start = reader.consumed
        for block in reader.blocks_with_end():
            if block and end is not None:
                if (block[0].start, block[0].digest) != (start, end):
                    return False
                block, end = block[1:], None  # noqa: PLW2901  the first line is known
                self.lines += 1
            self.first_line = self.lines
            self.lines += len(block)
            self.new_lines += len(block)
            refuse_too_many(self._shown, self.lines)
            yield block
        return end is None


def _content_of(record: FileRecord | None) -> tuple[object, ...] | None:
    return None if record is None else (record.partition_id, record.state, record.content)
