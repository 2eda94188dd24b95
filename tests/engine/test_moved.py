"""A line that moves to another partition moves with its outcomes, its verdict and its evidence (SPEC 3)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distilld.config.load import load
from distilld.core.model import InputKind, OnDelete, Options
from distilld.inspection.explain import explain
from distilld.inspection.verify import verify
from distilld.store.loose_lines import Departure
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, run

D = "2026/04/30/delta.jsonl"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with nothing in it."""
    with history_lake(tmp_path) as made:
        yield made


def rename(lake: HistoryLake, old: str, new: str) -> None:
    """Rename a partition in both trees."""
    for path in (lake.scored_path, lake.evidence_path):
        if path(old).exists():
            path(new).parent.mkdir(parents=True, exist_ok=True)
            path(old).rename(path(new))


def rows_by_table(lake: HistoryLake) -> dict[str, int]:
    """How many rows each table of the store has, those of batches and receipts left out."""
    tables = [name for (name,) in lake.ask("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return {
        name: lake.ask(f"SELECT count(*) FROM {name}")[0][0]
        for name in tables
        if name not in ("batches", "receipts") and not name.startswith("sqlite_")
    }


@pytest.mark.parametrize(("old", "new"), [(C, A), (A, C)])
def test_corrected_verdict_counts_after_a_rename(lake: HistoryLake, old: str, new: str) -> None:
    """A rejection was renamed and then corrected; the row stayed out for ever, for the absent file still forbade it."""
    lake.both(old, run("r1", "rejected"), run("r2"))
    lake.both(B, run("b1"))
    lake.go()
    rename(lake, old, new)
    lake.go()
    assert lake.exported("rag") == {"r2", "b1"}
    lake.scored(new, run("r1"), run("r2"))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"r1", "r2", "b1"}


def test_rejection_that_was_not_seen_elsewhere_still_forbids(lake: HistoryLake) -> None:
    """A partition is renamed and its rejection changed before any pass: the rejection was deleted, and forbids."""
    lake.both(C, run("r1", "rejected"), run("r2"))
    lake.go()
    rename(lake, C, A)
    lake.scored(A, run("r1"), run("r2"))
    lake.go()
    assert lake.exported("rag") == {"r2"}


def test_store_is_as_large_after_any_number_of_renames(lake: HistoryLake) -> None:
    """Twenty renames of all partitions and back: the store once kept every line and all evidence under every name."""
    lake.both(A, run("a1", task_id="t"), run("a2", "rejected", "t"), run("a3", "?"))
    lake.scored(B, run("b1"), b'{"evidence_run_id":"a1","category":"rejected"', run("b2"))
    lake.evidence(B, given("b1"), given("nobody"))
    lake.go()
    before, exports = rows_by_table(lake), lake.files()
    for number in range(20):
        for partition in (A, B):
            away = partition.replace("2026", f"2027-{number}")
            rename(lake, partition, away)
        lake.go()
        for partition in (A, B):
            rename(lake, partition.replace("2026", f"2027-{number}"), partition)
        lake.go()
    after = rows_by_table(lake)
    assert after == before
    for name in ("rag", "sft", "preference", "withdrawals_rag"):
        assert lake.files()[name] == exports[name]


def test_renamed_partition_leaves_no_name_behind_where_absent_means_gone(lake: HistoryLake) -> None:
    """Each old name stayed in the table of partitions for good."""
    lake.restart(replace(lake.options, on_delete=OnDelete.WITHDRAW))
    lake.both(A, run("a1"), run("a2", "rejected"))
    lake.both(B, run("b1"))
    lake.go()
    for number in range(3):
        rename(lake, A if number == 0 else f"2027-{number - 1}/04/27/alpha.jsonl", f"2027-{number}/04/27/alpha.jsonl")
        lake.go()
    assert lake.ask("SELECT path FROM partitions ORDER BY 1") == [
        ("2026/04/28/beta.jsonl",),
        ("2027-2/04/27/alpha.jsonl",),
    ]
    assert lake.exported("rag") == {"a1", "b1"}


