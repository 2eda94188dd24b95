"""Judge the rows of one partition's span: what a worker does, and this process where there is little to do.

A job is plain values: where each row and its evidence stand, and what a row cannot know by itself. A row is *plain*
where no other row names its run or has its id: its verdict is its own, and its id is free. Of all others, the
*contested* ones, the job gives the verdict in force, and they are judged twice, with their id free and taken; the
process that commits knows the rows before them, and picks.

The lines of plain rows are finished here. What comes of contested rows, and of known rows that come to something
else than what is recorded, goes back row by row, without times: another row may take the line over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from distilld.core.datasets import rag, sft
from distilld.core.firewall import MissingFiles, RowCase
from distilld.core.json_text import Malformed, parse_object
from distilld.core.line_facts import CATEGORIES, CATEGORY_CODES, MALFORMED, MALFORMED_CODES, REASON_CODES, SHIPPED
from distilld.core.model import Category, Dataset, InputChanged, InputKind, Options, RowRef, UnreadableError
from distilld.core.outcome import Outcome, Rendered, Ship, hold_malformed, rendered
from distilld.core.records import EvidenceRecord, ScoredRun, evidence_record, scored_run
from distilld.engine.read_file import FileRead, read_evidence
from distilld.lake.lines import digest_of, read_head, read_neighbours
from distilld.lake.scan import open_partition, tree_path

FLUSH_BYTES: Final = 1 << 19
"""A stream of lines is handed over when it has gathered this much."""
OUTCOMES: Final = len(REASON_CODES) + 1

RAG_SHIPPED: Final = 0
RAG_HELD: Final = 1
SFT_SHIPPED: Final = 2
SFT_HELD: Final = 3

_TOO_LONG: Final = MALFORMED_CODES[Malformed.TOO_LONG]

Stamp = str | tuple[str, str]
"""The time of a line's batch, or the two times that an adopted line brought."""


class RowOrder(NamedTuple):
    """A row that is to be judged.

    ``evidence`` is its evidence's start, length and digest. ``recorded`` holds what stands in the exports: code, line
    digest and stamp for RAG, then for SFT; None where it was never judged. ``verdicts`` are the verdicts in force in
    RAG and SFT of a contested row; None says that it is plain.
    """

    walk: int
    start: int
    length: int
    digest: bytes
    malformed: int | None
    evidence: tuple[int, int, bytes] | None
    recorded: tuple[int, bytes, Stamp, int, bytes, Stamp] | None
    verdicts: tuple[Category | None, Category | None] | None


class Span(NamedTuple):
    """Rows of one partition in walk order; ``read_evidence`` has the whole evidence file read, which is new."""

    path: str
    base: int
    rows: tuple[RowOrder, ...]
    read_evidence: bool


class JudgedRow(NamedTuple):
    """What becomes of one row: in RAG and in SFT with its id free, and with its id taken where that differs."""

    walk: int
    category: Category | None
    found: bool
    rag: tuple[Rendered, Rendered | None]
    sft: tuple[Rendered, Rendered | None]


class FailedRow(NamedTuple):
    """A row whose file, or whose evidence's file, cannot be read (``errno`` and ``why``), or is another one now."""

    walk: int
    path: str
    errno: int | None
    why: str | None


class Part(NamedTuple):
    """Finished lines of plain rows: their stream, and where they stand in the job's file, or the lines themselves."""

    stream: int
    offset: int
    content: int | bytes
    rows: int


@dataclass(slots=True)
class SpanDone:
    """What came of a span."""

    items: list[Part | JudgedRow | FailedRow] = field(default_factory=list)
    """In the order of the rows."""
    fresh: list[tuple[int, bytes, int, bytes, bool, int]] = field(default_factory=list)
    """Plain rows that were never judged: code and line digest of RAG, of SFT, whether evidence was found, walk."""
    same: list[int] = field(default_factory=list)
    """Plain rows that come to what is recorded of them."""
    outcomes: tuple[list[int], list[int]] = field(default_factory=lambda: ([0] * OUTCOMES, [0] * OUTCOMES))
    """Fresh rows by outcome code in RAG and in SFT."""
    categories: list[int] = field(default_factory=lambda: [0] * (len(CATEGORIES) + 1))
    """Plain rows by the code of their category."""
    evidence: FileRead | None = None
    evidence_failure: FailedRow | None = None
    bytes_read: int = 0


