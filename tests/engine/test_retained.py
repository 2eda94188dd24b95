"""What is kept although no present input gives it: absent partitions, the tripwire, prune (SPEC 3)."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distilld.core.model import Dataset, OnDelete, Options, Trigger
from distilld.engine import batch, index
from distilld.engine.work_off import QueueWorker
from distilld.inspection.verify import verify
from distilld.store.retained import Only
from distilld.store.tripwire import Tripwire
from distilld.store.verdicts import InForce, Verdicts
from tests.support.history_lake import A, B, C, HistoryLake, believe_facts, given, history_lake, rag_id, run, sft_id
from tests.support.query_plans import counted_steps, whole_scans

TASK = "one-task"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with nothing in it."""
    with history_lake(tmp_path) as made:
        yield made


def options(lake: HistoryLake, **changes: object) -> Options:
    """The lake's options but for some."""
    return Options(**{"source_files_root": str(lake.root), **changes})  # type: ignore[arg-type]


def two_partitions(lake: HistoryLake) -> dict[str, bytes]:
    """Two partitions that ship, hold and pair rows; returns what the exports hold after the first pass."""
    lake.both(A, run("a1", task_id=TASK), run("a2", "rejected", TASK), run("a3", "partially_accepted"), run("a4"))
    lake.both(B, run("b1"), run("b2", "needs_human_review"), run("b3", task_id="t"), run("b4", "rejected", "t"))
    lake.go()
    return lake.files()


# absent, and back


def _stop(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def test_receipt_names_a_file_by_what_it_is_now(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file goes, the pass is cut off before its batch, and the file is back with another row: it is not absent."""
    lake.both(A, run("a1"))
    lake.both(B, run("b1"))
    lake.go()
    lake.move_away(lake.scored_path(A))

    with monkeypatch.context() as patch:
        patch.setattr(QueueWorker, "run_batch", _stop)
        with pytest.raises(KeyboardInterrupt):
            lake.engine.run_pass(Trigger.ONCE)
    lake.restart()
    lake.both(A, run("a1"), run("a2"))
    (batch,) = lake.go().batches
    changes = {each["path"]: each["change"] for each in batch.receipt["inputs"] if each["kind"] == "scored"}
    assert changes == {f"data/scored-runs/{A}": "returned"}


@pytest.mark.parametrize("trees", ["scored", "evidence", "both"])
def test_absent_partition_changes_no_byte(lake: HistoryLake, trees: str) -> None:
    """A partition whose scored file, evidence file, or both are gone leaves every file as it is, byte for byte."""
    before = two_partitions(lake)
    gone = lake.paths(A, trees)
    lake.move_away(*gone)
    lake.go()
    assert lake.files() == before
    lake.go()
    lake.restart()
    lake.go()
    assert lake.files() == before


@pytest.mark.parametrize("trees", ["scored", "evidence", "both"])
def test_returned_partition_changes_no_byte(lake: HistoryLake, trees: str) -> None:
    """A partition that returns as it was leaves every file as it is, and nothing is retained any more."""
    before = two_partitions(lake)
    gone = lake.paths(A, trees)
    lake.move_away(*gone)
    lake.go()
    lake.bring_back(*gone)
    lake.go()
    assert lake.files() == before
    assert lake.ask("SELECT * FROM retained_rows UNION ALL SELECT * FROM retained_rows") == []
    assert lake.ask("SELECT count(*) FROM pairs WHERE retained IS NOT NULL") == [(0,)]


def test_wiped_trees_change_no_byte(lake: HistoryLake) -> None:
    """Both trees wiped at once leave every file as it is."""
    before = two_partitions(lake)
    lake.move_away(*(path for part in (A, B) for path in (lake.scored_path(part), lake.evidence_path(part))))
    lake.go()
    assert lake.files() == before


@pytest.mark.parametrize("first", ["scored", "evidence"])
def test_trees_that_go_one_after_the_other_change_no_byte(lake: HistoryLake, first: str) -> None:
    """One tree is wiped, then the other; they come back in either order; no file changes."""
    before = two_partitions(lake)
    trees = {
        "scored": [lake.scored_path(A), lake.scored_path(B)],
        "evidence": [lake.evidence_path(A), lake.evidence_path(B)],
    }
    second = "evidence" if first == "scored" else "scored"
    for tree in (first, second):
        lake.move_away(*trees[tree])
        lake.go()
        assert lake.files() == before
    for tree in (first, second):
        lake.bring_back(*trees[tree])
        lake.go()
        assert lake.files() == before


def test_returned_partition_that_changed_is_compared(lake: HistoryLake) -> None:
    """A partition that returns changed: rows that it no longer holds leave, unchanged ones keep their bytes."""
    two_partitions(lake)
    stamps = lake.stamps("rag")
    lake.move_away(lake.scored_path(A))
    lake.go()
    lake.scored(A, run("a1", task_id=TASK), run("a2", "rejected", TASK), run("a5"))
    lake.evidence(A, given("a1"), given("a2"), given("a5"))
    lake.go()
    assert lake.exported("rag") == {"a1", "a5", "b1", "b3"}
    assert lake.stamps("rag")[rag_id("a1")] == stamps[rag_id("a1")]
    assert sorted(row["source_run_id"] for row in lake.withdrawn("rag")) == ["a3", "a4"]
    assert set(lake.causes("rag")) == {"row_removed"}
    assert lake.exported("preference") == {"a1>a2", "b3>b4"}


def test_returned_partition_takes_retained_pairs_with_it(lake: HistoryLake) -> None:
    """A partition returns without the rejected side of a pair: the pair that was retained meanwhile leaves.

    It stayed for good once: a retained pair was let go for a verdict alone, whether its partition was absent or not.
    """
    two_partitions(lake)
    lake.move_away(lake.scored_path(A))
    lake.go()
    lake.scored(A, run("a1", task_id=TASK))
    lake.go()
    assert lake.exported("preference") == {"b3>b4"}
    assert lake.causes("preference") == ["row_removed"]


def test_returned_partition_takes_held_retained_pairs_with_it(lake: HistoryLake) -> None:
    """A pair that was held and retained leaves the quarantine when its partition returns and the pair ships.

    Its quarantine row stayed for good once, beside the pair in the dataset.
    """
    lake.both(A, run("a1", task_id=TASK), run("a2", "rejected", TASK))
    lake.evidence(A, given("a1"), given("a2", ""))
    lake.go()
    assert [row["reason"] for row in lake.rows("quarantine_preference")] == ["invalid_preference_pairing"]
    held = lake.content("quarantine_preference")
    lake.move_away(lake.scored_path(A))
    lake.go()
    assert lake.content("quarantine_preference") == held
    lake.evidence(A, given("a1"), given("a2"))
    lake.bring_back(lake.scored_path(A))
    lake.go()
    assert lake.exported("preference") == {"a1>a2"}
    assert lake.rows("quarantine_preference") == []


def test_returned_evidence_that_changed_replaces_the_row(lake: HistoryLake) -> None:
    """Evidence that returns with other text replaces the row that was kept meanwhile."""
    two_partitions(lake)
    lake.move_away(lake.evidence_path(A))
    lake.go()
    lake.evidence(A, given("a1", "# Another answer"), given("a2"), given("a3"), given("a4"))
    lake.go()
    assert {row["content"] for row in lake.rows("rag") if row["source_run_id"] == "a1"} == {"# Another answer"}
    assert lake.causes("rag") == ["evidence_changed+"]
    assert lake.causes("preference") == ["evidence_changed+"]


def test_row_appended_while_evidence_is_absent_waits(lake: HistoryLake) -> None:
    """A row that comes while its evidence file is absent is held, and ships when the file is back with its run."""
    two_partitions(lake)
    lake.move_away(lake.evidence_path(A))
    lake.go()
    lake.scored(
        A, run("a1", task_id=TASK), run("a2", "rejected", TASK), run("a3", "partially_accepted"), run("a4"), run("a5")
    )
    lake.go()
    assert lake.quarantined("rag")["a5"] == "missing_source_run_id"
    assert {"a1", "a3", "a4"} <= lake.exported("rag")
    lake.evidence(A, *(given(f"a{number}") for number in range(1, 6)))
    lake.go()
    assert "a5" in lake.exported("rag")


# how a retained row leaves


@pytest.mark.parametrize(("home", "newer"), [(A, B), (B, A)])
@pytest.mark.parametrize("text", ["# Answer of r1", "# Other words"])
def test_row_on_absent_evidence_gives_way_to_a_present_row(lake: HistoryLake, home: str, newer: str, text: str) -> None:
    """A row whose evidence is absent loses its id to a present row, wherever it stands, and has no evidence from then on.

    A row behind it was once held as a duplicate, and one before it failed the accounting.
    """
    lake.both(home, run("r1", task_id=TASK), run("r2", "rejected", TASK))
    lake.go()
    lake.move_away(lake.evidence_path(home))
    lake.go()
    before = lake.stamps("rag")
    lake.scored(newer, run("r1", reasons=["written anew"], evidence_task_id=TASK))
    lake.evidence(newer, given("r1", text))
    lake.go()
    for dataset in (Dataset.RAG, Dataset.SFT):
        assert lake.quarantined(dataset)["r1"] == "missing_source_run_id"
        assert lake.causes(dataset) == ([] if text == "# Answer of r1" else ["displaced+"])
        assert lake.ask(f"SELECT count(*) FROM scored_rows WHERE {dataset} = 0") == [(1,)]
    assert [row["content"] for row in lake.rows("rag")] == [text]
    assert (lake.stamps("rag") == before) == (text == "# Answer of r1")
    lake.bring_back(lake.evidence_path(home))
    lake.go()
    assert [row["content"] for row in lake.rows("rag")] == [text if newer == A else "# Answer of r1"]
    assert lake.quarantined("rag")["r1"] == "duplicate_id"


def test_duplicate_ships_when_the_evidence_of_its_holder_goes(lake: HistoryLake) -> None:
    """A row that is quarantined because an earlier one has its id ships once the earlier one stands on absent evidence.

    Between the two waits a row on the same absent evidence: what became of it stays, and the turn passes on.
    """
    lake.scored(A, run("r1"), run("r1", reasons=["once more"]))
    lake.evidence(A, given("r1"))
    lake.both(B, run("r1", reasons=["elsewhere"]))
    lake.go()
    held = lake.lines("quarantine_rag")
    lake.move_away(lake.evidence_path(A))
    lake.go()
    assert lake.ask("SELECT sum(rag = 0), sum(sft = 0) FROM row_places WHERE partition = ?", B) == [(1, 1)]
    assert len(lake.lines("quarantine_rag") & held) == 1
    lake.scored(B)
    lake.go()
    assert lake.rows("rag") == []
    assert lake.causes("rag") == lake.causes("sft") == ["row_removed"]


@pytest.mark.parametrize(("home", "later"), [(A, B), (B, A)])
def test_retained_row_leaves_when_a_present_verdict_revokes_its_run(lake: HistoryLake, home: str, later: str) -> None:
    """A present rejection takes a retained row out, wherever it stands: absent verdicts clear nothing."""
    lake.both(home, run("r1", task_id=TASK), run("r2", "rejected", TASK))
    lake.go()
    lake.move_away(lake.scored_path(home))
    lake.go()
    lake.scored(later, run("r1", "rejected", TASK))
    lake.go()
    for dataset in Dataset:
        assert lake.exported(dataset) == set()
        assert lake.causes(dataset) == ["revoked"]
    (row,) = lake.withdrawn("rag")
    assert row["verdict"] == {"category": "rejected", "location": {"partition": later, "line_offset": 0}}


def test_retained_row_gives_way_to_a_present_row_with_its_id(lake: HistoryLake) -> None:
    """A present row that ships the same id takes the retained row's place, before it or behind it in walk order."""
    for home, newer in ((B, A), (B, C)):
        lake.both(home, run("r1"))
        lake.go()
        stamps = lake.stamps("rag")
        lake.move_away(lake.scored_path(home), lake.evidence_path(home))
        lake.go()
        lake.scored(newer, run("r1", reasons=["written anew"]))
        lake.evidence(newer, given("r1", "# Other words"))
        lake.go()
        assert [row["content"] for row in lake.rows("rag")] == ["# Other words"]
        assert lake.stamps("rag")[rag_id("r1")] > stamps[rag_id("r1")]
        assert lake.causes("rag")[-1] == "displaced+"
        assert lake.ask("SELECT rag FROM retained_rows") == [(None,)]
        lake.prune()
        lake.move_away(lake.scored_path(newer), lake.evidence_path(newer))
        lake.go()
        lake.prune()
        assert lake.rows("rag") == []


def test_present_row_that_ships_alike_takes_the_retained_line_over(lake: HistoryLake) -> None:
    """A present row with the id and the content of a retained one takes its line over without rewriting it."""
    lake.both(B, run("r1"))
    lake.go()
    before = lake.files()
    lake.move_away(lake.scored_path(B), lake.evidence_path(B))
    lake.go()
    lake.scored(C, run("r1", reasons=["scored once more"]))
    lake.evidence(C, given("r1"))
    lake.go()
    assert lake.files() == before
    lake.prune()
    assert lake.files() == before


def test_partition_returns_after_another_row_took_one_of_its_ids(lake: HistoryLake) -> None:
    """A retained row that lost its place in one dataset alone returns, and everything is as if it had never gone.

    The accounting failed once, on every pass from then on: the returned row counted as never judged.
    """
    lake.both(A, run("r1"))
    lake.go()
    lake.move_away(lake.scored_path(A))
    lake.go()
    lake.both(B, run("r1", "partially_accepted", reasons=["scored once more"]))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"r1"}
    lake.bring_back(lake.scored_path(A))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"r1"}
    assert lake.quarantined("rag") == {"r1": "duplicate_id"}
    assert lake.rows("rag")[0]["source_category"] == "accepted"


