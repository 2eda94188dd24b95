"""Histories of a lake whose files are read block by block, and whose readings fail between any two blocks."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from distilld.core.model import InputChanged, Trigger, UnreadableError
from distilld.engine import index, index_context
from distilld.inspection.verify import verify
from distilld.lake import lines
from tests.property.test_histories import Histories, TripwireHistories, run
from tests.support.target_state import Exports, read_lake


class Stopped(Exception):
    """The process is killed."""


class PartHistories(Histories):
    """The same where a file may be read in part: then the disk refuses it, it changes, or the process is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: int | None = None
        """How many blocks can be read before the file of the next one fails, and fails again whenever it is read."""
        self.how = "refused"
        self.failed: str | None = None
        self.read = lines._read_block
        self.limits.setattr(lines, "_read_block", self.read_block)

    def read_block(self, descriptor: int, start: int, length: int, shown: str) -> bytes:
        """Read a block unless it is the turn of a failure."""
        if self.blocks is not None:
            self.blocks -= 1
            if self.blocks < 0 and self.failed is None:
                self.failed = shown
                if self.how == "stopped":
                    raise Stopped
            if shown == self.failed and start > 0:
                raise (
                    UnreadableError(shown, OSError(5, "Input/output error"))
                    if self.how == "refused"
                    else InputChanged(shown)
                )
        return self.read(descriptor, start, length, shown)

    @initialize(
        block=st.sampled_from((100, 400)), rows=st.sampled_from((1, 20_000)), whole=st.booleans(), settle=st.booleans()
    )
    def cut(self, block: int, rows: int, whole: bool, settle: bool) -> None:
        self.limits.setattr(lines, "BLOCK_BYTES", block)
        self.limits.setattr(index_context, "ROWS_PER_TRANSACTION", rows)
        if not whole:
            self.limits.setattr(index, "READ_WHOLE_BYTES", 0)
        if settle:
            self.let_settle()

    @rule(blocks=st.integers(0, 40), how=st.sampled_from(("refused", "changed", "stopped")), again=st.booleans())
    def fail(self, blocks: int, how: str, again: bool) -> None:
        """A pass in which a file is read in part."""
        assert self.engine is not None
        self.blocks, self.how, self.failed = blocks, how, None
        try:
            self.engine.run_pass(Trigger.REBUILD if again else Trigger.WATCH)
        except Stopped:
            self.restart()
        finally:
            self.blocks = None
        self.before, self.lake = Exports.read(self.folder), read_lake(self.folder, self.options)

    def check_pass(self) -> None:
        """All can be read again."""
        super().check_pass()
        assert not verify(self.folder, self.folder / "state" / "distilld.db", self.options, deep=True).faults


class KeptPartHistories(PartHistories, TripwireHistories):
    """The same where files that disappear are kept, and what vanishes in masses."""


def test_exports_equal_the_full_pass_wherever_readings_fail() -> None:
    """What was read of a file before it failed is no reason to read the rest of it in another way."""
    run(PartHistories, steps=30, max_examples=10, derandomize=True)


def test_absent_and_vanished_rows_are_retained_wherever_readings_fail() -> None:
    """What is away or gone after a file was read in part is retained as at any other time."""
    run(KeptPartHistories, steps=30, max_examples=10, derandomize=True)
