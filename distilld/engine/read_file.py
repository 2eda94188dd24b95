"""Read an input file from its start, once: its lines' facts, and what the store keeps of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from distilld.core.json_text import ParsedLine
from distilld.core.line_facts import LIKE_REJECTED, RowFacts, row_facts, run_of_evidence
from distilld.core.model import InputKind, StatFacts
from distilld.lake.lines import Line, PartitionReader, Rest, end_of, parse_line, rest_of, verdict_in
from distilld.lake.scan import open_partition, tree_path


class Reading(NamedTuple):
    """What was read of a file: its facts when it was opened, how far it was consumed, its unterminated end."""

    facts: StatFacts
    consumed: int
    sha256: str
    lines: int
    malformed: int
    first_malformed: int | None
    tail: str | None
    tail_bytes: int
    tail_digest: bytes | None
    bytes_read: int


class FileRead(NamedTuple):
    """A file that was read as a whole, and the facts of its lines: RowFacts, or EvidenceFacts of the last row a run.

    The facts are plain tuples: a hundred thousand named ones take three times as long to get here from a worker.
    ``malformed_runs`` are the runs that malformed scored lines forbid, with the digests of these lines; ``unreviewed``
    are the numbers of lines with none of the four categories.
    """

    reading: Reading
    facts: list[tuple[Any, ...]]
    malformed_runs: list[tuple[str, bytes]] = []  # noqa: RUF012  nobody adds to it
    unreviewed: list[int] = []  # noqa: RUF012  as above
    rest: Rest | None = None


def as_scanned(read: FileRead, facts: StatFacts) -> FileRead | None:
    """What was read, with the facts of the scan; None where another size or other times were seen than by the scan.

    A mount of another machine has a device of its own, and may show a file as it was a while ago.
    """
    if read.reading.facts[2:] != facts[2:]:
        return None
    return read._replace(reading=read.reading._replace(facts=facts))


def read_file(root: Path, kind: InputKind, path: str, max_line_bytes: int) -> FileRead:
    """Read a file of either tree.

    Raises:
        InputChanged: It is gone, or shorter than it was when it was opened.
        UnreadableError: The system refuses.
    """
    if kind is InputKind.EVIDENCE:
        return read_evidence(root, path, max_line_bytes, None)
    facts: list[RowFacts] = []
    runs: list[tuple[str, bytes]] = []

    def take(line: Line, number: int) -> bool:
        facts.append(scored_facts(line, number, runs))
        return facts[-1].malformed is None

    reading, rest = _read_lines(root, kind, path, max_line_bytes, take)
    return FileRead(reading, list(map(tuple, facts)), runs, unreviewed_lines(facts), rest)


def unreviewed_lines(rows: list[RowFacts]) -> list[int]:
    """Return the lines that name a run and have none of the four categories (SPEC 3.4)."""
    found = [row for row in rows if row.category is not None and row.category >= LIKE_REJECTED]
    return [row.line for row in found if row.malformed is None]


def scored_facts(line: Line, number: int, malformed_runs: list[tuple[str, bytes]]) -> RowFacts:
    """Return the facts of a scored line; add the runs that it forbids although it is malformed."""
    facts = row_facts(number, line.start, line.length, line.digest, parse_line(line))
    if facts.malformed is None:
        return facts
    verdict = verdict_in(line)
    if verdict is None:
        return facts
    malformed_runs += [(run_id, line.digest) for run_id in verdict.run_ids]
    return facts._replace(category=verdict.category)


def read_evidence(root: Path, path: str, max_line_bytes: int, texts: dict[str, ParsedLine] | None) -> FileRead:
    """Read an evidence file; its rows as they were parsed are put into ``texts``, by run.

    Raises:
        InputChanged: It is gone, or shorter than it was when it was opened.
        UnreadableError: The system refuses.
    """
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

    reading, _ = _read_lines(root, InputKind.EVIDENCE, path, max_line_bytes, take)
    return FileRead(reading, list(found.values()))


def _read_lines(
    root: Path, kind: InputKind, path: str, max_line_bytes: int, take: Callable[[Line, int], bool]
) -> tuple[Reading, Rest | None]:
    """Give each line with its number to ``take``, which says whether it is well-formed.

    The unterminated end counts as a line if it is a complete JSON object (SPEC 2).
    """
    with open_partition(root, kind, path) as (descriptor, facts):
        reader = PartitionReader(descriptor, facts.size, max_line_bytes, tree_path(kind, path))
        lines = malformed = 0
        first_malformed = None
        for block in reader.blocks():
            for number, line in enumerate(block, lines):
                if not take(line, number):
                    first_malformed = number if malformed == 0 else first_malformed
                    malformed += 1
            lines += len(block)
        end = end_of(reader.tail)
        if reader.tail is not None and end.digest is not None:
            take(reader.tail, lines)
            lines += 1
        reading = Reading(
            facts, reader.consumed, reader.sha256, lines, malformed, first_malformed, end.state, end.length, end.digest,
            reader.bytes_read,
        )  # fmt: skip
        return reading, rest_of(reader.tail) if kind is InputKind.SCORED else None
