"""The table of contents: how a change of the inputs becomes a change of the datasets.

    look    scan, plan, index   what stands in the two trees, what of it changed; its facts, and what they touch, queued
    trip    _trip               rows that vanish in masses are frozen
    judge   batch.Batches       what becomes of each queued row and task, span by span, by workers where it is much
    commit  commit.Committer    intent, exports, one transaction, finish
    tell    receipt, log        what was done

One code path serves the daemon's smallest batch, the first pass and the rebuild.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Final

import structlog

from distilld.core.decisions import Decisions
from distilld.core.line_facts import OddLines
from distilld.core.model import (
    HOUR_NS,
    TAMPERINGS_AN_HOUR,
    Dataset,
    InputChanged,
    InputKind,
    OnDelete,
    OperatorError,
    Options,
    StatFacts,
    Trigger,
    UnreadableError,
)
from distilld.core.plan import FileKey
from distilld.engine import cluster
from distilld.engine.batch import Batch, Batches, UnreadFailed
from distilld.engine.index import Indexer, refuse_missing_trees
from distilld.engine.index_file import new_record, record_reading
from distilld.engine.index_lines import Indexed
from distilld.engine.options_in_force import JudgedWith
from distilld.engine.pass_log import Teller
from distilld.engine.pass_result import PassResult, Progress
from distilld.engine.pool import Pool
from distilld.engine.span_queue import UnreadEvidence
from distilld.files.boot import boot_id
from distilld.files.git import GitState, git_state
from distilld.lake import scan as lake
from distilld.lake.apart import refuse_overlaps
from distilld.lake.scan import Scan
from distilld.logs import lines_of_batch
from distilld.publish.commit import CommittedBatch, Committer
from distilld.publish.exports import Exports
from distilld.publish.reading import ExportTamperedError
from distilld.publish.receipt import BatchContext, BatchIdentity
from distilld.publish.restore import AnotherWriterError, Restorer
from distilld.store.connection import Store
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.export_lines import ExportLines
from distilld.store.frozen import Frozen
from distilld.store.inputs import Inputs
from distilld.store.ledger import Ledger
from distilld.store.looks import Looks
from distilld.store.moved import forget_empty_files
from distilld.store.pruning import Only, Pruned, Pruning
from distilld.store.segments import Segments
from distilld.store.tripwire import Tripwire
from distilld.store.work import Work

log = structlog.get_logger()

LOOK_AGAIN_NS: Final = 2 * 10**9
"""For so long a pass goes on with what it saw before it looks for new changes between two batches."""


class Engine:
    """Everything a pass needs, for one lake, for as long as the process holds its lock."""

    def __init__(
        self,
        root: Path,
        store: Store,
        options: Options,
        *,
        batch_rows: int,
        settle_seconds: float,
        tripwire_rows: int = 1000,
        tripwire_share: float = 0.5,
        receipts_keep: int = 0,
        scrub_hours: float = 24,
        clock: Callable[[], int] = time.time_ns,
        progress: Callable[[Progress], None] | None = None,
        pulse: Callable[[], None] = lambda: None,
        committer: Committer | None = None,
        spool_folder: Path | None = None,
        workers: int = 0,
        executor: Executor | str | None = None,
        keep_lock: Callable[[], None] = lambda: None,
    ) -> None:
        """``workers`` are the processes that read and judge where much is to be done; 0: one a core in all.

        An ``executor`` takes their place; one that is named by its address is joined when much is to be done.

        ``committer`` stands in for the one that writes below the root, ``spool_folder`` for the exports folder.
        ``keep_lock`` is called before anything is written there, and raises where this is not the one writer.

        ``pulse`` is called as the work goes on: at every file, batch, and block of an export that is read or rewritten.
        What it raises ends the pass, as a kill would; :meth:`Committer.recover` then undoes the batch in hand.
        """
        self.root = root
        self.store = store
        self.options = options
        self.batch_rows = batch_rows
        self.settle_ns = round(settle_seconds * 1e9)
        self.scrub_ns = round(scrub_hours * HOUR_NS)
        self.believes_facts = False
        """Whether somebody else hashes the files again whose facts may not tell that their bytes changed."""
        self.progress = progress
        self.pulse = pulse
        self.git: GitState = git_state(root)
        self.exports = Exports(root, pulse, segments=Segments(store))
        self.ledger = Ledger(store)
        self.work = Work(store)
        self.inputs = Inputs(store)
        self.evidence = EvidenceRows(store, self.inputs)
        self.looks = Looks(store, self.inputs)
        self.committer = committer or Committer(
            root, store, self.exports, clock=clock, receipts_keep=receipts_keep, keep_lock=keep_lock
        )
        self.frozen = Frozen(store)
        self.tripwire = Tripwire(store)
        self.judged_with = JudgedWith(store, self.inputs)
        self.teller = Teller()
        self.restorer = Restorer(root, store, self.exports, self.committer)
        self.tripwire_rows = tripwire_rows
        self.tripwire_share = tripwire_share
        self.workers = workers
        self.executor = executor
        self._spool_folder = spool_folder
        self._moving: dict[FileKey, tuple[int, StatFacts, int]] = {}
        """Files that are left alone: our first look at each, the facts that it has now, and our first look at these."""
        self._postponed: list[FileKey] = []
        """Large files that the last pass left to the next ones."""
        self._took_any = False
        """Whether the last batch took anything out of the queues; what it put in may be as much."""
        self._look_at_ns = 0
        self._mendings = 0
        """How often the pass has looked at the exports."""
        self._pool: Pool | None = None
        self._batches: Batches | None = None
        self._judging: _Judging | None = None
        self._unreadable: dict[str, OperatorError] = {}
        """What the pass could not read so far, by its words."""
        self._changed_inputs: set[str] = set()
        """What changed while the pass judged it."""

    def reconfigure(
        self,
        options: Options,
        *,
        batch_rows: int,
        settle_seconds: float,
        tripwire_rows: int,
        tripwire_share: float,
        receipts_keep: int,
        scrub_hours: float,
        workers: int,
        executor: str,
    ) -> None:
        """Go on with other settings, and with what git says of the root now; what is held in memory stays."""
        self.options = options
        self.batch_rows = batch_rows
        self.settle_ns = round(settle_seconds * 1e9)
        self.scrub_ns = round(scrub_hours * HOUR_NS)
        self.tripwire_rows = tripwire_rows
        self.tripwire_share = tripwire_share
        self.committer.receipts_keep = receipts_keep
        self.workers = workers
        self.executor = executor
        self.git = git_state(self.root)

    # one pass

    def run_pass(self, trigger: Trigger) -> PassResult:
        """Bring the datasets up to date with what one scan sees.

        Raises:
            ListingError: The input trees could not be looked at; nothing was changed.
            WriterBusy: Another writer took the lake, whose lock file had been removed; nothing is written beside it.
            OperatorError: A write failed, or an export was tampered with; what was committed stands.
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
        finally:
            self._pool.close()
            self._pool = None
            self.teller.end_pass()

    def _new_pool(self) -> Pool:
        join, executor = None, self.executor
        if isinstance(executor, str):
            join = partial(cluster.join, executor, self.root, self._spool(), self.options) if executor else None
            executor = None
        return Pool(self.root, self._spool(), workers=self.workers, executor=executor, join=join, pulse=self.pulse)

    def _look_and_judge(self, trigger: Trigger) -> PassResult:
        result = PassResult()
        self.refuse_missing_lake()
        self._mendings = 0
        self._mend_exports(patient=trigger in (Trigger.WATCH, Trigger.RESCAN))
        scan = lake.scan(self.root)
        result.scan, result.looked_at_ns = scan, time.time_ns()
        self.teller.odd_folders(scan)
        self.teller.not_listed(scan)
        self.teller.strays(scan)
        options_changed = self.judged_with.take(self.options, anew=trigger is Trigger.REBUILD)
        read_anew = options_changed == "lines" or trigger is Trigger.REBUILD
        result.indexed = result.untold = self._index(scan, read_anew=read_anew)
        self.teller.odd_lines(result.indexed.malformed, result.indexed.unreviewed.values())
        self._thaw()
        self._trip()
        self._lose_missing()
        self._unreadable = {str(problem): problem for problem in result.indexed.problems}
        self._changed_inputs = set()
        try:
            self._work_off(trigger, result, options_changed=bool(options_changed))
        finally:
            result.indexed.problems = list(self._unreadable.values())
            self.teller.unreadable(result.unreadable)
        # What is not read, evidence too, may be what an orphan stands on.
        whole = not (result.unreadable or scan.unlisted or result.unfinished or self.work.waiting().anything)
        if whole and self.restorer.settle_orphans(self.options):
            self._work_off(trigger, result, options_changed=bool(options_changed))
        if (result.indexed.changes or result.batches) and forget_empty_files(self.store):
            self.inputs.forget_files()
        if not self.work.waiting().anything:
            self.judged_with.settle(self.options)
            if trigger in (Trigger.REBUILD, Trigger.COMPACT):
                self._put_in_order(trigger, result)
        return result

    def refuse_missing_lake(self) -> None:
        """Refuse to work where the lake is away: exports that went with it are not damaged, nor to be made anew.

        Raises:
            ListingError: A tree with known files is not there.
            UsageError: Trees and distilld's own folders overlap.
        """
        refuse_overlaps(self.root, self.store.path)
        if missing := [kind for kind in InputKind if lake.is_missing(self.root, kind)]:
            refuse_missing_trees(missing, self.inputs.files())

    def _put_in_order(self, trigger: Trigger, result: PassResult) -> None:
        """Canonical walk order; where an export was damaged meanwhile, it is mended, and all are put in order again."""
        while not self.work.waiting().anything:
            try:
                self.restorer.reorder()
            except ExportTamperedError:
                self.committer.recover()
                self._mend_exports()
                self._work_off(trigger, result, options_changed=False)
            else:
                self._work_off(trigger, result, options_changed=False)
                return

    def _work_off(self, trigger: Trigger, result: PassResult, *, options_changed: bool) -> None:
        """Batches, one after the other, until nothing waits but what is out of reach."""
        if self._pool is not None and not self._pool.has_workers:
            self._pool.expect(self.work.bytes_waiting())
        self._empty_queues(trigger, result, options_changed=options_changed)
        self._doubt_changed(result)

    def _empty_queues(self, trigger: Trigger, result: PassResult, *, options_changed: bool) -> None:
        self._judging = _Judging(self.work, result.indexed.files_seen) if self.progress else None
        self._tell_judging(0, 0)
        try:
            while self.work.waiting().anything or self.ledger.has_news():
                try:
                    committed = self.run_batch(trigger, result, options_changed=options_changed)
                except InputChanged as error:
                    self._changed_inputs.add(error.path)
                    return
                except UnreadFailed as error:
                    self._drop_batches()
                    self._index_unread(error.unread, result)
                    continue
                except ExportTamperedError:
                    # Seen in the middle of a batch: undo the batch, mend the file, judge again.
                    self._drop_batches()
                    self.committer.recover()
                    self._mend_exports()
                    continue
                if committed is not None:
                    result.batches.append(committed)
                elif not self._took_any:
                    return
                if monotonic_ns() >= self._look_at_ns:
                    self._look_again(result)
            if self._judging is not None:
                self._tell(self._judging.end())
        finally:
            self._drop_batches()

    def _look_again(self, result: PassResult) -> None:
        """Look for new changes in the middle of a long pass: what a verdict forbids now leaves with the next batch."""
        began = monotonic_ns()
        scan = lake.scan(self.root)
        # What this pass read is believed to be as it was; the next pass looks closer.
        indexer = self._indexer(scan, hashed_since_ns=None)
        news = indexer.take(scan, unread=result.indexed.unread)
        self._note_left_alone(news)
        self._look_at_ns = self._next_look(began)
        result.indexed.add(news)
        if not (news.changes or news.problems):
            return
        self._drop_batches()
        self.work.forget_places()
        result.scan, result.looked_at_ns = scan, time.time_ns()
        if result.untold is not result.indexed:
            result.untold.add(news)
        self._unreadable.update((str(problem), problem) for problem in news.problems)
        self.teller.odd_lines(news.malformed, news.unreviewed.values())
        self._thaw()
        self._trip()
        self._lose_missing()

    def _next_look(self, began_ns: int) -> int:
        """When to look again: looking takes a tenth of a long pass at most."""
        now = monotonic_ns()
        return now + max(LOOK_AGAIN_NS, 10 * (now - began_ns))

    def _doubt_changed(self, result: PassResult) -> None:
        """Have the files that changed under the pass read again, whatever a stat says of them."""
        changed = self._changed_inputs.difference(result.changed_inputs)
        if not changed:
            return
        for path in sorted(changed):
            self.teller.input_changed(path)
        with self.store.transaction():
            self.inputs.doubt([key for key in self.inputs.files() if lake.tree_path(*key) in changed])
        result.changed_inputs = tuple(sorted(self._changed_inputs))

    def rebuild(self) -> PassResult:
        """Read everything anew, judge everything anew, and put the files in canonical walk order (SPEC 5)."""
        return self.run_pass(Trigger.REBUILD)

    def prune(self, partition_glob: str | None, only: Only | None = None) -> tuple[Pruned, PassResult]:
        """Withdraw frozen rows, forget the absent verdicts behind them; returns what was let go, and what followed."""
        pruned = self.give_up(partition_glob, only)
        return pruned, self.run_pass(Trigger.PRUNE)

    def give_up(self, partition_glob: str | None, only: Only | None = None) -> Pruned:
        """Let frozen rows go: the next pass withdraws them.

        Absent files that stand there again, or may do so in a folder that cannot be listed, keep theirs.

        Raises:
            ListingError: The input trees could not be looked at; nothing was let go.
        """
        with self.store.at_work(), self.store.transaction():
            absent = [record for record in self.inputs.files().values() if not record.present]
            scan = lake.scan(self.root) if absent else None
            seen = {(file.kind, file.path) for file in scan.files} if scan else set()
            returned = [
                each
                for each in absent
                if (each.kind, each.path) in seen or (scan and scan.is_unknown(each.kind, each.path))
            ]
            pruned = Pruning(self.store).prune(partition_glob, only=only, options=self.options, returned=returned)
        self.inputs.forget_files()
        log.info("pruned", rows=pruned.rows, files=pruned.files, accepted=False)
        return pruned

    def accept_vanished(self) -> int:
        """Keep for good what the tripwire kept; returns how many rows and pairs."""
        with self.store.at_work(), self.store.transaction():
            accepted = Pruning(self.store).accept()
        log.info("pruned", rows=accepted, accepted=True)
        return accepted

    def run_batch(self, trigger: Trigger, result: PassResult, *, options_changed: bool) -> CommittedBatch | None:
        """Judge what fits into one batch and commit it; None where it changed nothing."""
        if self._batches is None:
            self._batches = self._new_batches(result.indexed.unread, options_changed=options_changed)
        batch = self._batches.decide()
        try:
            return self._commit(batch, trigger, result)
        finally:
            batch.close()

    def _new_batches(self, unread: dict[int, UnreadEvidence], *, options_changed: bool) -> Batches:
        assert self._pool is not None  # noqa: S101  as long as a pass takes
        return Batches(
            self.root,
            self.work,
            self.committer,
            self._pool,
            self.options,
            unread,
            batch_rows=self.batch_rows,
            spool_folder=self._spool(),
            options_changed=options_changed,
            told=self._tell_judging,
        )

    def _drop_batches(self) -> None:
        """Forget what was judged ahead."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _commit(self, batch: Batch, trigger: Trigger, result: PassResult) -> CommittedBatch | None:
        decisions, indexed = batch.decisions, result.untold
        self._unreadable.update((str(problem), problem) for problem in _problems_of(decisions))
        self._changed_inputs |= decisions.changed_inputs
        self._took_any = decisions.took_any or batch.left_over or not batch.from_start
        news = self.ledger.has_news() or decisions.rows or decisions.fresh or decisions.pairs or decisions.dropped_pairs
        if not (news or batch.read or _changes_exports(decisions)):
            with self.store.transaction():
                self.ledger.apply(decisions)
            result.judged_alike += decisions.rows_judged
            result.read_alike += decisions.bytes_read
            return None
        context = BatchContext(
            trigger,
            self.options,
            self.git,
            indexed.rows_indexed + sum(read.reading.lines for _, read in batch.read),
            indexed.bytes_read + result.read_alike,
            tuple(dict.fromkeys(map(str, (*indexed.problems, *_problems_of(decisions))))),
            rows_judged_before=result.judged_alike,
            run=result.batches[-1].receipt["run"] if result.batches else None,
        )
        committed = self._made_durable(batch.identity, decisions, context, partial(self._add_read, batch))
        for place, read in batch.read:
            del result.indexed.unread[place.partition_id]
            result.indexed.rows_indexed += read.reading.lines
            if read.reading.first_malformed is not None:
                reading = read.reading
                malformed = OddLines(InputKind.EVIDENCE, place.path, reading.malformed, read.reading.first_malformed)
                self.teller.odd_lines([malformed], ())
        result.untold, result.judged_alike, result.read_alike = Indexed(), 0, 0
        return committed

    def _add_read(self, batch: Batch) -> None:
        """Put the evidence files that were read with a batch's rows into the store, inside its transaction."""
        for place, read in batch.read:
            record = new_record(InputKind.EVIDENCE, place.path, (place.partition_id, place.base), read.reading.facts)
            record_reading(record, read.reading, 0)
            self.evidence.add_unread(record, read.facts, all_judged=not batch.decisions.out_of_reach)

    def _made_durable(
        self,
        identity: BatchIdentity,
        decisions: Decisions,
        context: BatchContext,
        also: Callable[[], None] = lambda: None,
    ) -> CommittedBatch:
        with lines_of_batch(identity.batch_id):
            log.debug("batch_started", sequence=identity.sequence, trigger=context.trigger.value)
            try:
                committed = self.committer.commit(identity, decisions, context, also)
            except BaseException:
                log.error("batch_undone", sequence=identity.sequence)
                raise
            try:
                self.committer.finish()
            finally:
                # The batch stands, also where the rest is left to recovery.
                kept = self.options.on_delete is OnDelete.KEEP
                self.teller.committed(self.root, committed, kept=kept, written=self.committer.writes)
        return committed

    # parts of a pass

    def _mend_exports(self, *, patient: bool = False) -> None:
        """Make exports and store agree before anything is judged: take older exports in, restore damaged ones.

        Raises:
            AnotherWriterError: They are damaged the third time within a pass.
        """
        if self.committer.writes:
            self.committer.keep_lock()
            if self.committer.needs_recovery():
                self.committer.recover()
            now_ns = time.time_ns()
            if self.restorer.take_over(now_ns):
                self.inputs.forget_files()
            self._mendings += 1
            if self._mendings > TAMPERINGS_AN_HOUR and self.restorer.damaged():
                raise AnotherWriterError(
                    "another writer changes exports/ whenever they are restored",
                    hint="find out who writes below exports/ and stop it; see export_tampered in the log",
                )
            self.restorer.check(now_ns, patient=patient)

    def _thaw(self) -> None:
        """What was frozen with a partition that returned is live again, pairs too."""
        with self.store.transaction():
            self.frozen.thaw()

    def _lose_missing(self) -> None:
        """What a damaged export lost is written again from its inputs; where these went as well, it is lost."""
        if self.work.missing_lines():
            with self.store.transaction():
                ExportLines(self.store).lose_missing()

    def _trip(self) -> None:
        """The tripwire: rows that vanish in masses stay until somebody decides (SPEC 3)."""
        for dataset in Dataset:
            stood = self.ledger.exports()[dataset.value].committed.rows
            vanishing = self.tripwire.vanishing(dataset, self.options)
            if vanishing > self.tripwire_rows and vanishing > self.tripwire_share * stood:
                with self.store.transaction():
                    self.tripwire.keep(dataset, self.options)
                log.error("tripwire_tripped", dataset=dataset.value, rows=vanishing, of=stood)

    def _index_unread(self, unread: UnreadEvidence, result: PassResult) -> None:
        """Take in an evidence file at once that was to be read with its rows, and could not be."""
        assert result.scan is not None  # noqa: S101  it was seen there
        key = (InputKind.EVIDENCE, unread.path)
        for file in result.scan.files:
            if (file.kind, file.path) == key:
                self._indexer(result.scan, None).take_one(file, result.untold)

    def _index(self, scan: Scan, *, read_anew: bool) -> Indexed:
        self.looks.begin(boot_id(), monotonic_ns(), time.time_ns())
        indexer = self._indexer(scan, self._hashed_since_ns())
        owed = self.judged_with.owed_readings()
        indexed = indexer.take(scan, read_anew=read_anew, owed=owed, next_turn=next(iter(self._postponed), None))
        self._note_left_alone(indexed)
        indexed.files_seen = len(scan.files)
        self.judged_with.owe_readings(self.options, scan, indexed, owed, read_anew=read_anew)
        self.work.forget_places()
        self._look_at_ns = monotonic_ns() + LOOK_AGAIN_NS
        return indexed

    def _note_left_alone(self, indexed: Indexed) -> None:
        """Remember what a look left to later ones."""
        self._postponed = indexed.postponed
        self._moving = {key: self._moving[key] for key in indexed.unsettled if key in self._moving}

    def _hashed_since_ns(self) -> int | None:
        """The time since which a file must have been hashed; None where somebody else looks after that."""
        if self.believes_facts:
            return None
        return time.time_ns() - self.scrub_ns if self.scrub_ns else 0

    def _indexer(self, scan: Scan, hashed_since_ns: int | None) -> Indexer:
        return Indexer(
            self.root,
            self.store,
            self.inputs,
            self.options,
            self._pool or self._new_pool(),
            batch_rows=self.batch_rows,
            is_still=self._is_still,
            progress=self._reading(scan),
            hashed_since_ns=hashed_since_ns,
        )

    def _tell_judging(self, done: int, size: int) -> None:
        self.pulse()
        if self._judging is not None and self.progress is not None:
            self.progress(self._judging.progress(done, size))

    def _tell(self, progress: Progress) -> None:
        self.pulse()
        if self.progress is not None:
            self.progress(progress)

    def _reading(self, scan: Scan) -> Callable[[int, int], None]:
        """What tells of files and bytes that were read; what is yet to be read is asked for only if somebody waits."""
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
        return sum(
            file.stat.size
            for file in scan.files
            if known.get((file.kind, file.path)) != (file.stat.size, file.stat.mtime_ns)
        )

    def _is_still(self, key: FileKey, facts: StatFacts) -> bool:
        """Whether our looks saw no change for the settling time, or changes without end for ten times that."""
        now = monotonic_ns()
        first, seen, since = self._moving.get(key, (now, facts, now))
        since = since if seen == facts else now
        self._moving[key] = first, facts, since
        return now - since >= self.settle_ns or now - first >= 10 * self.settle_ns

    def _spool(self) -> Path:
        folder = self._spool_folder or self.root / "exports"
        return folder if folder.is_dir() else self.root


