"""The table of contents: how a change of the inputs becomes a change of the datasets.

    scan    lake.scan          what stands in the two trees
    plan    plan.compare       what of it is new, changed, gone
    index   index.Indexer      its facts into the store, and what they touch into the queues
    judge   judge_rows, _pairs what becomes of each queued row and task
    commit  commit.Committer   intent, exports, one transaction, finish
    tell    receipt, log       what was done

One code path serves the first full pass, the daemon's smallest batch and the rebuild.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from distilld import lake
from distilld.commit import BatchContext, BatchIdentity, CommittedBatch, Committer
from distilld.decisions import Decisions, empty_decisions
from distilld.exports import Exports
from distilld.index import FileKey, Indexed, Indexer
from distilld.judge_pairs import PairJudge
from distilld.judge_rows import RowJudge
from distilld.lake import Scan, SourceFiles
from distilld.model import Dataset, Options, Trigger
from distilld.receipt import GitState, git_state
from distilld.store import Store
from distilld.store.inputs import Inputs
from distilld.store.ledger import Ledger
from distilld.store.work import Work
from distilld.texts import Texts

BATCH_BYTES: Final = 32 << 20
"""A batch is cut when its rows' texts come to this much."""
TASKS_PER_BATCH: Final = 10_000
DEPARTURES_PER_BATCH: Final = 200_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass has come, for people who wait."""

    phase: str
    files: int
    rows: int
    rows_waiting: int


@dataclass(slots=True)
class PassResult:
    """What one pass did: the batches that it committed, what it could not read or did not yet read."""

    batches: list[CommittedBatch] = field(default_factory=list)
    planned: list[Decisions] = field(default_factory=list)
    scan: Scan | None = None
    indexed: Indexed = field(default_factory=Indexed)

    @property
    def changed(self) -> bool:
        """Whether anything was committed."""
        return bool(self.batches)

    def appended(self, dataset: Dataset) -> int:
        """Rows that the pass added to a dataset."""
        return sum(batch.receipt["record_counts"]["per_exporter"][dataset]["appended"] for batch in self.batches)

    def withdrawn(self, dataset: Dataset) -> int:
        """Rows that the pass took out of a dataset, those replaced under the same id apart."""
        return sum(batch.receipt["record_counts"]["per_exporter"][dataset]["withdrawn"] for batch in self.batches)


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
        receipts_keep: int = 0,
        clock: Callable[[], int] = time.time_ns,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.root = root
        self.store = store
        self.options = options
        self.batch_rows = batch_rows
        self.settle_ns = round(settle_seconds * 1e9)
        self.progress = progress
        self.git: GitState = git_state(root)
        self.exports = Exports(root)
        self.ledger = Ledger(store)
        self.work = Work(store)
        self.inputs = Inputs(store)
        self.committer = Committer(root, store, self.exports, clock=clock, receipts_keep=receipts_keep)
        self._unsettled_since: dict[FileKey, int] = {}

    # one pass

    def run_pass(self, trigger: Trigger, *, dry_run: bool = False) -> PassResult:
        """Bring the datasets up to date with what one scan sees.

        Raises:
            ListingError: An input folder could not be listed; nothing was changed.
            OperatorError: A write failed, or an export was tampered with; what was committed stands.
        """
        result = PassResult()
        result.scan = scan = lake.scan(self.root)
        _log_oddities(scan)
        options_changed = self._take_options()
        result.indexed = indexed = self._index(scan, read_anew=options_changed == "lines")
        while self.work.waiting().anything or self.ledger.unreported_inputs():
            committed = self.run_batch(trigger, indexed, options_changed=bool(options_changed))
            if committed is None:
                break
            result.batches.append(committed)
            indexed = Indexed()
        if not self.work.waiting().anything:
            self._settle_options()
        del dry_run
        return result

    def run_batch(self, trigger: Trigger, indexed: Indexed, *, options_changed: bool) -> CommittedBatch | None:
        """Judge what fits into one batch and commit it; None where it changed nothing.

        What a verdict in force now forbids is judged first, whatever the batch's size: no committed batch leaves such
        a row in the files.
        """
        identity = self.committer.next_identity()
        waiting = self.work.waiting()
        fits = waiting.rows <= self.batch_rows and waiting.tasks <= TASKS_PER_BATCH
        decisions = empty_decisions(identity.sequence, identity.recorded_at, self._spool_folder())
        texts = Texts(self.root)
        try:
            self._judge(decisions, texts, fits=fits, options_changed=options_changed)
            decisions.bytes_read = texts.bytes_read
            return self._commit(identity, decisions, trigger, indexed)
        finally:
            texts.close()
            decisions.close()

    def _judge(self, decisions: Decisions, texts: Texts, *, fits: bool, options_changed: bool) -> None:
        missing = SourceFiles(Path(self.options.source_files_root)).missing if self.options.check_source_files else None
        rows = RowJudge(
            self.work, texts, self.options, decisions, missing_files=missing, options_changed=options_changed
        )
        pairs = PairJudge(
            self.work, texts, self.options, decisions, missing_files=missing, options_changed=options_changed
        )
        rows.take_frozen(self.work.frozen_queue())
        rows.take_departures(self.work.departures(DEPARTURES_PER_BATCH))
        forced_only = not fits and self.work.has_forced()
        most = 1 << 62 if forced_only else self.batch_rows
        last = rows.judge(
            self.work.rows(forced_only=forced_only),
            max_rows=most,
            max_bytes=most if forced_only else BATCH_BYTES,
        )
        rows.finish()
        done = last is None and not forced_only
        if not forced_only:
            decisions.judged_to = (1 << 62) if last is None else last
        if done or forced_only:
            limit = 1 << 62 if forced_only else TASKS_PER_BATCH
            pairs.judge(self.work.tasks(limit, forced_only=forced_only, with_unjudged=done))
        if not forced_only:
            touched = self.work.tasks_of_unjudged(decisions.judged_to or 0)
            decisions.tasks_to_queue = sorted(touched - set(decisions.tasks))

    def _commit(
        self, identity: BatchIdentity, decisions: Decisions, trigger: Trigger, indexed: Indexed
    ) -> CommittedBatch | None:
        notes = self.ledger.unreported_inputs()
        if not (_changes_exports(decisions) or decisions.rows or decisions.pairs or decisions.dropped_pairs or notes):
            with self.store.transaction():
                self.ledger.apply(decisions)
            return None
        context = BatchContext(
            trigger,
            self.options,
            self.git,
            indexed.rows_indexed,
            indexed.bytes_read,
            tuple(str(problem) for problem in indexed.problems),
        )
        with structlog.contextvars.bound_contextvars(batch_id=identity.batch_id):
            _log_inputs(indexed)
            try:
                committed = self.committer.commit(identity, decisions, context)
            except BaseException:
                log.error("batch_undone", sequence=identity.sequence)
                raise
            _log_committed(committed)
        return committed

    # parts of a pass

    def _index(self, scan: Scan, *, read_anew: bool) -> Indexed:
        indexer = Indexer(
            self.root,
            self.store,
            self.options,
            settle_ns=self.settle_ns,
            overdue=self._overdue,
            progress=lambda files, rows: self.progress(Progress("index", files, rows, 0)),
        )
        indexed = indexer.take(scan, read_anew=read_anew)
        now = time.time_ns()
        self._unsettled_since = {key: self._unsettled_since.get(key, now) for key in indexed.unsettled}
        return indexed

    def _overdue(self, key: FileKey) -> bool:
        """Whether a file never came to rest for ten times the settling time: then it is read as it is."""
        since = self._unsettled_since.get(key)
        return since is not None and time.time_ns() - since >= 10 * self.settle_ns

    def _take_options(self) -> str | None:
        """Queue everything where the options are not those that the store was judged with; returns what changed."""
        recorded = self.store.recall("options_sha256")
        if recorded == self.options.sha256:
            return None
        in_hand = self.store.recall("options_in_hand")
        lines = f"{self.options.max_line_bytes}/{self.options.rules_version}"
        anew = self.store.recall("options_lines") not in (None, lines)
        if in_hand != self.options.sha256:
            with self.store.transaction():
                self.inputs.queue_everything()
                self.store.remember("options_in_hand", self.options.sha256)
            if recorded is not None:
                log.info("options_changed", options_sha256=self.options.sha256)
        return "lines" if anew else "rules"

    def _settle_options(self) -> None:
        if self.store.recall("options_sha256") != self.options.sha256:
            with self.store.transaction():
                self.store.remember("options_sha256", self.options.sha256)
                self.store.remember("options_in_hand", None)
                self.store.remember("options_lines", f"{self.options.max_line_bytes}/{self.options.rules_version}")

    def _spool_folder(self) -> Path:
        folder = self.root / "exports"
        return folder if folder.is_dir() else self.root


def _changes_exports(decisions: Decisions) -> bool:
    return bool(decisions.withdrawals) or any(
        change.shipped.rows or change.held.rows or change.removed_keys or change.removed_held
        for change in decisions.changes.values()
    )


def _log_oddities(scan: Scan) -> None:
    for oddity in scan.oddities:
        log.warning("file_unreadable", path=oddity.path, problem=oddity.problem)


def _log_inputs(indexed: Indexed) -> None:
    for problem in indexed.problems:
        log.error("file_unreadable", problem=str(problem))


def _log_committed(committed: CommittedBatch) -> None:
    receipt: dict[str, Any] = committed.receipt
    counts = receipt["record_counts"]
    per = counts["per_exporter"]
    log.info(
        "batch_committed",
        sequence=receipt["sequence"],
        trigger=receipt["trigger"],
        duration_ms=receipt["duration_ms"],
        inputs=len(receipt["inputs"]),
        **receipt["work"],
        **{f"{name}_{key}": per[name][key] for name in per for key in ("appended", "withdrawn", "shipped", "held")},
        validation_pass=receipt["validation_pass"],
    )
