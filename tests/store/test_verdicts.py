"""The store's verdicts: what counts for which run."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from distilld.core.line_facts import CATEGORY_CODES
from distilld.core.model import Category, Options
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
