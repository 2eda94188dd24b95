"""A new partition, read once and judged in one go: what a worker process does (docs/design.md, 'Arrivals').

Of a row whose run has no other row anywhere, the verdict in force is its own and nobody disputes its id, so all that
judging it needs is in its own partition. The other rows are special: their verdict is given with the order, and they
are judged twice, with their id free and with their id taken; who gave the order knows which of the two counts.

The bytes that are hashed are the bytes that are judged. Finished lines and facts go to a file that both sides hold
open, in segments; only where they stand is told.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from distilld.core.datasets import rag, sft
from distilld.core.firewall import MissingFiles, RowCase
from distilld.core.json_text import Malformed, parse_object
from distilld.core.line_facts import (
    CATEGORIES,
    CATEGORY_CODES,
    MALFORMED_CODES,
    REASON_CODES,
    SHIPPED,
    EvidenceFacts,
    run_of_evidence,
    sample_key,
)
from distilld.core.model import Dataset, InputChanged, InputKind, Options, RowRef, StatFacts
from distilld.core.outcome import Outcome, Ship, hold_malformed
from distilld.core.records import EvidenceRecord, evidence_record, scored_run
from distilld.files.durable import write_all
from distilld.lake.lines import Line, PartitionReader, digest_of, end_of, parse_line, read_span
from distilld.lake.scan import SourceFiles, open_partition, tree_path

FLUSH_BYTES: Final = 1 << 19
"""A stream is written to the shared file when it has gathered this much."""
FLUSH_ROWS: Final = 2000

OUTCOMES: Final = len(REASON_CODES) + 1

RAG_SHIPPED: Final = 0
RAG_HELD: Final = 1
SFT_SHIPPED: Final = 2
SFT_HELD: Final = 3
ROWS: Final = 4
EVIDENCE: Final = 5
SPECIAL: Final = 6
"""No stream: a special row stands here, by its number among the special ones."""


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


class Glance(NamedTuple):
    """What the first look saw of a scored file: its bytes up to the last line feed, and what stands behind it."""

    size: int
    consumed: int
    sha256: str
    tail_digest: bytes | None
    lines: int

    def saw(self, reading: Reading) -> bool:
        """Whether a reading up to the same size found the same lines."""
        return (self.consumed, self.sha256, self.lines) == (reading.consumed, reading.sha256, reading.lines) and (
            reading.tail_digest in (None, self.tail_digest)
        )


class Arrival(NamedTuple):
    """One new partition. ``scored`` is what the first look at its scored file saw; None where it has no such file.

    ``specials`` holds, by line, the code of the verdict in force for the runs that have other rows, too.
    """

    path: str
    walk_base: int
    scored: Glance | None
    has_evidence: bool
    specials: dict[int, int | None]


class Order(NamedTuple):
    """What one worker does in one go; ``stamp`` is the time of the batch that the lines will belong to."""

    arrivals: tuple[Arrival, ...]
    size: int
    """Bytes of its files."""
    stamp: str
    max_line_bytes: int


class Judged(NamedTuple):
    """A row's outcome in one dataset: its code, its finished line."""

    code: int
    line: bytes


class SpecialRow(NamedTuple):
    """A special row: the columns of its facts, whether it has evidence, its outcomes with the id free and taken."""

    facts: tuple[Any, ...]
    found: bool
    free: tuple[Judged, Judged]
    taken: tuple[Judged, Judged]


@dataclass(slots=True)
class TakenIn:
    """One partition, done.

    ``segments`` are (stream, offset, length, rows) in the shared file, in the order of the rows.
    """

    path: str
    scored: Reading | None = None
    evidence: Reading | None = None
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)
    specials: list[SpecialRow] = field(default_factory=list)
    outcomes: tuple[list[int], list[int]] = field(default_factory=lambda: ([0] * OUTCOMES, [0] * OUTCOMES))
    """Rows by outcome code in RAG and in SFT, special ones left out."""
    categories: list[int] = field(default_factory=lambda: [0] * (len(CATEGORIES) + 1))
    """Rows by the code of their category."""
    rows: int = 0


