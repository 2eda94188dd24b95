"""The root of the path check is away (SPEC 3.5): nothing can be said of any source file, so rows that need it wait."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import Dataset, OnDelete, Options, Trigger, UnreadableError
from distilld.engine import pool
from distilld.engine.pool import Pool
from distilld.engine.work_off import QueueWorker
from distilld.inspection import oracle
from distilld.inspection.verify import verify
from distilld.lake.source_files import SourceFiles, path_check
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, rag_id, run
from tests.support.target_state import Exports, equal_the_full_pass, read_lake


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The root of the path check, with one file."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "open.py").touch()
    return folder


@pytest.fixture
def lake(tmp_path: Path, sources: Path) -> Iterator[HistoryLake]:
    """A lake whose source files are checked: one pair and one row with a made-up path."""
    with history_lake(tmp_path, Options(source_files_root=str(sources), check_source_files=True)) as made:
        fill(made, A, "a")
        yield made


def fill(lake: HistoryLake, partition: str, name: str) -> None:
    """Write a partition: a task with an accepted and a rejected row, a row with a made-up path, a rejected row."""
    good, bad, made_up, rejected = (f"{name}-{each}" for each in ("good", "bad", "made-up", "rejected"))
    lake.scored(
        partition, run(good, task_id=name), run(bad, "rejected", task_id=name), run(made_up), run(rejected, "rejected")
    )
    lake.evidence(
        partition,
        *(given(each, source_files=["open.py"]) for each in (good, bad, rejected)),
        given(made_up, source_files=["open.py", "made-up.py"]),
    )


def take_away(sources: Path) -> None:
    """The mount is not there, nor its folder."""
    os.rename(sources, sources.with_name("away"))


def empty(sources: Path) -> None:
    """The mount is not there, but its mount point is."""
    take_away(sources)
    sources.mkdir()


def put_file(sources: Path) -> None:
    """A file stands in its place."""
    take_away(sources)
    sources.touch()


def link_to_nothing(sources: Path) -> None:
    """A link stands in its place, and its target is not there."""
    take_away(sources)
    sources.symlink_to("not-mounted")


def bring_back(sources: Path) -> None:
    """The mount is there again."""
    if sources.is_symlink() or sources.is_file():
        sources.unlink()
    elif sources.is_dir():
        sources.rmdir()
    os.rename(sources.with_name("away"), sources)


every_way = pytest.mark.parametrize(
    ("lose", "why"),
    [
        (take_away, "No such file or directory"),
        (empty, "it is empty"),
        (put_file, "Not a directory"),
        (link_to_nothing, "No such file or directory"),
    ],
)


def is_up_to_date(lake: HistoryLake) -> None:
    """Nothing waits, and the exports are those of the full pass."""
    assert not lake.engine.work.waiting().anything
    full = oracle.export(read_lake(lake.root, lake.options), lake.options, missing_files=path_check(lake.options))
    equal_the_full_pass(Exports.read(lake.root), full)


@every_way
def test_first_pass_without_the_root(lake: HistoryLake, sources: Path, lose: Callable[[Path], None], why: str) -> None:
    """A daemon that starts before the mount: rows that need no path check are judged, the others wait and are told.

    The story: all of them were quarantined as hallucinated paths.
    """
    lose(sources)
    for _ in range(2):
        result = lake.go()
        told = [(each.path, each.problem) for each in result.unreadable]
        assert told == [(f"source_files_root {sources}", f"cannot be read: {why}")]
        assert lake.quarantined(Dataset.RAG) == {"a-bad": "category_disallowed", "a-rejected": "category_disallowed"}
        assert not any(lake.exported(dataset) for dataset in Dataset)
        assert not lake.quarantined(Dataset.PREFERENCE)
    bring_back(sources)
    assert lake.go().unreadable == ()
    assert lake.exported(Dataset.RAG) == {"a-good"}
    assert lake.exported(Dataset.PREFERENCE) == {"a-good>a-bad"}
    assert lake.quarantined(Dataset.RAG)["a-made-up"] == "hallucinated_file_path"
    is_up_to_date(lake)


@every_way
@pytest.mark.parametrize("again", ["rebuild", "options"])
def test_everything_is_judged_again_without_the_root(
    lake: HistoryLake, sources: Path, lose: Callable[[Path], None], why: str, again: str
) -> None:
    """What is exported stays as it is, and is not written again when the root is back; a rejection applies at once."""
    fill(lake, B, "b")
    lake.go()
    before, stamp = lake.files(), lake.stamps(Dataset.RAG)[rag_id("a-good")]
    lose(sources)
    if again == "options":
        lake.restart(replace(lake.options, max_exports_per_run=7))
    result = lake.go(Trigger.REBUILD if again == "rebuild" else Trigger.ONCE)
    assert [each.problem for each in result.unreadable] == [f"cannot be read: {why}"]
    assert lake.files() == before
    fill(lake, C, "c")
    lake.scored(B, run("b-good", "rejected"), run("b-bad", "rejected"))
    assert lake.go().unreadable
    assert lake.exported(Dataset.RAG) == {"a-good"}
    assert lake.exported(Dataset.PREFERENCE) == {"a-good>a-bad"}
    bring_back(sources)
    assert lake.go().unreadable == ()
    assert lake.exported(Dataset.RAG) == {"a-good", "c-good"}
    assert lake.causes(Dataset.RAG) == ["revoked"]
    assert lake.stamps(Dataset.RAG)[rag_id("a-good")] == stamp
    is_up_to_date(lake)


def test_verdict_that_forbids_one_dataset_leaves_the_other_without_the_root(lake: HistoryLake, sources: Path) -> None:
    """The row waits in SFT alone; its line in RAG stays as it is, and nothing tells of it."""
    lake.restart(replace(lake.options, include_review=True))
    lake.go()
    before = lake.content(Dataset.RAG)
    assert lake.exported(Dataset.SFT) == {"a-good"}
    take_away(sources)
    lake.scored(B, run("a-good", "needs_human_review"))
    assert lake.go().unreadable
    assert lake.exported(Dataset.SFT) == set()
    assert lake.content(Dataset.RAG) == before
    assert not verify(lake.root, lake.state, lake.options).faults
    assert (lake.causes(Dataset.RAG), lake.causes(Dataset.SFT)) == ([], ["revoked"])
    assert lake.go().unreadable
    assert lake.content(Dataset.RAG) == before
    bring_back(sources)
    assert lake.go().unreadable == ()
    assert lake.content(Dataset.RAG) == before
    assert (lake.causes(Dataset.RAG), lake.causes(Dataset.SFT)) == ([], ["revoked"])
    is_up_to_date(lake)


@pytest.mark.parametrize("turn", ["queued", "forced"])
def test_absent_copy_of_a_row_that_waits_in_one_dataset(lake: HistoryLake, sources: Path, turn: str) -> None:
    """It waits for the outcome of the present row, and then counts only there: no quarantine row of it stays.

    A row that a verdict forbids is judged before its turn, in the batch of other rows.
    """
    lake.restart(replace(lake.options, include_review=True))
    for partition in (A, B):
        lake.scored(partition, run("twice"))
        lake.evidence(partition, given("twice", source_files=["open.py"]))
    lake.go()
    take_away(sources)
    lake.scored(C, run("twice", "needs_human_review"))
    assert lake.go().unreadable
    assert (lake.exported(Dataset.RAG), lake.exported(Dataset.SFT)) == ({"twice"}, set())
    lake.move_away(*lake.paths(B, "both"))
    lake.go()
    assert lake.ask("SELECT kind FROM retained_rows") == [("absent",)]
    if turn == "forced":
        lake.restart(batch_rows=1)
        lake.both("2026/04/01/early.jsonl", run("early"), run("later"))
        lake.scored(C, run("twice", "rejected"))
    bring_back(sources)
    lake.go()
    assert lake.ask("SELECT kind FROM retained_rows") == []
    is_up_to_date(lake)


def test_only_row_waits_in_rag_and_is_rejected(
    lake: HistoryLake, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lake without any outcome in RAG is not a new one: what a verdict forbids in SFT leaves with the next batch."""
    first = A.replace("2026", "2025")
    lake.scored(A, run("r"))
    lake.evidence(A, given("r", source_files=["open.py"]))
    lake.go()
    lake.move_away(*lake.paths(A, "both"))
    lake.scored(B, run("r", reasons=["again"]))
    lake.evidence(B, given("r", source_files=["open.py"], model_role="extractor"))
    lake.go()
    assert lake.causes(Dataset.RAG) == ["displaced+"]
    take_away(sources)
    lake.bring_back(*lake.paths(A, "both"))
    lake.move_away(*lake.paths(B, "both"))
    lake.go()
    lake.prune()
    assert (lake.exported(Dataset.RAG), lake.exported(Dataset.SFT)) == (set(), {"r"})
    lake.restart(batch_rows=1)
    lake.both(first, run("x"))
    lake.scored(C, run("r", "rejected"))
    after_each: list[set[str]] = []
    real = QueueWorker.run_batch

    def noted(*args: Any, **named: Any) -> Any:
        done = real(*args, **named)
        after_each.append(lake.exported(Dataset.SFT))
        return done

    monkeypatch.setattr(QueueWorker, "run_batch", noted)
    lake.go()
    assert len(after_each) > 1
    assert not any("r" in exported for exported in after_each)


