"""A snapshot: one batch in the forms that trainers read, whole or not there (docs/consumers.md)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import Mock

import pytest

from distilld.core.model import DATASET_PATHS, Dataset, OperatorError, Trigger, UsageError
from distilld.delivery import files
from distilld.delivery import snapshot as snapshot_module
from distilld.delivery.check import check
from distilld.delivery.forms import FORMS, chosen_forms
from distilld.delivery.snapshot import SnapshotWriteError, Wanted, make
from distilld.delivery.split import is_validation
from distilld.engine.work_off import QueueWorker
from distilld.files import durable, segments
from distilld.files.spool import SpoolError
from distilld.publish import committed, exports, live_files, reading
from tests.support.calls import Call, calls
from tests.support.command import distilld, python
from tests.support.deaths import dies_at
from tests.support.history_lake import A, B, HistoryLake, given, history_lake, run, sft_id

EVERY: Final = tuple(FORMS)
TASKS: Final = 60


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with tasks of several runs, doubled answers, a row without context and one without a task."""
    with history_lake(tmp_path) as lake:
        rows = [
            run(f"{task}-{side}", "rejected" if side == 2 else "accepted", f"task-{task}")
            for task in range(TASKS)
            for side in range(3)
        ]
        lake.both(A, *rows)
        bare: dict[str, Any] = {"retrieved_context": {}, "model_name": None}
        lake.scored(B, run("twice", task_id="task-0"), run("bare"), {**run("tasklesss"), "evidence_task_id": None})
        lake.evidence(B, given("twice", "# Answer of 0-0"), given("bare", **bare), given("tasklesss"))
        lake.go()
        lake.stop()
        yield lake


def made(lake: HistoryLake, name: str = "snap", **wanted: Any) -> Path:
    """A snapshot of the lake."""
    folder = lake.root / name
    make(lake.root, lake.state, folder, Wanted(**wanted))
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a snapshot."""
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return found


def test_trl_rows_are_conversations(lake: HistoryLake) -> None:
    """SFT has a prompt and a completion, pairs a prompt and two answers, each a list of messages; RAG is flat."""
    folder = made(lake)
    sft = {row["id"]: row for row in rows_of(folder / "sft/train.jsonl")}
    source = {row["id"]: row for row in lake.rows("sft")}
    one = source[sft_id("1-0")]
    assert sft[one["id"]] == {
        "id": one["id"],
        "prompt": [{"role": "user", "content": f"{one['instruction']}\n\n{one['context']}"}],
        "completion": [{"role": "assistant", "content": one["response"]}],
    }
    bare = source[sft_id("bare")]
    assert bare["context"] == ""
    assert sft[bare["id"]]["prompt"][0]["content"] == bare["instruction"]
    pair, told = lake.rows("preference")[0], rows_of(folder / "preference/train.jsonl")[0]
    assert told == {
        "id": pair["id"],
        "prompt": [{"role": "user", "content": pair["prompt"]}],
        "chosen": [{"role": "assistant", "content": pair["chosen"]}],
        "rejected": [{"role": "assistant", "content": pair["rejected"]}],
    }
    assert list(rows_of(folder / "rag/train.jsonl")[0]) == ["id", "title", "text", "embedding_text", "tags", "category"]


def test_raw_holds_the_exports_own_bytes(lake: HistoryLake) -> None:
    """Without a split, the raw form of each dataset is its committed file, byte for byte, duplicates included."""
    folder = made(lake, forms=("raw",))
    for dataset in Dataset:
        assert (folder / f"raw/{dataset}/train.jsonl").read_bytes() == lake.content(dataset)


def test_all_else_stands_in_provenance_by_id(lake: HistoryLake) -> None:
    """No key of a row is lost: what no trainer reads, and the task, stands in provenance, one row for each."""
    folder = made(lake, forms=("alpaca",))
    told = {row["id"]: row for row in rows_of(folder / "provenance/sft.jsonl")}
    trained = {row["id"] for row in rows_of(folder / "alpaca/sft/train.jsonl")}
    assert set(told) == trained
    source = {row["id"]: row for row in lake.rows("sft")}
    for id_, row in told.items():
        whole = source[id_]
        assert {**whole["provenance"], "quality_score": "accepted"}.items() <= row.items()
        assert row["source_run_id"] == whole["source_run_id"]
    assert told[sft_id("5-1")]["task_id"] == "task-5"
    assert told[sft_id("tasklesss")]["task_id"] == "tasklesss"


@pytest.mark.parametrize("forms", [EVERY, ("trl",), ("raw",)])
def test_task_stands_on_one_side_alone(lake: HistoryLake, forms: tuple[str, ...]) -> None:
    """A task's rows are all for training or all for validation, in SFT and in the pairs by the same function."""
    folder = made(lake, forms=forms, validation=0.3)
    sides: dict[str, set[str]] = {}
    for dataset in (Dataset.SFT, Dataset.PREFERENCE):
        for row in rows_of(folder / f"provenance/{dataset}.jsonl"):
            sides.setdefault(row["task_id"], set()).add(row["split"])
            assert (row["split"] == "validation") == is_validation(row["task_id"], 0.3)
    assert all(len(each) == 1 for each in sides.values())
    assert {side for each in sides.values() for side in each} == {"train", "validation"}
    assert {row["split"] for row in rows_of(folder / "provenance/rag.jsonl")} == {"train"}
    split = manifest_of(folder)["split"]
    assert (split["share"], split["tasks_on_both_sides"], split["texts_on_both_sides"]) == (0.3, 0, 0)