def test_rows_that_wait_in_one_dataset_are_accounted_for(lake: HistoryLake) -> None:
    """Rows that left RAG alone when their evidence was given up wait for their batches, and every check holds."""
    lake.both(B, run("b1"))
    lake.scored(A, *map(run, ("a1", "a2", "a3")))
    lake.evidence(A, *(given(f"a{number}", model_role="extractor") for number in (1, 2, 3)))
    lake.go()
    lake.move_away(lake.evidence_path(A))
    lake.go()
    lake.restart(batch_rows=1)
    assert lake.engine.give_up(None).rows == 3
    assert not verify(lake.root, lake.state, lake.options).faults
    assert len(lake.go().batches) > 1
    assert lake.exported("rag") == lake.exported("sft") == {"b1"}
    assert lake.causes("rag") == ["pruned"] * 3
    assert set(lake.quarantined("sft").values()) == {"missing_source_run_id"}


@pytest.mark.parametrize("tripwire_rows", [0, 1000])
@pytest.mark.parametrize("evidence", ["absent", "empty"])
def test_returned_row_keeps_its_place_in_the_other_dataset(
    lake: HistoryLake, evidence: str, tripwire_rows: int
) -> None:
    """A row lost its id in RAG while it was absent; in SFT it stays, or counts as vanished, like any returned row."""
    lake.both(A, run("r1"), run("r2"))
    lake.both(C, run("r3"))
    lake.go()
    lake.move_away(*lake.paths(A, "both"))
    lake.scored(B, run("r1", reasons=["again"]))
    lake.evidence(B, given("r1", model_role="extractor"))
    lake.go()
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    assert lake.causes("rag") == ["displaced+"]
    lake.restart(tripwire_rows=tripwire_rows, tripwire_share=0.0)
    lake.bring_back(lake.scored_path(A))
    if evidence == "empty":
        lake.evidence(A)
    lake.go()
    if evidence == "absent" or tripwire_rows == 0:
        assert {dataset: lake.content(dataset) for dataset in Dataset} == before
        assert lake.causes("sft") == []
        return
    assert lake.exported("rag") == {"r1", "r3"}
    assert lake.exported("sft") == {"r3"}
    assert lake.causes("rag") == ["displaced+", "evidence_changed"]
    assert lake.causes("sft") == ["evidence_changed"] * 2


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
def test_tripwire_of_one_dataset_leaves_the_other_as_it_is(lake: HistoryLake, batch_rows: int) -> None:
    """Rows that the tripwire keeps in RAG wait there; their quarantine rows in SFT are not written again."""
    lake.both(A, *(run(f"r{number}", "partially_accepted") for number in range(6)))
    lake.both(B, run("x"))
    lake.go()
    before = {name: lake.content(name) for name in ("rag", "quarantine_sft")}
    lake.restart(tripwire_rows=1, tripwire_share=0.1, batch_rows=batch_rows)
    lake.evidence(A)
    lake.go()
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 6}
    assert {name: lake.content(name) for name in before} == before
    lake.evidence(A, *(given(f"r{number}") for number in range(6)))
    lake.go()
    assert lake.engine.retained.kept_by_tripwire() == {}
    assert {name: lake.content(name) for name in before} == before


