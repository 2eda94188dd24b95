"""The log of withdrawals says each thing once: a line that a later one says again gives way to it (SPEC 3.9)."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import EXPORT_PATHS, Dataset, Trigger
from distilld.delivery.changes import changes
from distilld.publish import commit
from distilld.publish import exports as exports_module
from distilld.publish.restore import Restorer
from tests.support.committed import committed_and_whole
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, run

ROWS = 60


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with one run of many rows, and another run."""
    with history_lake(tmp_path) as made:
        made.scored(A, *(run("many", provenance__sig_hash=f"sig-{number}") for number in range(ROWS)))
        made.evidence(A, given("many"))
        made.both(B, run("other"))
        made.go()
        yield made


def flip(lake: HistoryLake, times: int, *, run_id: str = "many") -> None:
    """Score a run again and again: rejected, accepted, rejected and so on, with a pass behind each."""
    path = lake.scored_path(C)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(times):
        category = ("rejected", "accepted")[number % 2]
        with path.open("ab") as file:
            file.write(json.dumps({"evidence_run_id": run_id, "category": category}).encode() + b"\n")
        lake.go()


def last_batch(lake: HistoryLake) -> str:
    """The newest batch's id."""
    return str(lake.ask("SELECT max(batch_id) FROM batches")[0][0])


@pytest.mark.parametrize("least_bytes", [0, 1 << 18])
def test_verdict_that_flips_leaves_one_line_an_id(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, least_bytes: int
) -> None:
    """Flips of 48 bytes once added a line for each row of their run, for good: 14 MB each where there were 20,000."""
    monkeypatch.setattr(exports_module, "LEAST_BYTES", least_bytes)
    flip(lake, 2, run_id="other")
    flip(lake, 7)
    told = [row for row in lake.withdrawn("rag") if row["source_run_id"] == "many"]
    assert len({row["id"] for row in told}) == len(told) == ROWS
    assert {row["verdict"]["location"]["line_offset"] for row in told} == {8}
    assert {row["withdrawn_batch"] for row in told} == {last_batch(lake)}
    assert next(row["source_run_id"] for row in lake.withdrawn("rag")) == "other"
    assert lake.ask("SELECT count(*) FROM withdrawals") == [(2 * ROWS + 2,)]
    committed_and_whole(lake.root)
    flip(lake, 1, run_id="other")
    assert (b" " in lake.content("withdrawals_rag")) == (least_bytes == 0)
    lines = lake.rows("withdrawals_rag")
    lake.go(Trigger.COMPACT)
    assert lake.rows("withdrawals_rag") == lines
    assert b" " not in lake.content("withdrawals_rag")


def test_copy_learns_of_a_withdrawal_that_was_told_before(lake: HistoryLake) -> None:
    """Whoever took the row when it was back must drop it again: the later line counts, not the first."""
    flip(lake, 2)
    copied = last_batch(lake)
    flip(lake, 1)
    with changes(lake.root, lake.state, Dataset.RAG, copied) as found:
        told = [json.loads(line) for line in b"".join(found).splitlines()]
    assert [line["type"] for line in told] == ["begin", *["delete"] * ROWS, "end"]
    assert {line["withdrawn_batch"] for line in told[1:-1]} == {last_batch(lake)}


def test_withdrawals_for_other_reasons_stay(lake: HistoryLake) -> None:
    """A line that says something else of the same id is history, and stays."""
    flip(lake, 2, run_id="other")
    lake.evidence(B)
    lake.go()
    assert lake.causes("rag") == ["revoked", "evidence_changed"]
    lake.evidence(B, given("other"))
    lake.go()
    lake.scored(C, {"evidence_run_id": "other", "category": "needs_human_review"})
    lake.go()
    assert [(row["cause"], (row["verdict"] or {}).get("category")) for row in lake.withdrawn("rag")] == [
        ("revoked", "rejected"), ("evidence_changed", None), ("revoked", "needs_human_review"),
    ]  # fmt: skip


def test_damaged_log_is_restored_as_it_was_folded(lake: HistoryLake) -> None:
    """The store and the file hold the same lines, so a log that was lost comes back without those that gave way."""
    flip(lake, 5)
    before = lake.content("withdrawals_rag")
    (lake.root / EXPORT_PATHS["withdrawals_rag"]).unlink()
    lake.restart()
    lake.go()
    assert lake.content("withdrawals_rag") == before


MANY = 3_000


def many_withdrawals(lake: HistoryLake) -> None:
    """The store has withdrawals of ``MANY`` rows that the log does not have."""
    columns = "dataset, id, source_run_id, cause, replaced, withdrawn_batch, withdrawn_at"
    with lake.engine.store.transaction():
        lake.engine.store.connection.executemany(
            f"INSERT INTO withdrawals ({columns}) VALUES ('rag', ?, 'many', 'pruned', 0, 'b', 't')",
            [(f"rag-{number:016x}",) for number in range(MANY)],
        )


def test_log_is_written_again_line_by_line(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log is as long as the lake is old: where it is written again, it is never in memory as a whole."""
    flip(lake, 1)
    many_withdrawals(lake)
    path = lake.root / EXPORT_PATHS["withdrawals_rag"]
    path.write_bytes(path.read_bytes()[:-1])
    held = held_by(monkeypatch, Restorer, "restore")
    lake.go()
    assert len(lake.withdrawn("rag")) == MANY + ROWS
    assert max(held) < 1_000 * MANY  # 4 KiB a line if they were kept; a block of the copy that is set aside counts, too


def test_lines_of_a_batch_take_no_more_memory_than_bytes(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of a batch's withdrawals took 4 KiB a line, for each had the buffer that it was made in."""
    lake.scored(A, *(run("many", provenance__sig_hash=f"sig-{number}") for number in range(1_000)))
    lake.go()
    held = held_by(monkeypatch, commit, "_writes_of")
    lake.scored(A)
    lake.go()
    assert len(lake.withdrawn("rag")) == 1_000
    assert max(held) < 2 * 1_000 * 1_000


def held_by(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[int]:
    """How many bytes each call of a function holds at most; the list grows with its calls."""
    real, held = getattr(owner, name), list[int]()

    def measured(*args: Any, **named: Any) -> Any:
        tracemalloc.start()
        try:
            return real(*args, **named)
        finally:
            held.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    monkeypatch.setattr(owner, name, measured)
    return held