class Sink:
    """Where the lines of plain rows go: to a file that the other side holds open too, or back with the answer."""

    def __init__(self, write: Callable[[bytes], None] | None) -> None:
        self._write = write
        self._offset = 0
        self._lines: tuple[list[bytes], ...] = ([], [], [], [])
        self._gathered = [0, 0, 0, 0]
        self.items: list[Part | JudgedRow | FailedRow] = []

    def add(self, stream: int, line: bytes) -> None:
        """Add a line to a stream."""
        self._lines[stream].append(line)
        self._gathered[stream] += len(line)
        if self._gathered[stream] > FLUSH_BYTES:
            self._flush(stream)

    def put(self, item: JudgedRow | FailedRow) -> None:
        """Hand over a row behind the lines so far."""
        for stream in range(len(self._lines)):
            self._flush(stream)
        self.items.append(item)

    def end(self) -> list[Part | JudgedRow | FailedRow]:
        """Return what was handed over since the last call."""
        for stream in range(len(self._lines)):
            self._flush(stream)
        items, self.items = self.items, []
        return items

    def _flush(self, stream: int) -> None:
        lines = self._lines[stream]
        if not lines:
            return
        block = b"".join(lines)
        if self._write is None:
            self.items.append(Part(stream, 0, block, len(lines)))
        else:
            self._write(block)
            self.items.append(Part(stream, self._offset, len(block), len(lines)))
            self._offset += len(block)
        lines.clear()
        self._gathered[stream] = 0


class _Text(NamedTuple):
    """A row's text: what it says, or the head of a malformed line."""

    scored: ScoredRun | None
    head: str


