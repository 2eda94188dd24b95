"""Read an input file from its start, once: the facts of its lines, and what the store keeps about the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from distilld.core.json_text import ParsedLine
from distilld.core.line_facts import LIKE_REJECTED, LINES_END, Content, RowFacts, row_facts, run_of_evidence
from distilld.core.model import InputChanged, InputKind, StatFacts, UnreadableError
from distilld.lake.lines import Line, PartitionReader, Rest, parse_line, rest_of, verdict_in
from distilld.lake.scan import open_partition, tree_path
from distilld.store.inputs import FileRecord

WHOLE_ROWS: Final = 4096
"""A file with so few rows is read as a whole, however short they are."""
WHOLE_ROW_BYTES: Final = 128
"""A file whose further rows are shorter on average is read block by block: the facts of a row take 400 bytes."""


class Reading(NamedTuple):
    """What was read of a file: its facts when it was opened, its content, its malformed lines."""

    facts: StatFacts
    content: Content
    malformed: int
    first_malformed: int | None
    bytes_read: int


class FileRead(NamedTuple):
    """A file that was read as a whole, and its lines' facts: RowFacts, or EvidenceFacts of each run's last row.

    The facts are plain tuples: a hundred thousand named ones take three times as long to arrive from a worker.
    ``malformed_runs`` are the runs that malformed scored lines forbid, with the digests of these lines. ``unreviewed``
    are the numbers of lines with none of the four categories.
    """

    reading: Reading
    facts: list[tuple[Any, ...]]
    malformed_runs: list[tuple[str, bytes]] = []  # noqa: RUF012  never changed
    unreviewed: list[int] = []  # noqa: RUF012  as above
    rest: Rest | None = None


@dataclass(frozen=True, slots=True)
class ShortRows:
    """The answer about a file that has too many rows for its size to be read as a whole; ``rows`` is where it ended."""

    rows: int


def as_scanned(read: FileRead, facts: StatFacts) -> FileRead | None:
    """Return the reading with the facts of the scan; None if it saw another size or other times than the scan.

    A mount on another machine has its own device number, and may show an earlier state of a file.
    """
    if read.reading.facts[2:] != facts[2:]:
        return None
    return read._replace(reading=read.reading._replace(facts=facts))


def read_file(root: Path, kind: InputKind, path: str, max_line_bytes: int) -> FileRead | ShortRows:
    """Read a file of either tree, up to where it shows that its rows are too short.

    Raises:
        InputChanged: The file is gone, or changed since it was opened.
        UnreadableError: The system refuses to read it.
    """
    if kind is InputKind.EVIDENCE:
        return read_evidence(root, path, max_line_bytes, None)
    facts: list[RowFacts] = []
    runs: list[tuple[str, bytes]] = []

    def take(line: Line, number: int) -> bool:
        facts.append(scored_facts(line, number, runs))
        return facts[-1].malformed is None

    read = _read_lines(root, kind, path, max_line_bytes, take)
    if isinstance(read, ShortRows):
        return read
    reading, rest = read
    return FileRead(reading, list(map(tuple, facts)), runs, unreviewed_lines(facts), rest)


def unreviewed_lines(rows: list[RowFacts]) -> list[int]:
    """Return the numbers of lines that name a run and have none of the four categories (SPEC 3.4)."""
    found = [row for row in rows if row.category is not None and row.category >= LIKE_REJECTED]
    return [row.line for row in found if row.malformed is None]


def scored_facts(line: Line, number: int, malformed_runs: list[tuple[str, bytes]]) -> RowFacts:
    """Return the facts of a scored line; add the runs that it forbids, if malformed, to ``malformed_runs``."""
    facts = row_facts(number, line.start, line.length, line.digest, parse_line(line))
    if facts.malformed is None:
        return facts
    verdict = verdict_in(line)
    if verdict is None:
        return facts
    malformed_runs += [(run_id, line.digest) for run_id in verdict.run_ids]
    return facts._replace(category=verdict.category)


def read_evidence(
    root: Path, path: str, max_line_bytes: int, texts: dict[str, ParsedLine] | None
) -> FileRead | ShortRows:
    """Read an evidence file as :func:`read_file` does; put its parsed rows into ``texts``, by run."""
    found: dict[str, tuple[Any, ...]] = {}

    def take(line: Line, number: int) -> bool:
        parsed = parse_line(line)
        if parsed.value is None:
            return False
        run_id = run_of_evidence(parsed.value)
        if run_id is not None:
            found[run_id] = (run_id, number, line.start, line.length, line.digest)
            if texts is not None:
                texts[run_id] = parsed
        return True

    read = _read_lines(root, InputKind.EVIDENCE, path, max_line_bytes, take)
    return read if isinstance(read, ShortRows) else FileRead(read[0], list(found.values()))


def _read_lines(
    root: Path, kind: InputKind, path: str, max_line_bytes: int, take: Callable[[Line, int], bool]
) -> tuple[Reading, Rest | None] | ShortRows:
    """Pass each line with its number to ``take``, which returns whether it is well-formed."""
    with open_partition(root, kind, path) as (descriptor, facts):
        reader = PartitionReader(descriptor, facts.size, max_line_bytes, tree_path(kind, path))
        lines = malformed = 0
        first_malformed = None
        for block in reader.blocks_with_end():
            if lines + len(block) > WHOLE_ROWS + reader.consumed // WHOLE_ROW_BYTES:
                return ShortRows(lines)
            for number, line in enumerate(block, lines):
                if not take(line, number):
                    first_malformed = number if malformed == 0 else first_malformed
                    malformed += 1
            lines += len(block)
        # Whether it only grew is for one who reads it block by block to find out.
        if StatFacts.of(os.fstat(descriptor)) != facts:
            raise InputChanged(tree_path(kind, path))
        reading = Reading(facts, reader.content(lines), malformed, first_malformed, reader.bytes_read)
        return reading, rest_of(reader.tail) if kind is InputKind.SCORED else None


def record_reading(record: FileRecord, read: Reading, began_ns: int) -> None:
    """Note in a file's record how far it was read, not before ``began_ns`` (monotonic), and what it contained."""
    record.note_hashed(read.facts, began_ns)
    record.content, record.malformed_lines = read.content, read.malformed


def refuse_too_many(shown: str, lines: int) -> None:
    """Refuse a file with more lines than the store has places for.

    Raises:
        UnreadableError: It has.
    """
    if lines >= LINES_END:
        why = OSError(f"it has {LINES_END} lines or more, and must be split")
        raise UnreadableError(shown, why, hint="split it")
