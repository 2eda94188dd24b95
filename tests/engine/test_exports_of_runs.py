"""How often the text of one run is exported (SPEC 3.12): never under more ids, or in pairs of more tasks, than a setting allows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import Options
from distilld.inspection.verify import verify
from distilld.store import run_exports
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, rag_id, run


@pytest.fixture(params=[1, 2, 50_000], ids=lambda rows: f"batches-of-{rows}")
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[HistoryLake]:
    """A lake in which a run has two exports at most, worked off in batches of several sizes; runs are asked for in two ways."""
    monkeypatch.setattr(run_exports, "_FEW", 0 if request.param == 2 else 20)
    options = Options(source_files_root=str(tmp_path), max_exports_per_run=2)
    with history_lake(tmp_path, options, batch_rows=request.param) as made:
        yield made


def score(signature: str, category: str = "accepted", run_id: str = "r", **changes: Any) -> dict[str, Any]:
    """A scored row of a run with a signature, so with an id, of its own."""
    return run(run_id, category, provenance__sig_hash=signature, **changes)


def signed(lake: HistoryLake, name: str = "rag") -> list[str]:
    """The signatures of an export's rows, in order."""
    return [row["provenance"]["sig_hash"] for row in lake.rows(name)]


def over(lake: HistoryLake, name: str = "rag") -> list[str]:
    """The signatures of the rows that are over the limit, in order."""
    rows = lake.rows(f"quarantine_{name}")
    return sorted(row["source_provenance"]["sig_hash"] for row in rows if row["reason"] == "too_many_exports")


def look(lake: HistoryLake) -> None:
    """The exports are those of one full pass."""
    report = verify(lake.root, lake.state, lake.options, deep=True)
    assert [check for check in report.checks if check.faults] == []


def test_first_exports_of_a_run_ship_and_the_others_are_quarantined(lake: HistoryLake) -> None:
    """One evidence text of 7 MB and a row of 200 bytes for each export of it: 14 MB a row, without any limit."""
    lake.scored(B, score("s1"), score("s2"), score("s3"), run("other"))
    lake.evidence(B, given("r"), given("other"))
    lake.go()
    for name in ("rag", "sft"):
        assert sorted(signed(lake, name)) == ["s1", "s2", "sig-other"]
        (held,) = lake.rows(f"quarantine_{name}")
        assert (held["reason"], held["errors"]) == ("too_many_exports", ["more than 2 exports of one run"])
        assert held["source_record"] == score("s3")
    look(lake)


def test_row_that_is_scored_again_counts_once(lake: HistoryLake) -> None:
    """The same id and task, in whatever partition, is one export, also where another is over the limit already."""
    lake.scored(A, score("s1"), score("s1"))
    lake.scored(B, score("s1"), score("s2"), score("s3"), score("s2"))
    for partition in (A, B):
        lake.evidence(partition, given("r"))
    lake.go()
    assert sorted(signed(lake)) == ["s1", "s2"]
    assert over(lake) == ["s3"]
    assert sorted(row["reason"] for row in lake.rows("quarantine_rag")) == ["duplicate_id"] * 3 + ["too_many_exports"]
    look(lake)


def test_row_that_arrives_earlier_in_walk_order_displaces_a_later_one(lake: HistoryLake) -> None:
    """The order of arrival decided: a partition that came late, with an earlier name, found the limit used up."""
    lake.both(B, score("s1"), score("s2"))
    lake.go()
    assert sorted(signed(lake)) == ["s1", "s2"]
    lake.both(A, score("s0"))
    lake.go()
    assert sorted(signed(lake)) == ["s0", "s1"]
    assert over(lake) == over(lake, "sft") == ["s2"]
    assert [(row["id"], row["cause"]) for row in lake.withdrawn("rag")] == [(rag_id("r", "s2"), "displaced")]
    look(lake)


@pytest.mark.parametrize("how", ["rewritten", "malformed", "shuffled", "another run"])
def test_next_export_moves_up_when_an_earlier_one_goes(lake: HistoryLake, how: str) -> None:
    """A row that was over the limit ships once it is not, whatever became of the rows before it."""
    first, *rest = score("s1"), score("s2"), score("s3")
    lake.both(B, first, *rest)
    lake.go()
    changed: list[dict[str, Any] | bytes] = {
        "rewritten": list(rest),
        "malformed": [b"{", *rest],
        "shuffled": [*rest, first],
        "another run": [score("s1", run_id="q"), *rest],
    }[how]  # type: ignore[assignment]
    lake.scored(B, *changed)
    lake.go()
    assert sorted(signed(lake)) == ["s2", "s3"]
    assert over(lake) == (["s1"] if how == "shuffled" else [])
    look(lake)