def test_two_retained_rows_of_one_id_and_one_returns(lake: HistoryLake) -> None:
    """Two partitions ship and hold one id; both go, either returns, and the id stands once throughout."""
    lake.both(A, run("r1"))
    lake.both(B, run("r1", reasons=["a second score"]))
    lake.go()
    lake.move_away(lake.scored_path(A))
    lake.go()
    assert lake.exported("rag") == {"r1"}
    lake.move_away(lake.scored_path(B))
    lake.go()
    lake.bring_back(lake.scored_path(B))
    lake.go()
    lake.bring_back(lake.scored_path(A))
    lake.go()
    assert lake.exported("rag") == {"r1"}
    assert lake.quarantined("rag") == {"r1": "duplicate_id"}


# verdicts of absent partitions


def test_absent_rejection_still_forbids(lake: HistoryLake) -> None:
    """Deleting the partition that rejected a run does not bring the run back."""
    lake.both(A, run("r1"))
    lake.scored(B, run("r1", "rejected"))
    lake.go()
    assert lake.exported("rag") == set()
    before = lake.files()
    lake.move_away(lake.scored_path(B))
    lake.go()
    assert lake.files() == before
    lake.go(Trigger.REBUILD)
    assert lake.exported("rag") == lake.exported("sft") == set()
    assert lake.quarantined("sft")["r1"] == "unsafe_sft_category"


def test_absent_rejection_forbids_rows_that_come_later_in_time(lake: HistoryLake) -> None:
    """A row that is appended before an absent rejection in walk order is held; one behind it clears and ships."""
    lake.scored(B, run("r1", "rejected"))
    lake.go()
    lake.move_away(lake.scored_path(B))
    lake.go()
    lake.both(A, run("r1"))
    lake.go()
    assert lake.exported("rag") == set()
    lake.both(C, run("r1", reasons=["looked at again"]))
    lake.go()
    assert lake.exported("rag") == {"r1"}


def test_absent_acceptance_clears_no_present_rejection(lake: HistoryLake) -> None:
    """A run was rejected, then accepted; the partition that accepted it goes, and the rejection counts again."""
    lake.scored(A, run("r1", "rejected"))
    lake.both(B, run("r1"))
    lake.go()
    assert lake.exported("rag") == {"r1"}
    lake.move_away(lake.scored_path(B))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == set()
    assert lake.causes("rag") == lake.causes("sft") == ["revoked"]


def test_pruned_rejection_forbids_no_more(lake: HistoryLake) -> None:
    """Prune forgets the absent verdicts: a run that only they forbade ships again."""
    lake.both(A, run("r1"))
    lake.scored(B, run("r1", "rejected"))
    lake.go()
    lake.move_away(lake.scored_path(B))
    lake.go()
    lake.prune()
    assert lake.exported("rag") == lake.exported("sft") == {"r1"}


# lines that stand in a present partition too


def test_renamed_pair_of_files_keeps_its_rows(lake: HistoryLake) -> None:
    """A partition is renamed in both trees: its rows keep their bytes, and only locations change in the quarantine."""
    before = two_partitions(lake)
    for path in (lake.scored_path, lake.evidence_path):
        path(C).parent.mkdir(parents=True, exist_ok=True)
        path(A).rename(path(C))
    lake.go()
    for name in ("rag", "sft", "preference", "withdrawals_rag", "withdrawals_sft", "withdrawals_preference"):
        assert lake.files()[name] == before[name], name
    assert {row["location"]["partition"] for row in lake.rows("quarantine_rag")} == {B, C}
    assert lake.ask("SELECT count(*) FROM retained_rows WHERE rag IS NOT NULL OR sft IS NOT NULL") == [(0,)]
    assert lake.ask("SELECT count(*) FROM pairs WHERE retained IS NOT NULL") == [(0,)]


def test_line_that_moved_without_its_evidence_counts_where_it_stands(lake: HistoryLake) -> None:
    """A line that stands in a present partition counts only there: without evidence there, its row leaves."""
    two_partitions(lake)
    lake.scored_path(C).parent.mkdir(parents=True)
    lake.scored_path(A).rename(lake.scored_path(C))
    lake.go()
    assert lake.exported("rag") == {"b1", "b3"}
    assert lake.quarantined("rag")["a1"] == "missing_source_run_id"


def test_copied_line_whose_partition_goes_counts_in_the_copy(lake: HistoryLake) -> None:
    """A verdict that stands byte for byte in a present partition counts only there, whatever the absent one says."""
    rejection = run("r1", "rejected")
    lake.both(B, run("r1"))
    lake.scored(A, rejection)
    lake.scored(C, rejection)
    lake.go()
    assert lake.exported("rag") == set()
    lake.move_away(lake.scored_path(C))
    lake.go()
    assert lake.exported("rag") == {"r1"}  # the rejection counts in A alone, and B comes later


# pairs


def test_retained_pairs_do_not_count_towards_the_five(lake: HistoryLake) -> None:
    """A task has five retained pairs; present rows of it form five more."""
    lake.both(A, run("a1", task_id=TASK), *(run(f"x{number}", "rejected", TASK) for number in range(7)))
    lake.go()
    assert len(lake.rows("preference")) == 5
    before = lake.content("preference")
    lake.move_away(lake.scored_path(A), lake.evidence_path(A))
    lake.both(B, run("b1", task_id=TASK), *(run(f"y{number}", "rejected", TASK) for number in range(7)))
    lake.go()
    assert lake.content("preference").startswith(before)
    assert lake.exported("preference") == {f"a1>x{number}" for number in range(5)} | {f"b1>y{n}" for n in range(5)}


def test_absent_rows_take_no_pair_slot(lake: HistoryLake) -> None:
    """An absent accepted row is paired with no present rejected one."""
    lake.both(A, run("a1", task_id=TASK))
    lake.both(B, run("b1", "rejected", TASK))
    lake.go()
    lake.move_away(lake.scored_path(A))
    lake.both(C, run("c1", "rejected", TASK), run("c2", task_id=TASK))
    lake.go()
    assert lake.exported("preference") == {"a1>b1", "c2>b1", "c2>c1"}


def test_retained_pair_leaves_when_a_side_is_overruled(lake: HistoryLake) -> None:
    """A present verdict about the rejected side of a retained pair takes the pair out."""
    lake.both(A, run("a1", task_id=TASK), run("a2", "rejected", TASK))
    lake.go()
    lake.move_away(lake.scored_path(A))
    lake.go()
    lake.scored(B, run("a2", "accepted"))
    lake.go()
    assert lake.exported("preference") == set()
    assert lake.causes("preference") == ["revoked"]


# on_delete = withdraw


@pytest.mark.parametrize("trees", ["scored", "evidence", "both"])
def test_on_delete_withdraw_takes_absent_for_gone(tmp_path: Path, trees: str) -> None:
    """With on_delete = withdraw a partition that disappears takes its rows along, as if it had been emptied."""
    with history_lake(tmp_path) as lake:
        lake.restart(options(lake, on_delete=OnDelete.WITHDRAW))
        two_partitions(lake)
        gone = lake.paths(A, trees)
        lake.move_away(*gone)
        lake.go()
        assert lake.exported("rag") == {"b1", "b3"}
        assert lake.exported("sft") == {"b1", "b3"}
        assert lake.exported("preference") == {"b3>b4"}
        cause = "evidence_changed" if trees == "evidence" else "row_removed"
        assert set(lake.causes("rag")) == set(lake.causes("sft")) == set(lake.causes("preference")) == {cause}
        assert lake.ask("SELECT count(*) FROM retained_rows") == [(0,)]
        lake.bring_back(*gone)
        lake.go()
        assert lake.exported("rag") == {"a1", "a3", "a4", "b1", "b3"}


