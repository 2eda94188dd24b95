"""Whatever happens to a lake, the exports are what one full pass over it gives (SPEC 3)."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import pytest
import structlog
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from distilld.config.settings import EngineLimits
from distilld.core.model import Dataset, InputKind, OnDelete, Options, Reason, StatFacts, Trigger, UnreadableError
from distilld.engine import (
    batch,
    engine,
    file_reading,
    index,
    ingest,
    judge_span,
    judge_task,
    read_file,
    span_queue,
)
from distilld.engine.engine import Engine
from distilld.engine.work_off import QueueWorker
from distilld.inspection import oracle
from distilld.inspection.oracle_exceptions import retained_of
from distilld.inspection.oracle_lake import Lake
from distilld.inspection.oracle_verdicts import Verdicts
from distilld.inspection.unstamped import unstamped_quarantine
from distilld.inspection.verify import verify
from distilld.lake import scan as lake
from distilld.lake.scan import tree_path
from distilld.lake.source_files import path_check
from distilld.publish import exports as exports_module
from distilld.publish import live_files, overwrite
from distilld.publish.commit import CommittedBatch
from distilld.store.connection import Store
from distilld.store.queries import Exceptions, Views
from distilld.store.retained import Only
from tests.property.absence import Absence
from tests.property.model import PARTITIONS, History, Row, evidence_rows, joined_rows, scored_rows, whole_options
from tests.support import target_state as invariants
from tests.support.history_lake import believe_facts
from tests.support.limits import limits
from tests.support.target_state import Exports, read_lake

QUICK_FOLDER: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""What is tested here is no power cut: nothing has to reach a disk."""

number = st.integers(0, 7)
small = st.integers(0, 3)
kinds = st.sampled_from(InputKind)
some_scored = st.lists(scored_rows(), min_size=1, max_size=6)
some_evidence = st.lists(evidence_rows(), min_size=1, max_size=6)
torn = st.sampled_from((None, None, 0, 1, 50, 200, 300))
maybe = st.booleans()
some_tree = st.sampled_from(("", *(tree_path(kind, "") for kind in InputKind)))
then = st.sampled_from((True, True, False))
"""Whether a pass follows; several changes between two passes are as common as one."""


@contextmanager
def refused(partition: str, *kinds: InputKind) -> Iterator[None]:
    """Files of a partition cannot be read."""
    real = lake.open_partition

    def refusing(root: Path, kind: InputKind, path: str) -> AbstractContextManager[tuple[int, StatFacts]]:
        if kind in kinds and path == partition:
            raise UnreadableError(path, PermissionError(13, "Permission denied"))
        return real(root, kind, path)

    with pytest.MonkeyPatch.context() as patch:
        for module in (file_reading, judge_span, judge_task, read_file):
            patch.setattr(module, "open_partition", refusing)
        yield


@contextmanager
def unlisted(folder: str) -> Iterator[None]:
    """A folder of the input trees cannot be listed by the engine; whoever checks it sees all."""
    real = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    def scan(root: Path) -> lake.Scan:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", refusing)
            return lake.scan(root)

    with pytest.MonkeyPatch.context() as patch:
        for module in (engine, ingest):
            patch.setattr(module, "lake", SimpleNamespace(**{**vars(lake), "scan": scan}))
        yield


def hallucinated(exports: Exports, dataset: Dataset) -> Counter[bytes]:
    """The quarantined rows whose source files do not exist."""
    lines = exports.quarantined[dataset]
    return Counter(line for line in lines if json.loads(line)["reason"] == Reason.HALLUCINATED_FILE_PATH)


def watched(verdicts: Callable[[], Verdicts]) -> Callable[[QueueWorker], CommittedBatch | None]:
    """Run one batch; afterwards, check what must hold after every single one, not only at the end of a pass."""
    real = QueueWorker.run_batch

    def run_batch(queues: QueueWorker) -> CommittedBatch | None:
        committed = real(queues)
        root, options = queues._lake.root, queues._lake.options
        exports = Exports.read(root)
        invariants.ship_no_forbidden_run(exports, verdicts(), options)
        if committed is not None:
            invariants.agree_with_the_receipt(root, exports, committed.receipt)
        return committed

    return run_batch