@pytest.mark.parametrize("first", ["scored", "evidence"])
def test_trees_that_are_renamed_one_after_the_other_leave_nothing_behind(lake: HistoryLake, first: str) -> None:
    """A pass between the renames of the two trees changes nothing of what is left in the end."""
    lake.both(A, run("a1"), run("a2", "rejected"))
    lake.go()
    before = rows_by_table(lake)
    assert lake.exported("rag") == {"a1"}
    for tree in (first, "evidence" if first == "scored" else "scored"):
        (old,), (new,) = lake.paths(A, tree), lake.paths(B, tree)
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
        lake.go()
    after = rows_by_table(lake)
    for name in ("partitions", "files", "scored_rows", "evidence_rows", "retained_rows"):
        assert after[name] == before[name], name
    assert lake.exported("rag") == {"a1"}


@pytest.mark.parametrize("batch_rows", [1, 2, 50_000])
def test_rename_withdraws_nothing_however_small_batches_are(lake: HistoryLake, batch_rows: int) -> None:
    """Rows of a renamed partition beyond the first batch once left the datasets, and came back with the next batch."""
    lake.restart(batch_rows=batch_rows)
    lake.both(C, run("a1"), run("a2", "rejected"), run("a3"), run("a4"))
    lake.go()
    before = lake.files()
    rename(lake, C, A)
    lake.go()
    for name in ("rag", "sft", "withdrawals_rag", "withdrawals_sft"):
        assert lake.files()[name] == before[name], name


def tasked(name: str, category: str = "accepted") -> dict[str, Any]:
    """A row that shares its task with every second other one, so that it has pairs."""
    return run(name, category, f"task-{int(name[1:]) // 2}")


@pytest.mark.parametrize("batch_rows", [1, 3, 50_000])
@pytest.mark.parametrize("on_delete", list(OnDelete))
@pytest.mark.parametrize("rest", ["other rows", "gone"])
def test_lines_that_move_between_files_are_withdrawn_by_no_batch(
    lake: HistoryLake, rest: str, on_delete: OnDelete, batch_rows: int
) -> None:
    """Two partitions are merged into a third. Rows beyond the first batch once left, and came back with later ones."""
    lake.restart(replace(lake.options, on_delete=on_delete), batch_rows=batch_rows)
    rows = [tasked(f"r{number}", "partially_accepted" if number % 2 else "accepted") for number in range(12)]
    lake.both(A, *rows[:6])
    lake.both(B, *rows[6:])
    lake.go()
    before = lake.files()
    assert len(lake.rows("preference")) == 6
    lake.both(C, *rows)
    if rest == "gone":
        lake.move_away(*lake.paths(A, "both"), *lake.paths(B, "both"))
    else:
        lake.both(A, run("a", "rejected"))
        lake.both(B, run("b", "rejected"))
    lake.go()
    for name in ("rag", "sft", "preference", "withdrawals_rag", "withdrawals_sft", "withdrawals_preference"):
        assert lake.files()[name] == before[name], name
    assert lake.ask("SELECT count(*) FROM departures") == [(0,)]


def test_forbidden_and_removed_rows_wait_for_no_row_that_moved(lake: HistoryLake) -> None:
    """They leave with the first batch, however many rows are to be judged where they moved to."""
    lake.restart(batch_rows=1)
    rows = [run(f"r{number}") for number in range(6)]
    lake.both(A, *rows)
    lake.go()
    lake.both(C, *rows[:5])
    lake.scored(B, run("r3", "rejected"))
    lake.scored(D, run("r4", "rejected"))
    lake.both(A, run("a", "rejected"))
    first, *others = lake.go().batches
    assert first.receipt["record_counts"]["withdrawn"] == 4
    assert {row["source_run_id"]: row["cause"] for row in lake.withdrawn("rag")} == {
        "r4": "revoked",
        "r5": "row_removed",
    }
    assert len(others) > 5
    assert lake.exported("rag") == {"r0", "r1", "r2", "r3"}