@pytest.mark.parametrize("trees", ["scored", "evidence", "both"])
def test_change_to_withdraw_lets_retained_rows_and_pairs_go(lake: HistoryLake, trees: str) -> None:
    """on_delete changes from keep to withdraw: what was retained leaves, pairs too.

    Retained pairs stayed once: a retained pair was let go for a verdict alone.
    """
    two_partitions(lake)
    gone = lake.paths(A, trees)
    lake.move_away(*gone)
    lake.go()
    lake.restart(options(lake, on_delete=OnDelete.WITHDRAW))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"b1", "b3"}
    assert lake.exported("preference") == {"b3>b4"}
    assert lake.ask("SELECT count(*) FROM retained_rows") == [(0,)]


def test_change_of_on_delete_leaves_nothing_waiting(lake: HistoryLake) -> None:
    """After a change of on_delete nothing waits to be judged, and the new options count as those judged with.

    Retained rows waited to be judged that were no more, so the pass never counted as done: a rebuild left out the order.
    """
    two_partitions(lake)
    lake.move_away(lake.scored_path(A))
    lake.go()
    lake.restart(options(lake, on_delete=OnDelete.WITHDRAW))
    lake.go()
    assert not lake.engine.work.waiting().anything
    assert lake.engine.store.recall("options_sha256") == lake.options.sha256


def test_change_of_on_delete_passes_the_tripwire(lake: HistoryLake) -> None:
    """on_delete changes to withdraw while many rows are retained: the tripwire keeps them, rows and pairs."""
    many_rows(lake)
    before = lake.files()
    lake.move_away(lake.scored_path(A), lake.evidence_path(A))
    lake.go()
    lake.restart(options(lake, on_delete=OnDelete.WITHDRAW), tripwire_rows=3, tripwire_share=0.5)
    lake.go()
    for dataset in Dataset:
        assert lake.content(dataset) == before[dataset]
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 6, "sft": 6, "preference": 4}


# the tripwire


def many_rows(lake: HistoryLake) -> None:
    """Partition A ships six rows to RAG and SFT and four pairs, partition B two and none."""
    pairs = [row for n in range(4) for row in (run(f"a{n}", task_id=f"t{n}"), run(f"r{n}", "rejected", f"t{n}"))]
    lake.both(A, *pairs, run("a4"), run("a5"))
    lake.both(B, run("b1"), run("b2"))
    lake.go()
    assert [len(lake.rows(dataset)) for dataset in Dataset] == [8, 8, 4]


@pytest.mark.parametrize(("rows", "share"), [(6, 0.5), (3, 0.75), (1000, 0.5), (3, 1.0)])
def test_tripwire_needs_both_limits_passed(lake: HistoryLake, rows: int, share: float) -> None:
    """Six of eight rows vanish: they leave where six is not more than the rows, or not more than the share."""
    many_rows(lake)
    lake.restart(tripwire_rows=rows, tripwire_share=share)
    lake.scored(A)
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"b1", "b2"}
    assert set(lake.causes("rag")) == set(lake.causes("sft")) == {"row_removed"}
    pairs_stay = rows < 4 and share < 1  # all four of four vanish
    assert (len(lake.rows("preference")) == 4) == pairs_stay
    assert lake.engine.retained.kept_by_tripwire() == ({"preference": 4} if pairs_stay else {})


def test_rejected_rows_do_not_trip_though_an_unreviewed_verdict_follows(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With include_review the rejection stays in force in RAG: its rows leave for it, not for their evidence."""
    lake.both(A, run("a1"), run("a2"), run("a3"))
    lake.go()
    lake.restart(options(lake, include_review=True), tripwire_rows=1, tripwire_share=0.1)
    lake.go()
    monkeypatch.setattr(Tripwire, "keep", lambda *_: pytest.fail("tripped"))
    said = [run(name, category) for name in ("a1", "a2", "a3") for category in ("rejected", "fine")]
    lake.scored(B, *said)
    lake.evidence(A)
    lake.go()
    assert not lake.exported("rag")
    assert lake.causes("rag") == ["revoked"] * 3


@pytest.mark.parametrize("how", ["truncated", "rewritten", "evidence"])
def test_tripwire_keeps_what_vanished(lake: HistoryLake, how: str) -> None:
    """Six of eight rows vanish, more than five and more than 70 %: they stay, byte for byte, through what follows."""
    many_rows(lake)
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.restart(tripwire_rows=3, tripwire_share=0.7)
    if how == "truncated":
        lake.scored(A)
    elif how == "rewritten":
        lake.scored(A, b"not JSON any more")
    else:
        lake.evidence(A)
    lake.go()
    assert {dataset: lake.content(dataset) for dataset in Dataset} == before
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 6, "sft": 6, "preference": 4}
    lake.go()
    lake.restart()
    lake.go()
    lake.go(Trigger.REBUILD)
    assert {dataset: lake.lines(dataset) for dataset in Dataset} == {
        dataset: Counter(content.splitlines()) for dataset, content in before.items()
    }
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 6, "sft": 6, "preference": 4}


@pytest.mark.parametrize("old", ["emptied", "cut", "gone"])
def test_tripwire_keeps_rows_whose_lines_moved_without_their_evidence(lake: HistoryLake, old: str) -> None:
    """Lines that were copied to another partition first, and then left theirs, vanish like those of a renamed file."""
    many_rows(lake)
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    rows = lake.scored_path(A).read_bytes()
    lake.scored(C, *rows.splitlines())
    match old:
        case "emptied":
            lake.scored(A)
        case "cut":
            lake.scored(A, b"not JSON any more")
        case _:
            lake.scored_path(A).unlink()
    lake.go()
    assert {dataset: lake.content(dataset) for dataset in Dataset} == before
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 6, "sft": 6, "preference": 4}
    lake.evidence(C, *(given(run_id) for run_id in ("a0", "a1", "a2", "a3", "a4", "a5")))
    lake.go()


@pytest.mark.parametrize("killed", [False, True])
def test_tripwire_keeps_what_vanished_before_a_kill(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Evidence rows vanish, the process ends before the tripwire looks, and then their file is gone: they stay."""
    many_rows(lake)
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    lake.evidence(A)
    if killed:
        stop_before_the_tripwire(lake, monkeypatch)
        lake.restart()
    else:
        lake.go()
    lake.evidence_path(A).unlink()
    lake.go()
    assert {dataset: lake.content(dataset) for dataset in Dataset} == before
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 6, "sft": 6, "preference": 4}


@pytest.mark.parametrize("word", ["REJECTED", " rejected"])
def test_tripwire_keeps_pairs_whose_other_side_is_rejected_in_another_spelling(lake: HistoryLake, word: str) -> None:
    """A random history: the verdict agreed with the pair, but not to the letter, so the pair left without a word."""
    lake.both(A, run("a1", task_id="t"), run("x1", "rejected", "t"))
    lake.go()
    assert lake.exported("preference") == {"a1>x1"}
    lake.scored(B, run("x1", word, "t"))
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    lake.evidence(A)
    lake.go()
    assert lake.exported("preference") == {"a1>x1"}
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 1, "sft": 1, "preference": 1}


def test_pairs_whose_other_side_is_partially_accepted_now_do_not_trip(lake: HistoryLake) -> None:
    """A pair that a verdict overrules leaves for that, though its evidence goes in the same pass."""
    lake.both(A, run("a1", task_id="t"), run("x1", "rejected", "t"))
    lake.go()
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    lake.scored(B, run("x1", "partially_accepted", "t"))
    lake.evidence(A)
    lake.go()
    assert lake.exported("preference") == set()
    assert lake.causes("preference") == ["revoked"]
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 1, "sft": 1}


