"""A long pass looks at its inputs again between batches: what is rejected meanwhile leaves with the next batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distilld.core.model import Dataset, Trigger
from distilld.engine import index, looking
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from tests.support.history_lake import A, B, C, HistoryLake, run

pytestmark = pytest.mark.usefixtures("look_after_each_batch")


@pytest.fixture
def look_after_each_batch(one_look_a_pass: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the inputs after each batch."""
    monkeypatch.setattr(looking, "LOOK_AGAIN_NS", -(1 << 62))


def pass_with(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> PassResult:
    """One pass; something happens once its first batch is committed."""
    real, left = Engine.run_batch, [change]

    def run_batch(self: Engine, *args: object, **kwargs: object) -> object:
        committed = real(self, *args, **kwargs)  # type: ignore[arg-type]
        if left:
            left.pop()()
        return committed

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run_batch", run_batch)
        return lake.engine.run_pass(Trigger.ONCE)


def withdrawn(result: PassResult) -> list[int]:
    """How many rows each batch withdrew from SFT."""
    return [batch.removed.get("sft", 0) for batch in result.batches]


@pytest.mark.parametrize("unread", [0, 1 << 62])
def test_rejection_in_the_middle_of_a_pass_takes_its_row_out_with_the_next_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: int
) -> None:
    """It used to wait until all rows were judged, minutes later in a large lake."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    lake = HistoryLake(tmp_path, batch_rows=2)
    lake.both(A, run("one"), run("two"))
    lake.both(B, *(run(f"b{number}") for number in range(2)))
    lake.both(C, *(run(f"c{number}") for number in range(2)))
    result = pass_with(lake, monkeypatch, lambda: lake.both("2026/05/01/last.jsonl", run("one", "rejected")))
    taken = withdrawn(result)
    assert len(taken) >= 3
    assert taken[:2] == [0, 1]
    assert lake.exported(Dataset.SFT) == {"two", "b0", "b1", "c0", "c1"}
    lake.stop()


def test_partition_that_changes_before_its_turn_is_judged_as_it_is_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evidence was left unread, its scored file is another one: both are taken in anew, and nothing is lost."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
    lake = HistoryLake(tmp_path, batch_rows=2)
    lake.both(A, run("one"), run("two"))
    lake.both(B, run("three"), run("four"))
    pass_with(lake, monkeypatch, lambda: lake.both(B, run("three", "rejected"), run("four"), run("five")))
    assert lake.exported(Dataset.SFT) == {"one", "two", "four", "five"}
    lake.stop()


def test_evidence_that_is_gone_before_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence that was left unread and then removed is no evidence: its rows are held, and wait for it."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
    lake = HistoryLake(tmp_path, batch_rows=2)
    lake.both(A, run("one"), run("two"))
    lake.both(B, run("three"), run("four"))
    pass_with(lake, monkeypatch, lake.evidence_path(B).unlink)
    assert lake.exported(Dataset.SFT) == {"one", "two"}
    lake.both(B, run("three"), run("four"))
    lake.go()
    assert lake.exported(Dataset.SFT) == {"one", "two", "three", "four"}
    lake.stop()