class Histories(RuleBasedStateMachine):
    """One lake, changed step by step; passes between the steps, and after each a comparison with the oracle.

    Files that disappear are gone, so that the oracle needs to know no history.
    """

    steps = passes = rows_judged = rows_present = 0
    batch_by_batch = True
    """Whether what must hold after every single batch is checked, too."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="histories-", dir=QUICK_FOLDER))
        self.history = History(self.folder)
        self.options = Options()
        self.batch_rows = 50_000
        self.tripwire_rows, self.tripwire_share = 1_000, 0.5
        self.limits = pytest.MonkeyPatch()
        self.store: Store | None = None
        if self.batch_by_batch:
            self.limits.setattr(QueueWorker, "run_batch", watched(self.verdicts))
        self.engine: Engine | None = None
        self.lake: Lake = {}
        self.before = Exports.read(self.folder)
        """The lake and the exports as the last pass left them."""

    def teardown(self) -> None:
        self.limits.undo()
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)

    # what happens to the engine

    @initialize(
        options=whole_options(),
        rows=st.sampled_from((50_000, 1, 2, 3, 7)),
        size=st.sampled_from((batch.BATCH_BYTES, 700)),
        tasks=st.sampled_from((batch.TASKS_PER_BATCH, 1, 2)),
        departures=st.sampled_from((batch.DEPARTURES_PER_BATCH, 1, 2)),
        job=st.sampled_from((span_queue.JOB_ROWS, 1, 2, 3)),
        page=st.sampled_from((span_queue.PAGE_ROWS, 1, 2, 5)),
        settled=maybe,
        in_one_go=maybe,
        in_place=st.sampled_from((None, 200, 1500, 1 << 19)),
        files=st.lists(joined_rows(), max_size=4),
    )
    def start(
        self,
        options: Options,
        rows: int,
        size: int,
        tasks: int,
        departures: int,
        job: int,
        page: int,
        settled: bool,
        in_one_go: bool,
        in_place: int | None,
        files: list[tuple[list[Row], list[Row]]],
    ) -> None:
        self.options = self.here(options)
        self.batch_rows = rows
        self.limits.setattr(batch, "BATCH_BYTES", size)
        self.limits.setattr(batch, "TASKS_PER_BATCH", tasks)
        self.limits.setattr(batch, "DEPARTURES_PER_BATCH", departures)
        self.limits.setattr(span_queue, "JOB_ROWS", job)
        self.limits.setattr(span_queue, "PAGE_ROWS", page)
        if settled:
            self.let_settle()
        if in_one_go:
            self.limits.setattr(index, "LEAVE_FROM", 0)
        if in_place is not None:
            self.limits.setattr(exports_module, "LEAST_BYTES", 0)
            self.limits.setattr(live_files, "SEGMENT_BYTES", in_place)
            self.limits.setattr(overwrite, "MOST_SPACE_SHARE", 0.5)
        self.restart()
        for partition, (scored, given) in enumerate(files):
            self.history.append(InputKind.SCORED, partition, scored)
            self.history.append(InputKind.EVIDENCE, partition, given)

    def let_settle(self) -> None:
        """From now on files count as looked at long after they changed: those whose facts stay the same are not read."""
        believe_facts(self.limits)

    def here(self, options: Options) -> Options:
        return replace(options, on_delete=OnDelete.WITHDRAW, source_files_root=str(self.folder / "sources"))

    @rule()
    def restart(self) -> None:
        if self.store is not None:
            self.store.close()
        self.store = Store.open(self.folder / "state" / "distilld.db", self.folder)
        self.engine = Engine(
            self.folder,
            self.store,
            self.options,
            self.engine_limits(),
        )
        self.engine.committer.recover()

    def engine_limits(self) -> EngineLimits:
        return limits(batch_rows=self.batch_rows, tripwire_rows=self.tripwire_rows, tripwire_share=self.tripwire_share)

    @rule(options=whole_options(), then=then)
    def other_options(self, options: Options, then: bool) -> None:
        self.options = self.here(options)
        assert self.engine is not None
        self.engine.options = self.options
        self.after(then)

    @rule()
    def rebuild(self) -> None:
        """Reading everything anew changes the order of lines at most; afterwards it is that of the full pass."""
        assert self.engine is not None
        self.check_pass()
        self.engine.run_pass(Trigger.REBUILD)
        exports = Exports.read(self.folder)
        for name, content in exports.whole.items():
            assert sorted(content.splitlines(keepends=True)) == sorted(self.before.lines(name))
        self.in_order(exports)
        self.before = exports
        self.check_pass()

    def in_order(self, exports: Exports) -> None:
        """Lines stand in the order of the full pass."""
        expected = self.full_pass(read_lake(self.folder, self.options))
        for dataset in Dataset:
            assert list(exports.exported[dataset]) == list(expected.exported[dataset])
            assert list(map(unstamped_quarantine, exports.quarantined[dataset])) == expected.quarantined[dataset]

    @rule(partition=number, kinds=st.sampled_from(([InputKind.SCORED], [InputKind.EVIDENCE], list(InputKind))),
          other=number, both=joined_rows())  # fmt: skip
    def refuse(self, partition: int, kinds: list[InputKind], other: int, both: tuple[list[Row], list[Row]]) -> None:
        """Files of one partition cannot be read while rows come in elsewhere; nothing forbidden stays for it."""
        assert self.engine is not None
        self.check_pass()
        partition, other = partition % len(PARTITIONS), other % len(PARTITIONS)
        if partition != other:
            self.history.append(InputKind.SCORED, other, both[0])
            self.history.append(InputKind.EVIDENCE, other, both[1])
        with refused(PARTITIONS[partition], *kinds):
            self.engine.run_pass(Trigger.WATCH)
        self.before, self.lake = Exports.read(self.folder), read_lake(self.folder, self.options)
        self.check_pass()

    @rule(partition=number, tree=some_tree, depth=st.integers(1, 3),
          other=number, both=joined_rows())  # fmt: skip
    def refuse_to_list(
        self, partition: int, tree: str, depth: int, other: int, both: tuple[list[Row], list[Row]]
    ) -> None:
        """A folder of one tree, or of both, cannot be listed while rows come in elsewhere; the next look sees all."""
        assert self.engine is not None
        self.check_pass()
        folder = "/".join(PARTITIONS[partition % len(PARTITIONS)].split("/")[:depth])
        if not PARTITIONS[other % len(PARTITIONS)].startswith(f"{folder}/"):
            self.history.append(InputKind.SCORED, other, both[0])
            self.history.append(InputKind.EVIDENCE, other, both[1])
        with unlisted(tree + folder):
            self.engine.run_pass(Trigger.WATCH)
        self.before, self.lake = Exports.read(self.folder), read_lake(self.folder, self.options)
        self.check_pass()

    @rule(partition=number, both=joined_rows(), again=maybe, options=whole_options())
    def lose_sources(self, partition: int, both: tuple[list[Row], list[Row]], again: bool, options: Options) -> None:
        """The root of the path check is away while rows come in, perhaps with other options or in a rebuild.

        No row is called hallucinated because of that.
        """
        assert self.engine is not None
        self.check_pass()
        sources, away = self.folder / "sources", self.folder / "away"
        self.options = self.engine.options = replace(self.here(options), check_source_files=True)
        self.history.append(InputKind.SCORED, partition, both[0])
        self.history.append(InputKind.EVIDENCE, partition, both[1])
        sources.rename(away)
        if again:
            self.engine.run_pass(Trigger.REBUILD)
        else:
            self.engine.run_pass(Trigger.WATCH)
        exports = Exports.read(self.folder)
        for dataset in Dataset:
            assert hallucinated(exports, dataset) <= hallucinated(self.before, dataset)
        away.rename(sources)
        self.before, self.lake = exports, read_lake(self.folder, self.options)
        self.check_pass()

    # what happens to the lake

    @rule(partition=number, both=joined_rows(), torn=torn, then=then)
    def append_both(self, partition: int, both: tuple[list[Row], list[Row]], torn: int | None, then: bool) -> None:
        self.history.append(InputKind.SCORED, partition, both[0], torn)
        self.history.append(InputKind.EVIDENCE, partition, both[1])
        self.after(then)

    @rule(partition=number, rows=some_scored, torn=torn, then=then)
    def append_scored(self, partition: int, rows: list[Row], torn: int | None, then: bool) -> None:
        self.history.append(InputKind.SCORED, partition, rows, torn)
        self.after(then)

    @rule(partition=number, rows=some_evidence, torn=torn, then=then)
    def append_evidence(self, partition: int, rows: list[Row], torn: int | None, then: bool) -> None:
        self.history.append(InputKind.EVIDENCE, partition, rows, torn)
        self.after(then)

    @rule(number=number, then=then)
    def complete(self, number: int, then: bool) -> None:
        self.history.complete(number)
        self.after(then)

    @rule(partition=number, row=scored_rows(), then=then)
    def leave_scored_open(self, partition: int, row: Row, then: bool) -> None:
        self.history.leave_open(InputKind.SCORED, partition, row)
        self.after(then)

    @rule(partition=number, row=evidence_rows(), then=then)
    def leave_evidence_open(self, partition: int, row: Row, then: bool) -> None:
        self.history.leave_open(InputKind.EVIDENCE, partition, row)
        self.after(then)

    @rule(number=number, at=number, rows=some_scored, in_place=maybe, then=then)
    def insert_scored(self, number: int, at: int, rows: list[Row], in_place: bool, then: bool) -> None:
        self.history.insert(InputKind.SCORED, number, at, rows, in_place=in_place)
        self.after(then)

    @rule(number=number, at=number, rows=some_evidence, in_place=maybe, then=then)
    def insert_evidence(self, number: int, at: int, rows: list[Row], in_place: bool, then: bool) -> None:
        self.history.insert(InputKind.EVIDENCE, number, at, rows, in_place=in_place)
        self.after(then)

    @rule(kind=kinds, number=number, seed=number, in_place=maybe, then=then)
    def shuffle(self, kind: InputKind, number: int, seed: int, in_place: bool, then: bool) -> None:
        self.history.shuffle(kind, number, seed, in_place=in_place)
        self.after(then)

    @rule(kind=kinds, number=number, at=number, count=small, in_place=maybe, then=then)
    def drop(self, kind: InputKind, number: int, at: int, count: int, in_place: bool, then: bool) -> None:
        self.history.drop(kind, number, at, count, in_place=in_place)
        self.after(then)

    @rule(kind=kinds, number=number, size=st.integers(0, 2000), then=then)
    def truncate(self, kind: InputKind, number: int, size: int, then: bool) -> None:
        self.history.truncate(kind, number, size)
        self.after(then)

    @rule(kind=kinds, number=number, at=number, count=small, to=number, then=then)
    def duplicate(self, kind: InputKind, number: int, at: int, count: int, to: int, then: bool) -> None:
        self.history.duplicate(kind, number, at, count, to)
        self.after(then)

    @rule(number=number, at=number, row=scored_rows(), in_place=maybe, then=then)
    def change_scored(self, number: int, at: int, row: Row, in_place: bool, then: bool) -> None:
        self.history.change_line(InputKind.SCORED, number, at, row, in_place=in_place)
        self.after(then)

    @rule(number=number, at=number, row=evidence_rows(), in_place=maybe, then=then)
    def change_evidence(self, number: int, at: int, row: Row, in_place: bool, then: bool) -> None:
        self.history.change_line(InputKind.EVIDENCE, number, at, row, in_place=in_place)
        self.after(then)

    @rule(number=number, at=number, then=then)
    def rescore(self, number: int, at: int, then: bool) -> None:
        self.history.rescore(number, at)
        self.after(then)

    @rule(kind=kinds, number=number, then=then)
    def delete(self, kind: InputKind, number: int, then: bool) -> None:
        self.history.delete(kind, number)
        self.after(then)

    @rule(number=number, then=then)
    def bring_back(self, number: int, then: bool) -> None:
        self.history.bring_back(number)
        self.after(then)

    @rule(kind=kinds, number=number, to=number, then=then)
    def move(self, kind: InputKind, number: int, to: int, then: bool) -> None:
        self.history.move(kind, number, to)
        self.after(then)

    @rule(number=number, to=number, then=then)
    def move_both(self, number: int, to: int, then: bool) -> None:
        self.history.move_both(number, to)
        self.after(then)

    @rule(number=number, to=number, at=number, row=scored_rows(), then=then)
    def move_and_correct(self, number: int, to: int, at: int, row: Row, then: bool) -> None:
        """A partition moves with its evidence; then lines of it are corrected under the new name."""
        self.history.move_both(number, to)
        self.after(True)
        self.history.rescore(number, at)
        self.history.change_line(InputKind.SCORED, number + 1, at, row, in_place=True)
        self.after(then)

    @rule(kind=kinds, number=number, first=maybe, then=then)
    def save_atomically(self, kind: InputKind, number: int, first: bool, then: bool) -> None:
        """A file is written under another name and put in place; a pass may see both."""
        self.history.begin_to_save(kind, number)
        self.after(first)
        self.history.save()
        self.after(then)

    @rule(kind=kinds, number=number, other=number, then=then)
    def swap(self, kind: InputKind, number: int, other: int, then: bool) -> None:
        self.history.swap(kind, number, other)
        self.after(then)

    # what must hold

    def after(self, then: bool) -> None:
        """A change is done; a pass may follow."""
        type(self).steps += 1
        if then:
            self.check_pass()

    def full_pass(self, now: Lake) -> oracle.FullPass:
        """What the oracle says of the lake."""
        return oracle.export(now, self.options, missing_files=path_check(self.options))

    def verdicts(self) -> Verdicts:
        """The verdicts in force as of now."""
        return oracle.verdicts_in_force(read_lake(self.folder, self.options), self.options)

    def check_pass(self) -> None:
        """One pass brings the exports to what the oracle says, and a second one finds nothing to do."""
        assert self.engine is not None
        assert self.store is not None
        result = self.engine.run_pass(Trigger.WATCH)
        assert not result.problems
        assert not result.indexed.unsettled
        exports = Exports.read(self.folder)
        now = read_lake(self.folder, self.options)
        expected = self.full_pass(now)
        invariants.equal_the_full_pass(exports, expected)
        invariants.account_for_every_line(exports, expected)
        invariants.have_the_keys_of_their_dataset(exports)
        if len(result.batches) <= 1:
            stayed = {place for place, _ in places_of(self.lake) & places_of(now)}
            stayed |= invariants.places_of_retained(expected)
            invariants.keep_what_did_not_change(self.before, exports, stayed)
            invariants.publish_what_left(self.before, exports)
        receipts = [(each.batch.batch_id, each.content.decode()) for each in Views(self.store).receipts(None)]
        invariants.chain(self.folder, receipts[::-1])
        invariants.add_up(self.store.connection, exports)
        assert not self.engine.work.waiting().anything
        again = self.engine.run_pass(Trigger.RESCAN)
        assert not again.batches
        assert Exports.read(self.folder) == exports
        self.before, self.lake = exports, now
        cls = type(self)
        cls.passes += 1
        cls.rows_present += expected.lines
        cls.rows_judged += sum(each.receipt["work"]["rows_judged"] for each in result.batches)


class LyingHistories(Histories):
    """The same where files change behind their facts, too."""

    @rule(number=number, at=number)
    def lie(self, number: int, at: int) -> None:
        """A file changes behind its facts, which had proven its bytes: the next scrub finds it."""
        assert self.engine is not None
        self.check_pass()
        self.history.rescore(number, at)
        with self.engine.store.transaction():
            for record in self.engine.inputs.files().values():
                path = self.folder / tree_path(record.kind, record.path)
                if path.exists():
                    record.facts, record.unsure_since_ns, record.hashed_at_ns = StatFacts.of(path.stat()), None, 0
                    self.engine.inputs.write_file(record)
        self.check_pass()


class KeepHistories(Histories):
    """The same where files that disappear are mostly kept, the default: what they held is retained."""

    def __init__(self) -> None:
        super().__init__()
        self.absence = Absence()

    def here(self, options: Options) -> Options:
        return replace(super().here(options), on_delete=options.on_delete)

    def in_order(self, exports: Exports) -> None:
        """Lines of retained pairs stand last."""

    def full_pass(self, now: Lake) -> oracle.FullPass:
        return self.absence.full_pass(self.folder, self.options, path_check(self.options))

    def verdicts(self) -> Verdicts:
        look = self.absence.look(self.folder, self.options)
        return oracle.verdicts_in_force(look.now, self.options, look.retained)

    @rule()
    def prune(self) -> None:
        """An operator gives up what is retained."""
        assert self.engine is not None
        self.check_pass()
        self.absence.prune(self.folder)
        self.engine.give_up(None)
        self.engine.run_pass(Trigger.PRUNE)
        self.check_pass()
        assert not self.engine.retained.counts()

    def check_pass(self) -> None:
        super().check_pass()
        report = verify(self.folder, self.folder / "state" / "distilld.db", self.options, deep=True)
        assert not report.changed
        assert not report.faults, [check for check in report.checks if check.faults]


class TripwireHistories(KeepHistories):
    """The same with a tripwire that a few rows pass. What it keeps is known from the store; the oracle says the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.tripwire_rows, self.tripwire_share = 0, 0.0

    def full_pass(self, now: Lake) -> oracle.FullPass:
        return oracle.export(now, self.options, missing_files=path_check(self.options), retained=self.exceptions())

    def verdicts(self) -> Verdicts:
        return oracle.verdicts_in_force(read_lake(self.folder, self.options), self.options, self.exceptions())

    def exceptions(self) -> oracle.Retained:
        """What the store says of rows that no present input gives."""
        assert self.store is not None
        return retained_of(Exceptions(self.store), Exports.read(self.folder).lines)

    @rule(rows=st.sampled_from((0, 0, 1)), share=st.sampled_from((0.0, 0.3)))
    def another_tripwire(self, rows: int, share: float) -> None:
        self.tripwire_rows, self.tripwire_share = rows, share
        self.restart()

    @rule()
    def accept(self) -> None:
        """An operator keeps what the tripwire kept for good."""
        assert self.engine is not None
        self.engine.accept_vanished()
        assert not self.engine.retained.kept_by_tripwire()

    @rule()
    def prune(self) -> None:
        assert self.engine is not None
        self.check_pass()
        self.engine.give_up(None)
        self.engine.run_pass(Trigger.PRUNE)
        self.check_pass()
        assert self.exceptions() == oracle.NOTHING_RETAINED

    @rule()
    def prune_vanished(self) -> None:
        """An operator gives up what the tripwire kept, and nothing else."""
        assert self.engine is not None
        self.check_pass()
        verdicts = set(Exceptions(self.store).verdicts()) if self.store is not None else set()
        self.engine.give_up(None, Only.VANISHED)
        self.engine.run_pass(Trigger.PRUNE)
        self.check_pass()
        assert not self.engine.retained.kept_by_tripwire()
        assert self.store is None or set(Exceptions(self.store).verdicts()) == verdicts

    def check_pass(self) -> None:
        before = self.before
        super().check_pass()
        now = read_lake(self.folder, self.options)
        invariants.let_no_mass_vanish(before, self.before, now, self.tripwire_rows, self.tripwire_share)