@pytest.mark.parametrize("unread", [0, 1 << 62])
def test_pairs_whose_runs_have_evidence_that_was_left_unread_do_not_trip(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, unread: int
) -> None:
    """They were kept where much was new at once, and left where little was."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    lake.both(A, run("a1", task_id="t"), run("x1", "rejected", "t"))
    lake.go()
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    lake.evidence(A)
    lake.scored(B, run("a1", task_id="t"), run("x1", "rejected", "t"))
    lake.evidence(B, given("a1", ""), given("x1"))
    lake.go()
    assert lake.exported("preference") == set()
    assert lake.engine.retained.kept_by_tripwire() == {"rag": 1, "sft": 1}


def test_rescored_rows_do_not_trip_though_their_evidence_goes(lake: HistoryLake) -> None:
    """Four of six rows whose evidence goes are rejected in the same pass: only two vanish, and the limit is three."""
    many_rows(lake)
    lake.restart(tripwire_rows=3, tripwire_share=0.0)
    lake.evidence(A)
    lake.scored(C, *(run(run_id, "rejected") for run_id in ("a0", "a1", "a2", "a3")))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"b1", "b2"}
    assert lake.engine.retained.kept_by_tripwire() == {}


@pytest.mark.parametrize("how", ["scored", "evidence"])
def test_prune_withdraws_what_the_tripwire_kept(lake: HistoryLake, how: str) -> None:
    """Prune takes out what the tripwire kept, and publishes it as pruned.

    Rows whose evidence had vanished were published as 'undone' once.
    """
    many_rows(lake)
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    (lake.scored if how == "scored" else lake.evidence)(A)
    lake.go()
    lake.prune()
    assert lake.exported("rag") == lake.exported("sft") == {"b1", "b2"}
    assert lake.exported("preference") == set()
    assert lake.causes("rag") == lake.causes("sft") == ["pruned"] * 6
    assert lake.causes("preference") == ["pruned"] * 4
    assert lake.engine.retained.kept_by_tripwire() == {}


@pytest.mark.parametrize("how", ["scored", "evidence"])
def test_prune_of_what_vanished_leaves_all_else(lake: HistoryLake, how: str) -> None:
    """The story: the tripwire's remedy also withdrew the rows of absent partitions, and forgot their verdicts."""
    many_rows(lake)
    lake.both(C, run("c1"), run("c2"))
    lake.scored("2026/09/09/no.jsonl", run("b1", "rejected"))
    lake.go()
    lake.move_away(*lake.paths(C, "both"), *lake.paths("2026/09/09/no.jsonl", "scored"))
    lake.go()
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    (lake.scored if how == "scored" else lake.evidence)(A)
    lake.go()
    said = lake.engine.retained.counts(only=Only.VANISHED)
    assert {(each.dataset.value, each.rows) for each in said} == {("rag", 6), ("sft", 6), ("preference", 4)}
    lake.prune(only=Only.VANISHED)
    assert lake.engine.retained.kept_by_tripwire() == {}
    assert lake.exported("rag") == lake.exported("sft") == {"b2", "c1", "c2"}
    assert lake.causes("rag") == ["revoked", *["pruned"] * 6]


@pytest.mark.parametrize("how", ["scored", "evidence"])
def test_prune_of_what_vanished_leaves_what_was_accepted(lake: HistoryLake, how: str) -> None:
    """What an operator kept for good is not what the tripwire asks about."""
    many_rows(lake)
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    (lake.scored if how == "scored" else lake.evidence)(A)
    lake.go()
    lake.engine.accept_vanished()
    assert lake.engine.retained.counts(only=Only.VANISHED) == []
    lake.prune(only=Only.VANISHED)
    assert {dataset: lake.content(dataset) for dataset in Dataset} == before


@pytest.mark.parametrize("how", ["scored", "evidence"])
def test_accept_keeps_for_good(lake: HistoryLake, how: str) -> None:
    """What the tripwire kept and the operator accepted stays, and trips nothing any more."""
    many_rows(lake)
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    (lake.scored if how == "scored" else lake.evidence)(A)
    lake.go()
    assert lake.engine.accept_vanished() > 0
    assert lake.engine.retained.kept_by_tripwire() == {}
    lake.go()
    lake.restart()
    lake.go()
    assert {dataset: lake.content(dataset) for dataset in Dataset} == before
    assert lake.engine.retained.kept_by_tripwire() == {}


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_accepted_row_stays_when_its_partition_goes_and_returns(lake: HistoryLake, when: str) -> None:
    """What stands on evidence that vanished stays though its scored file was away; it was forgotten there once."""
    many_rows(lake)
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    lake.evidence(A)
    lake.go()
    if when == "before":
        lake.engine.accept_vanished()
    lake.move_away(lake.scored_path(A))
    lake.go()
    lake.engine.accept_vanished()
    lake.restart(tripwire_rows=1000)
    lake.bring_back(lake.scored_path(A))
    lake.go()
    lake.go()
    assert {dataset: lake.content(dataset) for dataset in Dataset} == before
    assert lake.engine.retained.kept_by_tripwire() == {}


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("how", ["renamed", "twice", "copied first", "joined", "copied and cut", "dropped", "withdraw"])
def test_kept_row_stays_when_its_line_moves(lake: HistoryLake, how: str, accepted: bool) -> None:
    """Who keeps a row is not asked again: its line is still there under another name, once, or went as before."""
    many_rows(lake)
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    lake.evidence(A)
    lake.go()
    if accepted:
        lake.engine.accept_vanished()
    kept = lake.engine.retained.kept_by_tripwire()
    lake.restart(tripwire_rows=1000)
    rows = lake.scored_path(A).read_bytes()
    match how:
        case "renamed" | "twice":
            for old, new in [(A, C), (C, "2026/05/05/delta.jsonl")][: 1 + (how == "twice")]:
                lake.scored(new, *rows.splitlines())
                lake.scored_path(old).unlink()
                lake.go()
        case "copied first":
            lake.scored(C, *rows.splitlines())
            lake.go()
            lake.scored_path(A).unlink()
        case "joined":
            with lake.scored_path(B).open("ab") as file:
                file.write(rows)
            lake.scored_path(A).unlink()
        case "copied and cut":
            lake.scored(C, *rows.splitlines())
            lake.scored(A)
        case "dropped":
            lake.scored(A)
        case _:
            lake.restart(options(lake, on_delete=OnDelete.WITHDRAW))
            lake.scored(C, *rows.splitlines())
            lake.scored_path(A).unlink()
    lake.go()
    assert {dataset: lake.lines(dataset) for dataset in Dataset} == {
        dataset: Counter(content.splitlines()) for dataset, content in before.items()
    }
    assert lake.engine.retained.kept_by_tripwire() == kept
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults
    lake.prune(only=None if accepted else Only.VANISHED)
    assert lake.exported("rag") == lake.exported("sft") == {"b1", "b2"}
    assert set(lake.causes("rag")) == {"pruned"}


def test_kept_row_leaves_like_any_retained_row(lake: HistoryLake) -> None:
    """It leaves when its run is rejected, and lets its line go to a present row with its id; a new line is no reason."""
    many_rows(lake)
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    lake.evidence(A)
    lake.go()
    lake.engine.accept_vanished()
    before = lake.exported("rag")
    lines = lake.scored_path(A).read_bytes().splitlines()
    lake.scored(A, *lines[:-1], run("a5", reasons=["again"]))
    lake.go()
    assert lake.exported("rag") == before
    lake.scored(A, *lines[:-1], run("a5", "rejected"))
    lake.go()
    assert lake.exported("rag") == before - {"a5"}
    assert lake.causes("rag") == ["revoked"]
    lake.both(C, run("a4"))
    lake.go()
    assert lake.causes("rag") == ["revoked"]
    assert lake.retained() == {"vanished": 12}
    lake.evidence(A, *(given(f"a{number}") for number in range(5)))
    lake.go()
    assert lake.causes("rag") == lake.causes("sft") == ["revoked"]
    assert lake.exported("rag") == before - {"a5"}
    assert lake.retained() == {"vanished": 4}


