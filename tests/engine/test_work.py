"""The work that passes do: what is read, what is judged, how often the store is asked. A cliff turns one of these red."""

from __future__ import annotations

import os
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import EXPORT_PATHS, Dataset, Options, Trigger
from distilld.engine import index, pair_jobs, pool, span_queue
from distilld.engine.pass_result import PassResult
from distilld.publish.commit import CommittedBatch
from tests.support.history_lake import A, HistoryLake, believe_facts, history_lake, run
from tests.support.lake_by_formula import append_bench_rows, partition_of, write_bench_lake
from tests.support.query_plans import counted_steps

ROWS = 1200
PARTITIONS = 12


def lake_of(root: Path, *, rich: bool, rows: int = ROWS, **limits: object) -> tuple[HistoryLake, int]:
    """A lake by formula, and the bytes of its inputs."""
    lake = HistoryLake(root, Options(source_files_root=str(root)), **limits)
    return lake, write_bench_lake(root, rows=rows, partitions=PARTITIONS, text_bytes=600, rich=rich)


def with_options(lake: HistoryLake, **options: bool) -> PassResult:
    """One pass with other options."""
    lake.engine.options = Options(source_files_root=str(lake.root), **options)  # type: ignore[arg-type]
    return lake.engine.run_pass(Trigger.ONCE)


@pytest.mark.parametrize("rich", [False, True])
def test_bytes_that_a_first_pass_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rich: bool) -> None:
    """At most 1.3 times the input for the rows, and once more the spans of the pairs."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
    lake, size = lake_of(tmp_path, rich=rich)
    result = lake.engine.run_pass(Trigger.ONCE)
    sides = len(lake.ask("SELECT DISTINCT chosen_run_id FROM pairs UNION SELECT DISTINCT rejected_run_id FROM pairs"))
    assert result.rows_judged == ROWS
    assert sides > (ROWS / 3 if rich else ROWS / 30)
    # Equal texts but for their numbers: a side's share of the lake is that of a row.
    assert result.bytes_read <= 1.3 * size + 1.05 * size * sides / ROWS
    lake.stop()


def test_bytes_of_a_large_file_and_of_known_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence above the limit is read twice, its own bytes alone; known runs have their rows judged, not their files."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
    # As if the files had been written long ago: one that was looked at a moment later is looked at again.
    believe_facts(monkeypatch)
    lake, size = lake_of(tmp_path, rich=False)
    path = tmp_path / "data/evidence" / partition_of(3)
    with path.open("ab") as file:
        file.write(b" " * size + b"\n")
    monkeypatch.setattr(index, "LEAVE_BYTES", size)
    monkeypatch.setattr(span_queue, "JOB_BYTES", size // 50)
    first = lake.engine.run_pass(Trigger.ONCE)
    assert first.rows_judged == ROWS
    assert first.bytes_read <= 1.5 * size + path.stat().st_size
    known = append_bench_rows(tmp_path, partition_index=PARTITIONS, first_row=90, rows=10, text_bytes=600)
    again = lake.engine.run_pass(Trigger.ONCE)
    assert 10 <= again.rows_judged <= 20
    assert again.bytes_read <= size / PARTITIONS + 3 * known
    lake.stop()


def test_rows_that_a_rebuild_and_other_options_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row once; the receipt of a rebuild states them."""
    believe_facts(monkeypatch)
    lake, size = lake_of(tmp_path, rich=True)
    lake.go()
    # An earlier partition that comes later stands at the end of the exports: the rebuild has an order to mend.
    lake.both("2019/01/01/first.jsonl", run("first"))
    lake.go()
    result = lake.engine.run_pass(Trigger.REBUILD)
    assert result.rows_judged == ROWS + 1
    assert sum(batch.receipt["work"]["rows_judged"] for batch in result.batches) == ROWS + 1
    assert result.bytes_read <= 3 * size
    assert not lake.engine.run_pass(Trigger.REBUILD).batches
    for options in ({"include_partial": True}, {}):
        result = with_options(lake, **options)
        assert result.rows_judged == ROWS + 1
        assert result.bytes_read <= 2 * size
    lake.stop()


@pytest.mark.parametrize("rich", [False, True])
def test_statements_do_not_grow_with_the_rows(tmp_path: Path, rich: bool) -> None:
    """A batch asks the store the same number of questions, whether it judges some rows or five times as many."""
    asked = []
    for rows in (240, ROWS):
        lake, _ = lake_of(tmp_path / str(rows), rich=rich, rows=rows)
        statements: list[str] = []
        lake.engine.store.connection.set_trace_callback(statements.append)
        lake.engine.run_pass(Trigger.ONCE)
        lake.engine.store.connection.set_trace_callback(None)
        asked.append(sum(statement.lstrip().startswith(("SELECT", "WITH")) for statement in statements))
        lake.stop()
    assert asked[1] <= asked[0] + 20


def test_statements_are_prepared_only_once(tmp_path: Path) -> None:
    """The story: each pass made temporary tables and dropped them, after which SQLite prepares every statement again.

    That took most of the time of a small pass.
    """
    with history_lake(tmp_path) as lake:
        forms = []
        for number in range(4):
            lake.both(A, run("a1"), run("a2", "rejected"), run(f"b{number}"))
            lake.go()
            forms += lake.ask("PRAGMA temp.schema_version")
    assert forms[1] == forms[2] == forms[3]


