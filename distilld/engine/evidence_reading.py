"""Read one evidence file block by block; its facts are staged, and take effect together when all of it was read.

A large one is read in turns, between which the caller does other work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

from distilld.core.line_facts import EvidenceFacts, run_of_evidence
from distilld.core.model import Options, StatFacts
from distilld.core.plan import FileKey, Look
from distilld.engine.read_file import Reading, refuse_too_many
from distilld.lake.lines import Line, PartitionReader, parse_line
from distilld.lake.scan import PartitionFile, open_partition, tree_path
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.inputs import FileRecord


class EvidenceReading:
    """One reading of an evidence file: from its start, or from where it was read to if nothing before that changed."""

    def __init__(
        self,
        root: Path,
        file: PartitionFile,
        known: FileRecord | None,
        look: Look,
        evidence: EvidenceRows,
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
        self.evidence = evidence
        self.known = None if known is None else replace(known)
        """Its record when the reading began."""
        self.began_ns = began_ns
        self.whole = whole
        self.appended = True
        """Whether only what stands behind the known lines was read."""
        self.unsettled = False
        """Whether the reading was given up because the file was rewritten just now."""
        self.new_lines = self.malformed = 0
        self.first_malformed: int | None = None
        self._root = root
        self._shown = tree_path(*file.key)
        self._options = options
        self._is_still = is_still
        self._reader: PartitionReader | None = None
        self._facts = file.stat
        self._lines = 0
        self._steps = self._read()

    @property
    def bytes_read(self) -> int:
        """Return how many bytes were read so far."""
        return 0 if self._reader is None else self._reader.bytes_read

    @property
    def reading(self) -> Reading:
        """Return what was read, once the reading has ended."""
        assert self._reader is not None  # noqa: S101  set by the first step
        return Reading(
            self._facts,
            self._reader.consumed,
            self._reader.sha256,
            self._lines,
            self.malformed,
            self.first_malformed,
            *self._reader.end,
            self._reader.bytes_read,
        )

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

    def read(self, pulse: Callable[[], None], most_bytes: int | None = None) -> bool:
        """Read to the end, or until so many bytes more were read; return whether the reading has ended.

        Raises:
            InputChanged: The file is gone, or shorter than when it was opened.
            UnreadableError: The system refuses to read it, or it has too many lines.
        """
        until = None if most_bytes is None else self.bytes_read + most_bytes
        for _ in self._steps:
            pulse()
            if until is not None and self.bytes_read >= until:
                return False
        return True

    def close(self) -> None:
        """Close the file."""
        self._steps.close()

    def _read(self) -> Generator[None]:
        with open_partition(self._root, *self.key) as (descriptor, facts):
            self._facts = facts
            reader = self._reader = PartitionReader(descriptor, facts.size, self._options.max_line_bytes, self._shown)
            known = self.known
            if known is not None:
                # The rows of evidence that returned may have moved to another file meanwhile.
                proven = (
                    self.look is Look.CHANGED
                    and facts.size >= known.indexed_bytes + known.tail_bytes
                    and (yield from reader.proof(known.indexed_bytes, known.indexed_sha256))
                )
                if proven and not self.whole and (yield from self._stage(reader, known)):
                    return
                if not ((proven and self.whole) or self._is_still(self.key, facts)):
                    self.unsettled = True
                    return
                reader.rewind()
                self.appended = False
            yield from self._stage(reader, None)

    def _stage(self, reader: PartitionReader, known: FileRecord | None) -> Generator[None, None, bool]:
        """Stage the lines behind what was consumed; return False if the line at the known end became another one."""
        self.evidence.stage()
        self._lines = self.new_lines = self.malformed = 0
        self.first_malformed = None
        end = None
        if known is not None:
            end = known.tail_digest
            self._lines = known.indexed_lines - (end is not None)
        start = reader.consumed
        for block in reader.blocks_with_end():
            yield
            if block and end is not None:
                if (block[0].start, block[0].digest) != (start, end):
                    return False
                self.new_lines, end = self.new_lines - 1, None
            found, malformed = _evidence_facts(block, self._lines)
            self.evidence.add_staged(found)
            self._lines, self.new_lines = self._lines + len(block), self.new_lines + len(block)
            self.malformed += len(malformed)
            if malformed and self.first_malformed is None:
                self.first_malformed = malformed[0]
            refuse_too_many(self._shown, self._lines)
        return end is None


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


def _content_of(record: FileRecord | None) -> tuple[object, ...] | None:
    if record is None:
        return None
    read = record.indexed_bytes, record.indexed_sha256, record.indexed_lines, record.tail_digest, record.tail_bytes
    return record.partition_id, record.state, *read