@pytest.mark.parametrize("batch_rows", [1, 50_000])
def test_row_that_waits_for_an_id_comes_before_a_row_that_moved_behind_it(lake: HistoryLake, batch_rows: int) -> None:
    """The id of a row that moved away is free: of the rows that wait for it, the first one has it."""
    lake.restart(batch_rows=batch_rows)
    first, waiting = (
        run("r1", provenance__source_file="data/_kb/first.jsonl"),
        run("r1", provenance__source_file="data/_kb/waiting.jsonl"),
    )
    last = run("r1", provenance__source_file="data/_kb/last.jsonl")
    lake.both(A, first, run("a1"))
    lake.both(B, waiting)
    lake.both(D, last)
    lake.go()
    lake.both(A, run("a1"))
    lake.both(C, first)
    lake.evidence(D, given("r1", "# Another answer"))
    lake.go()
    held = [row["provenance"]["source_file"] for row in lake.rows("rag") if row["source_run_id"] == "r1"]
    assert held == ["data/_kb/waiting.jsonl"]
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def test_departures_are_read_once_if_none_waits(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that withdraws many rows in one batch held them twice."""
    lake.both(A, run("r1"), run("r2"))
    lake.go()
    read, real = list[bool](), lake.engine.work.departures

    def departures(limit: int, options: Options, *, all_judged: bool) -> list[Departure]:
        read.append(all_judged)
        return real(limit, options, all_judged=all_judged)

    monkeypatch.setattr(lake.engine.work, "departures", departures)
    lake.both(A, run("r1"))
    lake.go()
    assert read == [False]
    assert lake.exported("rag") == {"r1"}
    lake.both(A, run("r3"))
    lake.both(B, run("r1"))
    lake.go()
    assert read == [False, False]
    assert lake.exported("rag") == {"r1", "r3"}


def test_row_that_fails_where_it_moved_leaves_with_the_pass(lake: HistoryLake) -> None:
    """Its evidence did not move with it: its line waits for it, and leaves when all rows are judged."""
    lake.restart(batch_rows=1, tripwire_rows=1000)
    rows = [run(f"r{number}") for number in range(4)]
    lake.both(A, *rows)
    lake.go()
    lake.scored(C, *rows)
    lake.evidence(C, *(given(f"r{number}") for number in (0, 1, 3)))
    lake.both(A, run("a", "rejected"))
    lake.go()
    assert lake.exported("rag") == {"r0", "r1", "r3"}
    assert [row["source_run_id"] for row in lake.withdrawn("rag")] == ["r2"]
    assert lake.quarantined("rag")["r2"] == "missing_source_run_id"


def test_returned_partition_takes_back_what_moved_meanwhile(lake: HistoryLake) -> None:
    """A line moved to another file, and then its partition returned with all its lines: each is judged where it is."""
    rows = run("a1"), run("a2"), run("a3", "rejected")
    lake.both(B, *rows)
    lake.go()
    lake.move_away(*lake.paths(B, "both"))
    lake.go()
    lake.both(C, rows[0])
    lake.go()
    assert lake.ask("SELECT run_id FROM retained_rows ORDER BY 1") == [("a2",), ("a3",)]
    lake.bring_back(*lake.paths(B, "both"))
    lake.go()
    assert lake.exported("rag") == {"a1", "a2"}
    assert lake.quarantined("rag")["a1"] == "duplicate_id"
    assert lake.ask("SELECT count(*) FROM retained_rows") == [(0,)]


def test_older_store_forgets_what_it_kept_of_renamed_partitions(lake: HistoryLake) -> None:
    """A store from before keeps absent lines that moved: its next pass forgets them, and the correction counts."""
    lake.both(A, run("r1", "rejected"), run("r2"))
    lake.go()
    lake.stop()
    with sqlite3.connect(lake.state) as store:
        store.execute("DELETE FROM _sqlite_migrations WHERE name GLOB 'm007*' OR name GLOB 'm011*'")
        for table, column, before in (
            ("retained_rows", "retained_id", "frozen_id"),
            ("rejudge_retained", "retained_id", "frozen_id"),
            ("pairs", "retained", "frozen"),
            ("batches", "rows_exported", "rows_shipped"),
            ("batches", "rows_quarantined", "rows_held"),
        ):
            store.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO {before}")
        store.execute("ALTER TABLE retained_rows RENAME TO frozen_rows")
        store.execute("ALTER TABLE rejudge_retained RENAME TO rejudge_frozen")
        store.execute("DROP INDEX verdicts_in_rests")
        for column in ("rest_digest", "rest_category"):
            store.execute(f"ALTER TABLE files DROP COLUMN {column}")
        columns = [name for _, name, *_ in store.execute("PRAGMA table_info(files)")]
        old = {"partition_id": "99", "state": "'absent'"}
        store.execute(
            "INSERT INTO partitions VALUES (99, '2026/04/30/old.jsonl', (SELECT max(walk_base) << 1 FROM partitions))"
        )
        store.execute(
            f"INSERT INTO files ({', '.join(columns)})"
            f" SELECT {', '.join(old.get(name, name) for name in columns)} FROM files WHERE kind = 'scored'"
        )
        store.execute(
            "INSERT INTO frozen_rows (kind, partition_id, line, start_byte, length_bytes, digest, run_id, task_id, category,"
            " sample_key) SELECT 'absent', 99, 0, start_byte, length_bytes, digest, run_id, task_id, category, sample_key"
            " FROM scored_rows WHERE run_id = 'r1'"
        )
    store.close()
    lake.scored(A, run("r1", "rejected"), run("r2"), run("r3"))
    lake.go()
    lake.scored(A, run("r1"), run("r2"), run("r3"))
    lake.go()
    assert lake.exported("rag") == {"r1", "r2"}


# rests


REJECTED = b'{"evidence_run_id":"r1","category":"rejected","x":"torn'


def rest(lake: HistoryLake, partition: str, content: bytes) -> None:
    """Put something behind the last line feed of a scored file, or in the place of what is there."""
    path = lake.scored_path(partition)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_bytes().rpartition(b"\n")[0] + b"\n" if path.exists() else b""
    path.write_bytes(lines + content)


@pytest.mark.parametrize("partition", [B, C])
def test_rest_that_spells_out_a_rejection_forbids(lake: HistoryLake, partition: str) -> None:
    """A writer stopped in the middle of a rejection: it was no verdict, and the row stayed in the datasets."""
    lake.both(B, run("r1"), run("r2"))
    lake.go()
    rest(lake, partition, REJECTED)
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"r2"}
    verdict = lake.withdrawn("rag")[0]["verdict"]
    line = 2 if partition == B else 0
    assert verdict == {"category": "rejected", "location": {"partition": partition, "line_offset": line}}
    settings = load(flags={"root": lake.root, "state": lake.state}, environ={}, config_file=None, cwd=lake.root)
    told = explain(settings, "r1")
    assert {(each.partition, each.line, each.forbids) for each in told.verdicts} == {(partition, line, True)}
    assert [(row.state, row.fates) for row in told.rows if (row.partition, row.line) == (partition, line)] == [
        ("present", ())
    ]
    rest(lake, partition, b"")
    lake.go()
    assert lake.exported("rag") == {"r1", "r2"}
    lake.restart()
    lake.go()
    assert lake.exported("rag") == {"r1", "r2"}


def test_rest_counts_once_it_does_not_change(lake: HistoryLake) -> None:
    """A rest that was written a moment ago may still become another line; a pass looks again when it is still."""
    lake.both(B, run("r1"))
    lake.go()
    lake.restart(settle_seconds=60)
    rest(lake, C, REJECTED)
    result = lake.go()
    assert result.indexed.unsettled == [(InputKind.SCORED, C)]
    assert lake.exported("rag") == {"r1"}
    os.utime(lake.scored_path(C), (1, 1))
    lake.restart(settle_seconds=0)
    assert not lake.go().indexed.unsettled
    assert lake.exported("rag") == set()


@pytest.mark.parametrize("last", [b"", b'{"evidence_run_id":"r3"}'], ids=["shorter", "another"])
def test_last_line_that_is_not_the_one_it_was_has_to_settle(lake: HistoryLake, last: bytes) -> None:
    """A file that shrank within its unterminated last line, or got another one, is written again, not appended to."""
    lake.both(B, run("r1"), run("r2"))
    whole = lake.scored_path(B).read_bytes()
    lake.scored_path(B).write_bytes(whole[:-1])
    lake.both(A, run("r4"))
    rest(lake, C, REJECTED.replace(b"r1", b"r4"))
    lake.go()
    assert lake.exported("rag") == {"r1", "r2"}
    lake.restart(settle_seconds=60)
    lake.scored_path(B).write_bytes(whole[: whole.index(b"\n") + 1] + last)
    rest(lake, C, b"")
    assert sorted(lake.go().indexed.unsettled) == [(InputKind.SCORED, B), (InputKind.SCORED, C)]
    assert lake.exported("rag") == {"r1", "r2"}
    lake.restart(settle_seconds=0)
    assert not lake.go().indexed.unsettled
    assert lake.exported("rag") == {"r1", "r4"}


def test_completed_rest_says_what_its_line_says(lake: HistoryLake) -> None:
    """The torn line is written to its end: it is a row like any other, and a later verdict overrules it."""
    lake.both(B, run("r1"))
    rest(lake, C, REJECTED)
    lake.go()
    assert lake.exported("rag") == set()
    rest(lake, C, REJECTED + b'"}\n' + b'{"evidence_run_id":"r1","category":"accepted"}\n')
    lake.go()
    assert lake.exported("rag") == {"r1"}


def test_rest_of_an_absent_file_forbids_until_it_is_pruned(lake: HistoryLake) -> None:
    """The file is deleted: its rest goes on to forbid, as any absent verdict does."""
    lake.both(B, run("r1"))
    rest(lake, C, REJECTED)
    lake.go()
    lake.move_away(lake.scored_path(C))
    lake.go()
    assert lake.exported("rag") == set()
    lake.prune()
    assert lake.exported("rag") == {"r1"}


def test_rest_moves_with_its_file(lake: HistoryLake) -> None:
    """The file is renamed and then completed: nothing of the rest is left under the old name."""
    lake.both(B, run("r1"))
    rest(lake, C, REJECTED)
    lake.go()
    before = rows_by_table(lake)
    rename(lake, C, A)
    lake.go()
    assert lake.exported("rag") == {"r1"}  # the rest is in A alone, and B comes later
    assert rows_by_table(lake)["files"] == before["files"]
    rename(lake, A, C)
    lake.go()
    assert lake.exported("rag") == set()
    rest(lake, C, b'{"evidence_run_id":"r1","category":"accepted"}\n')
    lake.go()
    assert lake.exported("rag") == {"r1"}


def test_pruned_malformed_rejection_forbids_no_more(lake: HistoryLake) -> None:
    """Rows that a malformed line of an absent file forbade stayed out when that file was given up."""
    lake.both(B, run("r1"))
    lake.scored(C, REJECTED)
    lake.go()
    lake.move_away(lake.scored_path(C))
    lake.go()
    assert lake.exported("rag") == set()
    lake.prune()
    assert lake.exported("rag") == {"r1"}
