"""The view ``dataset_history``: every dataset after every batch, exact, and cheap to ask for (docs/state.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from distilld.core.model import EXPORT_PATHS, Dataset, Trigger
from distilld.store.queries import Views
from tests.support.history_lake import MINUTE_NS, A, B, HistoryLake, given, history_lake, run
from tests.support.query_plans import counted_steps
from tests.support.target_state import Exports, add_up

Batch = dict[str, tuple[int, int, int, int]]


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake of two accepted runs and a pair, after its first pass."""
    with history_lake(tmp_path) as made:
        made.both(A, run("a1", task_id="t"), run("a2", "rejected", task_id="t"), run("a3"))
        made.go()
        yield made


def history(lake: HistoryLake) -> list[Batch]:
    """Rows, added, withdrawn and quarantined rows of each dataset, by batch, the oldest first."""
    found: dict[str, Batch] = {}
    for at, dataset, *figures, batch_id in lake.engine.store.connection.execute("SELECT * FROM dataset_history"):
        assert at == f"{batch_id[:4]}-{batch_id[4:6]}-{batch_id[6:11]}:{batch_id[11:13]}:{batch_id[13:]}"
        found.setdefault(batch_id, {})[dataset] = tuple(figures)
    assert list(found) == sorted(found, reverse=True)
    return [*found.values()][::-1]


def check(lake: HistoryLake) -> None:
    """It ends with what stands in the files, and adds up."""
    add_up(lake.engine.store.connection, Exports.read(lake.root))


def test_history_says_what_each_batch_did(lake: HistoryLake) -> None:
    """Rows that come, are replaced under their id, leave and come back are told apart in each dataset."""
    lake.evidence(A, given("a1", "other words"), given("a2"), given("a3"))
    lake.go()
    lake.both(B, run("b1"))
    lake.scored(A, run("a1", "rejected", task_id="t"), run("a2", "rejected", task_id="t"), run("a3"))
    lake.go()
    assert [batch["sft"] for batch in history(lake)] == [(2, 2, 0, 1), (2, 0, 0, 1), (2, 1, 1, 2)]
    assert [batch["preference"] for batch in history(lake)] == [(1, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0)]
    assert all(set(batch) == set(Dataset) for batch in history(lake))
    check(lake)


def test_history_stays_exact_over_a_rebuild(lake: HistoryLake) -> None:
    """A rebuild reads and judges everything anew, and adds nothing."""
    before = history(lake)
    lake.go(Trigger.REBUILD)
    lake.both(B, run("b1"))
    lake.go()
    assert history(lake)[: len(before)] == before
    assert history(lake)[-1]["rag"][:3] == (before[-1]["rag"][0] + 1, 1, 0)
    check(lake)


def test_history_goes_as_far_back_as_receipts_are_kept(lake: HistoryLake) -> None:
    """What is left when old receipts are removed is as it was."""
    for number in range(3):
        lake.both(B, *(run(f"b{each}") for each in range(number + 1)))
        lake.go()
    before = history(lake)
    lake.engine.committer.receipts_keep = 2
    lake.both(B, *(run(f"b{each}") for each in range(4)))
    lake.go()
    assert history(lake) == [before[-1], {**before[-1], "rag": (6, 1, 0, 1), "sft": (6, 1, 0, 1)}]


def test_adopted_rows_count_from_the_first_batch_on(lake: HistoryLake) -> None:
    """The first batch of a new store starts from the rows that it found; it added its own alone."""
    lake.lose_store()
    lake.both(B, run("b1"))
    lake.go()
    lake.both(B, run("b1"), run("b2"))
    lake.go()
    assert [batch["rag"][:3] for batch in history(lake)] == [(3, 1, 0), (4, 1, 0)]


def test_rows_that_are_written_again_count_as_added(lake: HistoryLake) -> None:
    """A damaged export is restored; the rows that it lost counted all along, but for one that no input gives: it is lost."""
    lake.both(B, run("b1"))
    lake.go()
    lake.move_away(*lake.paths(B, "both"))
    lake.go()
    (lake.root / EXPORT_PATHS["rag"]).unlink()
    lake.go()
    assert [batch["rag"][:3] for batch in history(lake)[-2:]] == [(3, 0, 0), (2, 2, 1)]
    assert lake.causes("rag") == ["lost"]


def test_past_that_no_receipt_covers_is_not_looked_for_in_all_batches(lake: HistoryLake) -> None:
    """The story: where receipts went back less than a day, every look at the health asked all batches there ever were."""
    store = lake.engine.store

    def steps() -> int:
        with counted_steps(store.connection) as done:
            assert Views(store).rows_at("2020") == {}
            assert len(list(Views(store).receipts(None))) == 1
        return done[0]

    before = steps()
    store.connection.execute(
        "WITH RECURSIVE n(batch) AS (SELECT 0 UNION ALL SELECT batch - 1 FROM n WHERE batch > -1000)"
        " INSERT INTO batches SELECT batch, 'b' || batch, 'watch', '2021', 0, 0, 0, 0, 0, 0 FROM n"
    )
    assert steps() < 2 * before


def lag_ms(lake: HistoryLake) -> int | None:
    """What the newest receipt says of it."""
    (receipt,) = lake.ask("SELECT receipt FROM receipts ORDER BY batch DESC LIMIT 1")[0]
    found: int | None = json.loads(receipt)["work"]["lag_ms"]
    return found


def test_receipt_says_for_how_long_the_oldest_input_had_waited(lake: HistoryLake) -> None:
    """From the last change of the input that waited longest; a batch that read none has no lag, nor one that is early."""
    assert lag_ms(lake) == 0, "the clock of this lake is behind that of its files"
    lake.both(B, run("b1"))
    changed_ns = min(path.stat().st_ctime_ns for path in lake.paths(B, "both"))
    lake.now_ns = changed_ns + 90 * 10**9 - MINUTE_NS
    lake.go()
    assert lag_ms(lake) in (89_999, 90_000)
    lake.move_away(*lake.paths(B, "both"))
    lake.go()
    assert lag_ms(lake) is None


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("SELECT * FROM dataset_history LIMIT 900", "SCAN b"),
        ("SELECT dataset, rows FROM dataset_history WHERE at <= '2026' LIMIT 3", "SCAN b"),
        ("SELECT at, rows FROM dataset_history WHERE dataset = 'rag' AND at > '2026'", "SCAN b"),
        ("SELECT * FROM dataset_history WHERE batch_id = '2026'", "SEARCH b USING"),
    ],
)
def test_few_receipts_are_read_for_a_few_batches(lake: HistoryLake, query: str, first: str) -> None:
    """The newest batches are found without sorting, and of a batch that is not asked for the receipt is not read."""
    plan = [step for *_, step in lake.engine.store.connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert plan[0].startswith(first), plan
    assert plan[1].startswith("SEARCH r USING INTEGER PRIMARY KEY"), plan
    assert not [step for step in plan if "TEMP" in step or "AUTOMATIC" in step]
