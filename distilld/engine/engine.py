"""Run passes: how a change of the inputs becomes a change of the datasets.

    mend    mend.ExportMender   make exports and store agree: recover, adopt, restore
    look    ingest.Ingest       list the two trees, index what changed, queue the rows it concerns
    trip    ingest.Ingest       retain rows that vanish in masses
    judge   batch.Batches       decide what becomes of each queued row and task, by workers where there are many
    commit  commit.Committer    intent, exports, one transaction, finish
    tell    receipt, log        record what was done

The daemon's smallest batch, the first pass and the rebuild use the same code path: :mod:`distilld.engine.one_pass`,
whose batches :mod:`distilld.engine.work_off` commits, one after the other.
"""

from __future__ import annotations

from functools import cached_property

import structlog

from distilld.core.model import InputKind, Trigger
from distilld.engine.index import refuse_missing_trees
from distilld.engine.ingest import Ingest
from distilld.engine.lake_context import LakeContext
from distilld.engine.one_pass import Pass
from distilld.engine.pass_result import PassResult
from distilld.lake import scan as lake
from distilld.lake.apart import refuse_overlaps
from distilld.store.pruning import Pruned, Pruning
from distilld.store.retained import Only

log = structlog.get_logger()


class Engine(LakeContext):
    """Runs passes for one lake while the process holds its lock."""

    @cached_property
    def ingest(self) -> Ingest:
        """Return what looks at the inputs: it remembers what one pass leaves to the next."""
        return Ingest(self)

    def run_pass(self, trigger: Trigger) -> PassResult:
        """Bring the datasets up to date with what one scan sees.

        Raises:
            ListingError: The input trees could not be listed; nothing was changed.
            WriterBusy: Another writer took the lake after its lock file was removed; nothing more is written.
            OperatorError: A write failed, or an export was tampered with; committed batches remain.
        """
        if trigger is Trigger.REBUILD:
            log.info("rebuild_started")
        with self.store.at_work():
            result = self._run_pass(trigger)
        if trigger is Trigger.REBUILD:
            log.info("rebuild_finished", batches=len(result.batches), rows_judged=result.rows_judged)
        return result

    def _run_pass(self, trigger: Trigger) -> PassResult:
        pool = self.new_pool()
        try:
            self.refuse_missing_lake()
            return Pass(self, self.ingest, pool, trigger).run()
        except BaseException:
            self.ingest.turns.end(failed=True)
            raise
        finally:
            pool.close()
            self.teller.end_pass()

    def refuse_missing_lake(self) -> None:
        """Refuse to work where the lake is missing: exports that went with it are not damaged and must not be rebuilt.

        Raises:
            ListingError: A tree with known files does not exist.
            UsageError: The trees and distilld's own folders overlap.
        """
        refuse_overlaps(self.root, self.store.path)
        if missing := [kind for kind in InputKind if lake.is_missing(self.root, kind)]:
            refuse_missing_trees(missing, self.inputs.files())

    def give_up(self, partition_glob: str | None, only: Only | None = None) -> Pruned:
        """Give up retained rows: the next pass withdraws them.

        Absent files keep theirs if they are back in the tree, or may be back in a folder that cannot be listed.

        Raises:
            ListingError: The input trees could not be listed; nothing was given up.
        """
        with self.store.at_work(), self.store.transaction():
            absent = [record for record in self.inputs.files().values() if not record.present]
            scan = lake.scan(self.root) if absent else None
            seen = {file.key for file in scan.files} if scan else set()
            returned = [each for each in absent if each.key in seen or (scan and scan.is_unknown(*each.key))]
            pruned = Pruning(self.store).prune(partition_glob, only=only, options=self.options, returned=returned)
        self.inputs.forget_files()
        log.info("pruned", rows=pruned.rows, files=pruned.files, accepted=False)
        return pruned

    def accept_vanished(self) -> int:
        """Keep for good what the tripwire retained; return how many rows and pairs."""
        with self.store.at_work(), self.store.transaction():
            accepted = Pruning(self.store).accept()
        log.info("pruned", rows=accepted, accepted=True)
        return accepted