def test_row_that_waits_in_one_dataset_keeps_its_line_once_nothing_else_names_its_run(
    lake: HistoryLake, sources: Path
) -> None:
    """The verdict that took it out of SFT is gone before it is judged again: it looks like a row of its own, and new."""
    lake.restart(replace(lake.options, include_review=True, on_delete=OnDelete.WITHDRAW))
    lake.scored(A, run("a-good"))
    lake.go()
    before = lake.content(Dataset.RAG)
    assert lake.exported(Dataset.RAG) == lake.exported(Dataset.SFT) == {"a-good"}
    take_away(sources)
    lake.scored(B, run("a-good", "needs_human_review"))
    lake.go()
    assert lake.exported(Dataset.SFT) == set()
    lake.scored_path(B).unlink()
    lake.go()
    bring_back(sources)
    lake.go()
    assert lake.content(Dataset.RAG) == before
    assert lake.exported(Dataset.SFT) == {"a-good"}
    is_up_to_date(lake)


def test_path_check_that_is_turned_on_without_the_root(lake: HistoryLake, sources: Path) -> None:
    """No row leaves a dataset because of a folder that is not there."""
    lake.restart(replace(lake.options, check_source_files=False))
    lake.go()
    before = lake.files()
    assert lake.exported(Dataset.RAG) == {"a-good", "a-made-up"}
    take_away(sources)
    lake.restart(replace(lake.options, check_source_files=True))
    for _ in range(2):
        assert lake.go().unreadable
        assert lake.files() == before
    bring_back(sources)
    lake.go()
    assert lake.exported(Dataset.RAG) == {"a-good"}
    assert lake.causes(Dataset.RAG) == ["options_changed"]
    is_up_to_date(lake)


