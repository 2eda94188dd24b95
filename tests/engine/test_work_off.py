"""Working the queues off: it ends, whatever is out of reach."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from distilld.core.model import InputKind, OperatorError, StatFacts, Trigger, UnreadableError
from distilld.engine import batch, index, judge_span, judge_task
from distilld.engine.batch import Batch
from distilld.engine.work_off import QueueWorker
from distilld.lake import scan
from tests.support.builders import jsonl
from tests.support.history_lake import HistoryLake, given, run

A = "2026/01/01/a.jsonl"
B = "2026/01/02/b.jsonl"


@pytest.mark.timeout(60)
def test_pass_ends_though_more_rows_than_a_batch_are_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random history: rows of a file that could not be read filled batch after batch, and the pass never ended."""
    lake = HistoryLake(tmp_path)
    runs = [run(f"r{number}") for number in range(3)]
    lake.both(A, *runs)
    lake.restart(batch_rows=1)
    lake.go()
    lake.evidence(A)
    real = scan.open_partition

    def refusing(root: Path, kind: InputKind, path: str) -> AbstractContextManager[tuple[int, StatFacts]]:
        if kind is InputKind.SCORED:
            raise UnreadableError(path, PermissionError(13, "Permission denied"))
        return real(root, kind, path)

    with monkeypatch.context() as patch:
        patch.setattr(judge_span, "open_partition", refusing)
        lake.go()
    assert lake.ask("SELECT count(*) FROM rejudge_rows") == [(3,)]
    assert lake.exported("rag") == {"r0", "r1", "r2"}
    lake.go()
    assert lake.exported("rag") == set()
    lake.stop()


@pytest.mark.timeout(60)
def test_tasks_out_of_reach_hold_up_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tasks than fit into a batch need a file that cannot be read: those behind them once never had their turn."""
    monkeypatch.setattr(batch, "TASKS_PER_BATCH", 2)
    lake = HistoryLake(tmp_path)
    for partition in (A, B):
        lake.both(
            partition,
            *(run(f"{partition[9]}-{number}", "accepted", f"{partition[9]}-{number}") for number in range(5)),
        )
    lake.go()
    for partition in (A, B):
        rows = [run(f"{partition[9]}-bad-{number}", "rejected", f"{partition[9]}-{number}") for number in range(5)]
        with lake.scored_path(partition).open("ab") as scored, lake.evidence_path(partition).open("ab") as evidence:
            scored.write(jsonl(rows))
            evidence.write(jsonl([given(row["evidence_run_id"]) for row in rows]))
    real = scan.open_partition

    def refusing(root: Path, kind: InputKind, path: str) -> AbstractContextManager[tuple[int, StatFacts]]:
        if path == A:
            raise UnreadableError(path, PermissionError(13, "Permission denied"))
        return real(root, kind, path)

    with monkeypatch.context() as patch:
        patch.setattr(judge_task, "open_partition", refusing)
        assert lake.go().unreadable
    assert lake.exported("preference") == {f"2-{number}>2-bad-{number}" for number in range(5)}
    lake.go()
    assert len(lake.exported("preference")) == 10
    lake.stop()


def test_evidence_of_a_batch_that_was_undone_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record outlived the batch in memory: its rows were quarantined as rows without evidence until a restart."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
    lake = HistoryLake(tmp_path)
    lake.both(A, run("a"))
    real = QueueWorker._add_read

    def add_read(self: QueueWorker, batch: Batch) -> None:
        real(self, batch)
        raise OperatorError("the disk is full", hint="make room")

    with monkeypatch.context() as patch:
        patch.setattr(QueueWorker, "_add_read", add_read)
        with pytest.raises(OperatorError):
            lake.engine.run_pass(Trigger.ONCE)
    lake.engine.committer.recover()
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"a"}
    lake.stop()