class _Judging:
    """How far the queues are worked off. Pairs come last; until their tasks are known, room is left for them."""

    def __init__(self, work: Work, files: int) -> None:
        self._work = work
        self._files = files
        waiting = work.waiting()
        self._rows, self._tasks = waiting.rows, max(waiting.tasks, waiting.rows // 8)
        self._done = self._bytes = 0
        self._asked = False

    def progress(self, done: int, size: int) -> Progress:
        """Return the progress after so many more rows or tasks, for which so many bytes were read."""
        self._done, self._bytes = self._done + done, self._bytes + size
        if self._done >= self._rows and not self._asked:
            self._asked = True
            self._tasks = self._work.waiting().tasks
        whole = max(self._rows + self._tasks, self._done)
        return Progress("judge", self._done, whole, self._files, min(self._done, self._rows), self._bytes)

    def end(self) -> Progress:
        """Return the progress when all is done."""
        whole = max(self._rows + self._tasks, self._done)
        return Progress("judge", whole, whole, self._files, min(self._done, self._rows), self._bytes)


def _problems_of(decisions: Decisions) -> list[UnreadableError]:
    return [UnreadableError(path, OSError(why)) for path, why in decisions.unreadable.items()]


def _changes_exports(decisions: Decisions) -> bool:
    return bool(decisions.withdrawals) or any(
        change.shipped.rows or change.held.rows or change.removed_keys or change.removed_held
        for change in decisions.changes.values()
    )