def test_root_that_goes_at_rest(lake: HistoryLake, sources: Path) -> None:
    """What exists holds as of the last judgement, so nothing waits until a row needs the root."""
    lake.go()
    before = lake.files()
    take_away(sources)
    assert lake.go(Trigger.RESCAN).unreadable == ()
    assert lake.files() == before


@pytest.mark.parametrize("calls", range(1, 6))
def test_root_that_goes_in_the_middle_of_a_pass(
    lake: HistoryLake, sources: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Rows that were judged before keep what became of them; the rest waits."""
    fill(lake, B, "b")
    real, asked = SourceFiles.missing, Counter[str]()

    def missing(files: SourceFiles, names: Sequence[Any]) -> tuple[str, ...]:
        asked["calls"] += 1
        if asked["calls"] == calls:
            take_away(sources)
        return real(files, names)

    monkeypatch.setattr(SourceFiles, "missing", missing)
    assert lake.go().unreadable
    reasons = {run_id: reason for dataset in Dataset for run_id, reason in lake.quarantined(dataset).items()}
    assert {run_id for run_id, reason in reasons.items() if reason == "hallucinated_file_path"} <= {"a-made-up"}
    bring_back(sources)
    assert lake.go().unreadable == ()
    is_up_to_date(lake)


def test_workers_without_the_root(lake: HistoryLake, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait whichever process judges them."""
    monkeypatch.setattr(pool, "PROCESSES_FROM", 0)
    monkeypatch.setattr(Pool, "_take_back", lambda *_: False)
    take_away(sources)
    assert lake.go().unreadable
    assert not lake.exported(Dataset.RAG)
    assert "a-made-up" not in lake.quarantined(Dataset.RAG)
    bring_back(sources)
    assert lake.go().unreadable == ()
    is_up_to_date(lake)


def test_worker_that_alone_has_no_root(lake: HistoryLake, sources: Path) -> None:
    """A worker elsewhere may lack the mount: the committing process judges what that worker could not."""

    class Elsewhere(Executor):
        """Does each job as a process that does not see the root."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
            take_away(sources)
            future = Future[Any]()
            future.set_result(fn(*args, **named))
            bring_back(sources)
            return future

    lake.restart(executor=Elsewhere())
    assert lake.go().unreadable == ()
    assert lake.exported(Dataset.RAG) == {"a-good"}
    is_up_to_date(lake)


def test_deep_check_without_the_root(lake: HistoryLake, sources: Path) -> None:
    """What the datasets must hold is unknown then: the check says why, and names no row."""
    lake.go()
    take_away(sources)
    lake.stop()
    with pytest.raises(UnreadableError, match=f"cannot read source_files_root {sources}: No such file"):
        verify(lake.root, lake.state, lake.options, deep=True)
    bring_back(sources)
    assert verify(lake.root, lake.state, lake.options, deep=True).faults == 0
