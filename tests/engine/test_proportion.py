"""The work of a pass follows what changed: what waits, what was read before and what is kept cost a batch nothing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import Dataset, Options, Trigger
from distilld.engine.work_off import QueueWorker
from distilld.publish import receipt_files
from distilld.publish.commit import CommittedBatch
from distilld.store.moved import forget_empty_files
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, HistoryLake, believe_facts, given, history_lake, run
from tests.support.query_plans import counted_steps


def pairs_of(count: int) -> list[dict[str, Any]]:
    """Rows that form one pair for each two of them."""
    return [run(f"r{number}", ("accepted", "rejected")[number % 2], f"t{number // 2}") for number in range(count)]


def steps_of_batches(lake: HistoryLake, trigger: Trigger) -> list[int]:
    """How many steps SQLite takes in a pass from the end of each batch to the end of the next."""
    ends = [0]
    commit = QueueWorker._commit
    with counted_steps(lake.engine.store.connection) as done, pytest.MonkeyPatch.context() as patch:

        def noted(queues: QueueWorker, *batch: Any) -> CommittedBatch | None:
            committed = commit(queues, *batch)
            ends.append(done[0])
            return committed

        patch.setattr(QueueWorker, "_commit", noted)
        lake.engine.run_pass(trigger)
    return [end - start for start, end in pairwise(ends)]


def files_go_away(lake: HistoryLake, count: int) -> None:
    """Take partitions in, and find that they are absent."""
    names = [A.replace("alpha", f"alpha{number:03d}") for number in range(count)]
    for name in names:
        lake.both(name, run(name))
    lake.go()
    lake.move_away(*(path for name in names for path in lake.paths(name, "both")))
    lake.go()


def test_pass_does_not_look_at_all_absent_files(tmp_path: Path) -> None:
    """The story: after each batch, all absent files were asked whether anything is left of them."""

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            files_go_away(lake, count)
            with counted_steps(lake.engine.store.connection) as done:
                forget_empty_files(lake.engine.store, names_gone=False)
            return done[0]

    assert steps(200) == steps(20)


@pytest.mark.parametrize("change", ["rebuild", "first pass", "rows that move", "rename", "many partitions"])
def test_batch_does_not_look_at_all_that_waits_behind_it(tmp_path: Path, change: str) -> None:
    """The story: each batch asked the whole queues, all departures and all files for what concerns it.

    A pass of twice as many rows took four times as long, where a batch is small beside it.
    """

    def steps(count: int) -> int:
        with history_lake(tmp_path, batch_rows=20) as lake:
            rows = pairs_of(count)
            if change == "many partitions":
                for at in range(0, count, 10):
                    lake.both(A.replace("alpha", f"alpha{at:03d}"), *rows[at : at + 10])
            else:
                lake.both(A, *rows)
            if change not in ("first pass", "many partitions"):
                lake.go()
            if change == "rows that move":
                lake.both(A, *rows[: count // 2])
                lake.both(B, *rows[count // 2 :])
            elif change == "rename":
                lake.move_away(*lake.paths(A, "both"))
                lake.both(B, *rows)
            batches = steps_of_batches(lake, Trigger.REBUILD if change == "rebuild" else Trigger.ONCE)
            lake.check()
            assert len(lake.exported(Dataset.PREFERENCE)) == count // 2
            return max(batches[1:-1])

    assert steps(480) < 1.05 * steps(120)


def test_batch_does_not_look_at_all_absent_files(tmp_path: Path) -> None:
    """The story: each batch listed all absent files, and asked several times whether the end of one forbids a run.

    Where producers delete what is old, nearly all files that were ever read are absent.
    """

    def steps(count: int) -> int:
        with history_lake(tmp_path, batch_rows=20) as lake:
            files_go_away(lake, count)
            lake.both(B, *pairs_of(100))
            batches = steps_of_batches(lake, Trigger.ONCE)
            assert lake.ask("SELECT count(*) FROM files WHERE state = 'absent'") == [(2 * count,)]
            return max(batches[1:-1])

    assert steps(80) < 1.05 * steps(10)


@pytest.mark.parametrize("what", ["evidence", "rows"])
def test_line_that_is_appended_does_not_cost_the_rows_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The story: evidence that was appended was looked for from each row of the file, and not from the evidence."""
    believe_facts(monkeypatch)

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.both(A, *pairs_of(count), run("late"))
            lake.go()
            path, line = (
                (lake.evidence_path(A), given("late", "another answer"))
                if what == "evidence"
                else (lake.scored_path(A), run("late", "rejected"))
            )
            path.write_bytes(path.read_bytes() + jsonl([line]))
            with counted_steps(lake.engine.store.connection) as done:
                lake.engine.run_pass(Trigger.ONCE)
            lake.check()
            assert [row["source_run_id"] for row in lake.withdrawn("rag")] == ["late"]
            return done[0]

    assert steps(400) < 1.05 * steps(100)


