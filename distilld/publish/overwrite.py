"""Overwrites rows of an export in place: bytes and line feeds become spaces, which JSON allows before a row.

A plan is made before COMMIT and changes nothing. The transaction records it, and it is carried out after COMMIT, any
number of times: nothing is written unless the file, with the spaces in it, is the committed one. Rows at the end of a
file are cut off, so no line is ever blank.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from distilld.core.model import MARK_BYTES, Committed
from distilld.files.durable import write_all
from distilld.files.regular import without_space
from distilld.files.segments import Segment, SegmentHash, Span, read_segment, read_span
from distilld.lake.lines import digest_of
from distilld.publish.reading import ExportTamperedError, joined

LEAST_BYTES: Final = 1 << 18
"""Bytes. A smaller export is rewritten, which is as fast."""
MOST_SPACE_BYTES: Final = 64 << 20
MOST_SPACE_SHARE: Final = 0.1
LONGEST_SPACE_BYTES: Final = 1 << 18
"""Bytes. Loaders fail on a longer run of spaces than they read at once."""


@dataclass(frozen=True, slots=True)
class Overwriting:
    """What is overwritten, and what the export is after that."""

    spans: tuple[Span, ...]
    """Spans to fill with spaces; one that starts at ``size`` is cut off."""
    size: int
    spaces: int
    rows: int
    sha: SegmentHash
    segments: tuple[Segment, ...]
    """The segments whose bytes or lines change."""


class _Row(NamedTuple):
    """A row to overwrite: its span, the start of its line's white space, its segment and its place in the marks."""

    line_start: int
    span: Span
    segment: Segment
    place: int


@dataclass(frozen=True, slots=True)
class OpenExport:
    """An export that is open for reading, its committed state, and the running digest of that state."""

    shown: str
    descriptor: int
    known: Committed
    sha: SegmentHash

    def content(self, number: int) -> bytearray:
        """Return the bytes of a segment.

        Raises:
            ExportTamperedError: The bytes are not the committed ones.
        """
        content = read_segment(self.descriptor, self.known, number)
        if hashlib.sha256(content).digest() != self.sha.digest_of(number):
            raise ExportTamperedError(self.shown, "has other bytes than its last commit")
        return bytearray(content)

    def read(self, span: Span) -> bytes:
        """Return the bytes of a span, unchecked."""
        return read_span(self.descriptor, span)


