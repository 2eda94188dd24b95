"""The result of a pass, and its progress."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from distilld.core.model import OperatorError, UnreadableError
from distilld.engine.indexed import Indexed
from distilld.lake.scan import Oddity, Scan, tree_path
from distilld.publish.commit import CommittedBatch


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a pass, for display: bytes are read first; then rows are judged and pairs formed."""

    phase: Literal["read", "judge"]
    done: int
    whole: int
    """The final value of ``done``, as far as it is known: bytes, or rows and tasks."""
    files: int
    rows: int
    bytes: int = 0
    """Bytes of inputs that were read in this phase."""


@dataclass(slots=True)
class PassResult:
    """The result of one pass: the batches that it committed, and what it could not read or has not read yet."""

    batches: list[CommittedBatch] = field(default_factory=list)
    scan: Scan | None = None
    indexed: Indexed = field(default_factory=Indexed)
    untold: Indexed = field(default_factory=Indexed)
    """What was indexed and is in no receipt yet."""
    judged_alike: int = 0
    """Rows that were judged in batches without changes and are in no receipt yet."""
    read_alike: int = 0
    """The bytes that were read for these rows."""
    looked_at_ns: int = 0
    """When the inputs were last scanned, in nanoseconds since the epoch, by our clock."""
    problems: dict[str, OperatorError] = field(default_factory=dict)
    """What could not be read so far, by message."""
    changed_so_far: set[str] = field(default_factory=set)
    changed_inputs: tuple[str, ...] = ()
    """Files that changed while their rows were judged: these rows wait, and the next pass reads the files again."""

    def add(self, news: Indexed) -> None:
        """Add what was indexed later in the pass, for the next receipt too."""
        self.untold.add(news)
        if self.untold is not self.indexed:
            self.indexed.add(news)
        self.note_problems(news.problems)

    def note_problems(self, problems: Iterable[OperatorError]) -> None:
        """Keep what could not be read; a repeated problem counts once."""
        self.problems.update((str(problem), problem) for problem in problems)

    @property
    def lag_seconds(self) -> float:
        """For how long the file has stood there that was changed first of those which wait to be read."""
        waiting = {tree_path(*key) for key in self.indexed.left} | {each.path for each in self.unreadable}
        files = self.scan.files if waiting and self.scan is not None else ()
        ages = [self.looked_at_ns - file.stat.ctime_ns for file in files if tree_path(file.kind, file.path) in waiting]
        return max(ages, default=0) / 1e9

    @property
    def changed(self) -> bool:
        """Return whether anything was committed."""
        return bool(self.batches)

    @property
    def rows_judged(self) -> int:
        """Return how many rows were judged, including batches without changes."""
        told: int = sum(batch.receipt["work"]["rows_judged"] for batch in self.batches)
        return told + self.judged_alike

    @property
    def bytes_read(self) -> int:
        """Return how many bytes of inputs were read, including batches without changes."""
        told: int = sum(batch.receipt["work"]["bytes_read"] for batch in self.batches)
        return told + self.untold.bytes_read + self.read_alike

    @property
    def unfinished(self) -> bool:
        """Return whether files being written, or the rest of large files, were left: another pass is due soon."""
        return bool(self.indexed.left or self.changed_inputs)

    @property
    def unreadable(self) -> tuple[Oddity, ...]:
        """Return the inputs that cannot be read: unusable files, folders that cannot be listed, and errors."""
        oddities = (*self.scan.oddities, *self.scan.not_listed) if self.scan is not None else ()
        return (*oddities, *map(_as_oddity, self.problems.values()))


def _as_oddity(problem: OperatorError) -> Oddity:
    if isinstance(problem, UnreadableError):
        return Oddity(problem.path, f"cannot be read: {problem.why}")
    return Oddity(getattr(problem, "path", ""), str(problem))
