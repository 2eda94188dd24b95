"""A long pass looks at its inputs again between batches: what is rejected meanwhile leaves with the next batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distilld.core.line_facts import LINES_END
from distilld.core.model import DATASET_PATHS, Dataset, Trigger
from distilld.engine import index
from distilld.engine.ingest import Ingest
from distilld.engine.pass_result import PassResult
from distilld.engine.work_off import QueueWorker
from distilld.inspection.verify import verify
from distilld.lake import lines
from distilld.lake import scan as scanning
from distilld.store import walk_order
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, run

pytestmark = pytest.mark.usefixtures("look_after_each_batch")


def pass_with(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> PassResult:
    """One pass; something happens once its first batch is committed."""
    real, left = QueueWorker.run_batch, [change]

    def run_batch(self: QueueWorker) -> object:
        committed = real(self)
        if left:
            left.pop()()
        return committed

    with monkeypatch.context() as patch:
        patch.setattr(QueueWorker, "run_batch", run_batch)
        return lake.engine.run_pass(Trigger.ONCE)


def withdrawn(result: PassResult) -> list[int]:
    """How many rows each batch withdrew from SFT."""
    return [
        sum(each["withdrawn"] for each in batch.receipt["outputs"] if each["path"] == DATASET_PATHS[Dataset.SFT])
        for batch in result.batches
    ]


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
    """Its evidence was left unread, its scored file is another one: both are read again, and nothing is lost."""
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


def test_evidence_that_is_touched_before_its_turn_is_read_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each such file had all rows of its batch judged again: a chown of the tree made a pass forty times as long."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
    lake = HistoryLake(tmp_path, batch_rows=20)
    names = [f"2026/05/{day:02}/a.jsonl" for day in range(1, 11)]
    for name in names:
        lake.both(name, run(f"a{name[8:10]}"))
    real_trip, real_batches, made = Ingest._trip, QueueWorker._new_batches, []

    def trip(self: Ingest, *given: Any) -> None:
        real_trip(self, *given)
        for name in names:
            os.utime(lake.evidence_path(name), (1, 1))

    def new_batches(self: QueueWorker, *args: object, **kwargs: object) -> object:
        made.append(True)
        return real_batches(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Ingest, "_trip", trip)
        patch.setattr(QueueWorker, "_new_batches", new_batches)
        lake.engine.run_pass(Trigger.ONCE)
    assert len(made) == 2
    assert lake.exported(Dataset.RAG) == {f"a{day:02}" for day in range(1, 11)}
    assert is_exact(lake)
    lake.stop()


def is_exact(lake: HistoryLake) -> bool:
    """Whether a full pass over the same inputs comes to the same."""
    return not verify(lake.root, lake.state, lake.options, deep=True).faults


def test_rejection_in_a_rest_that_settles_during_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It adds no line, but a verdict: jobs that were made ahead took the run for one that nothing forbids."""
    lake = HistoryLake(tmp_path, batch_rows=2)
    lake.both(A, run("one"), run("two"))
    lake.go()
    lake.both(B, *(run(f"b{number}") for number in range(8)))
    path = lake.scored_path(C)
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"evidence_run_id":"one","category":"rejected","reasons":["no')
    monkeypatch.setattr(Ingest, "_is_still", lambda *_: False)
    pass_with(lake, monkeypatch, lambda: monkeypatch.setattr(Ingest, "_is_still", lambda *_: True))
    assert lake.exported(Dataset.SFT) == {"two", *(f"b{number}" for number in range(8))}
    assert is_exact(lake)
    lake.stop()


def test_partitions_that_are_gone_before_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They got places, and all places moved: the rows of the jobs that were made ahead were elsewhere by then."""
    monkeypatch.setattr(walk_order, "BASE_STEP", 2 * LINES_END)
    lake = HistoryLake(tmp_path, batch_rows=2)
    lake.both(A, run("one"))
    lake.both(C, run("two"))
    lake.go()
    lake.both(A, *(run(name) for name in ("one", "a1", "a2", "a3", "a4")))
    lake.both(C, *(run(name) for name in ("two", "c1", "c2", "c3", "c4")))
    passing = [lake.scored_path(B.replace("beta", name)) for name in ("b1", "b2")]
    real = scanning.scan

    def scan(root: Path) -> scanning.Scan:
        found = real(root)
        for path in passing:
            path.unlink(missing_ok=True)
        return found

    def come() -> None:
        for path in passing:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jsonl([run(path.stem)]))
        monkeypatch.setattr(scanning, "scan", scan)

    pass_with(lake, monkeypatch, come)
    assert lake.ask("SELECT value FROM counters WHERE name = 'walk_relabels'") == [(1,)]
    assert lake.exported(Dataset.SFT) == {"one", "two", *(f"{file}{number}" for file in "ac" for number in range(1, 5))}
    assert lake.ask("SELECT count(*) FROM scored_rows WHERE sft IS NULL") == [(0,)]
    assert lake.ask("SELECT path FROM partitions ORDER BY 1") == [(A,), (C,)]
    assert is_exact(lake)
    lake.stop()


def test_file_that_is_cut_back_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first rows were in the store by then, in no queue, and counted as judged."""
    lake = HistoryLake(tmp_path, batch_rows=2)
    lake.both(A, run("one"), run("two"))
    lake.both(C, run("three"))
    lake.go()
    lake.both(B, *(run(f"b{number}") for number in range(8)))
    long = {"note": "x" * 200_000}
    rejected = run("one", "rejected", provenance__sig_hash="again", **long)
    added = jsonl([rejected, run("four", **long), run("five", **long)])
    lake.evidence(C, *(given(name) for name in ("three", "four", "five")))
    path = lake.scored_path(C)
    real, whole = lines.PartitionReader.blocks, [True]

    def blocks(self: lines.PartitionReader) -> Iterator[list[lines.Line]]:
        for number, block in enumerate(real(self)):
            yield block
            if number == 1 and whole and os.fstat(self._descriptor).st_ino == path.stat().st_ino:
                whole.clear()
                os.truncate(path, path.read_bytes()[:-100].rfind(b"\n") + 1)

    def come() -> None:
        with path.open("ab") as file:
            file.write(added)
        monkeypatch.setattr(lines.PartitionReader, "blocks", blocks)

    pass_with(lake, monkeypatch, come)
    assert not whole
    assert lake.exported(Dataset.SFT) == {"two", "three", "four", *(f"b{number}" for number in range(8))}
    assert lake.ask("SELECT count(*) FROM scored_rows WHERE sft IS NULL") == [(0,)]
    assert is_exact(lake)
    lake.stop()


@pytest.mark.parametrize("unread", [0, 1 << 62])
@pytest.mark.parametrize("how", ["gone", "emptied"])
def test_rows_whose_evidence_was_left_unread_have_not_vanished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, unread: int
) -> None:
    """The tripwire kept rows that moved in the middle of a pass, though their runs have evidence where they stand now."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    last = "2026/05/01/last.jsonl"
    with history_lake(tmp_path, batch_rows=2, tripwire_rows=0, tripwire_share=0.0) as lake:
        lake.both(A, run("one"), run("two"))
        lake.go()
        lake.both(B, run("b1"), run("b2"))
        lake.scored(last, run("one"), run("two"))
        lake.evidence(last, given("one", ""), given("two", ""))

        def move() -> None:
            if how == "emptied":
                lake.scored(A)
            else:
                lake.move_away(*lake.paths(A, "both"))

        pass_with(lake, monkeypatch, move)
        assert lake.exported(Dataset.RAG) == {"b1", "b2"}
        assert not lake.retained()
        assert set(lake.quarantined(Dataset.RAG).values()) == {"empty_content"}
