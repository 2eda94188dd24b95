"""The oracle's inputs: every line of both trees, read again in the simplest way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from distilld.core.json_text import Malformed, parse_object
from distilld.core.model import InputKind, OperatorError, Options, RowRef
from distilld.core.records import EvidenceRecord, ScoredRun, evidence_record, scored_run
from distilld.lake import lines
from distilld.lake import scan as lake
from distilld.lake.content_hash import ContentHash
from distilld.lake.scan import tree_path, walk_key

_BLOCK_BYTES: Final = 1 << 16
_KEPT_NULS: Final = 1024


class Partition(NamedTuple):
    """The lines of one partition that count, without line feeds: scored rows, and the mirrored evidence.

    ``rest`` is the unterminated end of the scored file, if it is not a line that counts.
    """

    scored: tuple[bytes, ...]
    evidence: tuple[bytes, ...]
    rest: bytes = b""


Lake = Mapping[str, Partition]
"""Partitions by their path below the input trees."""


class LakeOnDisk(Mapping[str, Partition]):
    """All partitions below ``root``. One scan finds them; each access to a partition reads it again.

    ``read`` is called with the bytes and the rows of each. ``bytes`` is the size of all of them.

    Raises:
        OperatorError: A folder could not be listed.
        UnreadableError: A file could not be read.
        InputChanged: A file was removed, replaced or cut short meanwhile.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self._root = root
        self._max_line_bytes = options.max_line_bytes
        self._sizes: dict[str, dict[InputKind, int]] = {}
        self.read: Callable[[int, int], None] = lambda _bytes, _rows: None
        scan = lake.scan(root)
        self.bytes = sum(file.stat.size for file in scan.files)
        for folder in scan.unlisted:
            problem = folder.problem or "was removed while the trees were listed"
            hint = "make the folder readable, and run it again" if folder.problem else "run it again"
            raise OperatorError(f"{lake.printable(tree_path(folder.kind, folder.below))} {problem}", hint=hint)
        for file in scan.files:
            self._sizes.setdefault(file.path, {})[file.kind] = file.stat.size

    def __getitem__(self, path: str) -> Partition:
        (scored, rest), (evidence, _) = (self._lines(kind, path) for kind in (InputKind.SCORED, InputKind.EVIDENCE))
        self.read(sum(self._sizes[path].values()), len(scored))
        return Partition(scored, evidence, rest)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def _lines(self, kind: InputKind, path: str) -> tuple[tuple[bytes, ...], bytes]:
        content = read_file(self._root, kind, path) if kind in self._sizes[path] else []
        return lines_of(content, self._max_line_bytes)


class LongLine(bytes):
    """A line that is too long, with its holes shortened. ``length`` and ``digest`` are those of the whole line."""

    length = 0
    digest = b""


def length_of(line: bytes) -> int:
    """Return the length of a line in bytes."""
    return line.length if isinstance(line, LongLine) else len(line)


def digest_of(line: bytes) -> bytes:
    """Return the digest that identifies a line."""
    return line.digest if isinstance(line, LongLine) else lines.digest_of(line)


def read_file(root: Path, kind: InputKind, path: str) -> list[bytes | int]:
    """Return the current content of an input file: its bytes, and each hole between them as its number of NULs."""
    content: list[bytes | int] = []
    with lake.open_partition(root, kind, path) as (descriptor, facts):
        at = 0
        while at < facts.size:
            hole = lines.hole_bytes(descriptor, at, facts.size, tree_path(kind, path))
            block = os.pread(descriptor, min(_BLOCK_BYTES, facts.size - at - hole), at + hole)
            content += [hole, block]
            at += hole + len(block)
    return content


def lines_of(content: Iterable[bytes | int], max_line_bytes: int) -> tuple[tuple[bytes, ...], bytes]:
    """Return the complete, non-empty lines (SPEC 2), and the unterminated end of the file if it is no JSON object."""
    found: list[list[bytes | int]] = [[]]
    for piece in content:
        first, *others = [piece] if isinstance(piece, int) else piece.split(b"\n")
        found[-1].append(first)
        found += [[other] for other in others]
    *whole, last = [_joined(pieces, max_line_bytes) for pieces in found]
    if last and length_of(last) <= max_line_bytes and parse_object(last).value is not None:
        whole, last = [*whole, last], b""
    return tuple([line for line in whole if line]), last


def _joined(pieces: list[bytes | int], max_line_bytes: int) -> bytes:
    """Join a line's pieces. If it is too long, cut holes to the NULs that may be quoted, and keep UTF-16 aligned."""
    length = sum([each if isinstance(each, int) else len(each) for each in pieces])
    if length <= max_line_bytes:
        return b"".join(map(bytes, pieces))
    kept = [bytes(min(each, _KEPT_NULS + each % 2)) if isinstance(each, int) else each for each in pieces]
    line, sha = LongLine(b"".join(kept)), ContentHash()
    for each in pieces:
        sha.update(each)
    line.length, line.digest = length, sha.digest()[: lines.DIGEST_BYTES]
    return line


class Row(NamedTuple):
    """One scored line: what it says or why it is malformed, and the evidence that it joins."""

    at: RowRef
    raw: bytes
    run: ScoredRun | None
    malformed: Malformed | None
    evidence: EvidenceRecord | None


def all_rows(partitions: Lake, options: Options, rests: list[tuple[RowRef, bytes]] | None = None) -> Iterator[Row]:
    """Yield all rows in walk order. Add the ends of files that are no rows to ``rests``."""
    for path in sorted(partitions, key=walk_key):
        partition = partitions[path]
        if partition.rest and rests is not None:
            rests.append((RowRef(path, len(partition.scored)), partition.rest))
        yield from rows_of(path, partition, options)


def rows_at(places: set[RowRef], partitions: Lake, options: Options) -> dict[RowRef, Row]:
    """Return the rows at some places, by place."""
    return {
        row.at: row
        for path in sorted({at.partition for at in places})
        for row in rows_of(path, partitions[path], options)
        if row.at in places
    }


def rows_of(path: str, partition: Partition, options: Options) -> list[Row]:
    """Return the scored rows of one partition, each with the evidence that it joins."""
    evidence: dict[str, EvidenceRecord] = {}
    for raw in partition.evidence:
        parsed = parse_object(raw)
        if length_of(raw) <= options.max_line_bytes and parsed.value is not None:
            record = evidence_record(parsed.value, marked=parsed.marked)
            if record.run_id:
                evidence[record.run_id] = record  # the last one counts
    rows = []
    for number, raw in enumerate(partition.scored):
        at = RowRef(path, number)
        parsed = parse_object(raw)
        if length_of(raw) > options.max_line_bytes:
            rows.append(Row(at, raw, None, Malformed.TOO_LONG, None))
        elif parsed.value is None:
            rows.append(Row(at, raw, None, parsed.malformed, None))
        else:
            run = scored_run(parsed.value, marked=parsed.marked)
            rows.append(Row(at, raw, run, None, evidence.get(run.run_id) if run.run_id else None))
    return rows
