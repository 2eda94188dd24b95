"""Look at the inputs: scan the trees, index what changed, and settle what this means for rows without inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from time import monotonic_ns

import structlog

from distilld.core.model import Dataset, InputKind, StatFacts
from distilld.core.plan import FileKey
from distilld.engine.index import Indexer
from distilld.engine.index_context import IndexContext
from distilld.engine.index_turns import Turns
from distilld.engine.indexed import Indexed
from distilld.engine.lake_context import LakeContext
from distilld.engine.pass_result import PassResult, Progress
from distilld.engine.pool import Pool
from distilld.engine.span_queue import UnreadEvidence
from distilld.files.boot import boot_id
from distilld.lake import scan as lake
from distilld.lake.scan import Scan, tree_path
from distilld.store.export_lines import ExportLines

log = structlog.get_logger()


class Ingest:
    """Brings the store's facts up to date with the input trees, and remembers what it left to the next look."""

    def __init__(self, context: LakeContext) -> None:
        self._lake = context
        self.turns = Turns()
        self._moving: dict[FileKey, tuple[int, StatFacts, int]] = {}
        """Files that are left alone: our first look at each, the facts that it has now, and our first look at these."""
        self._left: list[FileKey] = []
        """The files that the last look left: until they do not change, or to the turn of large ones."""

    def scan(self) -> Scan:
        """List the input trees.

        Raises:
            ListingError: They cannot be listed.
        """
        scan = lake.scan(self._lake.root)
        self._lake.looked()
        return scan

    def index(self, scan: Scan, pool: Pool, *, read_again: bool) -> Indexed:
        """Index what changed, as the first step of a pass; ``read_again`` reads every file from its start."""
        context = self._lake
        context.inputs.begin_looks(boot_id(), monotonic_ns(), time.time_ns())
        indexer = self.indexer(scan, pool, self._hashed_since_ns())
        owed = context.judged_with.owed_readings()
        indexed = indexer.take(scan, read_again=read_again, owed=owed)
        indexer.take_turn(scan, self.turns)
        self._note_left_alone(indexed)
        indexed.files_seen = len(scan.files)
        context.judged_with.owe_readings(context.options, scan, indexed, owed, read_again=read_again)
        context.work.forget_places()
        return indexed

    def look_again(self, scan: Scan, pool: Pool, unread: dict[int, UnreadEvidence]) -> tuple[Indexed, bool]:
        """Index what changed during a pass; return what was found, and whether the store has changed.

        Evidence that was left ``unread`` stays so, but for what changed since.
        """
        # Files that this pass read count as unchanged if their facts are; the next pass checks more.
        indexer = self.indexer(scan, pool, None)
        connection = self._lake.store.connection
        before = connection.total_changes
        indexed = indexer.take(scan, unread=unread)
        self._note_left_alone(indexed)
        # A file that is left for later may have changed the store too: its place, or rows before its end.
        return indexed, connection.total_changes != before

    def index_unread(self, due: Iterable[UnreadEvidence], result: PassResult, pool: Pool) -> None:
        """Index evidence that was to be read with its rows and cannot be, and all such files that have changed."""
        assert result.scan is not None  # noqa: S101  the scan saw the files
        left = result.indexed.unread
        changed = [number for number, each in left.items() if not self._is_as_scanned(each)]
        files = {file.path: file for file in result.scan.files if file.kind is InputKind.EVIDENCE}
        indexer = self.indexer(result.scan, pool, None)
        for each in (*due, *map(left.pop, changed)):
            if each.path in files:
                indexer.take_one(files[each.path])
        result.add(indexer.found)
        self._lake.teller.odd_lines(indexer.found.malformed, ())

    def follow_up(self, result: PassResult, pool: Pool) -> None:
        """Settle what an index means for rows whose inputs returned or are gone, before any row is judged."""
        context = self._lake
        with context.store.transaction():
            # Pairs that were retained with a partition that returned.
            context.retained.make_live()
        self._trip(result, pool)
        if context.work.has_missing_lines():
            with context.store.transaction():
                # Lines that a damaged export lost, and whose inputs are gone too; others are written again.
                ExportLines(context.store).lose_missing()

    def _trip(self, result: PassResult, pool: Pool) -> None:
        """Apply the tripwire: retain rows that vanish in masses until an operator decides (SPEC 3)."""
        context = self._lake
        tripped = self._tripped()
        if tripped and (unread := result.indexed.unread):
            # A row whose evidence was left unread counts as one without evidence.
            self.index_unread([unread.pop(partition) for partition in list(unread)], result, pool)
            tripped = self._tripped()
        if not tripped:
            return
        with context.store.transaction():
            for dataset in tripped:
                context.tripwire.keep(dataset, context.options)
        for dataset, (rows, stood) in tripped.items():
            log.error("tripwire_tripped", dataset=dataset.value, rows=rows, of=stood)

    def _tripped(self) -> dict[Dataset, tuple[int, int]]:
        """Return the datasets from which too many rows vanish: how many, and how many rows stand there."""
        context, limits = self._lake, self._lake.limits
        exports = context.export_records.exports()
        stood = {dataset: exports[dataset.value].committed.rows for dataset in Dataset}
        vanishing = {dataset: context.tripwire.vanishing(dataset, context.options) for dataset in Dataset}
        return {
            dataset: (rows, stood[dataset])
            for dataset, rows in vanishing.items()
            if rows > limits.tripwire_rows and rows > limits.tripwire_share * stood[dataset]
        }

    def indexer(self, scan: Scan, pool: Pool, hashed_since_ns: int | None) -> Indexer:
        """Return the indexer of one look; with None as ``hashed_since_ns`` it believes the facts of files."""
        of = self._lake
        look = IndexContext(
            of.root, of.store, of.inputs, of.options, is_still=self._is_still, progress=self._reading(scan)
        )
        batch_rows = of.limits.batch_rows
        return Indexer(look, pool, batch_rows=batch_rows, hashed_since_ns=hashed_since_ns, left=self._left)

    def _is_as_scanned(self, unread: UnreadEvidence) -> bool:
        try:
            return StatFacts.of(os.lstat(self._lake.root / tree_path(InputKind.EVIDENCE, unread.path))) == unread.facts
        except OSError:
            return False

    def _note_left_alone(self, indexed: Indexed) -> None:
        """Remember what a look left to later ones."""
        self._left = indexed.left
        self._moving = {key: self._moving[key] for key in self._left if key in self._moving}

    def _hashed_since_ns(self) -> int | None:
        """The time since which a file must have been hashed; None where somebody else looks after that."""
        if self._lake.believes_facts:
            return None
        return time.time_ns() - self._lake.scrub_ns if self._lake.scrub_ns else 0

    def _is_still(self, key: FileKey, facts: StatFacts) -> bool:
        """Return whether our looks saw no change for the settling time, or went on for ten times that."""
        now = monotonic_ns()
        first, seen, since = self._moving.get(key, (now, facts, now))
        since = since if seen == facts else now
        self._moving[key] = first, facts, since
        return now - since >= self._settle_ns or not self.may_settle(key)

    def may_settle(self, key: FileKey) -> bool:
        """Return whether it is worth to wait for a file that was left alone: not for more than ten settling times."""
        return key in self._moving and monotonic_ns() - self._moving[key][0] < 10 * self._settle_ns

    @property
    def _settle_ns(self) -> int:
        return round(self._lake.limits.settle_seconds * 1e9)

    def _reading(self, scan: Scan) -> Callable[[int, int], None]:
        """Return the function that reports files and bytes read; it sums the bytes to read only to show progress."""
        context = self._lake
        if context.progress is None:
            return lambda _files, _bytes: context.pulse()
        whole = -1
        before = context.ledger.counter("scored_rows")

        def tell(files: int, done: int) -> None:
            nonlocal whole
            whole = self._bytes_to_read(scan) if whole < 0 else whole
            rows = context.ledger.counter("scored_rows") - before
            context.tell(Progress("read", done, max(whole, done), files, rows, done))

        return tell

    def _bytes_to_read(self, scan: Scan) -> int:
        records = self._lake.inputs.files().items()
        known = {key: (record.facts.size, record.facts.mtime_ns) for key, record in records}
        return sum(file.stat.size for file in scan.files if known.get(file.key) != (file.stat.size, file.stat.mtime_ns))
