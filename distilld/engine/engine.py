"""Run passes: how a change of the inputs becomes a change of the datasets.

    look    scan, plan, index   list the two trees, find what changed, store its facts, queue the rows they concern
    trip    work_off            retain rows that vanish in masses
    judge   batch.Batches       decide what becomes of each queued row and task, by workers where there are many
    commit  commit.Committer    intent, exports, one transaction, finish
    tell    receipt, log        record what was done

The daemon's smallest batch, the first pass and the rebuild use the same code path.
"""

from __future__ import annotations

import time

import structlog

from distilld.core.model import (
    InputKind,
    Trigger,
)
from distilld.engine.index import refuse_missing_trees
from distilld.engine.pass_result import PassResult
from distilld.engine.work_off import WorkingOff
from distilld.lake import scan as lake
from distilld.lake.apart import refuse_overlaps
from distilld.publish.reading import ExportTamperedError
from distilld.store.moved import forget_empty_files
from distilld.store.pruning import Pruned, Pruning
from distilld.store.retained import Only

log = structlog.get_logger()


class Engine(WorkingOff):
    """Runs passes for one lake while the process holds its lock."""

    # one pass

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
        self._pool = self._new_pool()
        try:
            return self._look_and_judge(trigger)
        except BaseException:
            self._turns.end(failed=True)
            raise
        finally:
            self._pool.close()
            self._pool = None
            self.teller.end_pass()

    def _look_and_judge(self, trigger: Trigger) -> PassResult:
        result = PassResult()
        self.refuse_missing_lake()
        self._mendings = 0
        self._mend_exports(patient=trigger in (Trigger.WATCH, Trigger.RESCAN))
        scan = self._scan()
        result.scan, result.looked_at_ns = scan, time.time_ns()
        self.teller.odd_folders(scan)
        self.teller.not_listed(scan)
        self.teller.strays(scan)
        options_changed = self.judged_with.take(self.options, again=trigger is Trigger.REBUILD)
        read_again = options_changed == "lines" or trigger is Trigger.REBUILD
        result.indexed = result.untold = self._index(scan, read_again=read_again)
        self.teller.odd_lines(result.indexed.malformed, result.indexed.unreviewed.values())
        self._make_live()
        self._trip()
        self._lose_missing()
        result.note_problems(result.indexed.problems)
        try:
            self._work_off(trigger, result, options_changed=bool(options_changed))
        finally:
            result.indexed.problems = list(result.problems.values())
            self.teller.unreadable(result.unreadable)
        # An input that was not read, evidence included, may be the one that gives an orphan.
        whole = not (result.unreadable or scan.unlisted or result.unfinished or self.work.anything_waits())
        if whole and self.restorer.settle_orphans(self.options):
            self._work_off(trigger, result, options_changed=bool(options_changed))
        names_gone = result.indexed.names_gone
        if (result.indexed.changes or result.batches or names_gone) and forget_empty_files(
            self.store, names_gone=names_gone
        ):
            self.inputs.forget_files()
        if not self.work.anything_waits():
            self.judged_with.settle(self.options)
            if trigger in (Trigger.REBUILD, Trigger.COMPACT):
                self._put_in_order(trigger, result)
        return result

    def refuse_missing_lake(self) -> None:
        """Refuse to work where the lake is missing: exports that went with it are not damaged and must not be rebuilt.

        Raises:
            ListingError: A tree with known files does not exist.
            UsageError: The trees and distilld's own folders overlap.
        """
        refuse_overlaps(self.root, self.store.path)
        if missing := [kind for kind in InputKind if lake.is_missing(self.root, kind)]:
            refuse_missing_trees(missing, self.inputs.files())

    def _put_in_order(self, trigger: Trigger, result: PassResult) -> None:
        """Put the files in canonical walk order; if an export was damaged meanwhile, restore it and start again."""
        while not self.work.anything_waits():
            try:
                self.restorer.reorder()
            except ExportTamperedError:
                self.committer.recover()
                self._mend_exports()
                self._work_off(trigger, result, options_changed=False)
            else:
                self._work_off(trigger, result, options_changed=False)
                return

    def rebuild(self) -> PassResult:
        """Read and judge everything again, and put the files in canonical walk order (SPEC 5)."""
        return self.run_pass(Trigger.REBUILD)

    def prune(self, partition_glob: str | None, only: Only | None = None) -> tuple[Pruned, PassResult]:
        """Withdraw retained rows and forget their absent verdicts; return what was given up, and the result."""
        pruned = self.give_up(partition_glob, only)
        return pruned, self.run_pass(Trigger.PRUNE)

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
