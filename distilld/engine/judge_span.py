"""Judge the rows of one partition's span: in a worker, or in this process where there is little to do.

A job is plain values: where each row and its evidence are, and what a row's own text does not show. A row is *plain*
if no other row names its run or has its id: its verdict is its own, and its id is free. All other rows are
*contested*. The job gives their current verdict, and they are judged twice, with their id free and taken. The
process that commits knows the rows before them, and picks.

The lines of plain rows are finished here. Results of contested rows, and of known rows whose result differs from
what is recorded, go back row by row, without times: another row may take the line over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from distilld.core.datasets import rag, sft
from distilld.core.firewall import MissingFiles, RowCase
from distilld.core.json_text import Malformed, ParsedLine, parse_object
from distilld.core.line_facts import CATEGORY_CODES, EXPORTED, MALFORMED_CODES, REASON_CODES, Content
from distilld.core.model import (
    ROW_DATASETS,
    Dataset,
    InputChanged,
    InputKind,
    Options,
    RowRef,
    UnreadableError,
)
from distilld.core.outcome import Outcome, quarantine_malformed
from distilld.core.records import EvidenceRecord, ScoredRun, evidence_record, scored_run
from distilld.engine.read_file import ShortRows, read_evidence
from distilld.engine.sink import RAG_EXPORTED, RAG_QUARANTINED, SFT_EXPORTED, SFT_QUARANTINED, Sink
from distilld.engine.spans import (
    FailedRow,
    Failure,
    JudgedRow,
    NewPartition,
    Recorded,
    Span,
    SpanDone,
    Stamp,
    Verdicts,
)
from distilld.lake.content_hash import ContentHash
from distilld.lake.lines import HEAD_BYTES, digest_of, read_head, read_neighbours
from distilld.lake.scan import open_partition, tree_path

_TOO_LONG: Final = MALFORMED_CODES[Malformed.TOO_LONG]

_make: Final = tuple.__new__
"""Does what a NamedTuple's own constructor does, but faster, for the tuples that are made for each row."""


class _Head(NamedTuple):
    """The beginning of a malformed line, and the reason why it is malformed."""

    text: str
    malformed: Malformed


class _Case(NamedTuple):
    """A row as it was read, with its evidence if its category may need it.

    ``text`` is the failure if its file, or that of its evidence, cannot be read or has changed.
    """

    walk: int
    text: ScoredRun | _Head | Failure
    evidence: EvidenceRecord | None
    found: bool
    verdicts: Verdicts | None
    recorded: Recorded | None


