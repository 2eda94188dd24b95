"""Spans of partitions: the orders to judge their rows, and the results. Plain values that pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from distilld.core.line_facts import CATEGORIES, REASON_CODES, Content
from distilld.core.model import Category, InputChanged, MarkedLines, Marks, UnreadableError
from distilld.core.outcome import Outcome
from distilld.engine.read_file import FileRead
from distilld.files.spool import LineSpool, SharedFile

OUTCOMES: Final = len(REASON_CODES) + 1

Stamp = str | tuple[str, str]
"""The time of a line's batch, or the two times of an adopted line."""


class Failure(NamedTuple):
    """The form in which an error is handed over: a file cannot be read, or has changed (``errno`` and ``why`` None)."""

    path: str
    errno: int | None = None
    why: str | None = None

    @classmethod
    def of(cls, error: UnreadableError | InputChanged) -> Failure:
        """Return the form of an error."""
        return cls(error.path, error.errno, error.why) if isinstance(error, UnreadableError) else cls(error.path)

    def error(self) -> UnreadableError | InputChanged:
        """Return the error."""
        if self.why is None:
            return InputChanged(self.path)
        return UnreadableError(self.path, OSError(self.errno, self.why))


class Verdicts(NamedTuple):
    """What a row's text does not show about its run: current verdicts in RAG and SFT, and too many exports."""

    rag: Category | None
    sft: Category | None
    over_limit: bool


Recorded = tuple[int, bytes, Stamp, int, bytes, Stamp]
"""What is recorded of a row: outcome code, line digest and stamp of RAG, then of SFT."""


class RowOrder(NamedTuple):
    """A row that is to be judged.

    ``evidence`` is the start, length and digest of its evidence. ``recorded`` is None if it is contested or was never
    judged. ``verdicts`` is None if it is plain.
    """

    walk: int
    start: int
    length: int
    digest: bytes
    malformed: int | None
    evidence: tuple[int, int, bytes] | None
    recorded: Recorded | None
    verdicts: Verdicts | None


class NewPartition(NamedTuple):
    """A partition that was not judged yet and whose evidence file is unread: it is judged as a whole.

    ``scored`` is its scored file as it was indexed. ``contested`` has the verdicts for the runs of its contested rows,
    by line; all other rows are plain.
    """

    scored: Content
    contested: dict[int, Verdicts]


class Span(NamedTuple):
    """Rows of one partition in walk order: all rows of a ``new`` one, otherwise ``rows``.

    ``failure`` says why only the beginning of its scored file was read, if so.
    """

    path: str
    base: int
    rows: tuple[RowOrder, ...]
    new: NewPartition | None
    failure: Failure | None

    def size(self) -> int:
        """Return how many rows it has."""
        return len(self.rows) if self.new is None else self.new.scored.lines


class JudgedRow(NamedTuple):
    """The outcomes of one row in RAG and in SFT: with its id free, and with its id taken if it is contested."""

    walk: int
    category: Category | None
    found: bool
    rag: tuple[Outcome, Outcome | None]
    sft: tuple[Outcome, Outcome | None]


class FailedRow(NamedTuple):
    """A row whose file, or evidence file, cannot be read or has changed."""

    walk: int
    failure: Failure


class Part(NamedTuple):
    """Finished lines: their stream, and their offset and length in the batch's file, or the lines themselves."""

    stream: int
    offset: int
    content: int | bytes
    marks: Marks

    def put_into(self, lines: LineSpool, file: SharedFile | None) -> None:
        """Add the lines to those of an export; ``file`` is the batch's file."""
        if isinstance(self.content, int):
            assert file is not None  # noqa: S101  the content is a length in the file
            lines.add_part(file.fileno(), self.offset, self.content, self.marks)
        else:
            lines.add_piece(MarkedLines(self.content, self.marks))


@dataclass(slots=True)
class SpanDone:
    """The results of a span."""

    items: list[Part | JudgedRow | FailedRow] = field(default_factory=list)
    """In the order of the rows."""
    fresh: list[tuple[int, bytes, int, bytes, bool, int]] = field(default_factory=list)
    """Plain rows that were never judged: code and line digest of RAG, of SFT, whether evidence was found, walk."""
    same: list[int] = field(default_factory=list)
    """Plain rows whose result equals what is recorded of them."""
    outcomes: tuple[list[int], list[int]] = field(default_factory=lambda: ([0] * OUTCOMES, [0] * OUTCOMES))
    """Numbers of fresh rows by outcome code in RAG and in SFT."""
    categories: list[int] = field(default_factory=lambda: [0] * (len(CATEGORIES) + 1))
    """Numbers of plain rows by the code of their category."""
    evidence: FileRead | None = None
    """The evidence file of a new partition; None where it could not be read."""
    bytes_read: int = 0