def test_open_files_do_not_grow_with_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of a batch share a file: a batch of many small ones once ran out of descriptors at each try."""
    monkeypatch.setattr(span_queue, "JOB_SPANS", 1)
    monkeypatch.setattr(pair_jobs, "TASKS_A_JOB", 1)
    most: dict[int, int] = {}
    for partitions in (2, 40):
        lake = HistoryLake(tmp_path / str(partitions))
        for number in range(partitions):
            pair = run(f"a{number}", task_id=f"t{number}"), run(f"b{number}", "rejected", task_id=f"t{number}")
            lake.both(f"2026/01/01/{number:02}.jsonl", *pair)
        committer = lake.engine.committer
        commit = committer.commit

        def counting(*given: Any, partitions: int = partitions, commit: Any = commit) -> CommittedBatch:
            most[partitions] = max(most.get(partitions, 0), len(os.listdir("/proc/self/fd")))
            committed: CommittedBatch = commit(*given)
            return committed

        monkeypatch.setattr(committer, "commit", counting)
        lake.go()
        assert len(lake.exported(Dataset.PREFERENCE)) == partitions
        lake.stop()
    assert most[40] == most[2]


def test_lost_lines_cost_what_is_written_again(tmp_path: Path) -> None:
    """Each batch once wrote anew the list of all lines that were still missing."""
    statements = []
    for rows in (5, 20):
        lake = HistoryLake(tmp_path / str(rows), batch_rows=1)
        lake.both("2026/01/01/a.jsonl", *(run(f"r{number}") for number in range(rows)))
        lake.go()
        before = lake.lines("rag")
        (lake.root / EXPORT_PATHS["rag"]).unlink()
        said: list[str] = []
        lake.engine.store.connection.set_trace_callback(said.append)
        lake.go()
        lake.engine.store.connection.set_trace_callback(None)
        assert lake.lines("rag") == before
        assert lake.ask("SELECT count(*) FROM missing_lines") == [(0,)]
        changes = [each for each in said if "missing_lines" in each and not each.startswith("SELECT")]
        statements.append(len(changes))
        assert sum(each.startswith("SELECT name, digest") for each in said) <= 3
        lake.stop()
    assert statements[1] <= statements[0] + 2 * 15


@pytest.mark.parametrize("change", ["renamed", "renamed without evidence", "one half moved"])
def test_a_rename_of_one_run_with_many_rows_asks_no_more_for_each_of_them(tmp_path: Path, change: str) -> None:
    """Four times the rows are four times the work of the store.

    The story: each row was compared with all others of its run, in three places, and the verdict in force was looked
    for once more for each: 3,000 rows took seconds, and ten times as many would have taken minutes. The tripwire did
    the same with rows whose evidence did not move with them.
    """
    steps = []
    for rows in (100, 400):
        lake = HistoryLake(tmp_path / str(rows), Options(source_files_root=str(tmp_path)))
        lines = [run("one", provenance__sig_hash=f"sig-{row}") for row in range(rows)]
        lake.both("2020/01/01/one.jsonl", *lines)
        lake.engine.run_pass(Trigger.ONCE)
        if change == "one half moved":
            lake.scored("2020/01/01/one.jsonl", *lines[: rows // 2])
            lake.scored("2020/01/01/two.jsonl", *lines[rows // 2 :])
        else:
            lake.both("2020/01/01/two.jsonl", *lines)
            if change == "renamed without evidence":
                lake.evidence_path("2020/01/01/two.jsonl").unlink()
            for path in lake.paths("2020/01/01/one.jsonl", "both"):
                path.unlink()
        with counted_steps(lake.engine.store.connection) as done:
            lake.engine.run_pass(Trigger.ONCE)
        steps += done
        assert lake.ask("SELECT count(*) FROM retained_rows") == [(0,)]
        lake.stop()
    assert steps[1] <= 6 * steps[0]


def test_workers_take_part_wherever_much_is_to_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a first pass, a rebuild, under other options, beside known runs, and for pairs."""
    monkeypatch.setattr(pool, "PROCESSES_FROM", 0)
    lake, _ = lake_of(tmp_path, rich=True, workers=1)
    given: list[str] = []
    submit = ProcessPoolExecutor.submit

    def noted(self: ProcessPoolExecutor, *arguments: object) -> object:
        given.extend(type(job).__name__ for each in arguments if isinstance(each, list) for job in each)
        future: Future[object] = submit(self, *arguments)  # type: ignore[arg-type]
        wait([future])  # a worker that is slow would leave jobs to this process
        return future

    monkeypatch.setattr(ProcessPoolExecutor, "submit", noted)
    for work in (
        lake.engine.run_pass,
        lambda _: lake.engine.run_pass(Trigger.REBUILD),
        lambda _: with_options(lake, include_partial=True),
    ):
        given.clear()
        work(Trigger.ONCE)
        assert {"SpanJob", "TaskJob"} <= set(given)
    append_bench_rows(tmp_path, partition_index=PARTITIONS, first_row=90, rows=40, text_bytes=600)
    given.clear()
    lake.engine.run_pass(Trigger.ONCE)
    assert "SpanJob" in given
    lake.stop()
