"""Writes a file and computes its digest and line marks."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from distilld.core.model import MARK_BYTES, SEGMENT_BYTES, Committed, MarkedLines, Marks, StatFacts
from distilld.files.durable import write_all
from distilld.files.regular import without_space
from distilld.files.segments import Segment, SegmentHash
from distilld.lake.lines import digest_of
from distilld.publish.reading import split_lines


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the whole file's length, digest and stat facts, and how many lines were dropped.

    ``segments`` are those with new bytes: all segments of a rewritten file.
    """

    size: int
    sha256: str
    facts: StatFacts
    dropped: int = 0
    segments: tuple[Segment, ...] = ()
    segment_bytes: int = SEGMENT_BYTES
    spaces: int = 0

    @property
    def lines(self) -> int:
        """How many lines were written, as counted on the way."""
        return sum(len(segment.marks) for segment in self.segments) // MARK_BYTES

    def committed(self, rows: int) -> Committed:
        """Return the state of the export as of the next commit."""
        return Committed(self.size, rows, self.sha256, self.segment_bytes, self.spaces)


class Output:
    """Writes bytes into an open file; computes their digest and the marks of the lines that end in each segment."""

    def __init__(self, descriptor: int | None, sha: SegmentHash) -> None:
        self.sha = sha
        self._descriptor = descriptor
        self._first = sha.size // sha.segment_bytes
        self._marks: dict[int, bytearray] = {}
        self._line_end = sha.size

    def write(self, block: bytes | MarkedLines) -> None:
        """Write the next lines; an incomplete one can only be the last of all."""
        if isinstance(block, MarkedLines):
            content, marks = block
        else:
            content, lines = block, split_lines(block)
            marks = Marks.of(lines, (digest_of(without_space(line)) for line in lines))
        self.sha.update(content)
        if self._descriptor is not None:
            write_all(self._descriptor, content)
        self._mark(marks)

    def _mark(self, marks: Marks) -> None:
        ends = list(accumulate(marks.lengths, initial=self._line_end))
        self._line_end = ends[-1]
        done, width = 0, self.sha.segment_bytes
        while done < len(marks.lengths):
            number = (ends[done + 1] - 1) // width
            upto = bisect_right(ends, (number + 1) * width, done + 1) - 1
            self._marks.setdefault(number, bytearray()).extend(marks.marks[done * MARK_BYTES : upto * MARK_BYTES])
            done = upto

    def written(self, facts: StatFacts, spaces: int = 0) -> Written:
        """Return what was written, with the segments that have new bytes."""
        sha = self.sha
        ends = -(-sha.size // sha.segment_bytes)
        segments = tuple(
            Segment(number, sha.digest_of(number), bytes(self._marks.get(number, b"")))
            for number in range(self._first, ends)
        )
        return Written(sha.size, sha.hexdigest(), facts, 0, segments, sha.segment_bytes, spaces)
