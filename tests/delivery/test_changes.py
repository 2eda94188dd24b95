"""The change feed: what it prints, which batches it knows, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import EXPORT_PATHS, Dataset, UsageError
from distilld.delivery.changes import changes
from tests.support.command import distilld
from tests.support.history_lake import A, B, HistoryLake, given, history_lake, rag_id, run, sft_id


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with a batch."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a1", task_id="t"), run("a2"), run("a3", "rejected", "t"))
        lake.go()
        yield lake


def since(lake: HistoryLake, batch: str, dataset: Dataset = Dataset.RAG) -> list[dict[str, Any]]:
    """The lines of the feed."""
    with changes(lake.root, lake.state, dataset, batch) as found:
        return [json.loads(line) for line in b"".join(found).splitlines()]


def last_batch(lake: HistoryLake) -> str:
    """The newest batch's id."""
    return str(lake.ask("SELECT max(batch_id) FROM batches")[0][0])


def test_feed_tells_deletes_then_upserts(lake: HistoryLake) -> None:
    """What left comes first, with its cause; then what came or was replaced; the end line holds the next cursor."""
    first = last_batch(lake)
    lake.scored(A, run("a1", "rejected", "t"), run("a2"), run("a3", "rejected", "t"))
    lake.evidence(A, given("a2", "Another answer"), given("a3"))
    lake.both(B, run("b1"))
    lake.go()
    now = last_batch(lake)
    begin, delete, *upserts, end = since(lake, first)
    assert begin == {"type": "begin", "dataset": "rag", "since": first, "through": now}
    assert delete == {"type": "delete", "id": rag_id("a1"), "cause": "revoked", "withdrawn_batch": now}
    rows = {row["id"]: row for row in lake.rows("rag")}
    assert {each["id"] for each in upserts} == {rag_id("a2"), rag_id("b1")}
    assert upserts == [{"type": "upsert", "id": each["id"], "batch": now, "row": rows[each["id"]]} for each in upserts]
    assert end == {"type": "end", "through": now, "deletes": 1, "upserts": 2}
    assert [line["type"] for line in since(lake, now)] == ["begin", "end"]


def test_since_0_is_all_rows_and_no_deletes(lake: HistoryLake) -> None:
    """A full load into an empty copy has nothing to delete."""
    lake.scored(A, run("a1", "rejected", "t"), run("a2"))
    lake.go()
    _, *told, _ = since(lake, "0")
    assert [(line["type"], line["row"]) for line in told] == [("upsert", row) for row in lake.rows("rag")]


def test_row_that_left_and_came_back_is_one_upsert(lake: HistoryLake) -> None:
    """Net changes: each id stands there once, as it is now."""
    first = last_batch(lake)
    for category in ("rejected", "accepted"):
        lake.scored(B, run("a2", category))
        lake.go()
    told = [(line["type"], line["id"]) for line in since(lake, first)[1:-1]]
    assert told == [("upsert", rag_id("a2"))]


@pytest.mark.parametrize("batch", ["20250101T000000.000Z", "29990101T000000.000Z", "yesterday", "", "1", "../x"])
def test_unknown_batch_is_wrong_usage(lake: HistoryLake, batch: str) -> None:
    """A cursor of another lake, or of a time that has not been, is refused with the remedy."""
    with pytest.raises(UsageError, match="no batch that this lake knows") as raised:
        since(lake, batch)
    assert "load the dataset again, with --since 0, into an empty copy" in raised.value.hint


def test_batch_is_known_by_its_receipt_or_by_the_store(lake: HistoryLake) -> None:
    """A cursor outlasts a lost store as long as its receipt stands, and a dropped receipt as long as the store does."""
    first = last_batch(lake)
    lake.both(B, run("b1"))
    lake.go()
    lake.lose_store()
    lake.both("2026/05/01/c.jsonl", run("c1"))
    lake.go()
    assert {line.get("id") for line in since(lake, first)[1:-1]} == {rag_id("b1"), rag_id("c1")}
    second = last_batch(lake)
    shutil.rmtree(lake.root / "reports")
    assert since(lake, second)[1:-1] == []
    with pytest.raises(UsageError):
        since(lake, first)


