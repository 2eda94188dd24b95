"""Pairs of tasks that are new: workers finish them as if their ids were free, and the committing process looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilld.core.model import Dataset
from tests.support.history_lake import A, B, HistoryLake, history_lake, run

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