class Judge:
    """Works orders off, for one root and one set of options, into one shared file after the other."""

    def __init__(self, root: Path, options: Options) -> None:
        self._root = root
        self._options = options
        self._missing = SourceFiles(Path(options.source_files_root)).missing if options.check_source_files else None

    def work_off(self, order: Order, descriptor: int) -> list[TakenIn]:
        """Read and judge the partitions of an order; lines and facts go to the file behind ``descriptor``.

        Raises:
            InputChanged: A scored file is no longer what the first look saw, or a file is gone.
            UnreadableError: The system refuses to read one.
            OSError: The shared file cannot be written.
        """
        out = _Streams(descriptor)
        return [self._take(arrival, order, out) for arrival in order.arrivals]

    def _take(self, arrival: Arrival, order: Order, out: _Streams) -> TakenIn:
        taken = TakenIn(arrival.path)
        evidence: dict[str, EvidenceRecord] = {}
        if arrival.has_evidence:
            taken.evidence = self._read_evidence(arrival.path, order.max_line_bytes, evidence, out)
        if arrival.scored is not None:
            taken.scored = self._read_scored(arrival, order, evidence, taken, out)
        taken.segments = out.end()
        return taken

    def _read_evidence(
        self, path: str, max_line_bytes: int, records: dict[str, EvidenceRecord], out: _Streams
    ) -> Reading:
        """Read the evidence file: the last row of a run counts."""
        found: dict[str, EvidenceFacts] = {}

        def take(line: Line, number: int) -> bool:
            value, marked, _ = parse_line(line)
            if value is None:
                return False
            run_id = run_of_evidence(value)
            if run_id is not None:
                records[run_id] = evidence_record(value, marked=marked)
                found[run_id] = EvidenceFacts(run_id, number, line.start, line.length, line.digest)
            return True

        reading = read_lines(self._root, InputKind.EVIDENCE, path, max_line_bytes, take)
        rows = list(found.values())
        for start in range(0, len(rows), FLUSH_ROWS):
            out.add_facts(EVIDENCE, [tuple(row) for row in rows[start : start + FLUSH_ROWS]])
        return reading

    def _read_scored(
        self, arrival: Arrival, order: Order, evidence: Mapping[str, EvidenceRecord], taken: TakenIn, out: _Streams
    ) -> Reading:
        assert arrival.scored is not None  # noqa: S101  asked by the caller
        rows = _Rows(arrival, order, self._options, self._missing, evidence, taken, out)
        reading = read_lines(
            self._root, InputKind.SCORED, arrival.path, order.max_line_bytes, rows.take, size=arrival.scored.size
        )
        rows.end_facts()
        if not arrival.scored.saw(reading):
            raise InputChanged(tree_path(InputKind.SCORED, arrival.path))
        return reading


class _Rows:
    """The scored rows of one partition on their way to lines."""

    def __init__(
        self,
        arrival: Arrival,
        order: Order,
        options: Options,
        missing: MissingFiles | None,
        evidence: Mapping[str, EvidenceRecord],
        taken: TakenIn,
        out: _Streams,
    ) -> None:
        self._path = arrival.path
        self._base = arrival.walk_base
        self._specials = arrival.specials
        self._stamp = order.stamp
        self._max_line_bytes = order.max_line_bytes
        self._options = options
        self._missing = missing
        self._evidence = evidence
        self._taken = taken
        self._out = out
        self._readable = frozenset((*options.rag_allowed, *options.sft_allowed))
        self._facts: list[tuple[Any, ...]] = []
        self._in_rag, self._in_sft = taken.outcomes

    def take(self, line: Line, number: int) -> bool:
        """Judge one line; whether it is well-formed."""
        self._taken.rows += 1
        value, marked, malformed = parse_line(line)
        if value is None:
            self._take_malformed(line, number, malformed or Malformed.NOT_JSON)
            return False
        row = scored_run(value, marked=marked)
        run_id, category, sig_hash = row.run_id, row.category, row.sig_hash
        key = sample_key(run_id, sig_hash) if run_id and sig_hash else None
        code = None
        if category is not None:
            code = CATEGORY_CODES[category]
            self._taken.categories[code] += 1
        evidence = self._evidence.get(run_id) if run_id is not None else None
        found = evidence is not None
        if category not in self._readable:
            evidence = None
        facts = (self._base + number, line.start, line.length, line.digest, run_id, row.task_id, code, None, key)
        at = RowRef(self._path, number)
        if number in self._specials:
            verdict = self._specials[number]
            in_force = None if verdict is None else CATEGORIES[verdict]
            case = RowCase(row, evidence, in_force, False, self._options, self._missing)
            again = case._replace(id_taken=True)
            free = self._judged(rag.judge(case, at)), self._judged(sft.judge(case, at))
            taken = self._judged(rag.judge(again, at)), self._judged(sft.judge(again, at))
            self._taken.specials.append(SpecialRow(facts, found, free, taken))
            self.end_facts()
            self._out.mark(SPECIAL, len(self._taken.specials) - 1)
            return True
        case = RowCase(row, evidence, category, False, self._options, self._missing)
        self._add(facts, found, rag.judge(case, at), sft.judge(case, at))
        return True

    def _take_malformed(self, line: Line, number: int, malformed: Malformed) -> None:
        raw = line.head if line.raw is None else line.raw
        at = RowRef(self._path, number)
        held = [
            hold_malformed(
                dataset,
                raw.decode(errors="replace"),
                malformed,
                at,
                source_file=tree_path(InputKind.SCORED, self._path),
                max_line_bytes=self._max_line_bytes,
            )
            for dataset in (Dataset.RAG, Dataset.SFT)
        ]
        code = MALFORMED_CODES[malformed]
        facts = (self._base + number, line.start, line.length, line.digest, None, None, None, code, None)
        self._add(facts, False, *held)

    def _add(self, facts: tuple[Any, ...], found: bool, in_rag: Outcome, in_sft: Outcome) -> None:
        stamp = self._stamp
        rag_line, sft_line = in_rag.line(stamp), in_sft.line(stamp)
        rag_code, sft_code = _code_of(in_rag), _code_of(in_sft)
        self._out.add(RAG_HELD if rag_code else RAG_SHIPPED, rag_line)
        self._out.add(SFT_HELD if sft_code else SFT_SHIPPED, sft_line)
        self._in_rag[rag_code] += 1
        self._in_sft[sft_code] += 1
        self._facts.append((*facts, found, rag_code, digest_of(rag_line), sft_code, digest_of(sft_line)))
        if len(self._facts) >= FLUSH_ROWS:
            self.end_facts()

    def _judged(self, outcome: Outcome) -> Judged:
        return Judged(_code_of(outcome), outcome.line(self._stamp))

    def end_facts(self) -> None:
        """Hand over the facts that were gathered so far."""
        if self._facts:
            self._out.add_facts(ROWS, self._facts)
            self._facts = []


