"""What one look at the inputs found."""

from __future__ import annotations

from dataclasses import dataclass, field

from distilld.core.line_facts import OddLines
from distilld.core.model import InputKind, OperatorError
from distilld.core.plan import FileKey
from distilld.engine.span_queue import UnreadEvidence


@dataclass(frozen=True, slots=True)
class FileChange:
    """One input file that changed, as logs and receipts name it."""

    kind: InputKind
    path: str
    change: str
    lines: int = 0


@dataclass(slots=True)
class Indexed:
    """What one scan found."""

    changes: list[FileChange] = field(default_factory=list)
    unsettled: list[FileKey] = field(default_factory=list)
    """Files that were rewritten just now; they are read once they stay unchanged for the settling time."""
    postponed: list[FileKey] = field(default_factory=list)
    """Large files that are left to the passes that follow at once."""
    problems: list[OperatorError] = field(default_factory=list)
    malformed: list[OddLines] = field(default_factory=list)
    unreviewed: dict[str, OddLines] = field(default_factory=dict)
    """Scored rows with none of the four categories, by partition."""
    unreadable: list[FileKey] = field(default_factory=list)
    """The files that the problems are about."""
    unread: dict[int, UnreadEvidence] = field(default_factory=dict)
    """New evidence files that are read when their rows are judged, by partition."""
    names_gone: bool = False
    """Whether files are absent, or were gone before they were read: nothing may need their partitions any more."""
    files_seen: int = 0
    rows_indexed: int = 0
    bytes_read: int = 0

    @property
    def left(self) -> list[FileKey]:
        """Return the files that are left to later passes."""
        return [*self.unsettled, *self.postponed]

    def add(self, later: Indexed) -> None:
        """Add what was found later."""
        self.changes += later.changes
        self.unsettled += later.unsettled
        self.postponed += later.postponed
        self.problems += later.problems
        self.malformed += later.malformed
        self.unreviewed |= later.unreviewed
        self.unreadable += later.unreadable
        self.unread |= later.unread
        self.names_gone |= later.names_gone
        self.rows_indexed += later.rows_indexed
        self.bytes_read += later.bytes_read

    def left_by(self, later: Indexed) -> None:
        """Take over from a later scan of all files which ones are left to the next."""
        self.unsettled, self.unreadable, self.postponed = later.unsettled, later.unreadable, later.postponed
