"""What a writer holds for one lake, from one pass to the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from distilld.config.settings import EngineLimits
from distilld.core.model import HOUR_NS, Options
from distilld.engine import cluster
from distilld.engine.options_in_force import JudgedWith
from distilld.engine.pass_log import Teller
from distilld.engine.pass_result import Progress
from distilld.engine.pool import Pool
from distilld.files.git import GitState, git_state
from distilld.publish.commit import Committer
from distilld.publish.exports import Exports
from distilld.publish.restore import Restorer
from distilld.store.connection import Store
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.export_records import ExportRecords
from distilld.store.inputs import Inputs
from distilld.store.ledger import Ledger
from distilld.store.receipts import Receipts
from distilld.store.retained import Retained
from distilld.store.tripwire import Tripwire
from distilld.store.work import Work


class LakeContext:
    """One lake: its settings, the parts of its store, and who writes its exports."""

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
        self.export_records = ExportRecords(store)
        self.exports = Exports(root, pulse, records=self.export_records)
        self.ledger = Ledger(store)
        self.receipts = Receipts(store)
        self.work = Work(store)
        self.inputs = Inputs(store)
        self.evidence = EvidenceRows(store, self.inputs)
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

    @property
    def spool(self) -> Path:
        """Return the folder for files of lines that are not committed yet."""
        folder = self._spool_folder or self.root / "exports"
        return folder if folder.is_dir() else self.root

    def new_pool(self) -> Pool:
        """Return a pool for one pass; the caller closes it."""
        join, workers, address = None, self.limits.workers, self.limits.executor
        if address and self.executor is None:
            join = partial(cluster.join, address, self.root, self.spool, self.options)
        return Pool(self.root, self.spool, workers=workers, executor=self.executor, join=join, pulse=self.pulse)

    def tell(self, progress: Progress) -> None:
        """Show the progress of a pass."""
        self.pulse()
        if self.progress is not None:
            self.progress(progress)
