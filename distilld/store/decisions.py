"""The decisions of a batch, complete before anything is changed; ``--dry-run`` shows them and stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from distilld.core.line_facts import EXPORTED, Walks
from distilld.core.model import Category, Cause, Dataset, InputChanged, UnreadableError, Verdict
from distilld.files.spool import LineSpool


class RowUpdate(NamedTuple):
    """The new outcomes of one scored row: code, line digest and batch for RAG, then for SFT.

    Those of a dataset in which the row waits to be judged are None.
    """

    rag: int | None
    rag_line: bytes | None
    rag_batch: int | None
    sft: int | None
    sft_line: bytes | None
    sft_batch: int | None
    walk: int

    def without(self, dataset: Dataset) -> RowUpdate:
        """Return the update of a row that has no outcome in a dataset."""
        if dataset is Dataset.RAG:
            return self._replace(rag=None, rag_line=None, rag_batch=None)
        return self._replace(sft=None, sft_line=None, sft_batch=None)


class PairRow(NamedTuple):
    """The new record of a pair."""

    task_id: str
    slot: int
    chosen_run_id: str
    rejected_run_id: str
    rejected_category: int
    chosen_partition: int
    rejected_partition: int
    sample_key: int
    outcome: int
    line: bytes
    batch: int


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """An exported row that is withdrawn, or replaced under the same id (SPEC 3.9)."""

    dataset: Dataset
    key: int
    cause: Cause
    replaced: bool
    source_run_id: str | None = None
    chosen_run_id: str | None = None
    rejected_run_id: str | None = None
    verdict: Verdict | None = None
    shipped_batch: int | None = None


class PublishedWithdrawal(NamedTuple):
    """A withdrawal as published: one line of ``exports/withdrawals``, always with all keys (SPEC 3.9)."""

    dataset: Dataset
    id: str
    source_run_id: str | None
    chosen_run_id: str | None
    rejected_run_id: str | None
    cause: str
    replaced: bool
    verdict: dict[str, Any] | None
    shipped_batch: str | None
    withdrawn_batch: str
    withdrawn_at: str

    def line(self) -> bytes:
        """Return the line for the file, line feed included."""
        values = self._asdict()
        del values["dataset"]
        return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(slots=True)
class ExportChanges:
    """What one export gains and loses. A line that a damaged file lost need not leave; if it stays, it is added."""

    lines: LineSpool
    missing: Counter[bytes]
    """The recorded lines that the file lost, by their digests; what a batch takes, later batches do not find there."""
    taken: Counter[bytes] = field(default_factory=Counter)
    """What this batch took of these."""
    leaving: Counter[bytes] = field(default_factory=Counter)
    """Digests of the lines that leave, with their counts."""
    leaving_keys: set[int] = field(default_factory=set)
    """The sample keys of the rows among them that have an id."""
    adopted: int = 0
    restored: int = 0

    def drop(self, digest: bytes, key: int | None = None) -> None:
        """Remove one line with this digest; ``key`` is that of its id, if it has one."""
        if self._take_missing(digest):
            return
        self.leaving[digest] += 1
        if key is not None:
            self.leaving_keys.add(key)

    def keep(self, digest: bytes, line: bytes) -> None:
        """Keep a line; write it again if a damaged file lost it."""
        if self._take_missing(digest):
            self.lines.add(line)
            self.restored += 1

    def _take_missing(self, digest: bytes) -> bool:
        if not self.missing[digest]:
            return False
        self.missing[digest] -= 1
        self.taken[digest] += 1
        return True


@dataclass(slots=True)
class DatasetChanges:
    """The changes of one dataset's three files; the committer fills the log of withdrawals."""

    exported: ExportChanges
    quarantined: ExportChanges
    withdrawn: ExportChanges

    def is_missing(self, outcome: int | None, line: bytes) -> bool:
        """Return whether a damaged file lost the line with this digest, of a row or pair with this outcome."""
        return bool((self.exported if outcome == EXPORTED else self.quarantined).missing[line])


