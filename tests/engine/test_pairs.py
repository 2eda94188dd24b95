"""Pairs of tasks that are new: workers finish them as if their ids were free, and the committing process looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import Dataset, Options, UnreadableError
from distilld.lake.source_files import SourceFiles
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, run

D = "2026/04/30/delta.jsonl"

FIRST = (run("x", task_id="z|t"), run("y", "rejected", task_id="z|t"))
SECOND = (run("x|y", task_id="t"), run("z", "rejected", task_id="t"))
"""Two tasks whose pairs have one id, for it is made of the ids of both runs and of the task with '|' between them."""
OTHER = (run("o", task_id="other"), run("p", "rejected", task_id="other"))


def chosen(lake: HistoryLake) -> set[str]:
    """The chosen runs of the pairs that ship."""
    return {run_id for (run_id,) in lake.ask("SELECT chosen_run_id FROM pairs WHERE outcome = 0")}


@pytest.mark.parametrize("apart", [False, True], ids=["in one job", "in two batches"])
def test_pairs_of_two_new_tasks_with_one_id(tmp_path: Path, apart: bool) -> None:
    """The task that comes first has the id; the other's pair is a duplicate, and a third task is none the worse."""
    with history_lake(tmp_path) as lake:
        lake.both(A, *FIRST, *(() if apart else SECOND), *OTHER)
        lake.go()
        if apart:
            lake.both(B, *SECOND)
            lake.go()
        assert chosen(lake) == {"x", "o"}
        assert len(lake.exported(Dataset.PREFERENCE)) == 2
        assert lake.ask("SELECT chosen_run_id FROM pairs WHERE outcome <> 0") == [("x|y",)]


def test_an_earlier_task_that_is_new_takes_the_id_over(tmp_path: Path) -> None:
    """A recorded pair gives its id up to that of a new task which comes before its own."""
    with history_lake(tmp_path) as lake:
        lake.both(B, *SECOND, *OTHER)
        lake.go()
        lake.both(A, *FIRST)
        lake.go()
        assert chosen(lake) == {"x", "o"}
        assert len(lake.exported(Dataset.PREFERENCE)) == 2


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names that the path check may not look at, for as long as they are in the set."""
    names: set[str] = set()
    real = SourceFiles.missing

    def missing(files: SourceFiles, given_names: Sequence[Any]) -> tuple[str, ...]:
        if not names.isdisjoint(given_names):
            raise UnreadableError("a source file of the path check", PermissionError(13, "Permission denied"))
        return real(files, given_names)

    monkeypatch.setattr(SourceFiles, "missing", missing)
    return names


@contextmanager
def checked_lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake whose source files are checked; two of them exist."""
    with history_lake(tmp_path) as lake:
        lake.restart(Options(source_files_root=str(lake.root), check_source_files=True))
        for name in ("open.py", "private.py"):
            (lake.root / name).touch()
        yield lake


def task_of(lake: HistoryLake, partition: str, *runs: tuple[str, str, str], task_id: str) -> None:
    """Write a partition with rows of one task, each with a run id, a category and a source file."""
    lake.scored(partition, *(run(run_id, category, task_id) for run_id, category, _ in runs))
    lake.evidence(partition, *(given(run_id, source_files=[name]) for run_id, _, name in runs))


def test_a_path_check_that_is_refused_keeps_its_task_alone_waiting(tmp_path: Path, refused: set[str]) -> None:
    """A task whose path check is refused waits; other tasks form their pairs, and a rejected run leaves."""
    with checked_lake(tmp_path) as lake:
        lake.scored(A, run("z"))
        lake.evidence(A, given("z", source_files=["open.py"]))
        lake.go()
        refused.add("private.py")
        task_of(
            lake, B, ("a", "accepted", "open.py"), ("b", "rejected", "open.py"), ("c", "rejected", "private.py"),
            task_id="refused",
        )  # fmt: skip
        task_of(lake, C, ("d", "accepted", "open.py"), ("e", "rejected", "open.py"), task_id="other")
        lake.scored(D, run("z", "rejected"))
        for _ in range(2):
            result = lake.go()
            assert [each.problem for each in result.unreadable] == ["cannot be read: Permission denied"]
            assert lake.exported(Dataset.RAG) == {"a", "d"}
            assert lake.exported(Dataset.PREFERENCE) == {"d>e"}
            assert lake.quarantined(Dataset.PREFERENCE) == {}
        refused.clear()
        assert lake.go().unreadable == ()
        assert lake.exported(Dataset.PREFERENCE) == {"a>b", "a>c", "d>e"}


@pytest.mark.parametrize(("later", "stays"), [("b", {"a>c"}), ("d", {"a>b", "a>c"})], ids=["forbidden", "allowed"])
def test_recorded_pairs_whose_path_check_is_refused_stay_unless_they_are_forbidden(
    tmp_path: Path, refused: set[str], later: str, stays: set[str]
) -> None:
    """Pairs that cannot be formed again stay as they are; one that a verdict forbids leaves at once."""
    with checked_lake(tmp_path) as lake:
        task_of(
            lake, A, ("a", "accepted", "open.py"), ("b", "rejected", "open.py"), ("c", "rejected", "private.py"),
            task_id="t",
        )  # fmt: skip
        lake.go()
        before = lake.stamps(Dataset.PREFERENCE)
        refused.add("private.py")
        task_of(lake, B, (later, "accepted", "open.py"), task_id="t")
        assert lake.go().unreadable
        assert lake.exported(Dataset.PREFERENCE) == stays
        assert lake.stamps(Dataset.PREFERENCE).items() <= before.items()