class SpanJudge:
    """Judges spans below one root, with one set of options."""

    def __init__(self, root: Path, options: Options, missing: MissingFiles | None) -> None:
        self._root = root
        self._options = options
        self._missing = missing
        self._readable = frozenset((*options.rag_allowed, *options.sft_allowed))

    def judge(self, span: Span, stamp: str, sink: Sink) -> SpanDone:
        """Read and judge a span; the lines of new plain rows get the time ``stamp``.

        Raises:
            OSError: The sink cannot be written.
        """
        done = SpanDone()
        texts = self._read_scored(span, done)
        evidence = self._read_evidence(span, texts, done)
        if evidence is not None:
            self._judge_rows(span, texts, evidence, stamp, done, sink)
        done.items = sink.end()
        return done

    # reading

    def _read_scored(self, span: Span, done: SpanDone) -> list[_Text | FailedRow]:
        shown = tree_path(InputKind.SCORED, span.path)
        try:
            with open_partition(self._root, InputKind.SCORED, span.path) as (descriptor, _):
                whole = [(row.start, row.length) for row in span.rows if row.malformed != _TOO_LONG]
                lines = read_neighbours(descriptor, whole, shown)
                texts: list[_Text | FailedRow] = []
                for row in span.rows:
                    if row.malformed != _TOO_LONG:
                        texts.append(_text(row, next(lines), shown))
                        continue
                    try:
                        head = read_head(descriptor, row.start, row.length, row.digest, shown)
                    except InputChanged as error:
                        texts.append(failed_row(row.walk, error))
                    else:
                        texts.append(_Text(None, head.decode(errors="replace")))
                done.bytes_read += sum(row.length for row in span.rows)
                return texts
        except (UnreadableError, InputChanged) as error:
            return [failed_row(row.walk, error) for row in span.rows]

    def _read_evidence(
        self, span: Span, texts: list[_Text | FailedRow], done: SpanDone
    ) -> list[tuple[EvidenceRecord | None, FailedRow | None, bool]] | None:
        """Return each row's evidence where its category may need it, why there is none, and whether it was found.

        None where a new evidence file cannot be read: then it is not known what any row comes to.
        """
        if span.read_evidence:
            return self._read_new_evidence(span, texts, done)
        wanted: dict[int, tuple[int, int, bytes]] = {}
        for row, text in zip(span.rows, texts, strict=True):
            run = text.scored if isinstance(text, _Text) else None
            if row.evidence is not None and run is not None and run.category in self._readable:
                wanted[row.walk] = row.evidence
        found: dict[int, EvidenceRecord | FailedRow] = {}
        if wanted:
            found = self._read_spans(span.path, sorted(wanted.items(), key=lambda item: item[1][0]), done)
        answer: list[tuple[EvidenceRecord | None, FailedRow | None, bool]] = []
        for row in span.rows:
            each = found.get(row.walk)
            if type(each) is FailedRow:
                answer.append((None, each, True))
            else:
                answer.append((each, None, row.evidence is not None))  # type: ignore[arg-type]
        return answer

    def _read_spans(
        self, path: str, wanted: list[tuple[int, tuple[int, int, bytes]]], done: SpanDone
    ) -> dict[int, EvidenceRecord | FailedRow]:
        shown = tree_path(InputKind.EVIDENCE, path)
        found: dict[int, EvidenceRecord | FailedRow] = {}
        try:
            with open_partition(self._root, InputKind.EVIDENCE, path) as (descriptor, _):
                lines = read_neighbours(descriptor, [(start, length) for _, (start, length, _) in wanted], shown)
                for (walk, (_, length, digest)), raw in zip(wanted, lines, strict=True):
                    done.bytes_read += length
                    value, marked = None, False
                    if digest_of(raw) == digest:
                        value, marked, _ = parse_object(raw)
                    if value is None:
                        found[walk] = FailedRow(walk, shown, None, None)
                    else:
                        found[walk] = evidence_record(value, marked=marked)
        except (UnreadableError, InputChanged) as error:
            return {walk: failed_row(walk, error) for walk, _ in wanted}
        return found

    def _read_new_evidence(
        self, span: Span, texts: list[_Text | FailedRow], done: SpanDone
    ) -> list[tuple[EvidenceRecord | None, FailedRow | None, bool]] | None:
        records: dict[str, EvidenceRecord] = {}
        try:
            done.evidence = read_evidence(self._root, span.path, self._options.max_line_bytes, records)
        except (UnreadableError, InputChanged) as error:
            done.evidence_failure = failed_row(-1, error)
            return None
        done.bytes_read += done.evidence.reading.bytes_read
        answer: list[tuple[EvidenceRecord | None, FailedRow | None, bool]] = []
        for text in texts:
            run = text.scored if type(text) is _Text else None
            record = records.get(run.run_id) if run is not None and run.run_id is not None else None
            needed = run is not None and run.category in self._readable
            answer.append((record if needed else None, None, record is not None))
        return answer

    # judging

    def _judge_rows(
        self,
        span: Span,
        texts: list[_Text | FailedRow],
        evidence: list[tuple[EvidenceRecord | None, FailedRow | None, bool]],
        stamp: str,
        done: SpanDone,
        sink: Sink,
    ) -> None:
        options, missing, base = self._options, self._missing, span.base
        fresh, by_rag, by_sft = done.fresh.append, *done.outcomes
        for row, text, (record, failure, found) in zip(span.rows, texts, evidence, strict=True):
            if isinstance(text, FailedRow):
                sink.put(text)
                continue
            if failure is not None:
                sink.put(failure)
                continue
            at = RowRef(span.path, row.walk - base)
            scored = text.scored
            if scored is None:
                in_rag, in_sft = (self._malformed(dataset, row, text.head, at) for dataset in _DATASETS)
                category = None
            else:
                category = scored.category
                if row.verdicts is not None:
                    try:
                        sink.put(self._contested(row, scored, record, found, at))
                    except (UnreadableError, InputChanged) as error:
                        sink.put(failed_row(row.walk, error))
                    continue
                case = RowCase(scored, record, category, False, options, missing)
                try:
                    in_rag, in_sft = rag.judge(case, at), sft.judge(case, at)
                except (UnreadableError, InputChanged) as error:
                    sink.put(failed_row(row.walk, error))
                    continue
            if row.recorded is not None or row.verdicts is not None:
                if row.verdicts is None and _is_as_recorded(row, in_rag, in_sft):
                    done.same.append(row.walk)
                    done.categories[CATEGORY_CODES[category] if category else 0] += 1
                else:
                    sink.put(JudgedRow(row.walk, category, found, (rendered(in_rag), None), (rendered(in_sft), None)))
                continue
            done.categories[CATEGORY_CODES[category] if category else 0] += 1
            rag_code, rag_line = _finished(in_rag, stamp)
            sft_code, sft_line = _finished(in_sft, stamp)
            sink.add(RAG_HELD if rag_code else RAG_SHIPPED, rag_line)
            sink.add(SFT_HELD if sft_code else SFT_SHIPPED, sft_line)
            by_rag[rag_code] += 1
            by_sft[sft_code] += 1
            fresh((rag_code, digest_of(rag_line), sft_code, digest_of(sft_line), found, row.walk))

    def _malformed(self, dataset: Dataset, row: RowOrder, head: str, at: RowRef) -> Outcome:
        return hold_malformed(
            dataset,
            head,
            MALFORMED[row.malformed or 0],
            at,
            source_file=tree_path(InputKind.SCORED, at.partition),
            max_line_bytes=self._options.max_line_bytes,
        )

    def _contested(
        self, row: RowOrder, scored: ScoredRun, record: EvidenceRecord | None, found: bool, at: RowRef
    ) -> JudgedRow:
        assert row.verdicts is not None  # noqa: S101  asked by the caller
        both: list[tuple[Rendered, Rendered | None]] = []
        for judge, verdict in zip((rag.judge, sft.judge), row.verdicts, strict=True):
            case = RowCase(scored, record, verdict, False, self._options, self._missing)
            free = judge(case, at)
            taken = judge(case._replace(id_taken=True), at)
            both.append((rendered(free), rendered(taken)))
        return JudgedRow(row.walk, scored.category, found, both[0], both[1])