def plan_overwrite(
    export: OpenExport,
    leaving: Counter[bytes],
    candidates: list[Segment],
    segments: Callable[[Iterable[int]], list[Segment]],
    *,
    grows: bool,
) -> Overwriting | None:
    """Plan how to overwrite the lines with these digests; return None if the export must be rewritten instead.

    ``candidates`` are the segments that may hold them; ``segments`` returns others by number. ``grows`` says that rows
    are appended in the same batch.

    Raises:
        ExportTamperedError: The export is not what its last commit left.
    """
    found = _find(export, leaving, candidates)
    if found is None:
        return None
    size, staying, cut = export.known.size, list(found), list[_Row]()
    while staying and staying[-1].span.end == size and not grows:
        cut.append(staying.pop())
        size = cut[-1].line_start
    spans = list(joined(row.span for row in staying))
    gone = [Span(row.line_start, row.span.start - row.line_start) for row in cut]
    spaces = export.known.spaces + _length(spans) - _length(gone)
    if size == 0 or spaces > min(MOST_SPACE_BYTES, MOST_SPACE_SHARE * size):
        return None
    width = export.known.segment_bytes
    numbers = {row.segment.number for row in found}.union(by_segment(spans, width), [size // width] if cut else ())
    numbers = {number for number in numbers if number * width < size}
    sha = export.sha.copy()
    if cut:
        sha.cut(size, b"")
    changed = _changed(export, segments(sorted(numbers)), found, spans, gone, sha)
    if len(changed) != len(numbers) or any(
        # A run of spaces is in two segments at most, so half of the limit in each keeps it short enough.
        each.spaces > min(LONGEST_SPACE_BYTES // 2, width - 1)
        for each in changed
    ):
        return None
    tail = [Span(size, export.known.size - size)] if cut else []
    return Overwriting((*spans, *tail), size, spaces, len(found), sha, tuple(changed))


def _changed(
    export: OpenExport,
    segments: list[Segment],
    found: list[_Row],
    spans: list[Span],
    gone: list[Span],
    sha: SegmentHash,
) -> list[Segment]:
    """Return the segments after the overwrite, and update ``sha``; ``gone`` is white space that is cut off."""
    width = export.known.segment_bytes
    parts, lost = by_segment(spans, width), by_segment(gone, width)
    places: dict[int, set[int]] = {}
    for row in found:
        places.setdefault(row.segment.number, set()).add(row.place)
    changed = []
    for number, _, marks, before in segments:
        content = export.content(number)
        blank(content, number * width, parts.get(number, ()))
        sha.replace(number, bytes(content[: sha.size - number * width]))
        space = before + _length(parts.get(number, ())) - _length(lost.get(number, ()))
        changed.append(Segment(number, sha.digest_of(number), _without(marks, places.get(number, set())), space))
    return changed


def _find(export: OpenExport, leaving: Counter[bytes], candidates: list[Segment]) -> list[_Row] | None:
    """Return the first lines with these digests, in order, or None if not all are found."""
    left, missing = Counter(leaving), leaving.total()
    marks = {digest[:MARK_BYTES] for digest in left}
    found = []
    for segment in candidates:
        if not missing:
            break
        start = segment.number * export.known.segment_bytes
        ends = [start + each.end() for each in re.finditer(b"\n", export.content(segment.number))]
        if len(ends) * MARK_BYTES != len(segment.marks):
            return None
        for place, end in enumerate(ends):
            if segment.marks[place * MARK_BYTES : (place + 1) * MARK_BYTES] not in marks:
                continue
            line_start = ends[place - 1] if place else _line_start(export, start)
            row = without_space(export.read(Span(line_start, end - line_start)))
            digest = digest_of(row)
            if left[digest] > 0:
                left[digest] -= 1
                missing -= 1
                found.append(_Row(line_start, Span(end - len(row), len(row)), segment, place))
    return None if missing else found


def _line_start(export: OpenExport, position: int) -> int:
    """Return the start of the line that contains ``position``."""
    step = 1 << 16
    while position > 0:
        start = max(0, position - step)
        found = export.read(Span(start, position - start)).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def _length(spans: Iterable[Span]) -> int:
    return sum(span.length for span in spans)


def by_segment(spans: Iterable[Span], width: int) -> dict[int, list[Span]]:
    """Return the same spans, split at segment ends and grouped by segment."""
    found: dict[int, list[Span]] = {}
    for span in spans:
        start = span.start
        while start < span.end:
            number = start // width
            end = min(span.end, (number + 1) * width)
            found.setdefault(number, []).append(Span(start, end - start))
            start = end
    return found


def blank(content: bytearray, start: int, spans: Iterable[Span]) -> None:
    """Fill spans with spaces in ``content``, which begins at offset ``start`` of the file."""
    for span in spans:
        content[span.start - start : span.end - start] = b" " * span.length


def _without(marks: bytes, places: set[int]) -> bytes:
    left = bytearray(marks)
    for place in sorted(places, reverse=True):
        del left[place * MARK_BYTES : (place + 1) * MARK_BYTES]
    return bytes(left)


def spans_within(spans: Iterable[Span], committed: Committed) -> tuple[list[Span], int | None]:
    """Return the spans to fill with spaces, and the file's length before rows are cut off, None if none are."""
    within = sorted(span for span in spans if span.start < committed.size)
    return within, next((span.end for span in spans if span.start >= committed.size), None)


def touched(spans: Iterable[Span], committed: Committed) -> set[int]:
    """Return the segments whose bytes change when the spans are overwritten."""
    within, uncut = spans_within(spans, committed)
    last = {(committed.size - 1) // committed.segment_bytes} if uncut is not None else set()
    return set(by_segment(within, committed.segment_bytes)) | last


def overwrite(descriptor: int, committed: Committed, spans: list[Span], digests: dict[int, bytes]) -> bool:
    """Carry out a plan, and fsync; return False, with nothing written, if it is not the file that was planned for.

    ``digests`` are those of the touched segments in the committed file.
    """
    within, uncut = spans_within(spans, committed)
    size = os.fstat(descriptor).st_size
    if size not in (committed.size, uncut):
        return False
    width = committed.segment_bytes
    parts = by_segment(within, width)
    for number in touched(spans, committed):
        content = bytearray(read_segment(descriptor, committed, number))
        blank(content, number * width, parts.get(number, ()))
        if hashlib.sha256(content).digest() != digests.get(number):
            return False
    for span in within:
        os.lseek(descriptor, span.start, os.SEEK_SET)
        write_all(descriptor, b" " * span.length)
    if size != committed.size:
        os.ftruncate(descriptor, committed.size)
    os.fsync(descriptor)
    return True
