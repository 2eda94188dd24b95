"""Histories of a lake in which nearly all evidence files are large: they are read in turns while the lake changes."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from distilld.core.model import Trigger
from distilld.engine import index_turns
from distilld.inspection.verify import verify
from distilld.lake import lines
from tests.property.test_histories import Histories, TripwireHistories, run
from tests.support.target_state import Exports, read_lake

MOST_TURNS = 400


class TurnHistories(Histories):
    """The same where a pass reads a few hundred bytes of an evidence file at most, and changes come between two passes."""

    @initialize(
        turn=st.sampled_from((1, 300, 900)),
        block=st.sampled_from((100, 400)),
        with_rows=st.sampled_from((1, 600, 1 << 30)),
    )
    def cut(self, turn: int, block: int, with_rows: int) -> None:
        self.limits.setattr(index_turns, "TURN_BYTES", turn)
        self.limits.setattr(index_turns, "WITH_ROWS_BYTES", with_rows)
        self.limits.setattr(lines, "BLOCK_BYTES", block)
        self.let_settle()

    @rule(passes=st.integers(1, 4))
    def turn(self, passes: int) -> None:
        """Some turns, and not yet the last one."""
        assert self.engine is not None
        for _ in range(passes):
            self.engine.run_pass(Trigger.WATCH)
        self.note()

    def note(self) -> None:
        """Take what stands there as what the last pass left."""
        self.before, self.lake = Exports.read(self.folder), read_lake(self.folder, self.options)

    def check_pass(self) -> None:
        """The turns of all large files, and then one pass that finds nothing of them left."""
        assert self.engine is not None
        for _ in range(MOST_TURNS):
            if not self.engine.run_pass(Trigger.WATCH).unfinished:
                break
        else:
            raise AssertionError("a turn is always due")
        self.note()
        super().check_pass()
        assert not verify(self.folder, self.folder / "state" / "distilld.db", self.options, deep=True).faults


class KeptTurnHistories(TurnHistories, TripwireHistories):
    """The same where files that disappear are kept, and what vanishes in masses."""


def test_exports_equal_the_full_pass_however_large_files_are_cut() -> None:
    """What is read of a file counts once all of it was read, whatever changes meanwhile."""
    run(TurnHistories, steps=30, max_examples=14, derandomize=True)


def test_absent_and_vanished_rows_are_retained_however_large_files_are_cut() -> None:
    """What is away or gone while a file is half read is retained as at any other time."""
    run(KeptTurnHistories, steps=30, max_examples=7, derandomize=True)