@dataclass(slots=True)
class Decisions:
    """The complete list of a batch's changes."""

    sequence: int
    recorded_at: str
    changes: dict[Dataset, DatasetChanges]
    rows: list[RowUpdate] = field(default_factory=list)
    judged_walks: list[int] = field(default_factory=list)
    """All rows that were judged."""
    fresh: list[tuple[int, bytes, int, bytes, int]] = field(default_factory=list)
    """Rows judged for the first time that write their own lines: code and line digest for RAG, for SFT, walk."""
    fresh_found: list[tuple[int, bytes, int, bytes, bool, int]] = field(default_factory=list)
    """The same for rows whose evidence file was read with them: after the digests, whether they have evidence."""
    found: list[tuple[bool, int]] = field(default_factory=list)
    """Other rows whose evidence file was read with them: whether they have evidence, walk."""
    newly_judged: int = 0
    released: dict[Dataset, list[int]] = field(default_factory=lambda: {Dataset.RAG: [], Dataset.SFT: []})
    """Rows that give up an id in this batch, so that another row may take it in the same transaction."""
    tasks: list[str] = field(default_factory=list)
    dropped_pairs: list[int] = field(default_factory=list)
    pairs: list[tuple[Any, ...]] = field(default_factory=list)
    """PairRows; those from a worker are plain tuples."""
    retained_pairs: list[int] = field(default_factory=list)
    departures: set[int] = field(default_factory=set)
    retained_seen: list[int] = field(default_factory=list)
    retained_left: list[tuple[Dataset, int]] = field(default_factory=list)
    unadopted: list[tuple[Dataset, int]] = field(default_factory=list)
    withdrawals: list[Withdrawal] = field(default_factory=list)
    totals: Counter[tuple[Dataset, str, int]] = field(default_factory=Counter)
    by_category: Counter[Category] = field(default_factory=Counter)
    exported_walks: dict[Dataset, list[int]] = field(default_factory=lambda: {Dataset.RAG: [], Dataset.SFT: []})
    """Rows that this batch exported to a dataset, for the second check by the firewall."""
    bytes_read: int = 0
    unreadable: dict[str, UnreadableError] = field(default_factory=dict)
    """Why files could not be read; rows or tasks that need them wait for a later batch."""
    changed_inputs: set[str] = field(default_factory=set)
    """Files that changed after they were indexed; rows or tasks that need them wait until they are read again."""
    rows_to_queue: list[int] = field(default_factory=list)
    """Rows that this batch judged before their id passed to another row, or from one: they are judged again."""
    tasks_to_queue: list[str] = field(default_factory=list)
    """Tasks that this batch touched and leaves to a later one."""
    judged: Walks | None = None
    """This batch judges all rows within that were never judged; None if it judges none."""

    @classmethod
    def begin(cls, sequence: int, recorded_at: str, spool_folder: Path, missing: Mapping[str, Counter[bytes]]) -> Self:
        """Return decisions that do nothing yet.

        ``missing`` counts the lines that damaged exports lost; what the batch takes is subtracted.
        """

        def changes_of(name: str) -> ExportChanges:
            return ExportChanges(LineSpool(spool_folder), missing.get(name, Counter()))

        changes = {
            each: DatasetChanges(changes_of(each), changes_of(f"quarantine_{each}"), changes_of(f"withdrawals_{each}"))
            for each in Dataset
        }
        return cls(sequence, recorded_at, changes)

    @property
    def rows_judged(self) -> int:
        """Return how many scored rows this batch judged."""
        return len(self.judged_walks)

    @property
    def took_any(self) -> bool:
        """Return whether anything that waited was judged, even if nothing changed."""
        return bool(self.judged_walks or self.tasks or self.departures or self.retained_seen)

    @property
    def out_of_reach(self) -> bool:
        """Return whether anything waits because a file that it needs cannot be read, or changed."""
        return bool(self.unreadable or self.changed_inputs)

    def note_out_of_reach(self, error: UnreadableError | InputChanged) -> None:
        """Note that something waits for a later batch because a file that it needs cannot be read, or changed."""
        if isinstance(error, UnreadableError):
            self.unreadable[error.path] = error
        else:
            self.changed_inputs.add(error.path)

    def note_departure(self, departure_id: int, dataset: Dataset, outcome: int) -> bool:
        """Note that this batch removes a departed line, or passes it on; return False if it was noted before."""
        if departure_id in self.departures:
            return False
        self.departures.add(departure_id)
        self.totals[dataset, "departing", outcome] -= 1
        return True

    @property
    def rows_exported(self) -> int:
        """Return how many rows come into the datasets."""
        return sum(change.exported.lines.rows for change in self.changes.values())

    @property
    def rows_quarantined(self) -> int:
        """Return how many rows come into the quarantine files."""
        return sum(change.quarantined.lines.rows for change in self.changes.values())

    def files(self) -> Iterator[tuple[str, ExportChanges]]:
        """Yield the changes of each export by its name."""
        for dataset, change in self.changes.items():
            yield dataset.value, change.exported
            yield f"quarantine_{dataset}", change.quarantined
            yield f"withdrawals_{dataset}", change.withdrawn

    def close(self) -> None:
        """Drop the spooled lines."""
        for _, change in self.files():
            change.lines.close()
