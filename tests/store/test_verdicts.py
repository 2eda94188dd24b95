"""The store's verdicts: what counts for which run."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from distilld.core.line_facts import CATEGORY_CODES
from distilld.core.model import Category, OnDelete, Options
from distilld.inspection.verify import verify
from tests.support.history_lake import A, B, C, HistoryLake, run

FORMER: dict[str, object] = {
    "history": [{"evidence_run_id": "one", "category": "rejected"}],
    "note": "x" * 3000,
}
"""A row that names no run itself, and is malformed where lines of 2,000 bytes are too long."""


@pytest.mark.parametrize("category", ["accepted", "rejected"])
def test_row_without_a_run_counts_for_no_other(tmp_path: Path, category: str) -> None:
    """Once it was no longer too long, its category counted for the run that had been found in it."""
    lake = HistoryLake(tmp_path, options=Options(source_files_root=str(tmp_path), max_line_bytes=2000))
    lake.both(A, run("one"))
    if category == "accepted":
        lake.scored(B, run("one", "rejected"))
    lake.scored(C, {"category": category, **FORMER})
    lake.go()
    assert lake.exported("rag") == set()
    lake.restart(Options(source_files_root=str(tmp_path)))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == ({"one"} if category == "rejected" else set())
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults
    lake.stop()


def test_older_store_judges_again_the_runs_for_which_it_counted(tmp_path: Path) -> None:
    """A store of an older version has the category of such a row."""
    lake = HistoryLake(tmp_path, options=Options(source_files_root=str(tmp_path), max_line_bytes=2000))
    lake.both(A, run("one"), run("two"))
    lake.scored(B, run("one", "rejected"))
    lake.scored(C, {"category": "accepted", **FORMER})
    lake.go()
    lake.restart(Options(source_files_root=str(tmp_path)))
    lake.go()
    lake.stop()
    with sqlite3.connect(lake.state) as store:
        store.execute("DELETE FROM _sqlite_migrations WHERE name GLOB 'm012*'")
        code = CATEGORY_CODES[Category.ACCEPTED]
        store.execute("UPDATE scored_rows SET category = ? WHERE run_id IS NULL", (code,))
    store.close()
    queued = "SELECT s.run_id FROM rejudge_rows q CROSS JOIN scored_rows s USING (walk)"
    assert lake.ask(queued) == [("one",), ("one",)]
    assert lake.ask("SELECT category FROM scored_rows WHERE run_id IS NULL") == [(None,)]
    lake.go()
    assert lake.exported("rag") == {"two"}
    lake.stop()


def malformed(run_id: str, note: int) -> bytes:
    """A malformed line that rejects a run, unlike any other."""
    return f'{{"evidence_run_id":"{run_id}","category":"rejected","note":{note},}}'.encode()


@pytest.mark.parametrize("how", ["rewritten", "grows", "renamed", "withdrawn", "pruned"])
def test_runs_of_malformed_lines_go_with_the_lines(tmp_path: Path, how: str) -> None:
    """Twenty lines come and go: the store keeps the runs of those that count, and no others."""
    lake = HistoryLake(tmp_path)
    lake.both(A, run("one"), run("two"))
    if how == "withdrawn":
        lake.restart(Options(source_files_root=str(tmp_path), on_delete=OnDelete.WITHDRAW))
    place = C
    for number in range(20):
        place = f"2027/01/01/{number}.jsonl" if how != "rewritten" else C
        match how:
            case "grows":
                lake.scored_path(C).parent.mkdir(parents=True, exist_ok=True)
                lake.scored_path(C).write_bytes(malformed("one", 7)[: -1 - number % 3])
            case "renamed":
                lake.scored(place, malformed("one", 7))
            case _:
                lake.scored(place, malformed("one", number), malformed("gone", number))
        lake.go()
        assert lake.exported("rag") == {"two"}
        if how != "grows":
            lake.scored_path(place).unlink()
        if how == "rewritten":
            lake.scored(place, malformed("one", -1))
            lake.go()
            assert lake.exported("rag") == {"two"}
    if how == "pruned":
        lake.go()
        lake.prune()
    elif how == "rewritten":
        lake.scored(place)
    lake.go()
    left = {"grows": 1, "renamed": 1}.get(how, 0)
    assert len(lake.ask("SELECT * FROM malformed_runs")) == left
    assert lake.exported("rag") == ({"two"} if left else {"one", "two"})
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults
    lake.stop()
