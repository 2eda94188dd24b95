"""What is read off a row's bytes without parsing it is what parsing it says, however odd the row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from distilld.core.model import DATASET_PATHS, Dataset
from distilld.delivery.check import check
from distilld.delivery.rows import id_of_line
from distilld.delivery.snapshot import Wanted, make
from distilld.store import row_tasks
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, run, sft_id

ODD_TEXTS: Final = {
    "quotes": 'says "created_at":"2020" and \\"recorded_at\\":\\"x\\" and "id":"sft-0"',
    "control": "a\0b\x01\x1f\x7f\r\n\t\\",
    "unicode": "naïve \u2028 \u00a0 \U0001f680 é",
    "spaces": "   ",
    "braces": '}\\"},{"provenance":{',
}
TWO_STAMPS: Final = ("created_at", "recorded_at")


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake whose runs and tasks have odd names, and whose texts hold what a row's own keys look like."""
    with history_lake(tmp_path) as lake:
        rows = [run(f"run {name} {text}", task_id=f"task {text}") for name, text in ODD_TEXTS.items()]
        rows += [run(f"again {name}", "rejected", f"task {text}") for name, text in ODD_TEXTS.items()]
        rows.append({**run("no task"), "evidence_task_id": None})
        lake.scored(A, *rows)
        lake.evidence(
            A, *(given(row["evidence_run_id"], f"{row['evidence_run_id']}: {row['evidence_task_id']}") for row in rows)
        )
        lake.go()
        yield lake


def told(lake: HistoryLake, name: str = "snap") -> dict[str, dict[str, Any]]:
    """What provenance/ says of each row of a raw snapshot, by id."""
    make(lake.root, lake.state, lake.root / name, Wanted(("raw",)))
    files = (lake.root / name / "provenance").iterdir()
    return {row["id"]: row for path in files for row in map(json.loads, path.read_bytes().splitlines())}


def unstamped(line: bytes) -> str:
    """The sha256 of a row of ours without its stamps, the slow way: it is parsed and printed again."""

    def without(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: "" if key in TWO_STAMPS else value for key, value in pairs}

    row = json.loads(line, object_pairs_hook=without)
    return hashlib.sha256(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def test_odd_rows_are_read_as_a_parser_reads_them(lake: HistoryLake) -> None:
    """Ids, digests and tasks do not depend on what texts and names hold: a quote in a text is escaped."""
    found = told(lake)
    lines = [line for dataset in Dataset for line in lake.content(dataset).splitlines()]
    assert len(lines) == len(found)
    for line in lines:
        row = json.loads(line)
        assert id_of_line(line) == row["id"]
        assert found[row["id"]]["row_sha256"] == unstamped(line)
    tasks = {row["source_run_id"]: found[row["id"]]["task_id"] for row in lake.rows("sft")}
    wanted = {f"run {name} {text}": f"task {text}" for name, text in ODD_TEXTS.items()}
    assert tasks == {**wanted, "no task": "no task"}
    assert {found[row["id"]]["task_id"] for row in lake.rows("preference")} == set(wanted.values())


def spaced(row: dict[str, Any]) -> bytes:
    """A row of an older exporter: the keys behind the id in another order, with spaces."""
    head = {"schema_version": row.pop("schema_version"), "id": row.pop("id")}
    rest = json.dumps(dict(sorted(row.items(), reverse=True)))
    return json.dumps(head, separators=(",", ":")).encode()[:-1] + b", " + rest.encode()[1:] + b"\n"


def test_adopted_row_that_is_printed_otherwise_is_copied(lake: HistoryLake) -> None:
    """The story: the snapshot of a row with spaces behind its keys ended in 'a bug in distilld'."""
    path = lake.root / DATASET_PATHS[Dataset.SFT]
    odd = spaced(lake.rows("sft")[0])
    lake.stop()
    path.write_bytes(b" " * 9 + odd + path.read_bytes().split(b"\n", 1)[1])
    lake.move_away(*lake.paths(A, "both"))
    lake.lose_store()
    lake.go()
    assert odd in lake.content("sft")
    found = told(lake)
    assert (lake.root / "snap/raw/sft/train.jsonl").read_bytes() == lake.content("sft").lstrip()
    assert found[json.loads(odd)["id"]]["row_sha256"] == hashlib.sha256(odd[:-1]).hexdigest()
    assert check(lake.root, lake.state, lake.root / "snap").changed == []


@pytest.mark.parametrize("most_ahead", [0, 3, 1 << 20])
def test_task_is_found_wherever_its_row_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_ahead: int
) -> None:
    """Rows stand in the file in the order of their batches, in the store in that of their partitions."""
    monkeypatch.setattr(row_tasks, "_MOST_AHEAD", most_ahead)
    with history_lake(tmp_path) as lake:
        for partition, names in ((C, "abcdef"), (A, "ghijkl"), (B, "mnopqr")):
            sides = ("accepted", "rejected")
            lake.both(partition, *(run(f"{name}-{side}", side, f"task-{name}") for name in names for side in sides))
            lake.go()
        lake.both(B, *(run(f"{name}-accepted", task_id=f"task-{name}") for name in "rqponm"))
        lake.move_away(*lake.paths(C, "both"))
        lake.go()
        found = told(lake)
        for name in "abcdefghijklmnopqr":
            assert found[sft_id(f"{name}-accepted")]["task_id"] == f"task-{name}"
        for dataset in Dataset:
            for row in lake.rows(dataset):
                text = row["chosen_run_id"] if dataset is Dataset.PREFERENCE else row["source_run_id"]
                assert found[row["id"]]["task_id"] == f"task-{text[0]}"
