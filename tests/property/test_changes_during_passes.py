"""Whatever happens to a lake while a pass is under way, the exports come to what one full pass over it gives (SPEC 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import rule

from distilld.config.settings import EngineLimits
from distilld.core.line_facts import LINES_END
from distilld.core.model import InputKind, Trigger
from distilld.engine import work_off
from distilld.engine.ingest import Ingest
from distilld.engine.work_off import QueueWorker
from distilld.inspection import oracle
from distilld.inspection.oracle_verdicts import Verdicts
from distilld.inspection.verify import verify
from distilld.lake import scan as scanning
from distilld.publish.commit import CommittedBatch
from distilld.store import walk_order
from tests.property.model import History, Row, joined_rows
from tests.property.test_histories import Histories, run, then
from tests.support.target_state import Exports, read_lake


class Later:
    """Takes down what is to happen to a lake."""

    def __init__(self, history: History, changes: list[Callable[[], None]]) -> None:
        self._history = history
        self._changes = changes

    def __getattr__(self, name: str) -> Callable[..., None]:
        method = getattr(self._history, name)
        return lambda *args, **named: self._changes.append(partial(method, *args, **named))


class ChangingHistories(Histories):
    """One change after each batch of a pass, which looks at its inputs again then; places of partitions are scarce."""

    def __init__(self) -> None:
        super().__init__()
        self.next = self.looks = (0, 0)
        """By bits, for each look that follows: whether files are still being written; whether some pass by."""
        self.seen = 0
        self.changes: list[Callable[[], None]] = []
        self.real = self.history
        self.limits.setattr(work_off, "_next_look", lambda *_: 0)
        self.limits.setattr(walk_order, "BASE_STEP", 2 * LINES_END)
        self.limits.setattr(QueueWorker, "run_batch", self.changing(QueueWorker.run_batch))
        self.limits.setattr(scanning, "scan", self.passing(scanning.scan))
        self.limits.setattr(Ingest, "_is_still", lambda *_: not self.looks[0] & 1)

    def changing(
        self, real: Callable[[QueueWorker], CommittedBatch | None]
    ) -> Callable[[QueueWorker], CommittedBatch | None]:
        """A batch, and then a change that was taken down."""

        def run_batch(queues: QueueWorker) -> CommittedBatch | None:
            committed = real(queues)
            if self.changes:
                self.changes.pop(0)()
            self.looks = self.looks[0] >> 1, self.looks[1] >> 1
            return committed

        return run_batch

    def passing(self, real: Callable[[Path], scanning.Scan]) -> Callable[[Path], scanning.Scan]:
        """A scan that may see two files which are gone when they are to be opened."""

        def scan(root: Path) -> scanning.Scan:
            if not self.looks[1] & 1:
                return real(root)
            self.seen += 1
            flashes = [root / f"data/scored-runs/2026/01/01/a-{self.seen}-{name}.jsonl" for name in "xy"]
            for path in flashes:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b'{"evidence_run_id":"a","category":"accepted"}\n')
            found = real(root)
            for path in flashes:
                path.unlink()
            return found

        return scan

    @rule(moving=st.integers(0, 15), flashes=st.integers(0, 15))
    def weather(self, moving: int, flashes: int) -> None:
        """What the looks of the passes that follow come upon."""
        self.next = moving, flashes

    @rule(files=st.lists(joined_rows(), min_size=4, max_size=5), then=then)
    def append_everywhere(self, files: list[tuple[list[Row], list[Row]]], then: bool) -> None:
        """Rows come into each partition: the next pass takes several batches."""
        for partition, (scored, given) in enumerate(files):
            self.history.append(InputKind.SCORED, partition, scored)
            self.history.append(InputKind.EVIDENCE, partition, given)
        self.after(then)

    def engine_limits(self) -> EngineLimits:
        """Small batches, so that there is a middle."""
        return super().engine_limits()._replace(batch_rows=min(self.batch_rows, 3))

    def after(self, then: bool) -> None:
        """A change is done; what follows it happens while the next pass is under way."""
        self.history = Later(self.real, self.changes)  # type: ignore[assignment]
        super().after(then and len(self.changes) > 1)

    def verdicts(self) -> Verdicts:
        """None while files are still being written: what they say does not count yet."""
        return oracle.verdicts_in_force({}, self.options) if self.looks[0] & 1 else super().verdicts()

    def check_pass(self) -> None:
        """The pass in whose middle the lake changes, and one over what it is then."""
        self.history = self.real
        if self.changes:
            assert self.engine is not None
            self.looks = self.next
            self.engine.run_pass(Trigger.WATCH)
            self.looks = (0, 0)
            while self.changes:
                self.changes.pop(0)()
            self.before, self.lake = Exports.read(self.folder), read_lake(self.folder, self.options)
        super().check_pass()
        assert not verify(self.folder, self.folder / "state" / "distilld.db", self.options, deep=True).faults


def test_exports_equal_the_full_pass_whatever_changes_during_a_pass() -> None:
    """Jobs that were made ahead of a change are made again; what they came to is never committed."""
    run(ChangingHistories, steps=30, max_examples=20, derandomize=True)
