"""The split of a snapshot where the store no longer knows the task of each row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distilld.core.model import Dataset
from distilld.delivery.snapshot import Wanted, make
from tests.support.history_lake import A, B, history_lake, run

TASKS = 20


@pytest.mark.parametrize("forms", [("raw",), ("trl",), ("trl", "raw")])
def test_orphan_whose_task_is_not_known_is_on_no_side(tmp_path: Path, forms: tuple[str, ...]) -> None:
    """An SFT row does not name its task. After a lost store, its task may be on the other side with a new run."""
    with history_lake(tmp_path) as lake:
        both = ("accepted", "rejected")
        lake.both(A, *(run(f"{task}-{side}", side, f"t{task}") for task in range(TASKS) for side in both))
        lake.go()
        lake.lose_store()
        lake.move_away(*lake.paths(A, "both"))
        taskless = {**run("taskless"), "evidence_task_id": None}
        lake.both(B, *(run(f"new-{task}", task_id=f"t{task}") for task in range(TASKS)), taskless)
        lake.go()
        lake.stop()
        assert len(lake.rows("sft")) == 2 * TASKS + 1
        made = {share: make(lake.root, lake.state, tmp_path / f"{share}", Wanted(forms, share)) for share in (0, 0.5)}
        task_of = {f"{task}-accepted": f"t{task}" for task in range(TASKS)}
        task_of |= {f"new-{task}": f"t{task}" for task in range(TASKS)} | {"taskless": "none"}
        run_of = {row["id"]: row["source_run_id"] for row in lake.rows("sft")}
        run_of |= {row["id"]: row["chosen_run_id"] for row in lake.rows("preference")}
        sides: dict[str, set[str]] = {}
        for dataset in (Dataset.SFT, Dataset.PREFERENCE):
            for row in map(json.loads, (tmp_path / f"0.5/provenance/{dataset}.jsonl").read_bytes().splitlines()):
                sides.setdefault(task_of[run_of[row["id"]]], set()).add(row["split"])
    assert len(sides) == TASKS + 1
    assert all(len(each) == 1 for each in sides.values())
    counts = {share: each["datasets"]["sft"] for share, each in made.items()}
    assert [counts[share]["unknown_task_left_out"] for share in (0, 0.5)] == [0, TASKS]
    assert [counts[share]["train"] + counts[share]["validation"] for share in (0, 0.5)] == [2 * TASKS + 1, TASKS + 1]
    assert made[0.5]["datasets"]["preference"]["unknown_task_left_out"] == 0
