"""An id has one holder, in the store itself, and whoever waits for it is found without a look at all who do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from distilld.core.line_facts import DUPLICATE, EXPORTED, REASON_CODES
from distilld.core.model import Dataset, Reason
from distilld.store.queues import Queues, first_waiter, rows_behind
from distilld.store.schema import HOLDS_RAG
from distilld.store.work import Work
from tests.support.committed import committed_and_whole
from tests.support.history_lake import A, B, HistoryLake, history_lake, run

WAITERS = 30


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with an id that many rows have, and a pair."""
    with history_lake(tmp_path) as lake:
        same = [run("same", provenance__line_offset=number) for number in range(WAITERS)]
        lake.both(A, *same, run("one"), run("other", "rejected", "task-one"))
        lake.go()
        yield lake


@pytest.mark.parametrize("dataset", ["rag", "sft"])
def test_second_holder_is_refused_by_the_store(lake: HistoryLake, dataset: str) -> None:
    """A doubled row is the failure that matters: even a bug that gives an id to a second row cannot be committed."""
    store = lake.engine.store.connection
    held = f"UPDATE scored_rows SET {dataset} = {EXPORTED} WHERE {dataset} = {DUPLICATE}"
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        store.execute(f"{held} AND walk = (SELECT max(walk) FROM scored_rows WHERE {dataset} = {DUPLICATE})")


def test_second_pair_of_an_id_is_refused_by_the_store(lake: HistoryLake) -> None:
    """The same of pairs; a held one may have the id that another ships."""
    columns = (
        "task_id, slot, chosen_run_id, rejected_run_id, rejected_category, chosen_partition, rejected_partition,"
        " sample_key, outcome, line, batch"
    )
    store = lake.engine.store.connection
    again = f"INSERT INTO pairs ({columns}) SELECT {{}} FROM pairs"
    store.execute(again.format(columns.replace("outcome", str(DUPLICATE))))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        store.execute(f"{again.format(columns)} WHERE outcome = {EXPORTED}")


@pytest.mark.parametrize("dataset", ["rag", "sft"])
def test_first_waiter_is_found_in_walk_order(lake: HistoryLake, dataset: str) -> None:
    """Of thousands of rows with one id the next is one step away, whichever of them holds it in the other dataset."""
    store = lake.engine.store
    other = "sft" if dataset == "rag" else "rag"
    walks = [walk for (walk,) in lake.ask("SELECT walk FROM scored_rows WHERE run_id = 'same' ORDER BY walk")]
    ((key,),) = lake.ask("SELECT DISTINCT sample_key FROM scored_rows WHERE run_id = 'same'")
    assert len(walks) == WAITERS
    work = Work(store)
    for holder in (walks[0], walks[7], walks[-1]):
        store.connection.execute(
            f"UPDATE scored_rows SET {other} = {DUPLICATE} WHERE walk IN ({','.join(map(str, walks))})"
        )
        store.connection.execute(f"UPDATE scored_rows SET {other} = {EXPORTED} WHERE walk = ?", (holder,))
        found = [work.waiter_after(Dataset(dataset), key, walk) for walk in (-1, *walks)]
        assert found == [walks[1], *walks[1:], None]
    store.connection.execute("INSERT INTO rejudge_rows (walk, forced) VALUES (?, 0)", (walks[1],))
    Queues(store).drop_rows(f"walk = {walks[1]}")
    first_in_the_other = walks[0]
    assert lake.ask("SELECT walk FROM rejudge_rows ORDER BY walk") == [(first_in_the_other,), (walks[2],)]
    plan = [step for *_, step in store.connection.execute(f"EXPLAIN QUERY PLAN {first_waiter(dataset)}", (key, 0))]
    assert sum("scored_rows_by_key (sample_key=? AND <expr>=? AND rowid>?)" in step for step in plan) == 2
    assert not [step for step in plan if "TEMP B-TREE" in step]


@pytest.mark.parametrize("dataset", ["rag", "sft"])
def test_rows_behind_a_place_are_found_from_there(lake: HistoryLake, dataset: str) -> None:
    """Rows of the id that come before are not read."""
    store, code = lake.engine.store, REASON_CODES[Reason.SCHEMA_VIOLATION]
    ((key,),) = lake.ask("SELECT DISTINCT sample_key FROM scored_rows WHERE run_id = 'same'")
    walks = [walk for (walk,) in lake.ask("SELECT walk FROM scored_rows WHERE run_id = 'same' ORDER BY walk")]
    store.connection.execute(f"UPDATE scored_rows SET {dataset} = {code} WHERE walk % 3 = 0 AND walk > ?", walks[:1])
    found = Work(store).behind(Dataset(dataset), key, walks[5])
    assert found
    assert sorted(found) == [walk for walk in walks[6:] if walk % 3 == 0]
    plan = [step for *_, step in store.connection.execute(f"EXPLAIN QUERY PLAN {rows_behind(dataset)}", (key, 0))]
    assert sum("scored_rows_by_key (sample_key=? AND <expr>=? AND rowid>?)" in step for step in plan) == 2


def of_the_version_before(lake: HistoryLake) -> None:
    """Leave the store with the indexes and the segments of the version before."""
    lake.stop()
    with closing(sqlite3.connect(lake.state)) as store, store:
        store.executescript(
            "DELETE FROM _sqlite_migrations WHERE name = 'm010_smaller_store';\n"
            "DROP INDEX scored_rows_by_key; DROP INDEX pairs_by_key;\n"
            "CREATE INDEX scored_rows_by_key ON scored_rows (sample_key) WHERE sample_key IS NOT NULL;\n"
            "CREATE UNIQUE INDEX rag_ids ON scored_rows (sample_key) WHERE rag = 0;\n"
            "CREATE INDEX pairs_by_key ON pairs (sample_key);\n"
            "CREATE UNIQUE INDEX pair_ids ON pairs (sample_key) WHERE outcome = 0;\n"
            "CREATE TABLE s AS SELECT * FROM export_segments; DROP TABLE export_segments;\n"
            "CREATE TABLE export_segments (name TEXT NOT NULL, segment INTEGER NOT NULL, sha256 BLOB NOT NULL,"
            " space_bytes INTEGER NOT NULL, line_marks BLOB NOT NULL, PRIMARY KEY (name, segment)) STRICT, WITHOUT ROWID;\n"
            "INSERT INTO export_segments SELECT * FROM s; DROP TABLE s;\n"
        )
    store.close()


def test_store_of_the_version_before_is_carried_on(lake: HistoryLake) -> None:
    """Nothing is judged, written or read anew for it, and rows leave and take ids over as ever."""
    segments = lake.ask("SELECT * FROM export_segments ORDER BY name, segment")
    files = lake.files()
    of_the_version_before(lake)
    assert not lake.go().batches
    assert lake.files() == files
    assert lake.ask("SELECT * FROM export_segments ORDER BY name, segment") == segments
    names = {name for (name,) in lake.ask("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert "scored_rows_by_key" in names
    assert not names & {"rag_ids", "pair_ids"}
    lake.both(B, run("same", "rejected"), run("two"))
    lake.go()
    assert lake.exported("rag") == {"one", "two"}
    committed_and_whole(lake.root)
    assert HOLDS_RAG in "".join(sql for (sql,) in lake.ask("SELECT sql FROM sqlite_master WHERE sql NOT NULL"))