class SpanJudge:
    """Judges spans below one root, with one set of options."""

    def __init__(self, root: Path, options: Options, missing: MissingFiles | None) -> None:
        self._root = root
        self._options = options
        self._missing = missing
        self._readable = frozenset((*options.rag_allowed, *options.sft_allowed))

    def judge(self, span: Span, stamp: str, sink: Sink) -> SpanDone:
        """Read and judge a span; the lines of plain rows not judged before get the time ``stamp``.

        Raises:
            OSError: The sink cannot be written to.
        """
        done = SpanDone()
        cases = self._cases(span, done) if span.new is None else self._cases_of_new(span, span.new, done)
        self._judge(span, cases, stamp, done, sink)
        done.items = sink.end()
        return done

    # reading a partition that is new

    def _cases_of_new(self, span: Span, new: NewPartition, done: SpanDone) -> Iterator[_Case]:
        """Yield all rows; none if the evidence file cannot be read as a whole: then no outcome is known."""
        texts: dict[str, ParsedLine] = {}
        if span.failure is not None:
            return
        try:
            evidence = read_evidence(self._root, span.path, self._options.max_line_bytes, texts)
        except (UnreadableError, InputChanged):
            return
        if isinstance(evidence, ShortRows):
            return
        done.evidence = evidence
        done.bytes_read += done.evidence.reading.bytes_read + new.scored.size_of_lines
        try:
            lines = self._read_whole(span.path, new.scored)
        except (UnreadableError, InputChanged) as error:
            for walk in range(span.base, span.base + new.scored.lines):
                yield _Case(walk, Failure.of(error), None, False, None, None)
            return
        contested, readable, longest = new.contested.get, self._readable, self._options.max_line_bytes
        for line, raw in enumerate(lines):
            text = _text(raw) if len(raw) <= longest else _head(raw, Malformed.TOO_LONG)
            found = record = None
            if type(text) is ScoredRun and text.run_id is not None:
                found = texts.get(text.run_id)
                if found is not None and found.value is not None and text.category in readable:
                    record = evidence_record(found.value, marked=found.marked)
            yield _make(_Case, (span.base + line, text, record, found is not None, contested(line), None))

    def _read_whole(self, path: str, known: Content) -> list[bytes]:
        """Return the lines of a scored file.

        Raises:
            InputChanged: The file is no longer the one that was indexed.
            UnreadableError: The system refuses to read it.
        """
        shown = tree_path(InputKind.SCORED, path)
        with open_partition(self._root, InputKind.SCORED, path) as (descriptor, _):
            (content,) = read_neighbours(descriptor, ((0, known.size_of_lines),), shown)
        lines = [line for line in content.split(b"\n") if line]
        end = digest_of(content[known.size :]) if known.tail_digest else None
        sha256 = ContentHash(content[: known.size]).digest().hex()
        if (sha256, end, len(lines)) != (known.sha256, known.tail_digest, known.lines):
            raise InputChanged(shown)
        return lines

    # reading rows of a partition

    def _cases(self, span: Span, done: SpanDone) -> Iterator[_Case]:
        texts = self._read_scored(span, done)
        wanted: dict[int, tuple[int, int, bytes]] = {}
        for row, text in zip(span.rows, texts, strict=True):
            is_over = row.verdicts is not None and row.verdicts.over_limit
            readable = type(text) is ScoredRun and text.category in self._readable
            if row.evidence is not None and readable and not is_over:
                wanted[row.walk] = row.evidence
        found: dict[int, EvidenceRecord | Failure] = {}
        if wanted:
            found = self._read_spans(span.path, sorted(wanted.items(), key=lambda item: item[1][0]), done)
        for row, text in zip(span.rows, texts, strict=True):
            record = found.get(row.walk)
            if type(record) is Failure:
                text, record = record, None  # noqa: PLW2901
            yield _make(_Case, (row.walk, text, record, row.evidence is not None, row.verdicts, row.recorded))

    def _read_scored(self, span: Span, done: SpanDone) -> list[ScoredRun | _Head | Failure]:
        if span.failure is not None:
            # What was not read may forbid any of them.
            return [span.failure for _ in span.rows]
        shown = tree_path(InputKind.SCORED, span.path)
        try:
            with open_partition(self._root, InputKind.SCORED, span.path) as (descriptor, _):
                whole = [(row.start, row.length) for row in span.rows if row.malformed != _TOO_LONG]
                lines = read_neighbours(descriptor, whole, shown)
                texts: list[ScoredRun | _Head | Failure] = []
                for row in span.rows:
                    if row.malformed != _TOO_LONG:
                        raw = next(lines)
                        known = digest_of(raw) == row.digest
                        texts.append(_text(raw) if known else Failure(shown))
                        continue
                    try:
                        head = read_head(descriptor, row.start, row.length, row.digest, shown)
                    except InputChanged as error:
                        texts.append(Failure.of(error))
                    else:
                        texts.append(_head(head, Malformed.TOO_LONG))
                done.bytes_read += sum(row.length for row in span.rows)
                return texts
        except (UnreadableError, InputChanged) as error:
            return [Failure.of(error) for _ in span.rows]

    def _read_spans(
        self, path: str, wanted: list[tuple[int, tuple[int, int, bytes]]], done: SpanDone
    ) -> dict[int, EvidenceRecord | Failure]:
        shown = tree_path(InputKind.EVIDENCE, path)
        found: dict[int, EvidenceRecord | Failure] = {}
        try:
            with open_partition(self._root, InputKind.EVIDENCE, path) as (descriptor, _):
                lines = read_neighbours(descriptor, [(start, length) for _, (start, length, _) in wanted], shown)
                for (walk, (_, length, digest)), raw in zip(wanted, lines, strict=True):
                    done.bytes_read += length
                    value, marked = None, False
                    if digest_of(raw) == digest:
                        value, marked, _ = parse_object(raw)
                    if value is None:
                        found[walk] = Failure(shown)
                    else:
                        found[walk] = evidence_record(value, marked=marked)
        except (UnreadableError, InputChanged) as error:
            return {walk: Failure.of(error) for walk, _ in wanted}
        return found

    # judging

    def _judge(self, span: Span, cases: Iterator[_Case], stamp: str, done: SpanDone, sink: Sink) -> None:
        options, missing, base, path = self._options, self._missing, span.base, span.path
        fresh, by_rag, by_sft, by_category = done.fresh.append, *done.outcomes, done.categories
        add = sink.add
        for walk, text, evidence, found, verdicts, recorded in cases:
            if type(text) is Failure:
                sink.put(FailedRow(walk, text))
                continue
            at = _make(RowRef, (path, walk - base))
            category = None
            try:
                if type(text) is _Head:
                    in_rag, in_sft = (self._malformed(dataset, text, at) for dataset in ROW_DATASETS)
                else:
                    assert type(text) is ScoredRun  # noqa: S101  the others are above
                    category = text.category
                    if verdicts is not None:
                        sink.put(self._contested(walk, text, evidence, found, verdicts, at))
                        continue
                    case = _make(RowCase, (text, evidence, category, False, options, missing, False))
                    in_rag, in_sft = rag.judge(case, at), sft.judge(case, at)
            except (UnreadableError, InputChanged) as error:
                sink.put(FailedRow(walk, Failure.of(error)))
                continue
            if verdicts is not None or (recorded is not None and not _is_as_recorded(recorded, in_rag, in_sft)):
                sink.put(JudgedRow(walk, category, found, (in_rag, None), (in_sft, None)))
                continue
            by_category[CATEGORY_CODES[category] if category else 0] += 1
            if recorded is not None:
                done.same.append(walk)
                continue
            rag_code, rag_line = finished(in_rag, stamp)
            sft_code, sft_line = finished(in_sft, stamp)
            rag_digest, sft_digest = digest_of(rag_line), digest_of(sft_line)
            add(RAG_QUARANTINED if rag_code else RAG_EXPORTED, rag_line, rag_digest)
            add(SFT_QUARANTINED if sft_code else SFT_EXPORTED, sft_line, sft_digest)
            by_rag[rag_code] += 1
            by_sft[sft_code] += 1
            fresh((rag_code, rag_digest, sft_code, sft_digest, found, walk))

    def _malformed(self, dataset: Dataset, head: _Head, at: RowRef) -> Outcome:
        return quarantine_malformed(
            dataset,
            head.text,
            head.malformed,
            at,
            source_file=tree_path(InputKind.SCORED, at.partition),
            max_line_bytes=self._options.max_line_bytes,
        )

    def _contested(
        self, walk: int, scored: ScoredRun, record: EvidenceRecord | None, found: bool, verdicts: Verdicts, at: RowRef
    ) -> JudgedRow:
        both: list[tuple[Outcome, Outcome | None]] = []
        for judge, verdict in ((rag.judge, verdicts.rag), (sft.judge, verdicts.sft)):
            case = RowCase(scored, record, verdict, False, self._options, self._missing, verdicts.over_limit)
            both.append((judge(case, at), judge(case._replace(id_taken=True), at)))
        return JudgedRow(walk, scored.category, found, both[0], both[1])


def _text(raw: bytes) -> ScoredRun | _Head:
    value, marked, malformed = parse_object(raw)
    return scored_run(value, marked=marked) if value is not None else _head(raw, malformed or Malformed.NOT_JSON)


def _head(raw: bytes, malformed: Malformed) -> _Head:
    return _Head(raw[:HEAD_BYTES].decode(errors="replace"), malformed)


def finished(outcome: Outcome, stamp: Stamp) -> tuple[int, bytes]:
    """Return the code of an outcome, and its line with its time."""
    code = EXPORTED if outcome.reason is None else REASON_CODES[outcome.reason]
    return code, outcome.line(stamp) if isinstance(stamp, str) else outcome.line(*stamp)


def _is_as_recorded(recorded: Recorded, in_rag: Outcome, in_sft: Outcome) -> bool:
    rag_code, rag_line, rag_stamp, sft_code, sft_line, sft_stamp = recorded
    return all(
        code == known and digest_of(line) == digest
        for (code, line), known, digest in (
            (finished(in_rag, rag_stamp), rag_code, rag_line),
            (finished(in_sft, sft_stamp), sft_code, sft_line),
        )
    )
