"""Look at the inputs: what an engine holds, and how it indexes what one scan sees."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Final

from distilld.config.settings import EngineLimits
from distilld.core.model import (
    HOUR_NS,
    InputKind,
    Options,
    StatFacts,
)
from distilld.core.plan import FileKey
from distilld.engine import cluster
from distilld.engine.batch import Batches
from distilld.engine.index import Indexer
from distilld.engine.index_turns import Turns
from distilld.engine.indexed import Indexed
from distilld.engine.options_in_force import JudgedWith
from distilld.engine.pass_log import Teller
from distilld.engine.pass_result import PassResult, Progress
from distilld.engine.pool import Pool
from distilld.engine.progress import Judging
from distilld.engine.span_queue import UnreadEvidence
from distilld.files.boot import boot_id
from distilld.files.git import GitState, git_state
from distilld.lake import scan as lake
from distilld.lake.scan import Scan, tree_path
from distilld.publish.commit import Committer
from distilld.publish.exports import Exports
from distilld.publish.restore import Restorer
from distilld.store.connection import Store
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.export_records import ExportRecords
from distilld.store.inputs import Inputs
from distilld.store.ledger import Ledger
from distilld.store.looks import Looks
from distilld.store.receipts import Receipts
from distilld.store.retained import Retained
from distilld.store.segments import Segments
from distilld.store.tripwire import Tripwire
from distilld.store.work import Work

LOOK_AGAIN_NS: Final = 2 * 10**9
"""Nanoseconds for which a pass continues before it looks for new changes between two batches."""


class Looking:
    """Everything that a pass needs for one lake, and its look at the inputs."""

    def __init__(
        self,
        root: Path,
        store: Store,
        options: Options,
        limits: EngineLimits,
        *,
        clock: Callable[[], int] = time.time_ns,
        progress: Callable[[Progress], None] | None = None,
        pulse: Callable[[], None] = lambda: None,
        committer: Committer | None = None,
        spool_folder: Path | None = None,
        executor: Executor | None = None,
        keep_lock: Callable[[], None] = lambda: None,
    ) -> None:
        """An ``executor`` replaces the worker processes, and the executor whose address the limits give.

        ``committer`` replaces the one that writes below the root, ``spool_folder`` the exports folder. ``keep_lock``
        is called before anything is written there, and raises if this process is not the one writer.

        ``pulse`` is called during the work: at every file, batch, and block of an export that is read or rewritten.
        An exception from it ends the pass as a kill does; :meth:`Committer.recover` then undoes the current batch.
        """
        self.root = root
        self.store = store
        self.options = options
        self.limits = limits
        self.believes_facts = False
        """Whether the caller hashes the files again whose facts may not show that their bytes changed."""
        self.progress = progress
        self.pulse = pulse
        self.looked: Callable[[], None] = lambda: None
        """Is called after each scan of the input trees, outside any transaction."""
        self.git: GitState = git_state(root)
        self.exports = Exports(root, pulse, segments=Segments(store))
        self.ledger = Ledger(store)
        self.receipts = Receipts(store)
        self.export_records = ExportRecords(store)
        self.work = Work(store)
        self.inputs = Inputs(store)
        self.evidence = EvidenceRows(store, self.inputs)
        self.looks = Looks(store, self.inputs)
        self.committer = committer or Committer(
            root, store, self.exports, clock=clock, receipts_keep=limits.receipts_keep, keep_lock=keep_lock
        )
        self.retained = Retained(store)
        self.tripwire = Tripwire(store)
        self.judged_with = JudgedWith(store, self.inputs)
        self.teller = Teller()
        self.restorer = Restorer(root, store, self.exports, self.committer)
        self.executor = executor
        self._spool_folder = spool_folder
        self._moving: dict[FileKey, tuple[int, StatFacts, int]] = {}
        """Files that are left alone: our first look at each, the facts that it has now, and our first look at these."""
        self._left: list[FileKey] = []
        """The files that the last look left: until they do not change, or to the turn of large ones."""
        self._turns = Turns()
        self._look_at_ns = 0
        self._mendings = 0
        """How often the pass has checked the exports."""
        self._pool: Pool | None = None
        self._batches: Batches | None = None
        self._judging: Judging | None = None

    def reconfigure(self, options: Options, limits: EngineLimits) -> None:
        """Continue with other settings and the current git state of the root; keep what is held in memory."""
        self.options = options
        self.limits = limits
        self.committer.receipts_keep = limits.receipts_keep
        self.git = git_state(self.root)

    @property
    def scrub_ns(self) -> int:
        """Return the nanoseconds within which every file is hashed again; 0: never."""
        return round(self.limits.scrub_hours * HOUR_NS)

    def _new_pool(self) -> Pool:
        join, workers, address = None, self.limits.workers, self.limits.executor
        if address and self.executor is None:
            join = partial(cluster.join, address, self.root, self._spool(), self.options)
        return Pool(self.root, self._spool(), workers=workers, executor=self.executor, join=join, pulse=self.pulse)

    def _spool(self) -> Path:
        folder = self._spool_folder or self.root / "exports"
        return folder if folder.is_dir() else self.root

    def _scan(self) -> Scan:
        scan = lake.scan(self.root)
        self.looked()
        return scan

    def _index(self, scan: Scan, *, read_again: bool) -> Indexed:
        self.looks.begin(boot_id(), monotonic_ns(), time.time_ns())
        indexer = self._indexer(scan, self._hashed_since_ns())
        owed = self.judged_with.owed_readings()
        indexed = indexer.take(scan, read_again=read_again, owed=owed)
        indexer.take_turn(scan, self._turns)
        self._note_left_alone(indexed)
        indexed.files_seen = len(scan.files)
        self.judged_with.owe_readings(self.options, scan, indexed, owed, read_again=read_again)
        self.work.forget_places()
        self._look_at_ns = monotonic_ns() + LOOK_AGAIN_NS
        return indexed

    def _index_unread(self, unread: UnreadEvidence, result: PassResult) -> None:
        """Index evidence that was to be read with its rows and could not be, and all such files that have changed."""
        assert result.scan is not None  # noqa: S101  the scan saw the files
        left, news = result.indexed.unread, Indexed()
        changed = [number for number, each in left.items() if not self._is_as_scanned(each)]
        files = {file.path: file for file in result.scan.files if file.kind is InputKind.EVIDENCE}
        indexer = self._indexer(result.scan, None)
        for each in (unread, *map(left.pop, changed)):
            if each.path in files:
                news = indexer.take_one(files[each.path])
        result.untold.add(news)
        if result.untold is not result.indexed:
            result.indexed.add(news)
        result.note_problems(news.problems)

    def _is_as_scanned(self, unread: UnreadEvidence) -> bool:
        try:
            return StatFacts.of(os.lstat(self.root / tree_path(InputKind.EVIDENCE, unread.path))) == unread.facts
        except OSError:
            return False

    def _indexer(self, scan: Scan, hashed_since_ns: int | None) -> Indexer:
        return Indexer(
            self.root,
            self.store,
            self.inputs,
            self.options,
            self._pool or self._new_pool(),
            batch_rows=self.limits.batch_rows,
            is_still=self._is_still,
            progress=self._reading(scan),
            hashed_since_ns=hashed_since_ns,
            left=self._left,
        )

    def _note_left_alone(self, indexed: Indexed) -> None:
        """Remember what a look left to later ones."""
        self._left = indexed.left
        self._moving = {key: self._moving[key] for key in self._left if key in self._moving}

    def _hashed_since_ns(self) -> int | None:
        """The time since which a file must have been hashed; None where somebody else looks after that."""
        if self.believes_facts:
            return None
        return time.time_ns() - self.scrub_ns if self.scrub_ns else 0

    def _is_still(self, key: FileKey, facts: StatFacts) -> bool:
        """Return whether our looks saw no change for the settling time, or went on for ten times that."""
        now = monotonic_ns()
        first, seen, since = self._moving.get(key, (now, facts, now))
        since = since if seen == facts else now
        settle_ns = round(self.limits.settle_seconds * 1e9)
        self._moving[key] = first, facts, since
        return now - since >= settle_ns or now - first >= 10 * settle_ns

    def _next_look(self, began_ns: int) -> int:
        """Return when to look again: looking takes at most a tenth of a long pass."""
        now = monotonic_ns()
        return now + max(LOOK_AGAIN_NS, 10 * (now - began_ns))

    def _tell_judging(self, done: int, size: int) -> None:
        self.pulse()
        if self._judging is not None and self.progress is not None:
            self.progress(self._judging.progress(done, size))

    def _tell(self, progress: Progress) -> None:
        self.pulse()
        if self.progress is not None:
            self.progress(progress)

    def _reading(self, scan: Scan) -> Callable[[int, int], None]:
        """Return the function that reports files and bytes read; it sums the bytes to read only to show progress."""
        if self.progress is None:
            return lambda _files, _bytes: self.pulse()
        whole = -1
        before = self.ledger.counter("scored_rows")

        def tell(files: int, done: int) -> None:
            nonlocal whole
            whole = self._bytes_to_read(scan) if whole < 0 else whole
            rows = self.ledger.counter("scored_rows") - before
            self._tell(Progress("read", done, max(whole, done), files, rows, done))

        return tell

    def _bytes_to_read(self, scan: Scan) -> int:
        known = {key: (record.facts.size, record.facts.mtime_ns) for key, record in self.inputs.files().items()}
        return sum(file.stat.size for file in scan.files if known.get(file.key) != (file.stat.size, file.stat.mtime_ns))