@pytest.mark.parametrize("tripped", ["rag", "sft"])
def test_tripwire_keeps_a_row_in_one_dataset(lake: HistoryLake, tripped: str) -> None:
    """Where one dataset loses fewer rows than the limit, its rows leave for their evidence; the other's stay."""
    short = "extractor" if tripped == "rag" else "executor"
    lake.scored(A, run("a1"), run("a2"), run("a3"))
    lake.evidence(A, given("a1", model_role=short), given("a2"), given("a3", "" if tripped == "sft" else None))
    lake.both(B, run("b1"))
    lake.go()
    before = {dataset: lake.exported(dataset) for dataset in ("rag", "sft")}
    lake.restart(tripwire_rows=len(before[tripped]) - 2, tripwire_share=0.0)
    lake.evidence(A)
    lake.go()
    other = "sft" if tripped == "rag" else "rag"
    gone = len(before[other]) < len(before[tripped])
    assert lake.exported(tripped) == before[tripped]
    assert lake.exported(other) == ({"b1"} if gone else before[other])
    assert lake.causes(other) == ["evidence_changed"] * gone * (len(before[other]) - 1)
    assert set(lake.quarantined("rag").values()) == set(lake.quarantined("sft").values()) == {"missing_source_run_id"}
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def stop_before_the_tripwire(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that is cut off when all changes are indexed."""
    with monkeypatch.context() as patch:
        patch.setattr(lake.engine.ingest, "_trip", _stop)
        with pytest.raises(KeyboardInterrupt):
            lake.engine.run_pass(Trigger.ONCE)


def make_older(lake: HistoryLake, bits: int, *more: str) -> None:
    """Make the store one from before vanished rows had the lines of rows without evidence; ``bits`` are in those rows."""
    lake.engine.store.connection.executescript(
        "DELETE FROM _sqlite_migrations WHERE name GLOB 'm014*';\n"
        "ALTER TABLE scored_rows ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;\n"
        "CREATE INDEX kept_rows ON scored_rows (kept) WHERE kept <> 0;\n"
        f"UPDATE scored_rows SET kept = {bits} WHERE evidence_found = 0;\n"
        f"UPDATE retained_rows SET accepted = {bits} WHERE kind = 'absent';\n" + ";\n".join(more)
    )
    lake.restart()


@pytest.mark.parametrize("absent", [True, False])
@pytest.mark.parametrize(("bits", "role"), [(3, "executor"), (7, "executor"), (1, "extractor"), (5, "extractor")])
def test_rows_that_an_older_version_kept_stay(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, bits: int, role: str, absent: bool
) -> None:
    """There the row itself was kept, by bits for RAG (1), for SFT (2), for good (4); some are of a file that is gone."""
    runs = [f"a{number}" for number in range(6)]
    lake.both(B, run("b1"))
    lake.scored(A, *map(run, runs))
    lake.evidence(A, *(given(run_id, model_role=role) for run_id in runs))
    lake.go()
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.evidence(A)
    if absent:
        lake.move_away(lake.scored_path(A))
    stop_before_the_tripwire(lake, monkeypatch)
    make_older(lake, bits, "DELETE FROM rejudge_rows")
    for _ in range(3):
        lake.go()
        assert {dataset: lake.content(dataset) for dataset in Dataset} == before
        kept = {"rag": 6, "sft": 6 * (bits >> 1 & 1)}
        assert lake.engine.retained.kept_by_tripwire() == (
            {} if bits & 4 else {name: rows for name, rows in kept.items() if rows}
        )
        assert not verify(lake.root, lake.state, lake.options, deep=True).faults
        if not lake.scored_path(A).exists():
            lake.bring_back(lake.scored_path(A))
    assert set(lake.quarantined("rag")) == set(lake.quarantined("sft")) == set(runs)
    assert set(lake.quarantined("sft").values()) == {"missing_source_run_id"}


@pytest.mark.parametrize("absent", [True, False])
def test_kept_row_of_an_older_version_leaves_for_what_was_queued(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, absent: bool
) -> None:
    """That version was killed when it had indexed a rejection of one kept row, and a row that takes another one's id."""
    lake.both(B, run("b1"))
    lake.both(A, run("a1"), run("a2"), run("a3"))
    lake.go()
    lake.evidence(A)
    if absent:
        lake.move_away(lake.scored_path(A))
    lake.scored(B, run("b1"), run("a1", "rejected"))
    lake.both(C, run("a2", reasons=["again"]))
    stop_before_the_tripwire(lake, monkeypatch)
    make_older(lake, 7)
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"a2", "a3", "b1"}
    assert lake.causes("rag") == lake.causes("sft") == ["revoked"]
    assert lake.retained() == {"vanished": 2}
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def test_duplicate_of_a_row_that_an_older_version_kept_takes_its_id(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That version was killed when it had kept a row, and before the row behind it was judged."""
    lake.both(A, run("a1"))
    lake.both(B, run("a1", reasons=["again"]))
    lake.go()
    lake.evidence(A)
    stop_before_the_tripwire(lake, monkeypatch)
    make_older(lake, 3)
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"a1"}
    assert lake.causes("rag") == lake.causes("sft") == []
    assert lake.retained() == {}
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def test_tripwire_keeps_nothing_that_an_older_version_pruned(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That version marked rows whose evidence was given up, and was killed before it judged them."""
    lake.both(A, run("a1"), run("a2"))
    lake.both(B, run("b1"))
    lake.go()
    lake.move_away(lake.evidence_path(A))
    lake.go()
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    lake.evidence(A)
    stop_before_the_tripwire(lake, monkeypatch)
    lake.evidence_path(A).unlink()
    make_older(lake, 0, "UPDATE rejudge_rows SET evidence_changed = 2", "DELETE FROM files WHERE state = 'absent'")
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"b1"}
    assert lake.causes("rag") == lake.causes("sft") == ["pruned", "pruned"]
    assert lake.retained() == {}
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def test_rescore_is_never_held_back(lake: HistoryLake) -> None:
    """Every row of a partition is rejected at once: all leave, whatever the tripwire says."""
    many_rows(lake)
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    text = lake.scored_path(A).read_text().replace('"category":"accepted"', '"category":"rejected"')
    lake.scored_path(A).write_text(text)
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"b1", "b2"}
    assert set(lake.causes("rag")) == {"revoked"}
    assert lake.engine.retained.kept_by_tripwire() == {}


def test_rows_named_elsewhere_do_not_trip(lake: HistoryLake) -> None:
    """Rows leave a partition, but other present rows name their runs: that is no vanishing."""
    many_rows(lake)
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    lake.scored(C, *(run(f"a{n}", "rejected", provenance__sig_hash="other") for n in range(6)))
    lake.scored(A)
    lake.go()
    assert lake.exported("rag") == {"b1", "b2"}


def test_vanished_rows_that_come_back_are_live_again(lake: HistoryLake) -> None:
    """A truncated partition gets its lines back: nothing is retained, and no byte of the datasets changed."""
    many_rows(lake)
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    content = lake.scored_path(A).read_bytes()
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    lake.scored(A)
    lake.go()
    lake.scored_path(A).write_bytes(content)
    lake.go()
    assert {dataset: lake.content(dataset) for dataset in Dataset} == before
    assert lake.engine.retained.kept_by_tripwire() == {}
    assert lake.ask("SELECT count(*) FROM retained_rows") == [(0,)]


def test_vanished_row_leaves_when_its_run_is_rejected(lake: HistoryLake) -> None:
    """A row that the tripwire kept is as retained as an absent one: a later rejection takes it out."""
    many_rows(lake)
    lake.restart(tripwire_rows=3, tripwire_share=0.5)
    lake.scored(A)
    lake.go()
    lake.scored(C, run("a0", "rejected", "t0"))
    lake.go()
    assert "a0" not in lake.exported("rag") | lake.exported("sft")
    assert lake.causes("rag") == lake.causes("sft") == lake.causes("preference") == ["revoked"]


# prune