@pytest.mark.parametrize("change", ["an older export", "a torn export", "no log"])
def test_copy_begins_again_where_exports_changed_without_a_store(lake: HistoryLake, change: str) -> None:
    """Nobody knows what such a change took out or brought back; the feed of another dataset goes on."""
    withdrawals = lake.root / EXPORT_PATHS["withdrawals_rag"]
    path = lake.root / EXPORT_PATHS["rag"]
    older = path.read_bytes()
    lake.both(B, run("b1"))
    lake.scored(A, run("a1", task_id="t"), run("a2", "rejected"), run("a3", "rejected", "t"))
    lake.go()
    before = last_batch(lake)
    lake.lose_store()
    lake.move_away(*lake.paths(A, "both"), *lake.paths(B, "both"))
    if change == "an older export":
        path.write_bytes(older)
    elif change == "a torn export":
        path.write_bytes(path.read_bytes()[:-2])
    else:
        withdrawals.unlink()
    lake.go()
    with pytest.raises(UsageError, match="while there was no state store"):
        since(lake, before)
    assert since(lake, before, Dataset.SFT)[1:-1] == []
    lake.both("2026/05/01/c.jsonl", run("c1"))
    lake.go()
    with pytest.raises(UsageError):
        since(lake, before)
    assert since(lake, "0")[-1]["upserts"] == len(lake.rows("rag"))
    assert [line["id"] for line in since(lake, before, Dataset.SFT)[1:-1]] == [sft_id("c1")]


def test_copy_goes_on_behind_rows_of_a_batch_that_was_cut_off(lake: HistoryLake) -> None:
    """What stands behind the rows of the newest receipt is newer than any copy."""
    before = last_batch(lake)
    row = dict(lake.rows("rag")[0], id=rag_id("n1"), source_run_id="n1", created_at="2999-01-01T00:00:00.000Z")
    lake.lose_store()
    with (lake.root / EXPORT_PATHS["rag"]).open("ab") as file:
        file.write(json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    lake.go()
    assert [line["id"] for line in since(lake, before)[1:-1]] == [rag_id("n1")]


def test_copy_begins_again_though_the_store_was_lost_twice(lake: HistoryLake) -> None:
    """That exports were changed without a store was known to the next store alone, which may be lost before anybody asks."""
    before = last_batch(lake)
    lake.lose_store()
    (lake.root / EXPORT_PATHS["rag"]).write_bytes(lake.content("rag").splitlines(keepends=True)[0])
    lake.scored(A, run("a1"))
    lake.go()
    lake.lose_store()
    lake.both(B, run("b1"))
    lake.go()
    with pytest.raises(UsageError, match="while there was no state store"):
        since(lake, before)
    assert [line["id"] for line in since(lake, before, Dataset.SFT)[1:-1]] == [sft_id("b1")]
    now = last_batch(lake)
    lake.lose_store()
    lake.go()
    assert since(lake, now)[1:-1] == []


def test_copy_begins_again_where_an_old_row_was_appended_without_a_store(lake: HistoryLake) -> None:
    """By its time it was in the dataset all along, so nobody would tell the copy of it."""
    row = next(row for row in lake.rows("rag") if row["source_run_id"] == "a2")
    lake.scored(A, run("a1", task_id="t"))
    lake.go()
    before = last_batch(lake)
    lake.lose_store()
    lake.scored(A, run("a1", task_id="t"), run("a2"))
    with (lake.root / EXPORT_PATHS["rag"]).open("ab") as file:
        file.write(json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    lake.go()
    assert row in lake.rows("rag")
    with pytest.raises(UsageError, match="while there was no state store"):
        since(lake, before)


def test_receipt_that_somebody_edited_stops_no_takeover(lake: HistoryLake) -> None:
    """What is no output of ours in a receipt is skipped."""
    path = lake.root / f"reports/distillation/{last_batch(lake)}/receipt.json"
    rag = {"path": EXPORT_PATHS["rag"], "bytes": -1, "sha256": "", "segment_bytes": 0}
    for outputs in (7, [7, {"path": 7}, rag, {**rag, "bytes": 1}]):
        edited = {"outputs": outputs, "copies_begin_after": outputs}
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **edited}))
        lake.lose_store()
        lake.go()
        assert since(lake, "0")[-1]["upserts"] == len(lake.rows("rag"))


def test_command_prints_the_feed(lake: HistoryLake) -> None:
    """The command prints one JSON object a line and nothing else; an unknown batch is exit code 2."""
    lake.stop()
    ran = distilld("changes", "--dataset", "preference", "--since", "0", "--root", lake.root, cwd=lake.root)
    assert (ran.code, ran.err) == (0, "")
    assert [json.loads(line)["type"] for line in ran.out.splitlines()] == ["begin", "upsert", "end"]
    ran = distilld("changes", "--dataset", "rag", "--since", "x", "--root", lake.root, cwd=lake.root)
    assert (ran.code, ran.out) == (2, "")
