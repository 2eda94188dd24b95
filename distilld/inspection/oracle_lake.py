"""The oracle's inputs: every line of both trees, read anew in the plainest way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from distilld.core.json_text import Malformed, parse_object
from distilld.core.model import InputKind, Options, RowRef
from distilld.core.records import EvidenceRecord, ScoredRun, evidence_record, scored_run
from distilld.lake import scan as lake
from distilld.lake.scan import tree_path, walk_key


class Partition(NamedTuple):
    """The lines that count of one partition, without line feeds: scored rows, and the mirrored evidence.

    ``rest`` is the unterminated end of the scored file where it is no line that counts.
    """

    scored: tuple[bytes, ...]
    evidence: tuple[bytes, ...]
    rest: bytes = b""


Lake = Mapping[str, Partition]
"""Partitions by their path below the input trees."""


class LakeOnDisk(Mapping[str, Partition]):
    """All partitions below ``root``: found by one look, and each read anew when it is asked for.

    ``read`` takes the bytes and the rows of each; ``bytes`` is what all of them hold.

    Raises:
        ListingError: A folder could not be listed.
        UnreadableError: A file could not be read.
        InputChanged: A file went away meanwhile.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self._root = root
        self._max_line_bytes = options.max_line_bytes
        self._kinds: dict[str, set[InputKind]] = {}
        self.read: Callable[[int, int], None] = lambda _bytes, _rows: None
        scan = lake.scan(root)
        self.bytes = sum(file.stat.size for file in scan.files)
        for folder in scan.unlisted:
            raise lake.ListingError(tree_path(folder.kind, folder.below), folder.problem or "it went away meanwhile")
        for file in scan.files:
            self._kinds.setdefault(file.path, set()).add(file.kind)

    def __getitem__(self, path: str) -> Partition:
        scored, evidence = self._content(InputKind.SCORED, path), self._content(InputKind.EVIDENCE, path)
        limit = self._max_line_bytes
        found = Partition(lines_of(scored, limit), lines_of(evidence, limit), rest_of(scored, limit))
        self.read(len(scored) + len(evidence), len(found.scored))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def _content(self, kind: InputKind, path: str) -> bytes:
        return read_file(self._root, kind, path) if kind in self._kinds[path] else b""


def read_lake(root: Path, options: Options) -> dict[str, Partition]:
    """The same, all of it read now."""
    return dict(LakeOnDisk(root, options))


def read_file(root: Path, kind: InputKind, path: str) -> bytes:
    """One input file as it is now."""
    with lake.open_partition(root, kind, path) as (descriptor, _), os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


def lines_of(content: bytes, max_line_bytes: int) -> tuple[bytes, ...]:
    """The lines that count (SPEC 2): complete and not empty; an unterminated last one only if it is a JSON object."""
    lines = [line for line in content.split(b"\n")[:-1] if line]
    last = content.rpartition(b"\n")[2]
    if last and not rest_of(content, max_line_bytes):
        lines.append(last)
    return tuple(lines)


def rest_of(content: bytes, max_line_bytes: int) -> bytes:
    """The unterminated last line where it does not count (SPEC 2)."""
    last = content.rpartition(b"\n")[2]
    return b"" if len(last) <= max_line_bytes and parse_object(last).value is not None else last


class Row(NamedTuple):
    """One scored line: what it says, or why it says nothing, and the evidence that it joins."""

    at: RowRef
    raw: bytes
    run: ScoredRun | None
    malformed: Malformed | None
    evidence: EvidenceRecord | None


def all_rows(lines: Lake, options: Options, rests: list[tuple[RowRef, bytes]] | None = None) -> Iterator[Row]:
    """All rows in walk order; what files end in that is no row is added to ``rests``."""
    for path in sorted(lines, key=walk_key):
        partition = lines[path]
        if partition.rest and rests is not None:
            rests.append((RowRef(path, len(partition.scored)), partition.rest))
        yield from rows_of(path, partition, options)


def rows_at(places: set[RowRef], lines: Lake, options: Options) -> dict[RowRef, Row]:
    """The rows at some places, by place."""
    return {
        row.at: row
        for path in sorted({at.partition for at in places})
        for row in rows_of(path, lines[path], options)
        if row.at in places
    }


def rows_of(path: str, partition: Partition, options: Options) -> list[Row]:
    """The scored rows of one partition, each with the evidence that it joins."""
    evidence: dict[str, EvidenceRecord] = {}
    for raw in partition.evidence:
        parsed = parse_object(raw)
        if len(raw) <= options.max_line_bytes and parsed.value is not None:
            record = evidence_record(parsed.value, marked=parsed.marked)
            if record.run_id:
                evidence[record.run_id] = record  # the last one counts
    rows = []
    for number, raw in enumerate(partition.scored):
        at = RowRef(path, number)
        parsed = parse_object(raw)
        if len(raw) > options.max_line_bytes:
            rows.append(Row(at, raw, None, Malformed.TOO_LONG, None))
        elif parsed.value is None:
            rows.append(Row(at, raw, None, parsed.malformed, None))
        else:
            run = scored_run(parsed.value, marked=parsed.marked)
            rows.append(Row(at, raw, run, None, evidence.get(run.run_id) if run.run_id else None))
    return rows