def places_of(now: Lake) -> set[tuple[tuple[str, int], bytes]]:
    """Where each scored line stands."""
    return {((path, at), line) for path, partition in now.items() for at, line in enumerate(partition.scored)}


class Done(NamedTuple):
    """How much a run of histories did."""

    steps: int
    passes: int
    rows_judged: int
    rows_present: int


def run(histories: type[Histories], *, steps: int, **more: Any) -> Done:
    """Run histories of ``steps`` steps each."""
    histories.steps = histories.passes = histories.rows_judged = histories.rows_present = 0
    with structlog.testing.capture_logs():
        run_state_machine_as_test(
            histories,
            settings=settings(
                stateful_step_count=steps,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
                **more,
            ),
        )
    done = Done(histories.steps, histories.passes, histories.rows_judged, histories.rows_present)
    print(
        f"{done.steps} steps and {done.passes} passes: {done.rows_judged} rows judged where {done.rows_present} stood"
    )
    return done


def test_exports_equal_the_full_pass_after_every_step() -> None:
    """After every step of many histories the exports equal the oracle's full pass, and few rows were judged for it."""
    done = run(Histories, steps=30, max_examples=70, derandomize=True)
    assert done.passes > 1_000
    assert done.rows_judged < done.rows_present / 3


def test_scrub_finds_files_with_lying_facts_after_every_step() -> None:
    """The same where files change behind facts that had proven their bytes: the next scrub finds them."""
    run(LyingHistories, steps=30, max_examples=10, derandomize=True)


def test_absent_partitions_are_retained_after_every_step() -> None:
    """The same where files that disappear are kept: beside the full pass stands what SPEC 3 freezes, byte for byte."""
    run(KeepHistories, steps=30, max_examples=14, derandomize=True)


def test_tripwire_holds_what_vanishes_after_every_step() -> None:
    """The same where a tripwire of a row or two keeps what vanishes; operators accept it, or give it up."""
    run(TripwireHistories, steps=30, max_examples=14, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("histories", [Histories, LyingHistories, KeepHistories, TripwireHistories])
def test_ten_thousand_steps(histories: type[Histories]) -> None:
    """The same for 10,000 steps, drawn from the seed in HISTORIES_SEED or a new one, which is printed."""
    seed_of_run = int(os.environ.get("HISTORIES_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"HISTORIES_SEED={seed_of_run}")
    steps = 0
    while steps < 10_000:
        # A class of its own each time: hypothesis keeps the seed on it.
        steps += run(seed(seed_of_run + steps)(type("Histories", (histories,), {})), steps=40, max_examples=100).steps
    print(f"{steps} steps in all")