_DATASETS: Final = (Dataset.RAG, Dataset.SFT)


def _text(row: RowOrder, raw: bytes, shown: str) -> _Text | FailedRow:
    if digest_of(raw) != row.digest:
        return FailedRow(row.walk, shown, None, None)
    if row.malformed is not None:
        return _Text(None, raw.decode(errors="replace"))
    value, marked, _ = parse_object(raw)
    if value is None:
        return FailedRow(row.walk, shown, None, None)
    return _Text(scored_run(value, marked=marked), "")


def failed_row(walk: int, error: UnreadableError | InputChanged) -> FailedRow:
    """What an error is handed over as."""
    if isinstance(error, UnreadableError):
        return FailedRow(walk, error.path, error.errno, error.why)
    return FailedRow(walk, error.path, None, None)


def error_of(failed: FailedRow) -> UnreadableError | InputChanged:
    """The error that a row failed with."""
    if failed.why is None:
        return InputChanged(failed.path)
    return UnreadableError(failed.path, OSError(failed.errno, failed.why))


def _finished(outcome: Outcome, stamp: Stamp) -> tuple[int, bytes]:
    times = (stamp,) if isinstance(stamp, str) else stamp
    if isinstance(outcome, Ship):
        return SHIPPED, outcome.line(*times)
    return REASON_CODES[outcome.reason], rendered(outcome).line(*times)


def _is_as_recorded(row: RowOrder, in_rag: Outcome, in_sft: Outcome) -> bool:
    assert row.recorded is not None  # noqa: S101  asked by the caller
    rag_code, rag_line, rag_stamp, sft_code, sft_line, sft_stamp = row.recorded
    return all(
        code == recorded and digest_of(line) == digest
        for (code, line), recorded, digest in (
            (_finished(in_rag, rag_stamp), rag_code, rag_line),
            (_finished(in_sft, sft_stamp), sft_code, sft_line),
        )
    )