def test_other_limit_judges_again(lake: HistoryLake) -> None:
    """A smaller limit withdraws, a larger one exports; 0 is no limit."""
    rows = [score(f"s{number}") for number in range(5)]
    lake.both(B, *rows)
    lake.go()
    for most in (3, 0, 1, 1000):
        lake.restart(replace(lake.options, max_exports_per_run=most))
        lake.go()
        assert sorted(signed(lake)) == [f"s{number}" for number in range(most or 5)][:5]
        look(lake)
    assert set(lake.causes("rag")) == {"options_changed"}


@pytest.mark.parametrize("category", ["rejected", "needs_human_review", "unheard of"])
def test_row_that_ships_nowhere_counts(lake: HistoryLake, category: str) -> None:
    """What becomes of a row does not decide whether it counts, or a verdict would change which rows are within the limit."""
    lake.both(B, score("s1", category), score("s2"), score("s3"))
    lake.go()
    assert signed(lake) == ["s2"]
    assert over(lake) == ["s3"]
    look(lake)


def test_rejection_over_the_limit_revokes(lake: HistoryLake) -> None:
    """A verdict counts wherever it stands: a run that had its exports could not be rejected any more."""
    lake.both(B, score("s1"), score("s2"))
    lake.go()
    lake.both(C, score("s3", "rejected"))
    lake.go()
    assert signed(lake) == signed(lake, "sft") == []
    assert set(lake.causes("rag")) == {"revoked"}
    look(lake)


def test_rows_of_absent_partitions_do_not_count(lake: HistoryLake) -> None:
    """What is retained stays, and the rows that are there have the limit to themselves; what returns counts again."""
    lake.both(A, score("s1"), score("s2"))
    lake.both(B, score("s3"), score("s4"), score("s5"))
    lake.go()
    assert sorted(signed(lake)) == ["s1", "s2"]
    lake.move_away(*lake.paths(A, "both"))
    lake.go()
    assert sorted(signed(lake)) == ["s1", "s2", "s3", "s4"]
    assert over(lake) == ["s5"]
    look(lake)
    lake.bring_back(*lake.paths(A, "both"))
    lake.go()
    assert sorted(signed(lake)) == ["s1", "s2"]
    assert over(lake) == ["s3", "s4", "s5"]
    look(lake)


def test_renamed_partition_withdraws_nothing(lake: HistoryLake) -> None:
    """A line that moved counts once, in its new place: no row leaves, though all rows of the run are new to the file."""
    lake.both(B, score("s1"), score("s2"), score("s3"))
    lake.go()
    before = lake.lines("rag"), lake.lines("sft")
    for one, other in zip(lake.paths(B, "both"), lake.paths(A, "both"), strict=True):
        other.parent.mkdir(parents=True, exist_ok=True)
        one.rename(other)
    lake.go()
    assert (lake.lines("rag"), lake.lines("sft")) == before
    assert lake.withdrawn("rag") == []
    look(lake)


def test_row_on_absent_evidence_does_not_stay_over_the_limit(lake: HistoryLake) -> None:
    """A row keeps what became of it while its evidence is absent, as long as the gates before that one let it pass."""
    lake.both(B, score("s1"), score("s2"))
    lake.go()
    lake.move_away(lake.evidence_path(B))
    lake.go()
    assert sorted(signed(lake)) == ["s1", "s2"]
    lake.scored(A, score("s0"))
    lake.go()
    assert signed(lake) == ["s1"]
    look(lake)


def test_run_stands_in_pairs_of_few_tasks(lake: HistoryLake) -> None:
    """A run with one id and a task in each row was in as many pairs, each with its whole text."""
    tasks = ["t1", "t2", "t3"]
    lake.scored(B, *(score("s", run_id=name, category=category, task_id=task)
                     for task in tasks for name, category in (("good", "accepted"), ("bad", "rejected"))))  # fmt: skip
    lake.evidence(B, given("good"), given("bad"))
    lake.go()
    assert sorted(row["prompt"] for row in lake.rows("preference")) == [
        "Task: t1 · file=src/lib.rs",
        "Task: t2 · file=src/lib.rs",
    ]
    (held,) = lake.rows("quarantine_preference")
    assert held["reason"] == "too_many_exports"
    assert held["errors"] == [f"{side}: more than 2 exports of one run" for side in ("chosen", "rejected")]
    look(lake)
    lake.scored(B, *(score("s", run_id=name, category=category, task_id=task)
                     for task in tasks[1:] for name, category in (("good", "accepted"), ("bad", "rejected"))))  # fmt: skip
    lake.go()
    assert len(lake.rows("preference")) == 2
    assert lake.rows("quarantine_preference") == []
    look(lake)