def test_limit_of_a_run_is_looked_for_once(tmp_path: Path) -> None:
    """The story: each batch, and each row that another one displaces, read the rows of its run up to the limit."""

    def steps(count: int) -> int:
        with history_lake(tmp_path, batch_rows=count // 4) as lake:
            rows = [run("one", provenance__sig_hash=f"sig-{number}") for number in range(count)]
            lake.both(B, *rows)
            lake.go()
            lake.both(A, *({**row, "written": "again"} for row in rows))
            with counted_steps(lake.engine.store.connection) as done:
                lake.engine.run_pass(Trigger.ONCE)
            lake.check()
            assert set(lake.quarantined(Dataset.RAG).values()) == {"duplicate_id"}
            return done[0]

    assert steps(400) < 5 * steps(100)


def test_batch_does_not_look_at_all_rows_of_its_run(tmp_path: Path) -> None:
    """The story: where a run has one export in many rows, each batch read all of them to find the limit."""

    def steps(count: int) -> int:
        with history_lake(
            tmp_path, Options(source_files_root=str(tmp_path), max_exports_per_run=5), batch_rows=20
        ) as lake:
            lake.both(A, *(run("one", written=number) for number in range(count)))
            batches = steps_of_batches(lake, Trigger.ONCE)
            lake.check()
            return max(batches[1:-1])

    assert steps(480) < 1.05 * steps(120)


def test_kept_receipts_cost_a_batch_nothing(tmp_path: Path) -> None:
    """The story: at each batch and each pass all kept receipts were counted, to find those that are too many."""

    def steps(count: int) -> int:
        with history_lake(tmp_path, receipts_keep=10_000) as lake:
            lake.both(A, run("first"))
            lake.go()
            connection = lake.engine.store.connection
            numbers = f"[{','.join(map(str, range(2, count + 2)))}]"
            connection.execute(
                "INSERT INTO batches SELECT value, batch_id || value, trigger, recorded_at, 0, 0, 0, 0, 0, 0"
                " FROM batches, json_each(?)",
                (numbers,),
            )
            connection.execute(
                "INSERT INTO receipts SELECT value, receipt, receipt_sha256, 1 FROM receipts, json_each(?)", (numbers,)
            )
            lake.both(B, run("second"))
            with counted_steps(connection) as done:
                lake.engine.run_pass(Trigger.ONCE)
            lake.check()
            return done[0]

    assert steps(200) < 1.02 * steps(20)


def test_folders_of_batches_are_asked_for_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: at each batch the time was read from the name of every kept receipt, to find those of other stages."""
    asked: list[str] = []
    with history_lake(tmp_path) as lake:
        lake.both(A, run("first"))
        monkeypatch.setattr(receipt_files, "stage_of", asked.append)
        lake.go()
        assert receipt_files.stage_heads(lake.root) == {}
        assert (lake.root / "reports").is_dir()
    assert asked == []


def test_verdict_of_an_old_quarantine_is_not_looked_for_in_all_pairs(tmp_path: Path) -> None:
    """The story: where the store was lost, each run of a quarantine was looked for in all pairs of the old exports."""

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.both(A, *pairs_of(count))
            lake.go()
            lake.lose_store()
            with counted_steps(lake.engine.store.connection) as done:
                lake.engine.run_pass(Trigger.ONCE)
            lake.check()
            assert len(lake.exported(Dataset.PREFERENCE)) == count // 2
            return done[0]

    assert steps(400) < 5 * steps(100)


def test_new_rows_beside_many_retained_ones_are_compared_with_those_they_name(tmp_path: Path) -> None:
    """The story: where few rows are present, all retained ones were looked through to find what new rows share."""

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.both(A, *pairs_of(count))
            lake.go()
            lake.move_away(*lake.paths(A, "both"))
            lake.go()
            lake.both(B, run("new"))
            with counted_steps(lake.engine.store.connection) as done:
                lake.engine.run_pass(Trigger.ONCE)
            lake.check()
            return done[0]

    assert steps(400) < 1.05 * steps(100)


def test_absent_verdicts_of_a_run_are_not_each_compared_with_all_its_rows(tmp_path: Path) -> None:
    """The story: for each absent line that forbids a run, all present lines of the run were read."""

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.both(A, *(run("one", "rejected", written=number) for number in range(count)))
            lake.both(B, *(run("one", "rejected", written=-number) for number in range(count)))
            lake.go()
            lake.move_away(*lake.paths(A, "both"))
            with counted_steps(lake.engine.store.connection) as done:
                lake.engine.run_pass(Trigger.ONCE)
            lake.check()
            return done[0]

    assert steps(400) < 5 * steps(100)


def test_rows_of_runs_that_alternate_are_not_read_for_each_line(tmp_path: Path) -> None:
    """The story: a file of two runs, line by line, moved; for each of its lines all rows of a run were read."""

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            rows = [run(("one", "two")[number % 2], written=number) for number in range(count)]
            lake.both(A, *rows)
            lake.go()
            lake.move_away(*lake.paths(A, "both"))
            lake.go()
            lake.both(B, *rows)
            with counted_steps(lake.engine.store.connection) as done:
                lake.engine.run_pass(Trigger.ONCE)
            lake.check()
            return done[0]

    assert steps(400) < 5 * steps(100)