def tasks_told(folder: Path) -> dict[str, str]:
    """The task of each row by its id, as provenance/ has it."""
    return {row["id"]: row["task_id"] for dataset in Dataset for row in rows_of(folder / f"provenance/{dataset}.jsonl")}


def test_retained_row_keeps_its_task(lake: HistoryLake) -> None:
    """A row whose file is absent has the task that it had."""
    before = tasks_told(made(lake, "before", forms=("raw",)))
    lake.move_away(lake.scored_path(A))
    lake.go()
    assert tasks_told(made(lake, "after", forms=("raw",))) == before


def test_row_that_is_about_to_leave_keeps_its_task(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is gone from its file stands in the export until a batch withdraws it, with the task that it had."""
    before = tasks_told(made(lake, "before", forms=("raw",)))
    lines = lake.scored_path(A).read_bytes().splitlines()
    lake.scored(A, *lines[3:])
    monkeypatch.setattr(QueueWorker, "run_batch", Mock(side_effect=TimeoutError))
    with pytest.raises(TimeoutError):
        lake.go()
    lake.stop()
    assert lake.ask("SELECT count(*) FROM departures WHERE outcome = 0") == [(4,)]
    assert tasks_told(made(lake, "after", forms=("raw",))) == before


def test_split_is_even_and_never_moves_a_task() -> None:
    """Five percent asked is four to six percent given, and a task's side does not depend on the other tasks."""
    picked = {task for task in range(63_000) if is_validation(f"task:{task}", 0.05)}
    assert 0.04 < len(picked) / 63_000 < 0.06
    assert picked == {task for task in range(630_000) if is_validation(f"task:{task}", 0.05) and task < 63_000}
    assert picked < {task for task in range(63_000) if is_validation(f"task:{task}", 0.1)}


def test_exact_duplicates_are_dropped_and_counted(lake: HistoryLake) -> None:
    """Of rows with equal prompt and answers the first stays; 'raw' keeps both."""
    folder = made(lake, forms=("trl", "raw"))
    counts = manifest_of(folder)["datasets"]["sft"]
    left_out = {"validation_left_out": 0, "unknown_task_left_out": 0}
    assert counts == {"rows": 123, "train": 123, "validation": 0, "duplicates_dropped": 1, **left_out}
    ids = [row["id"] for row in rows_of(folder / "sft/train.jsonl")]
    assert sft_id("0-0") in ids
    assert sft_id("twice") not in ids
    assert len(rows_of(folder / "raw/sft/train.jsonl")) == len(ids) + 1


def test_validation_row_whose_answer_stands_in_train_is_left_out(lake: HistoryLake) -> None:
    """Two tasks have one answer and stand on two sides: the model is not validated on what it was trained on."""
    inside = next(f"v{n}" for n in range(100) if is_validation(f"v{n}", 0.3))
    outside = next(f"t{n}" for n in range(100) if not is_validation(f"t{n}", 0.3))
    lake.scored("2026/05/01/c.jsonl", run("in", task_id=inside), run("out", task_id=outside))
    files = {"provenance__source_file": "data/_kb/other.jsonl"}
    lake.evidence("2026/05/01/c.jsonl", given("in", "The same"), given("out", "The same", **files))
    lake.go()
    folder = made(lake, validation=0.3)
    counts = manifest_of(folder)["datasets"]["sft"]
    assert counts["validation_left_out"] == 1
    assert manifest_of(folder)["split"]["texts_on_both_sides"] == 0
    assert sft_id("in") not in {row["id"] for row in rows_of(folder / "sft/validation.jsonl")}
    assert sft_id("out") in {row["id"] for row in rows_of(folder / "sft/train.jsonl")}
    assert counts["rows"] == counts["train"] + counts["validation"] + counts["duplicates_dropped"] + 1


def test_manifest_says_what_it_was_made_of(lake: HistoryLake) -> None:
    """Batch, receipt, options, sources and every file stand in the manifest with rows, bytes and sha256."""
    folder = made(lake, forms=EVERY, validation=0.3)
    manifest = manifest_of(folder)
    receipt = (lake.root / "reports/distillation" / manifest["batch_id"] / "receipt.json").read_bytes()
    assert manifest["receipt_sha256"] == hashlib.sha256(receipt).hexdigest()
    assert manifest["options"] == json.loads(receipt)["options"]
    assert all(manifest["firewall"]["checks"].values())
    for source in manifest["sources"]:
        assert source["sha256"] == hashlib.sha256((lake.root / source["path"]).read_bytes()).hexdigest()
    listed = {file["path"]: file for file in manifest["files"]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {*listed, "manifest.json"}
    for path, file in listed.items():
        content = (folder / path).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert file["rows"] in (None, content.count(b"\n"))


def test_dataset_info_names_files_and_columns_that_are_there(lake: HistoryLake) -> None:
    """LLaMA-Factory reads a folder as train, validation file included, and lists under 'chosen' as nothing."""
    folder = made(lake, forms=EVERY, validation=0.3)
    infos = json.loads((folder / "dataset_info.json").read_bytes())
    assert {"alpaca_sft", "alpaca_sft_validation", "alpaca_preference", "openai_sft", "raw_preference"} <= set(infos)
    for name, info in infos.items():
        assert (folder / info["file_name"]).is_file()
        assert name.endswith("_validation") == info["file_name"].endswith("validation.jsonl")
        row = rows_of(folder / info["file_name"])[0]
        for column in info["columns"].values():
            assert isinstance(row[column], list if info.get("formatting") == "sharegpt" else str)


def test_white_space_around_rows_is_left_out(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was overwritten with spaces in place leaves nothing behind in a snapshot."""
    path = lake.root / DATASET_PATHS[Dataset.SFT]
    first, second, rest = path.read_bytes().split(b"\n", 2)
    content = b" " * len(first) + b" " + second + b"\n" + rest
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    lake.ask("UPDATE export_files SET sha256 = ?, rows = rows - 1 WHERE name = 'sft'", sha256)
    lake.engine.store.connection.commit()
    lake.stop()
    folder = made(lake, forms=("raw", "trl"))
    assert (folder / "raw/sft/train.jsonl").read_bytes() == second + b"\n" + rest
    assert [each.id for each in check(lake.root, lake.state, folder).changed] == []


@pytest.mark.parametrize("forms", [("trl",), ("raw",)])
def test_check_names_what_left_and_what_was_replaced(lake: HistoryLake, forms: tuple[str, ...]) -> None:
    """Whoever trained on a snapshot learns which of its rows to drop, why, and in which batch; lost store or not."""
    folder = made(lake, forms=forms)
    assert check(lake.root, lake.state, folder).changed == []
    lake.scored("2026/05/01/c.jsonl", run("1-0", "rejected"))
    lake.evidence(B, given("twice", "# Answer of 0-0"), given("bare", "Another answer"), given("tasklesss"))
    lake.go()
    batch_id = lake.ask("SELECT max(batch_id) FROM batches")[0][0]
    found = check(lake.root, lake.state, folder)
    told = {each.id: (each.replaced, each.cause, each.withdrawn_batch) for each in found.changed}
    assert told[sft_id("1-0")] == (False, "revoked", batch_id)
    assert told[sft_id("bare")][:2] == (True, "evidence_changed")
    lake.lose_store()
    assert check(lake.root, lake.state, folder).changed == found.changed
    ran = distilld("snapshot", folder, "--check", "--root", lake.root, cwd=lake.root)
    assert ran.code == 1
    assert re.search(rf"{sft_id('1-0')} +withdrawn", ran.out)


def test_check_tells_a_damaged_snapshot_apart(lake: HistoryLake) -> None:
    """A file that was changed or is gone makes the snapshot damaged, and no row of it is judged."""
    folder = made(lake)
    path = folder / "sft/train.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    (folder / "provenance/rag.jsonl").unlink()
    (folder / "provenance/sft.jsonl").unlink()
    os.mkfifo(folder / "provenance/sft.jsonl")
    ran = distilld("snapshot", folder, "--check", "--root", lake.root, cwd=lake.root)
    assert ran.code == 1
    assert "damaged: sft/train.jsonl: has other bytes" in ran.out
    assert "damaged: provenance/rag.jsonl: No such file" in ran.out
    assert "damaged: provenance/sft.jsonl: is no regular file" in ran.out
    told = distilld("snapshot", lake.root, "--check", "--root", lake.root, cwd=lake.root)
    assert (told.code, "is no snapshot" in told.err) == (2, True)


def test_refuses_what_it_may_not_write(lake: HistoryLake, tmp_path: Path) -> None:
    """A folder that exists is never changed, and none is made among inputs, exports and receipts."""
    folder = made(lake)
    with pytest.raises(UsageError, match="exists"):
        made(lake)
    for place in ("data/x", "exports/sft/x", "reports/x"):
        ran = distilld("snapshot", lake.root / place, "--root", lake.root, cwd=lake.root)
        assert (ran.code, "choose a folder elsewhere" in ran.err) == (2, True)
    ran = distilld("snapshot", folder / "no/where", "--root", lake.root, cwd=lake.root)
    assert ran.code == 2
    with history_lake(tmp_path) as empty:
        empty.engine.store.checkpoint()
        with pytest.raises(OperatorError, match="no batch was committed yet"):
            made(empty)


def test_parquet_without_its_extra_is_one_clear_line(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyarrow is missing, the message names the extra, and nothing is written."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match="pyarrow") as raised:
        made(lake, parquet=True)
    assert raised.value.hint == f"{sys.executable} -m pip install 'distilld[parquet]'"
    assert not (lake.root / "snap").exists()


@pytest.mark.parametrize("command", [("snapshot", "snap"), ("changes", "--dataset", "rag", "--since", "0")])
def test_commands_start_without_what_they_do_not_need(lake: HistoryLake, command: tuple[str, ...]) -> None:
    """pyarrow is imported for --parquet alone, the models of rows for the raw form: a feed is asked for often."""
    code = """
import sys
from distilld.cli.main import execute
assert execute(sys.argv[1:]) == 0
assert not {"pyarrow", "pydantic", "structlog"}.intersection(sys.modules)
"""
    line = [str(lake.root / "snap") if word == "snap" else word for word in command]
    with python(code, *line, "--root", lake.root) as process:
        assert process.communicate()[0]
    assert process.returncode == 0


def test_is_pinned_beside_a_writer_that_commits_before_every_read(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come, leave and are replaced ten times a second all the while; the first try has all rows of one batch."""
    committed_at: dict[str, dict[Dataset, bytes]] = {}
    tries = 0

    def commit() -> None:
        number = len(committed_at)
        lake.both(f"2026/06/{number + 1:02}/a.jsonl", run(f"new{number}", task_id="new"))
        lake.scored(f"2026/05/{number + 1:02}/a.jsonl", run(f"{number}-0", "rejected"))
        if number % 3 == 0:
            lake.evidence(B, given("twice", f"Answer {number}"), given("bare"), given("tasklesss"))
        lake.now_ns += 100_000_000
        assert lake.engine.run_pass(Trigger.WATCH).batches
        batch_id = lake.ask("SELECT max(batch_id) FROM batches")[0][0]
        committed_at[batch_id] = {dataset: lake.content(dataset) for dataset in Dataset}

    def committed_blocks(*args: Any) -> Iterator[bytes]:
        for block in reading.committed_blocks(*args):
            commit()
            yield block

    class Batch(committed.CommittedBatch):
        def __init__(self, *args: Any) -> None:
            nonlocal tries
            tries += 1
            super().__init__(*args)

    commit()
    monkeypatch.setattr(segments, "BLOCK_BYTES", 1 << 13)
    monkeypatch.setattr(exports, "LEAST_BYTES", 0)
    monkeypatch.setattr(live_files, "SEGMENT_BYTES", 4096)
    monkeypatch.setattr(committed, "committed_blocks", committed_blocks)
    monkeypatch.setattr(committed, "CommittedBatch", Batch)
    folder = made(lake, forms=("raw", "trl"))
    assert tries == 1
    assert len(committed_at) > 10
    wanted = committed_at[manifest_of(folder)["batch_id"]]
    for dataset in Dataset:
        rows = [row.strip() for row in wanted[dataset].splitlines()]
        assert (folder / f"raw/{dataset}/train.jsonl").read_bytes().splitlines() == rows


def test_kill_at_any_moment_leaves_no_folder_under_the_name(lake: HistoryLake) -> None:
    """Killed at each call that changes the disk, the snapshot is whole or not there, and the next one is made."""
    seen: list[Call] = []
    with calls(seen.append):
        whole = made(lake, "whole", forms=("trl", "raw"), validation=0.3)
    renamed = next(call.number for call in seen if call.name == "os.rename")
    for call in seen:
        folder = lake.root / f"snap{call.number}"

        def start(folder: Path = folder) -> None:
            make(lake.root, lake.state, folder, Wanted(("trl", "raw"), 0.3))

        assert dies_at(call.number, start)
        assert folder.exists() == (call.number > renamed)
    assert manifest_of(lake.root / f"snap{seen[-1].number}")["files"] == manifest_of(whole)["files"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_write_that_fails_is_one_clear_error_and_leaves_nothing(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A full disk ends in one error that names the folder; no part of the snapshot stays."""
    before = sorted(os.listdir(lake.root))
    written = 0
    real = durable.write_all

    def fill(descriptor: int, block: bytes) -> None:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(code, os.strerror(code))
        real(descriptor, block)

    monkeypatch.setattr(files, "write_all", fill)
    with pytest.raises((SnapshotWriteError, SpoolError), match=os.strerror(code)):
        made(lake)
    assert sorted(os.listdir(lake.root)) == before


def test_interrupt_leaves_nothing(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C cleans up behind itself."""

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = sorted(os.listdir(lake.root))
    monkeypatch.setattr(snapshot_module, "sync_folder", interrupt)
    # Tests that a shell started in the background ignore it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            made(lake)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert sorted(os.listdir(lake.root)) == before


def test_export_that_is_restored_in_part_is_refused(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged export that lacks rows until the next batch is neither copied nor compared as if it were whole."""
    old = made(lake, "old")
    path = lake.root / DATASET_PATHS[Dataset.SFT]
    os.truncate(path, path.stat().st_size // 2)
    lake.engine.restorer.check(lake.now_ns)
    with pytest.raises(OperatorError, match="is being restored"):
        made(lake)
    with pytest.raises(OperatorError, match="is being restored"):
        check(lake.root, lake.state, old)
    lake.go()
    assert not check(lake.root, lake.state, old).changed
    assert len(rows_of(made(lake) / "sft/train.jsonl")) == len(lake.rows("sft")) - 1


def test_forms_have_columns_that_are_never_null(lake: HistoryLake) -> None:
    """Each row of each form has exactly the keys of its columns, and none is null, raw provenance aside."""
    folder = made(lake, forms=EVERY)
    for forms in chosen_forms(EVERY).values():
        for form in forms:
            for row in random.Random(1).sample(rows_of(folder / form.folder / "train.jsonl"), 20):
                assert list(row) == [column.name for column in form.columns]
                assert not [column for column in form.columns if column.nullable]
                assert None not in row.values()
