"""The table of contents: how a change of the inputs becomes a change of the datasets.

    scan    lake.scan          what stands in the two trees
    intake  intake.Intake      many new partitions at once: read, judged and committed in one go
    plan    plan.compare       what of the rest is new, changed, gone
    index   index.Indexer      its facts into the store, and what they touch into the queues
    trip    _trip              rows that vanish in masses are frozen
    judge   judge_rows, _pairs what becomes of each queued row and task
    commit  commit.Committer   intent, exports, one transaction, finish
    tell    receipt, log       what was done

One code path serves the daemon's smallest batch and the rebuild; a large first pass takes the intake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Final, Literal

import structlog

from distilld.core.decisions import Decisions, Withdrawal
from distilld.core.model import (
    Cause,
    Dataset,
    InputChanged,
    InputKind,
    OnDelete,
    OperatorError,
    Options,
    Trigger,
    UnreadableError,
)
from distilld.core.plan import FileKey, compare
from distilld.engine.batch_start import empty_decisions
from distilld.engine.bulk.load import Intake
from distilld.engine.index import Indexed, Indexer, refuse_missing_trees
from distilld.engine.judge_pairs import PairJudge
from distilld.engine.judge_rows import RowJudge
from distilld.engine.options_in_force import JudgedWith
from distilld.engine.pass_log import Teller
from distilld.engine.row_reader import Texts
from distilld.lake import scan as lake
from distilld.lake.scan import Oddity, Scan, SourceFiles
from distilld.logs import lines_of_batch
from distilld.publish.commit import CommittedBatch, Committer
from distilld.publish.exports import Exports
from distilld.publish.reading import ExportTamperedError
from distilld.publish.receipt import BatchContext, BatchIdentity
from distilld.publish.receipt_files import GitState, git_state
from distilld.publish.restore import Restorer
from distilld.store.connection import Store
from distilld.store.frozen import EVIDENCE_PRUNED, Frozen, Pruned
from distilld.store.inputs import Inputs
from distilld.store.ledger import Ledger
from distilld.store.segments import Segments
from distilld.store.work import Work, WorkRow

BATCH_BYTES: Final = 32 << 20
"""A batch is cut when its rows' texts come to this much."""
TASKS_PER_BATCH: Final = 10_000
NO_LIMIT: Final = 1 << 62
DEPARTURES_PER_BATCH: Final = 200_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass has come, for people who wait: bytes are read first, then rows are judged."""

    phase: Literal["read", "judge"]
    done: int
    whole: int
    """What ``done`` will come to, as far as that can be known."""
    files: int
    rows: int


@dataclass(slots=True)
class PassResult:
    """What one pass did: the batches that it committed, what it could not read or did not yet read."""

    batches: list[CommittedBatch] = field(default_factory=list)
    scan: Scan | None = None
    indexed: Indexed = field(default_factory=Indexed)
    untold: Indexed = field(default_factory=Indexed)
    """What was indexed and stands in no receipt yet."""
    judged_alike: int = 0
    """Rows that were judged in batches which changed nothing, so that no receipt tells of them."""
    read_alike: int = 0
    """The bytes that were read for that."""
    arrived_lines: int = 0
    """Lines that were taken in and judged in one go; ``indexed`` does not count them."""
    changed_inputs: tuple[str, ...] = ()
    """Files that changed while their rows were judged: these rows wait, and the next pass reads the files again."""

    @property
    def changed(self) -> bool:
        """Whether anything was committed."""
        return bool(self.batches)

    @property
    def rows_judged(self) -> int:
        """How many rows were judged, also where nothing followed from it."""
        told: int = sum(batch.receipt["work"]["rows_judged"] for batch in self.batches)
        return told + self.judged_alike

    @property
    def bytes_read(self) -> int:
        """How many bytes of inputs were read, also where nothing followed from it."""
        told: int = sum(batch.receipt["work"]["bytes_read"] for batch in self.batches)
        return told + self.untold.bytes_read + self.read_alike

    @property
    def unfinished(self) -> bool:
        """Whether inputs were left alone because they were being written; another pass is due soon."""
        return bool(self.indexed.unsettled or self.changed_inputs)

    @property
    def unreadable(self) -> tuple[Oddity, ...]:
        """Every input that was left out because it cannot be read: what is no usable file, and what gave an error."""
        oddities = (*self.scan.oddities, *self.scan.not_listed) if self.scan is not None else ()
        return (*oddities, *map(_as_oddity, self.indexed.problems))


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
        clock: Callable[[], int] = time.time_ns,
        progress: Callable[[Progress], None] | None = None,
        pulse: Callable[[], None] = lambda: None,
        committer: Committer | None = None,
        spool_folder: Path | None = None,
        workers: int = 0,
        keep_lock: Callable[[], None] = lambda: None,
    ) -> None:
        """``workers`` are the processes that judge many new partitions; 0: one a core in all.

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
        self.progress = progress
        self.pulse = pulse
        self.git: GitState = git_state(root)
        self.exports = Exports(root, pulse, segments=Segments(store))
        self.ledger = Ledger(store)
        self.work = Work(store)
        self.inputs = Inputs(store)
        self.committer = committer or Committer(
            root, store, self.exports, clock=clock, receipts_keep=receipts_keep, keep_lock=keep_lock
        )
        self.frozen = Frozen(store)
        self.judged_with = JudgedWith(store, self.inputs)
        self.teller = Teller()
        self.restorer = Restorer(root, store, self.exports, self.committer)
        self.tripwire_rows = tripwire_rows
        self.tripwire_share = tripwire_share
        self.workers = workers
        self._spool_folder = spool_folder
        self._unsettled_since: dict[FileKey, int] = {}
        self._took_any = False
        """Whether the last batch took anything out of the queues; what it put in may be as much."""
        self._judged = self._read = 0
        """How many rows the last batch judged, and how many bytes it read for that."""
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
        workers: int,
    ) -> None:
        """Go on with other settings, and with what git says of the root now; what is held in memory stays."""
        self.options = options
        self.batch_rows = batch_rows
        self.settle_ns = round(settle_seconds * 1e9)
        self.tripwire_rows = tripwire_rows
        self.tripwire_share = tripwire_share
        self.committer.receipts_keep = receipts_keep
        self.workers = workers
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
        result = PassResult()
        self.refuse_missing_lake()
        self._mend_exports()
        result.scan = scan = lake.scan(self.root)
        self.teller.odd_folders(scan)
        self.teller.not_listed(scan)
        options_changed = self.judged_with.take(self.options, anew=trigger is Trigger.REBUILD)
        read_anew = options_changed == "lines" or trigger is Trigger.REBUILD
        if not read_anew:
            self._take_arrivals(scan, trigger, result)
        result.indexed = result.untold = self._index(scan, read_anew=read_anew)
        self.teller.malformed(result.indexed.malformed_evidence)
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
        if not self.work.waiting().anything:
            self.judged_with.settle(self.options)
            if trigger in (Trigger.REBUILD, Trigger.COMPACT):
                self._put_in_order(trigger, result)
        return result

    def refuse_missing_lake(self) -> None:
        """Refuse to work where the lake is away: exports that went with it are not damaged, nor to be made anew.

        Raises:
            ListingError: A tree with known files is not there.
        """
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
        self._empty_queues(trigger, result, options_changed=options_changed)
        self._doubt_changed(result)

    def _empty_queues(self, trigger: Trigger, result: PassResult, *, options_changed: bool) -> None:
        judged, whole = 0, self.work.waiting().rows if self.progress else 0
        self._tell(Progress("judge", 0, whole, result.indexed.files_seen, 0))
        while self.work.waiting().anything or self.ledger.has_news():
            try:
                committed = self.run_batch(trigger, result.untold, options_changed=options_changed)
            except InputChanged as error:
                self._changed_inputs.add(error.path)
                return
            except ExportTamperedError:
                # Seen in the middle of a batch: undo the batch, mend the file, judge again.
                self.committer.recover()
                self._mend_exports()
                continue
            if committed is not None:
                result.untold = Indexed()
                result.batches.append(committed)
                judged += committed.receipt["work"]["rows_judged"]
            else:
                result.judged_alike += self._judged
                result.read_alike += self._read
                if not self._took_any:
                    return
            self._tell(Progress("judge", judged, whole, result.indexed.files_seen, judged))

    def _doubt_changed(self, result: PassResult) -> None:
        """Have the files that changed under the pass read again, whatever a stat says of them."""
        changed = self._changed_inputs.difference(result.changed_inputs)
        if not changed:
            return
        for path in sorted(changed):
            log.warning("input_changed", path=path)
        with self.store.transaction():
            self.inputs.doubt([key for key in self.inputs.files() if lake.tree_path(*key) in changed])
        result.changed_inputs = tuple(sorted(self._changed_inputs))

    def rebuild(self) -> PassResult:
        """Read everything anew, judge everything anew, and put the files in canonical walk order (SPEC 5)."""
        return self.run_pass(Trigger.REBUILD)

    def prune(self, partition_glob: str | None, *, orphans_only: bool) -> tuple[Pruned, PassResult]:
        """Withdraw frozen rows, forget the absent verdicts behind them; returns what was let go, and what followed."""
        pruned = self.give_up(partition_glob, orphans_only=orphans_only)
        return pruned, self.run_pass(Trigger.PRUNE)

    def give_up(self, partition_glob: str | None, *, orphans_only: bool) -> Pruned:
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
            pruned = self.frozen.prune(
                partition_glob, orphans_only=orphans_only, options=self.options, returned=returned
            )
        self.inputs.forget_files()
        log.info("pruned", rows=pruned.rows, files=pruned.files, accepted=False)
        return pruned

    def accept_vanished(self) -> int:
        """Keep for good what the tripwire kept; returns how many rows and pairs."""
        with self.store.at_work(), self.store.transaction():
            accepted = self.frozen.accept()
        log.info("pruned", rows=accepted, accepted=True)
        return accepted

    def run_batch(self, trigger: Trigger, indexed: Indexed, *, options_changed: bool) -> CommittedBatch | None:
        """Judge what fits into one batch and commit it; None where it changed nothing.

        What a verdict in force may now forbid is judged in it, whatever its size: no committed batch leaves such a row
        in the files.
        """
        identity = self.committer.next_identity()
        decisions = empty_decisions(identity.sequence, identity.recorded_at, self._spool(), self.work.missing_lines())
        texts = Texts(self.root, self.work)
        try:
            self._judge(decisions, texts, options_changed=options_changed)
            decisions.bytes_read = texts.bytes_read
            self._judged, self._read = decisions.rows_judged, decisions.bytes_read
            return self._commit(identity, decisions, trigger, indexed)
        finally:
            texts.close()
            decisions.close()

    def _judge(self, decisions: Decisions, texts: Texts, *, options_changed: bool) -> None:
        missing = SourceFiles(Path(self.options.source_files_root)).missing if self.options.check_source_files else None
        rows = RowJudge(
            self.work, texts, self.options, decisions, missing_files=missing, options_changed=options_changed
        )
        pairs = PairJudge(
            self.work, texts, self.options, decisions, missing_files=missing, options_changed=options_changed
        )
        # Queues are closed even where a fault ends the batch: one that is left half read locks the tables of the pass.
        with closing(self.work.frozen_queue()) as frozen:
            rows.take_frozen(frozen)
        rows.take_departures(self.work.departures(DEPARTURES_PER_BATCH))
        pruned: set[int | None] = set()
        with closing(_noting_pruned(self.work.rows(forced_only=False), pruned)) as queued:
            last = rows.judge(queued, max_rows=self.batch_rows, max_bytes=BATCH_BYTES)
        if last is not None:
            with closing(_noting_pruned(self.work.rows(forced_only=True), pruned)) as queued:
                rows.judge(queued, max_rows=NO_LIMIT, max_bytes=NO_LIMIT)
        rows.finish()
        decisions.withdrawals = [_as_pruned(each) if each.key in pruned else each for each in decisions.withdrawals]
        decisions.judged_to = NO_LIMIT if last is None else last
        pairs.judge(self.work.tasks(0 if last is not None else TASKS_PER_BATCH))
        touched = self.work.tasks_of_unjudged(decisions.judged_to)
        decisions.tasks_to_queue = sorted((touched | pairs.left) - set(decisions.tasks))
        self._unreadable.update((str(problem), problem) for problem in _problems_of(decisions))
        self._changed_inputs |= decisions.changed_inputs

    def _commit(
        self, identity: BatchIdentity, decisions: Decisions, trigger: Trigger, indexed: Indexed
    ) -> CommittedBatch | None:
        self._took_any = decisions.took_any
        news = self.ledger.has_news() or decisions.rows or decisions.pairs or decisions.dropped_pairs
        if not (news or _changes_exports(decisions)):
            with self.store.transaction():
                self.ledger.apply(decisions)
            return None
        context = BatchContext(
            trigger,
            self.options,
            self.git,
            indexed.rows_indexed,
            indexed.bytes_read,
            tuple(dict.fromkeys(map(str, (*indexed.problems, *_problems_of(decisions))))),
        )
        return self._made_durable(identity, decisions, context)

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
                self.teller.committed(committed, kept=kept, written=self.committer.writes)
        return committed

    # many new partitions

    def _take_arrivals(self, scan: Scan, trigger: Trigger, result: PassResult) -> None:
        """Take new partitions in and judge them in one go, where that is all there is to do."""
        if len(scan.files) <= self.inputs.count_files():
            return
        if self.work.waiting().anything or self.ledger.has_news() or self.work.missing_lines():
            return
        known = self.inputs.files()
        plan = compare({(file.kind, file.path): file.stat for file in scan.files}, known)
        if not all(record.present for record in known.values()):
            return
        intake = Intake(
            self.root,
            self.store,
            self.inputs,
            self.committer,
            self.options,
            batch_rows=self.batch_rows,
            workers=self.workers,
            spool_folder=self._spool(),
            pulse=self.pulse,
        )
        if not intake.begin(scan, plan):
            return
        done = 0
        try:
            for committed in intake.batches(partial(self._commit_arrivals, trigger)):
                result.batches.append(committed)
                done += committed.receipt["work"]["bytes_read"]
                self._tell(
                    Progress("read", min(done, intake.whole_bytes), intake.whole_bytes, len(scan.files), intake.rows)
                )
        except InputChanged as error:
            log.warning("input_changed", path=error.path)
        except UnreadableError:
            pass  # whoever reads the rest of the files tells of it
        except ExportTamperedError:
            self.committer.recover()
            self._mend_exports()
        finally:
            intake.close()
        self.teller.malformed(intake.malformed_evidence)
        result.arrived_lines = intake.lines
        self.work.forget_places()

    def _commit_arrivals(
        self,
        trigger: Trigger,
        identity: BatchIdentity,
        decisions: Decisions,
        lines: int,
        size: int,
        also: Callable[[], None],
    ) -> CommittedBatch:
        context = BatchContext(trigger, self.options, self.git, lines, size, ())
        return self._made_durable(identity, decisions, context, also)

    # parts of a pass

    def _mend_exports(self) -> None:
        """Make exports and store agree before anything is judged: take older exports in, restore damaged ones."""
        if self.committer.writes:
            self.committer.keep_lock()
            if self.committer.needs_recovery():
                self.committer.recover()
            now_ns = time.time_ns()
            if self.restorer.take_over(now_ns):
                self.inputs.forget_files()
            self.restorer.check(now_ns)

    def _thaw(self) -> None:
        """What was frozen with a partition that returned is live again, pairs too."""
        with self.store.transaction():
            self.frozen.thaw()

    def _lose_missing(self) -> None:
        """What a damaged export lost is written again from its inputs; where these went as well, it is lost."""
        if self.work.missing_lines():
            with self.store.transaction():
                self.frozen.lose_missing()

    def _trip(self) -> None:
        """The tripwire: rows that vanish in masses stay until somebody decides (SPEC 3)."""
        for dataset in Dataset:
            stood = self.ledger.exports()[dataset.value].committed.rows
            vanishing = self.frozen.vanishing(dataset, self.options)
            if vanishing > self.tripwire_rows and vanishing > self.tripwire_share * stood:
                with self.store.transaction():
                    self.frozen.keep_vanishing(dataset, self.options)
                log.error("tripwire_tripped", dataset=dataset.value, rows=vanishing, of=stood)

    def _index(self, scan: Scan, *, read_anew: bool) -> Indexed:
        indexer = Indexer(
            self.root,
            self.store,
            self.inputs,
            self.options,
            settle_ns=self.settle_ns,
            overdue=self._overdue,
            progress=self._reading(scan),
        )
        owed = self.judged_with.owed_readings()
        indexed = indexer.take(scan, read_anew=read_anew, owed=owed)
        indexed.files_seen = len(scan.files)
        self.judged_with.owe_readings(self.options, scan, indexed, owed, read_anew=read_anew)
        self.work.forget_places()
        now = monotonic_ns()
        self._unsettled_since = {key: self._unsettled_since.get(key, now) for key in indexed.unsettled}
        return indexed

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
            self._tell(Progress("read", done, max(whole, done), files, self.ledger.counter("scored_rows") - before))

        return tell

    def _bytes_to_read(self, scan: Scan) -> int:
        known = {key: (record.facts.size, record.facts.mtime_ns) for key, record in self.inputs.files().items()}
        return sum(
            file.stat.size
            for file in scan.files
            if known.get((file.kind, file.path)) != (file.stat.size, file.stat.mtime_ns)
        )

    def _overdue(self, key: FileKey) -> bool:
        """Whether a file never came to rest for ten times the settling time: then it is read as it is.

        Its times may lie ahead of a wall clock that stepped back.
        """
        since = self._unsettled_since.get(key)
        return since is not None and monotonic_ns() - since >= 10 * self.settle_ns

    def _spool(self) -> Path:
        folder = self._spool_folder or self.root / "exports"
        return folder if folder.is_dir() else self.root


def _as_oddity(problem: OperatorError) -> Oddity:
    if isinstance(problem, UnreadableError):
        return Oddity(problem.path, f"cannot be read: {problem.why}")
    return Oddity("", str(problem))


def _problems_of(decisions: Decisions) -> list[UnreadableError]:
    return [UnreadableError(path, OSError(why)) for path, why in decisions.unreadable.items()]


def _noting_pruned(rows: Iterator[WorkRow], pruned: set[int | None]) -> Generator[WorkRow, None, None]:
    """The same rows; the ids of those whose evidence an operator gave up are noted on the way."""
    for row in rows:
        if row.evidence_changed == EVIDENCE_PRUNED:
            pruned.add(row.sample_key)
        yield row


def _as_pruned(withdrawal: Withdrawal) -> Withdrawal:
    if withdrawal.cause is Cause.EVIDENCE_CHANGED and not withdrawal.replaced:
        return replace(withdrawal, cause=Cause.PRUNED)
    return withdrawal


def _changes_exports(decisions: Decisions) -> bool:
    return bool(decisions.withdrawals) or any(
        change.shipped.rows or change.held.rows or change.removed_keys or change.removed_held
        for change in decisions.changes.values()
    )
