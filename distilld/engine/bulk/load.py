"""Many new partitions taken in at once: the first full pass, and what a burst brings (docs/design.md, 'Arrivals').

Where all that a scan found is new, and speaks of no run that the store knows, a row need not be put into the store
first and judged from there. A first look at all scored files finds the runs that have several rows. Then each
partition is read once and judged in one go, in worker processes, batch after batch in walk order, while the batch
before is committed; facts, outcomes and lines of a batch become durable in one transaction.

The result is that of :mod:`distilld.engine.index` and :mod:`distilld.engine.judge_rows`, which do everything that is
not of this kind. If a file changes or cannot be read in the middle, they go on where this stopped.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from distilld.core.decisions import ArrivedSpan, Decisions
from distilld.core.json_text import parse_object
from distilld.core.line_facts import CATEGORIES, CODES_BY_TEXT, LINES_END, SHIPPED, MalformedEvidence, sample_key
from distilld.core.model import Dataset, InputChanged, InputKind, OperatorError, Options, UnreadableError
from distilld.core.plan import Look, Plan
from distilld.engine.batch_start import arriving_decisions
from distilld.engine.bulk import judge_partition as arrivals
from distilld.engine.bulk.judge_partition import Arrival, Glance, Order, SpecialRow, TakenIn, glance_at
from distilld.engine.bulk.workers import Crew, Done, InlineCrew, ProcessCrew
from distilld.files.spool import SpooledParts
from distilld.lake.lines import digest_of
from distilld.lake.scan import PartitionFile, Scan
from distilld.publish.commit import CommittedBatch, Committer
from distilld.publish.receipt import BatchIdentity
from distilld.store.bulk import Arrivals
from distilld.store.connection import Store
from distilld.store.inputs import FileRecord, Inputs

LEAST_BYTES: Final = 4 << 20
"""Bytes in all from which this way pays; what is less comes in with everything else, in one batch."""
LARGEST_FILE: Final = 12 << 20
"""Bytes of a file that is held in memory as a whole; one that is larger is streamed by the other way."""
PROCESSES_FROM: Final = 12 << 20
"""Bytes in all from which worker processes pay; fewer are done before a process has started."""
BATCH_BYTES: Final = 32 << 20
ORDER_BYTES: Final = 3 << 20
ORDER_PARTITIONS: Final = 48
BATCHES_AHEAD: Final = 3
SPECIAL_SHARE: Final = 0.2
"""Rows whose runs have several rows are judged again at the end; where they are more than this, it does not pay."""


@dataclass(slots=True)
class _Newcomer:
    """A new partition: its files as the scan saw them, and what the first look saw of the scored one."""

    path: str
    number: int
    scored: PartitionFile | None = None
    evidence: PartitionFile | None = None
    glance: Glance | None = None
    place: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return sum(file.stat.size for file in (self.scored, self.evidence) if file is not None)


@dataclass(slots=True)
class _Batch:
    """A batch on its way: its partitions, the orders that they went into, what came of them."""

    identity: BatchIdentity
    newcomers: list[_Newcomer]
    orders: int = 0
    done: list[Done] = field(default_factory=list)


class Intake:
    """Takes in what one scan found, if it is all new."""

    def __init__(
        self,
        root: Path,
        store: Store,
        inputs: Inputs,
        committer: Committer,
        options: Options,
        *,
        batch_rows: int,
        workers: int,
        spool_folder: Path,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._store = store
        self._inputs = inputs
        self._arrivals = Arrivals(store, inputs)
        self._committer = committer
        self._options = options
        self._batch_rows = batch_rows
        self._wanted_workers = workers
        self._folder = spool_folder
        self._pulse = pulse
        self._newcomers: list[_Newcomer] = []
        self._crew: Crew | None = None
        self._taken: dict[Dataset, set[int]] = {Dataset.RAG: set(), Dataset.SFT: set()}
        """Ids that special rows ship."""
        self.whole_bytes = 0
        self.rows = 0
        self.lines = 0
        """Lines that were taken in, of both trees."""
        self.malformed_evidence: list[MalformedEvidence] = []

    # whether it is of this kind

    def begin(self, scan: Scan, plan: Plan) -> bool:
        """Look at what is planned; whether this is the way to take it in. The caller has seen that nothing waits."""
        if plan.gone or not plan.to_read or any(look is not Look.NEW for _, look in plan.to_read):
            return False
        new = {key for key, _ in plan.to_read}
        found: dict[str, _Newcomer] = {}
        for file in scan.files:
            if (file.kind, file.path) in new:
                newcomer = found.setdefault(file.path, _Newcomer(file.path, len(found)))
                if file.kind is InputKind.SCORED:
                    newcomer.scored = file
                else:
                    newcomer.evidence = file
                if file.stat.size > LARGEST_FILE:
                    return False
        known = self._inputs.files()
        if any((kind, path) in known for path in found for kind in InputKind):
            return False
        self._newcomers = list(found.values())
        self.whole_bytes = sum(newcomer.size for newcomer in self._newcomers)
        if self.whole_bytes < LEAST_BYTES:
            return False
        suits = False
        # Its processes start while this one looks.
        self._crew = self._new_crew()
        try:
            with self._store.transaction():
                suits = self._look()
        except (InputChanged, UnreadableError):
            pass  # the other way tells of it, and takes in what can be read
        finally:
            if not suits:
                self.close()
        return suits

    def close(self) -> None:
        """End the workers, forget the runs; before anything was begun, it does nothing."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None
            self._arrivals.end()

    def _look(self) -> bool:
        """The first look at all scored files: which runs have several rows, and which of their verdicts is in force."""
        self._arrivals.begin()
        rows = 0
        # Of rows without '|' only those of an older export may have an id that is another run's, too.
        all_ids = self._arrivals.has_orphans()
        for newcomer in self._newcomers:
            if newcomer.scored is not None:
                newcomer.glance = self._look_into(newcomer.number, newcomer.path, all_ids=all_ids)
                rows += newcomer.glance.lines
                if newcomer.glance.lines > min(self._batch_rows, LINES_END - 1):
                    return False
            self._pulse()
        return (
            not self._arrivals.knows_any_run()
            and self._arrivals.find_special() <= SPECIAL_SHARE * rows
            and not self._arrivals.knows_any_id()
        )

    def _look_into(self, number: int, path: str, *, all_ids: bool) -> Glance:
        runs: list[tuple[str, int]] = []
        special: list[tuple[int, int | None]] = []
        ids: list[int] = []

        def take(raw: bytes, place: int) -> None:
            value = parse_object(raw).value
            if value is None:
                return
            run_id, category, provenance = value.get("evidence_run_id"), value.get("category"), value.get("provenance")
            if type(run_id) is not str or not run_id:
                return
            code = CODES_BY_TEXT.get(category, 0) if type(category) is str else 0
            runs.append((run_id, place << 3 | code))
            signature = provenance.get("sig_hash") if type(provenance) is dict else None
            signature = signature if type(signature) is str else ""
            shared = "|" in run_id or "|" in signature
            if shared:
                # Where the run ends and the signature begins is not seen in an id: two runs may share one.
                special.append((place, code or None))
            if signature and (shared or all_ids):
                ids.append(sample_key(run_id, signature))

        glance = glance_at(self._root, path, self._options.max_line_bytes, take)
        self._arrivals.add_runs(number, runs)
        if special:
            self._arrivals.add_special(number, special)
        self._arrivals.add_ids(ids)
        return glance

    # batches

    def batches(
        self, commit: Callable[[BatchIdentity, Decisions, int, int, Callable[[], None]], CommittedBatch]
    ) -> Iterator[CommittedBatch]:
        """Take everything in, batch after batch.

        ``commit`` makes a batch durable: its identity, its decisions, how many lines it takes in and how many bytes
        were read for it, and what else belongs into its transaction.

        Raises:
            InputChanged: A file is no longer what the first look saw; what was committed stands.
            UnreadableError: A file cannot be read; what was committed stands.
            OperatorError: A write failed, or a worker died.
        """
        with self._store.transaction():
            places = self._inputs.place_partitions([newcomer.path for newcomer in self._newcomers])
        for newcomer in self._newcomers:
            newcomer.place = places[newcomer.path]
        for record in self._inputs.files().values():
            record.walk_base = places[record.path][1]
        crew = self._crew
        assert crew is not None  # noqa: S101  begin() said that this is the way
        try:
            coming = self._cut()
            ahead: deque[_Batch] = deque()
            last: BatchIdentity | None = None
            more = True
            while more or ahead:
                while more and len(ahead) < BATCHES_AHEAD:
                    newcomers = next(coming, None)
                    if newcomers is None:
                        more = False
                        break
                    last = self._committer.next_identity(last)
                    ahead.append(self._order(crew, last, newcomers))
                if ahead:
                    yield self._finish(crew, ahead.popleft(), commit)
            with self._store.transaction():
                self._arrivals.all_are_in()
        finally:
            self.close()

    def _new_crew(self) -> Crew:
        if self.whole_bytes < PROCESSES_FROM:
            return InlineCrew(self._root, self._options, self._folder)
        # This process commits, and judges where it would wait: of as many as there are cores, it is one.
        workers = self._wanted_workers or max(1, len(os.sched_getaffinity(0)) - 1)
        return ProcessCrew(self._root, self._options, self._folder, workers)

    def _cut(self) -> Iterator[list[_Newcomer]]:
        """The newcomers in walk order, as many as fit into one batch at a time."""
        batch: list[_Newcomer] = []
        rows = size = 0
        for newcomer in self._newcomers:
            lines = newcomer.glance.lines if newcomer.glance else 0
            if batch and (rows + lines > self._batch_rows or size + newcomer.size > BATCH_BYTES):
                yield batch
                batch, rows, size = [], 0, 0
            batch.append(newcomer)
            rows, size = rows + lines, size + newcomer.size
        if batch:
            yield batch

    def _order(self, crew: Crew, identity: BatchIdentity, newcomers: list[_Newcomer]) -> _Batch:
        batch = _Batch(identity, newcomers)
        order: list[Arrival] = []
        size = 0

        def give() -> None:
            crew.give(Order(tuple(order), size, identity.recorded_at, self._options.max_line_bytes))
            batch.orders += 1
            order.clear()

        for newcomer in newcomers:
            if order and (size + newcomer.size > ORDER_BYTES or len(order) >= ORDER_PARTITIONS):
                give()
                size = 0
            specials = self._arrivals.specials(newcomer.number) if newcomer.glance is not None else {}
            base = newcomer.place[1]
            order.append(Arrival(newcomer.path, base, newcomer.glance, newcomer.evidence is not None, specials))
            size += newcomer.size
        give()
        return batch

    def _finish(
        self,
        crew: Crew,
        batch: _Batch,
        commit: Callable[[BatchIdentity, Decisions, int, int, Callable[[], None]], CommittedBatch],
    ) -> CommittedBatch:
        """Collect what came of a batch and commit it."""
        lines_of = {dataset: (SpooledParts(self._folder), SpooledParts(self._folder)) for dataset in Dataset}
        decisions = arriving_decisions(batch.identity.sequence, batch.identity.recorded_at, lines_of)
        try:
            for _ in range(batch.orders):
                batch.done.append(crew.collect())
                self._pulse()
            taken = [(each, done.file.fileno()) for done in batch.done for each in done.taken]
            specials = [self._gather(each, descriptor, decisions, lines_of) for each, descriptor in taken]
            lines = size = 0
            for newcomer, (each, _) in zip(batch.newcomers, taken, strict=True):
                for reading in (each.scored, each.evidence):
                    size += reading.bytes_read if reading else 0
                # The first look read the scored file, too.
                size += newcomer.glance.size if newcomer.glance else 0
                lines += sum(reading.lines for reading in (each.scored, each.evidence) if reading)
                if each.scored is not None:
                    base = newcomer.place[1]
                    decisions.arrived_spans.append(ArrivedSpan(newcomer.number, base, base + each.scored.lines))
                if each.evidence is not None and each.evidence.first_malformed is not None:
                    self.malformed_evidence.append(
                        MalformedEvidence(each.path, each.evidence.malformed, each.evidence.first_malformed)
                    )
                decisions.arrived_rows += each.rows

            def record() -> None:
                for newcomer, (each, descriptor), special in zip(batch.newcomers, taken, specials, strict=True):
                    self._record(newcomer, each, descriptor, special, batch.identity.sequence)
                self._arrivals.queue_again((row[0] for special in specials for row in special), self._options)

            committed = commit(batch.identity, decisions, lines, size, record)
        except BaseException:
            self._inputs.forget_files()
            raise
        finally:
            decisions.close()
            for done in batch.done:
                done.file.close()
        self.rows += decisions.arrived_rows
        self.lines += lines
        return committed

    def _gather(
        self,
        taken: TakenIn,
        descriptor: int,
        decisions: Decisions,
        lines_of: Mapping[Dataset, tuple[SpooledParts, SpooledParts]],
    ) -> list[tuple[Any, ...]]:
        """Put a partition's lines into the decisions; returns its special rows as the store keeps them."""
        streams = {
            arrivals.RAG_SHIPPED: lines_of[Dataset.RAG][0],
            arrivals.RAG_HELD: lines_of[Dataset.RAG][1],
            arrivals.SFT_SHIPPED: lines_of[Dataset.SFT][0],
            arrivals.SFT_HELD: lines_of[Dataset.SFT][1],
        }
        special: list[tuple[Any, ...]] = []
        for kind, offset, length, rows in taken.segments:
            if kind == arrivals.SPECIAL:
                special.append(self._settle(taken.specials[offset], decisions))
            elif kind in streams:
                streams[kind].add_part(descriptor, offset, length, rows)
        for dataset, by_code in zip(_DATASETS, taken.outcomes, strict=True):
            for code, rows in enumerate(by_code):
                decisions.totals[dataset, "live", code] += rows
        for code, category in CATEGORIES.items():
            decisions.by_category[category] += taken.categories[code]
        return special

    def _settle(self, row: SpecialRow, decisions: Decisions) -> tuple[Any, ...]:
        """Decide on a special row, now that all rows before it are decided on: whether its ids are taken."""
        columns: list[Any] = [*row.facts, row.found]
        key: int | None = row.facts[-1]
        for dataset, free, taken in zip(_DATASETS, row.free, row.taken, strict=True):
            holders = self._taken[dataset]
            judged = taken if key in holders else free
            change = decisions.changes[dataset]
            if judged.code == SHIPPED:
                assert key is not None  # noqa: S101  what ships has an id
                holders.add(key)
                change.shipped.add(judged.line)
            else:
                change.held.add(judged.line)
            decisions.totals[dataset, "live", judged.code] += 1
            columns += (judged.code, digest_of(judged.line))
        return tuple(columns)

    def _record(
        self, newcomer: _Newcomer, taken: TakenIn, descriptor: int, special: list[tuple[Any, ...]], batch: int
    ) -> None:
        """Put a partition's facts and outcomes into the store; inside the batch's transaction."""
        partition_id, base = newcomer.place
        for kind, offset, length, _ in taken.segments:
            if kind == arrivals.ROWS:
                self._arrivals.add_rows(_read(descriptor, length, offset), batch)
            elif kind == arrivals.EVIDENCE:
                self._arrivals.add_evidence(partition_id, _read(descriptor, length, offset))
        self._arrivals.insert_rows(special, batch)
        for tree, reading, rows in (
            (InputKind.EVIDENCE, taken.evidence, 0),
            (InputKind.SCORED, taken.scored, taken.rows),
        ):
            if reading is None:
                continue
            facts = reading.facts
            if tree is InputKind.SCORED and newcomer.glance and facts.size != newcomer.glance.size:
                # It grew in between, and what it gained was not read: it does not count as unchanged.
                facts = facts._replace(looked_ns=0, size=newcomer.glance.size)
            self._arrivals.close_partition(
                FileRecord(
                    partition_id, base, newcomer.path, tree, "present", facts, reading.consumed, reading.sha256,
                    reading.lines, reading.malformed, reading.tail, reading.tail_bytes, reading.tail_digest,
                ),
                rows,
            )  # fmt: skip


_DATASETS: Final = (Dataset.RAG, Dataset.SFT)


def _read(descriptor: int, length: int, offset: int) -> bytes:
    content = os.pread(descriptor, length, offset)
    if len(content) != length:
        raise OperatorError("the facts of a batch are missing", hint="make room; the next run goes on")
    return content