def test_pair_goes_over_the_limit_with_its_side(lake: HistoryLake) -> None:
    """A row of another task came first, and the pair that it displaced stayed, for none of its own task had changed."""
    lake.scored(B, *(score("s", task_id=task) for task in ("t1", "t2")), run("bad", "rejected", "t2"))
    lake.evidence(B, given("r"), given("bad"))
    lake.go()
    assert lake.exported("preference") == {"r>bad"}
    lake.scored(A, score("s", task_id="t0"))
    lake.go()
    assert lake.exported("preference") == set()
    assert [row["errors"] for row in lake.rows("quarantine_preference")] == [["chosen: more than 2 exports of one run"]]
    look(lake)


def test_texts_of_pairs_over_the_limit_are_not_read(lake: HistoryLake) -> None:
    """A run with a task in each of its rows had its text of megabytes read for each of the pairs that cannot ship."""
    text, tasks = "long " * 4000, [f"t{number}" for number in range(30)]
    lake.scored(B, *(score("s", task_id=task) for task in tasks),
                *(run(f"bad-{task}", "rejected", task) for task in tasks))  # fmt: skip
    lake.evidence(B, given("r", text), *(given(f"bad-{task}") for task in tasks))
    result = lake.go()
    assert len(lake.rows("preference")) == 2
    assert sum(batch.receipt["work"]["bytes_read"] for batch in result.batches) < 9 * len(text)
    look(lake)


def test_row_that_loses_its_id_may_be_over_the_limit(lake: HistoryLake) -> None:
    """A row that is judged before its turn, for an earlier one took its id, is told the same of its run as in its turn."""
    lake.restart(replace(lake.options, max_exports_per_run=1))
    lake.both(B, score("s", task_id="t1"), run("other"))
    lake.go()
    lake.both(A, score("s", task_id="t0"))
    lake.go()
    assert [row["reason"] for row in lake.rows("quarantine_rag")] == ["too_many_exports"]
    look(lake)


def test_row_of_a_run_over_the_limit_costs_itself(lake: HistoryLake) -> None:
    """Each appended row of a run with many exports had all of them judged again."""
    lake.both(B, *(score(f"s{number}") for number in range(20)))
    lake.go()
    with lake.scored_path(B).open("ab") as file:
        file.write(b"".join(lake.scored_path(B).read_bytes().splitlines(keepends=True)[-1:]).replace(b"s19", b"s20"))
    result = lake.go()
    assert [batch.receipt["work"]["rows_judged"] for batch in result.batches] == [1]
    assert len(over(lake)) == 19


def test_older_store_learns_the_reason(lake: HistoryLake) -> None:
    """A store of before has no such reason: the first pass with this version withdraws what is over the limit."""
    lake.restart(replace(lake.options, max_exports_per_run=0))
    lake.both(B, *(score(f"s{number}") for number in range(4)))
    lake.go()
    lake.stop()
    with closing(sqlite3.connect(lake.state)) as store, store:
        store.execute("DELETE FROM _sqlite_migrations WHERE name = 'm008_too_many_exports'")
        store.execute("DELETE FROM outcomes WHERE outcome = 'too_many_exports'")
        store.execute("DELETE FROM totals WHERE outcome NOT IN (SELECT code FROM outcomes)")
    lake.restart(replace(lake.options, max_exports_per_run=2))
    lake.go()
    assert sorted(signed(lake)) == ["s0", "s1"]
    assert lake.ask("SELECT * FROM quarantine_by_reason WHERE dataset = 'rag'") == [("rag", "too_many_exports", 2)]
    look(lake)


def test_evidence_of_rows_over_the_limit_is_not_read(lake: HistoryLake) -> None:
    """A text of megabytes was read once more for each row that cannot ship."""
    lake.scored(B, *(score(f"s{number}") for number in range(30)))
    lake.evidence(B, given("r", "long " * 4000))
    result = lake.go()
    assert sum(batch.receipt["work"]["bytes_read"] for batch in result.batches) < 8 * 5 * 4000
    look(lake)
