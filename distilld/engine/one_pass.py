"""One pass: the steps of :mod:`distilld.engine.engine`, in their order."""

from __future__ import annotations

import time

from distilld.core.model import Trigger
from distilld.engine.ingest import Ingest
from distilld.engine.lake_context import LakeContext
from distilld.engine.mend import ExportMender
from distilld.engine.pass_result import PassResult
from distilld.engine.pool import Pool
from distilld.engine.work_off import QueueWorker
from distilld.publish.reading import ExportTamperedError
from distilld.store.moved import forget_empty_files


class Pass:
    """Brings the datasets of one lake up to date with what one scan sees."""

    def __init__(self, context: LakeContext, ingest: Ingest, pool: Pool, trigger: Trigger) -> None:
        self._lake = context
        self._ingest = ingest
        self._pool = pool
        self._trigger = trigger
        self._mender = ExportMender(context)
        self._result = PassResult()

    def run(self) -> PassResult:
        """Look, judge, commit; raise as :meth:`Engine.run_pass`."""
        lake, result = self._lake, self._result
        self._mender.mend(patient=self._trigger in (Trigger.WATCH, Trigger.RESCAN))
        options_changed = self._look()
        queues = QueueWorker(
            lake, self._ingest, self._pool, self._mender, result, self._trigger, options_changed=options_changed
        )
        try:
            if not self._may_accept_orphans():
                queues.work_off()
        finally:
            lake.teller.unreadable(result.unreadable)
        self._settle_orphans(queues)
        names_gone = result.indexed.names_gone
        if (result.indexed.changes or result.batches or names_gone) and forget_empty_files(
            lake.store, names_gone=names_gone
        ):
            lake.inputs.forget_files()
        if not lake.work.anything_waits():
            lake.judged_with.settle(lake.options)
            if self._trigger in (Trigger.REBUILD, Trigger.COMPACT):
                queues.options_changed = False
                self._put_in_order(queues)
        return result

    def _look(self) -> bool:
        """Index what changed; return whether rows may have been judged with other options."""
        lake, result = self._lake, self._result
        scan = self._ingest.scan()
        result.scan, result.looked_at_ns = scan, time.time_ns()
        lake.teller.odd_folders(scan)
        lake.teller.not_listed(scan)
        lake.teller.strays(scan)
        options_changed = lake.judged_with.take(lake.options, again=self._trigger is Trigger.REBUILD)
        read_again = options_changed == "lines" or self._trigger is Trigger.REBUILD
        result.indexed = result.untold = self._ingest.index(scan, self._pool, read_again=read_again)
        lake.teller.odd_lines(result.indexed.malformed, result.indexed.unreviewed.values())
        self._ingest.follow_up(result, self._pool)
        result.note_problems(result.indexed.problems)
        return bool(options_changed)

    def _may_accept_orphans(self) -> bool:
        """Return whether a file that has to settle may accept an undecided orphan that the old quarantine forbids.

        The quarantine has no accepted row, so a run that was accepted again would leave until its file is still. A file
        that changes whenever it is read holds up nothing for longer than it may take to settle.
        """
        awaited = [key for key in self._result.indexed.unsettled if self._ingest.may_settle(key)]
        known = self._lake.inputs.files() if awaited else {}
        from_quarantine = any(known[key].is_from_quarantine for key in awaited if key in known)
        return from_quarantine and self._lake.restorer.has_undecided_orphans()

    def _settle_orphans(self, queues: QueueWorker) -> None:
        """Decide on orphans, if every input was read: one that was not, evidence included, may be what gives them."""
        lake, result = self._lake, self._result
        assert result.scan is not None  # noqa: S101  set by the look
        if result.unreadable or result.scan.unlisted or result.unfinished or lake.work.anything_waits():
            return
        if lake.restorer.settle_orphans(lake.options):
            queues.work_off()

    def _put_in_order(self, queues: QueueWorker) -> None:
        """Put the files in canonical walk order; if an export was damaged meanwhile, restore it and start again."""
        lake = self._lake
        while not lake.work.anything_waits():
            try:
                lake.restorer.reorder()
            except ExportTamperedError:
                lake.committer.recover()
                self._mender.mend()
                queues.work_off()
            else:
                queues.work_off()
                return