def test_prune_asks_only_for_the_verdicts_that_it_changes(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of forty runs in a file that is gone, one is present, too: it is forbidden no more."""
    lake.both(A, run("a1"), run("a2"))
    lake.scored(B, run("a1", "rejected"), *(run(f"b{number}", "rejected") for number in range(20)))
    lake.both(C, *(run(f"c{number}") for number in range(20)))
    lake.go()
    lake.move_away(*lake.paths(B, "scored"), *lake.paths(C, "both"))
    lake.go()
    asked = list[str]()
    real = Verdicts.in_force

    def in_force(self: Verdicts, run_id: str, *more: Any) -> InForce:
        asked.append(run_id)
        return real(self, run_id, *more)

    monkeypatch.setattr(Verdicts, "in_force", in_force)
    lake.engine.give_up(None)
    assert asked == ["a1", "a1"]
    lake.go()
    assert lake.exported("rag") == {"a1", "a2"}


@pytest.mark.parametrize("trees", ["scored", "evidence", "both"])
def test_prune_withdraws_absent_rows(lake: HistoryLake, trees: str) -> None:
    """Prune takes out what absent files left behind, published as pruned, and holds what is still present.

    Rows whose evidence file was absent were published as 'evidence_changed' once.
    """
    two_partitions(lake)
    gone = lake.paths(A, trees)
    lake.move_away(*gone)
    lake.go()
    lake.prune()
    assert lake.exported("rag") == lake.exported("sft") == {"b1", "b3"}
    assert lake.exported("preference") == {"b3>b4"}
    assert lake.causes("rag") == ["pruned"] * 3
    assert lake.causes("sft") == ["pruned"] * 2
    assert lake.causes("preference") == ["pruned"]
    assert lake.ask("SELECT count(*) FROM files WHERE state = 'absent'") == [(0,)]
    assert ("a1" in lake.quarantined("rag")) == (trees == "evidence")
    lake.bring_back(*gone)
    lake.go()
    assert lake.exported("rag") == {"a1", "a3", "a4", "b1", "b3"}


def test_prune_of_one_partition_leaves_the_others(lake: HistoryLake) -> None:
    """Prune with a pattern takes out what came from the partitions that it names, and nothing else."""
    two_partitions(lake)
    lake.move_away(lake.scored_path(A), lake.scored_path(B))
    lake.go()
    lake.prune("2026/04/28/*")
    assert lake.exported("rag") == {"a1", "a3", "a4"}
    assert lake.exported("preference") == {"a1>a2"}
    assert set(lake.causes("rag")) == {"pruned"}


@pytest.mark.parametrize("stands", ["link", "folder"])
def test_prune_withdraws_rows_in_whose_place_something_else_stands(lake: HistoryLake, stands: str) -> None:
    """A link to where the file went, or a folder, is not the file come back: no look would find its rows."""
    two_partitions(lake)
    path = lake.scored_path(A)
    lake.move_away(path)
    if stands == "link":
        path.symlink_to(lake.root / "elsewhere")
    else:
        path.mkdir()
    lake.go()
    assert lake.exported("sft") >= {"a1", "a4"}
    lake.prune()
    assert not lake.exported("sft") & {"a1", "a4"}


def test_pruned_row_stays_away(lake: HistoryLake) -> None:
    """What was pruned comes back through no restart, rebuild or lost store."""
    two_partitions(lake)
    lake.move_away(lake.scored_path(A), lake.evidence_path(A))
    lake.go()
    lake.prune()
    for again in ("", "restart", "lose_store"):
        if again:
            getattr(lake, again)()
        lake.go()
        lake.go(Trigger.REBUILD)
        assert lake.exported("rag") == lake.exported("sft") == {"b1", "b3"}
        assert lake.exported("preference") == {"b3>b4"}


@pytest.mark.parametrize("text", ["", "other"])
def test_pruned_pair_passes_its_line_on(lake: HistoryLake, text: str) -> None:
    """Prune gives a pair up whose rows come in elsewhere before the pass: the pair stays, or is replaced, as rows are."""
    rows = run("a1", task_id=TASK), run("a2", "rejected", TASK)
    lake.both(A, *rows)
    lake.both(B, run("b1"))
    lake.go()
    before = lake.stamps(Dataset.PREFERENCE)
    lake.move_away(*lake.paths(A, "both"))
    lake.go()

    lake.both(C, *({**row, "written": "again"} for row in rows))
    if text:
        lake.evidence(C, given("a1", text), given("a2"))
    lake.prune()
    causes = [] if text == "" else ["displaced+"]
    assert {dataset: lake.causes(dataset) for dataset in Dataset} == dict.fromkeys(Dataset, causes)
    assert (lake.stamps(Dataset.PREFERENCE) == before) is (text == "")


def test_id_of_a_pruned_pair_stands_once(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of other runs takes the id of a pruned one, whose line a later batch would remove: no file has the id twice."""
    monkeypatch.setattr(batch, "DEPARTURES_PER_BATCH", 1)
    lake.both(A, run("x", task_id=TASK), run("y|z", "rejected", TASK))
    lake.go()
    lake.move_away(*lake.paths(A, "both"))
    lake.go()

    lake.both(C, run("x|y", task_id=TASK), run("z", "rejected", TASK))
    lake.prune()
    assert lake.exported(Dataset.PREFERENCE) == {"x|y>z"}
    assert lake.causes(Dataset.PREFERENCE) == ["displaced+"]


def test_prune_beside_a_folder_that_cannot_be_searched(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is given up of a file that may stand there again: the story is that it counted as gone."""
    two_partitions(lake)
    lake.move_away(lake.scored_path(A), lake.evidence_path(A))
    lake.go()
    before = lake.files()
    lake.bring_back(lake.scored_path(A), lake.evidence_path(A))

    def refuse(path: object, *_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        assert lake.engine.give_up(None).files == 0
    lake.go()
    assert lake.files() == before


def test_prune_with_nothing_retained_does_nothing(lake: HistoryLake) -> None:
    """Prune of a lake in which nothing is retained commits no batch."""
    before = two_partitions(lake)
    assert not lake.prune().changed
    assert lake.files() == before


# causes and the log of withdrawals (SPEC 3.9)


def test_rescored_row_names_its_batch_and_verdict(lake: HistoryLake) -> None:
    """A row that is rewritten as rejected is published with the verdict's place and the batch that exported it."""
    lake.both(A, run("r1"))
    (first,) = lake.go().batches
    lake.scored(A, run("r1", "rejected"))
    (second,) = lake.go().batches
    (row,) = lake.withdrawn("rag")
    assert row == {
        "id": rag_id("r1"),
        "source_run_id": "r1",
        "chosen_run_id": None,
        "rejected_run_id": None,
        "cause": "revoked",
        "replaced": False,
        "verdict": {"category": "rejected", "location": {"partition": A, "line_offset": 0}},
        "shipped_batch": first.identity.batch_id,
        "withdrawn_batch": second.identity.batch_id,
        "withdrawn_at": second.identity.recorded_at,
    }
    assert [row["id"] for row in lake.withdrawn("sft")] == [sft_id("r1")]


def test_rescored_to_what_is_not_allowed(lake: HistoryLake) -> None:
    """A line that still names its run but no longer ships is published as rescored, without a verdict."""
    lake.both(A, run("r1"))
    lake.go()
    lake.scored(A, run("r1", "partially_accepted"))
    lake.go()
    assert lake.causes("sft") == ["rescored"]
    assert lake.withdrawn("sft")[0]["verdict"] is None


def test_removed_line(lake: HistoryLake) -> None:
    """A line that is gone is published as row_removed."""
    lake.both(A, run("r1"), run("r2"))
    lake.go()
    lake.scored(A, run("r1"))
    lake.go()
    assert lake.causes("rag") == lake.causes("sft") == ["row_removed"]


def test_changed_evidence(lake: HistoryLake) -> None:
    """Evidence that changes replaces the row, evidence that goes takes it out: both are evidence_changed."""
    lake.both(A, run("r1"))
    lake.go()
    lake.evidence(A, given("r1", "# Other words"))
    lake.go()
    lake.evidence(A, given("other"))
    lake.go()
    assert lake.causes("rag") == lake.causes("sft") == ["evidence_changed+", "evidence_changed"]


def test_displaced_row(lake: HistoryLake) -> None:
    """An earlier row with the same id displaces a later one: the id stays, with other content."""
    lake.both(B, run("r1"))
    lake.go()
    lake.scored(A, run("r1", "partially_accepted"))
    lake.evidence(A, given("r1"))
    lake.go()
    assert lake.causes("rag") == ["displaced+"]


def test_changed_options(lake: HistoryLake) -> None:
    """A row that an option let in leaves when the option is off, published as options_changed."""
    lake.both(A, run("r1", "partially_accepted"))
    lake.restart(options(lake, include_partial=True))
    lake.go()
    assert lake.exported("sft") == {"r1"}
    lake.restart(options(lake))
    lake.go()
    assert lake.causes("sft") == ["options_changed"]
    assert lake.causes("rag") == []


def test_undone_row(lake: HistoryLake) -> None:
    """A source file that no longer exists when the row is judged again: none of the other causes, so undone."""
    for name in ("src/lib.rs", "src/main.rs"):
        (lake.root / name).parent.mkdir(exist_ok=True)
        (lake.root / name).write_text("fn main() {}")
    lake.restart(options(lake, check_source_files=True))
    lake.both(A, run("r1"))
    lake.go()
    assert lake.exported("rag") == {"r1"}
    (lake.root / "src/lib.rs").unlink()
    lake.go()
    assert lake.exported("rag") == {"r1"}  # what exists holds as of the last judgement
    lake.go(Trigger.REBUILD)
    assert lake.causes("rag") == ["undone"]
    assert lake.quarantined("rag") == {"r1": "hallucinated_file_path"}


def test_adopted_row_has_no_batch_that_shipped_it(lake: HistoryLake) -> None:
    """A row that stood in the file before its store is withdrawn with shipped_batch null."""
    lake.both(A, run("r1"))
    lake.go()
    lake.lose_store()
    lake.go()
    lake.scored(A, run("r1", "rejected"))
    lake.go()
    assert lake.withdrawn("rag")[0]["shipped_batch"] is None
    assert lake.causes("rag") == ["revoked"]


def test_held_row_keeps_its_bytes_beside_a_kept_one(lake: HistoryLake) -> None:
    """A row that a later gate holds, while its id is kept for a row on absent evidence, is not written anew.

    The story: a rebuild judged the kept row first, held the other one as its duplicate for the length of one batch, and
    wrote the line that it had before with another time.
    """
    lake.both(A, run("one"))
    lake.scored(B, run("one"))
    lake.evidence(B, given("one", model_role="extractor"))
    lake.go()
    lake.move_away(lake.evidence_path(A))
    lake.go()
    before = lake.lines("quarantine_sft")
    assert [row["errors"] for row in lake.rows("quarantine_sft")] == [
        ["evidence has no instruction→response shape (extraction-class or empty text)"]
    ]
    lake.go(Trigger.REBUILD)
    assert lake.lines("quarantine_sft") == before


def test_returned_evidence_makes_a_held_row_a_duplicate_again(lake: HistoryLake) -> None:
    """A row that a later gate held while the evidence of the row before it was away waits for the id again."""
    lake.both(A, run("one"))
    lake.scored(B, run("one"))
    lake.evidence(B, given("one", model_role="extractor"))
    lake.go()
    before = lake.quarantined(Dataset.SFT)
    lake.move_away(lake.evidence_path(A))
    lake.go()
    lake.go(Trigger.REBUILD)
    lake.bring_back(lake.evidence_path(A))
    lake.go()
    assert lake.quarantined(Dataset.SFT) == before == {"one": "duplicate_id"}


def test_a_pass_looks_at_no_table_of_rows_as_a_whole(lake: HistoryLake) -> None:
    """The story: two questions of each pass read all retained rows, and where producers delete what is old they are many."""
    two_partitions(lake)
    lake.move_away(*lake.paths(A, "both"))
    lake.go()
    asked: list[str] = []
    connection = lake.engine.store.connection
    rows = run("b1"), run("b2", "needs_human_review"), run("b3", task_id="t"), run("b4", "rejected", "t"), run("b5")
    lake.both(B, *rows)
    connection.set_trace_callback(asked.append)
    done = lake.engine.run_pass(Trigger.ONCE)
    connection.set_trace_callback(None)
    lake.check()
    assert [batch.receipt["work"]["rows_judged"] for batch in done.batches] == [1]
    assert any("retained_rows" in statement for statement in asked)
    assert whole_scans(connection, asked) == []


def tasks_of_two(count: int) -> list[dict[str, Any]]:
    """Rows that form one pair for each two of them."""
    return [run(f"r{n}", ("accepted", "rejected")[n % 2], f"t{n // 2}") for n in range(count)]


@pytest.mark.parametrize("how", ["absent", "renamed", "renamed in small batches", "renamed later", "returned"])
def test_work_follows_the_rows_that_go(tmp_path: Path, how: str) -> None:
    """The story: the evidence and the pairs of a partition that went were each compared with all its rows.

    A partition of 8,000 rows that was renamed took minutes, and one of twice as many four times as long. When a
    partition came back, there or elsewhere, all its pairs were looked at for each row or task.
    """

    def steps(count: int) -> int:
        with history_lake(tmp_path, batch_rows=count // 4 if how == "renamed in small batches" else 50_000) as lake:
            lake.both(A, *tasks_of_two(count))
            lake.go()
            lake.move_away(*lake.paths(A, "both"))
            if how in ("renamed later", "returned"):
                lake.go()
            if how == "returned":
                lake.bring_back(*lake.paths(A, "both"))
            elif how != "absent":
                lake.both(B, *tasks_of_two(count))
            with counted_steps(lake.engine.store.connection) as done:
                lake.go()
            assert len(lake.exported(Dataset.PREFERENCE)) == count // 2
            return done[0]

    assert steps(400) < 5 * steps(100)


def test_pass_without_news_asks_nothing_of_retained_pairs(tmp_path: Path) -> None:
    """The story: each pass looked at all pairs of absent partitions, whatever was new."""

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.both(A, *tasks_of_two(count))
            lake.go()
            lake.move_away(*lake.paths(A, "both"))
            lake.go()
            with counted_steps(lake.engine.store.connection) as done:
                lake.engine.run_pass(Trigger.RESCAN)
            assert lake.ask("SELECT count(*) >= ? FROM retained_rows WHERE kind = 'absent'", count) == [(1,)]
            return done[0]

    assert steps(200) == steps(20)


def test_name_that_is_gone_is_not_looked_for_in_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: each time a producer's temporary name had gone, all pairs of the lake were looked through for it."""
    believe_facts(monkeypatch)

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.both(A, *tasks_of_two(count))
            lake.scored(B)
            lake.go()
            lake.scored_path(B).unlink()
            with counted_steps(lake.engine.store.connection) as done:
                lake.engine.run_pass(Trigger.ONCE)
            assert lake.ask("SELECT path FROM partitions") == [(A,)]
            return done[0]

    assert steps(200) == steps(20)


def test_verdict_is_not_looked_for_among_all_retained_rows(tmp_path: Path) -> None:
    """The story: where the verdict that took a row out was in no whole line, all absent rows were looked through for it."""

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.both(A, *tasks_of_two(count))
            lake.both(B, *(run(f"b{number}") for number in range(20)))
            lake.go()
            lake.move_away(*lake.paths(A, "both"))
            lake.go()
            named = b"".join(b'"evidence_run_id":"b%d",' % number for number in range(20))
            lake.scored_path(C).parent.mkdir(parents=True)
            lake.scored_path(C).write_bytes(b"{" + named + b'"category":"rejected"')
            with counted_steps(lake.engine.store.connection) as done:
                lake.go()
            assert [row["verdict"]["location"]["partition"] for row in lake.withdrawn(Dataset.RAG)] == [C] * 20
            return done[0]

    assert steps(200) < 1.5 * steps(20)


@pytest.mark.parametrize("goes", ["row", "partition"])
def test_next_row_takes_an_id_where_the_one_that_was_woken_goes(lake: HistoryLake, goes: str) -> None:
    """A row is kept on absent evidence, the first that waits for its id goes in the same pass: the next one ships it.

    The story: the first one was woken, was gone when it was to be judged, and nobody woke the next.
    """
    for partition in (A, B, C):
        lake.scored(partition, run("one"))
        lake.evidence(partition, given("one", f"as {partition} has it"))
    lake.go()
    lake.move_away(lake.evidence_path(A))
    if goes == "row":
        lake.scored(B, run("two"))
    else:
        lake.move_away(lake.scored_path(B))
    lake.go()
    for dataset, text in (("rag", "content"), ("sft", "response")):
        assert [row[text] for row in lake.rows(dataset)] == [f"as {C} has it"]