def _code_of(outcome: Outcome) -> int:
    return SHIPPED if isinstance(outcome, Ship) else REASON_CODES[outcome.reason]


class _Streams:
    """Lines and facts on their way into the shared file, each stream gathered into segments of some size."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = 0
        self._lines: tuple[list[bytes], ...] = ([], [], [], [])
        self._gathered = [0, 0, 0, 0]
        self._segments: list[tuple[int, int, int, int]] = []

    def add(self, stream: int, line: bytes) -> None:
        """Add a line to a stream."""
        self._lines[stream].append(line)
        self._gathered[stream] += len(line)
        if self._gathered[stream] > FLUSH_BYTES:
            self._flush(stream)

    def add_facts(self, stream: int, rows: list[tuple[Any, ...]]) -> None:
        """Write some rows of facts."""
        self._write(stream, pickle.dumps(rows, protocol=pickle.HIGHEST_PROTOCOL), len(rows))

    def mark(self, kind: int, number: int) -> None:
        """Say that something else stands here in the order of the rows."""
        self._flush_all()
        self._segments.append((kind, number, 0, 1))

    def end(self) -> list[tuple[int, int, int, int]]:
        """Write what is left; the segments since the last call."""
        self._flush_all()
        segments, self._segments = self._segments, []
        return segments

    def _flush_all(self) -> None:
        for stream in range(len(self._lines)):
            self._flush(stream)

    def _flush(self, stream: int) -> None:
        lines = self._lines[stream]
        if lines:
            self._write(stream, b"".join(lines), len(lines))
            lines.clear()
            self._gathered[stream] = 0

    def _write(self, stream: int, content: bytes, rows: int) -> None:
        write_all(self._descriptor, content)
        self._segments.append((stream, self._offset, len(content), rows))
        self._offset += len(content)


def read_lines(
    root: Path,
    kind: InputKind,
    path: str,
    max_line_bytes: int,
    take: Callable[[Line, int], bool],
    *,
    size: int | None = None,
) -> Reading:
    """Read a file from its start, give each line with its number to ``take``, which says whether it is well-formed.

    The unterminated end counts as a line if it is a complete JSON object (SPEC 2). ``size`` ends the file there.

    Raises:
        InputChanged: It is gone, or shorter than ``size``.
        UnreadableError: The system refuses.
    """
    with open_partition(root, kind, path) as (descriptor, facts):
        reader = PartitionReader(
            descriptor, facts.size if size is None else size, max_line_bytes, tree_path(kind, path)
        )
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
        return Reading(
            facts,
            reader.consumed,
            reader.sha256,
            lines,
            malformed,
            first_malformed,
            end.state,
            end.length,
            end.digest,
            reader.bytes_read,
        )


def glance_at(root: Path, path: str, max_line_bytes: int, take: Callable[[bytes, int], None]) -> Glance:
    """The first look at a scored file, which must fit into memory: give each line that may hold a row to ``take``.

    Raises:
        InputChanged: It is gone, or shorter than a moment ago.
        UnreadableError: The system refuses.
    """
    with open_partition(root, InputKind.SCORED, path) as (descriptor, facts):
        content = read_span(descriptor, 0, facts.size, tree_path(InputKind.SCORED, path))
    consumed = content.rfind(b"\n") + 1
    lines = 0
    for raw in content[: max(0, consumed - 1)].split(b"\n"):
        if raw:
            if len(raw) <= max_line_bytes:
                take(raw, lines)
            lines += 1
    tail = content[consumed:]
    if tail and len(tail) <= max_line_bytes and parse_object(tail).value is not None:
        take(tail, lines)
        lines += 1
    sha256 = hashlib.sha256(memoryview(content)[:consumed]).hexdigest()
    return Glance(facts.size, consumed, sha256, digest_of(tail) if tail else None, lines)
