"""The whole story of a run (SPEC 5, 'explain')."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from distilld.config.load import load
from distilld.config.settings import Settings
from distilld.core.json_text import MAX_DEPTH
from distilld.core.model import SEGMENT_BYTES, Dataset, OperatorError
from distilld.files import segments
from distilld.inspection.explain import Fate, RunStory, UnknownRunError, explain
from distilld.lake.scan import scan
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, rag_id, run, sft_id

TASK = "one-task"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with nothing in it."""
    with history_lake(tmp_path) as made:
        yield made


def settings_of(lake: HistoryLake) -> Settings:
    """The settings that the lake is kept with."""
    given_flags = {"root": lake.root, "state": lake.state}
    settings = load(flags=given_flags, environ={}, config_file=None, cwd=lake.root)
    return replace(settings, source_files_root=Path(lake.options.source_files_root))


def story_of(lake: HistoryLake, run_id: str) -> RunStory:
    """What explain tells."""
    return explain(settings_of(lake), run_id)


def fates(story: RunStory) -> list[tuple[Fate, ...]]:
    """What became of each row, in order."""
    return [row.fates for row in story.rows]


def test_shipped_run(lake: HistoryLake) -> None:
    """Of a run that ships everywhere: its row, verdict and evidence with their places, ids, pair and batch."""
    lake.both(A, run("a0"), run("r1", task_id=TASK), run("r2", "rejected", TASK))
    (batch,) = lake.go().batches
    story = story_of(lake, "r1")
    (row,) = story.rows
    assert (row.partition, row.line, row.state, row.category, row.evidence) == (A, 1, "present", "accepted", "found")
    assert not row.waits
    stamp = (batch.identity.batch_id, batch.identity.recorded_at)
    assert row.fates == (
        Fate(Dataset.RAG, "exported", rag_id("r1"), None, (), None, *stamp),
        Fate(Dataset.SFT, "exported", sft_id("r1"), None, (), None, *stamp),
    )
    assert [
        (each.dataset, each.category, each.partition, each.line, each.absent, each.forbids) for each in story.verdicts
    ] == [
        (Dataset.RAG, "accepted", A, 1, False, False),
        (Dataset.SFT, "accepted", A, 1, False, False),
    ]
    assert [(each.partition, each.line, each.present) for each in story.evidence] == [(A, 1, True)]
    (pair,) = story.pairs
    assert (pair.task_id, pair.state, pair.chosen_run_id, pair.rejected_run_id) == (TASK, "live", "r1", "r2")
    assert (pair.fate.outcome, pair.fate.batch_id) == ("exported", batch.identity.batch_id)
    assert pair.fate.id == lake.rows("preference")[0]["id"]
    assert not story.withdrawals
    assert not story.leaving
    assert story_of(lake, "r2").pairs == story.pairs


def test_held_rows_tell_their_errors(lake: HistoryLake) -> None:
    """A held row tells its reason and the errors of its quarantine row, of every dataset."""
    lake.scored(A, run("r1", task_id=TASK), run("r2", "rejected", TASK), run("r1", "partially_accepted", TASK))
    lake.evidence(A, given("r1", "same"), given("r2", "same"))
    lake.go()
    story = story_of(lake, "r1")
    assert [(fate.outcome, fate.reason, fate.errors) for row in fates(story) for fate in row] == [
        ("exported", None, ()),
        ("exported", None, ()),
        ("quarantined", "duplicate_id", ("id is already held by an earlier row",)),
        (
            "quarantined",
            "category_disallowed",
            ("category=partially_accepted not in [accepted] (--include-partial=false)",),
        ),
    ]
    assert story.rows[1].fates[0].note == f"the id is held by {A}:0"
    (pair,) = story.pairs
    assert (pair.fate.outcome, pair.fate.reason) == ("quarantined", "invalid_preference_pairing")
    assert "chosen and rejected texts identical" in pair.fate.errors


@pytest.mark.parametrize(
    ("run_id", "before"),
    [(rb"plain", b""), (rb"quo\"ted", b""), (rb"caf\u00e9", b""), (b"far", b'"pad":"' + b"x" * 300 + b'",')],
)
def test_malformed_row_tells_its_errors(lake: HistoryLake, run_id: bytes, before: bytes) -> None:
    """Its quarantine row quotes the start of its line, which may spell the run otherwise, or not reach it."""
    lake.scored(A, b'{%s"evidence_run_id":"%s","category":"rejected",}' % (before, run_id))
    lake.go()
    (told,) = fates(story_of(lake, json.loads(b'"%s"' % run_id)))
    assert [(fate.errors, fate.note) for fate in told] == [(("not JSON",), None)] * 2


def test_errors_are_read_where_they_stand(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarantine may be larger than the datasets; of it, the lines of the run and what stands in their segments is read."""
    lengths = (100, 200_000, 900_000, 100, 300_000, 300_000, 300_000, 2_000_000, 100, 700_000, 100)
    lake.both(A, *(run(f"r{number}", "rejected", pad="x" * length) for number, length in enumerate(lengths)))
    lake.go()
    lake.stop()
    blocks_of, spans = segments.blocks_of, list[int]()

    def noted(descriptor: int, size: int, start: int = 0) -> Iterator[bytes]:
        spans.append(size - start)
        return blocks_of(descriptor, size, start)

    monkeypatch.setattr("distilld.inspection.explain.blocks_of", noted)
    for number, length in enumerate(lengths):
        spans.clear()
        assert all(fate.errors for fate in fates(story_of(lake, f"r{number}"))[0])
        assert len(spans) == 2
        assert sum(spans) <= 2 * (lengths[number - 1] + length + 3 * SEGMENT_BYTES)


def test_held_row_at_the_greatest_depth_tells_its_errors(lake: HistoryLake) -> None:
    """In its quarantine row it stands a level deeper than in its partition."""
    deep: Any = {}
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    lake.both(A, run("r1", "rejected", extra=deep))
    lake.go()
    assert all(fate.errors for fate in fates(story_of(lake, "r1"))[0])


def test_revoked_run_tells_where_the_verdict_stands(lake: HistoryLake) -> None:
    """A run that was rejected later tells the rejection's place, and what was withdrawn because of it."""
    lake.both(A, run("r1"))
    (first,) = lake.go().batches
    lake.scored(B, run("other"), run("r1", "rejected"))
    (second,) = lake.go().batches
    story = story_of(lake, "r1")
    assert [(row.partition, row.line, row.category) for row in story.rows] == [(A, 0, "accepted"), (B, 1, "rejected")]
    assert {(each.category, each.partition, each.line, each.forbids) for each in story.verdicts} == {
        ("rejected", B, 1, True)
    }
    assert story.rows[0].fates[1].errors == ("run revoked: the verdict in force is rejected",)
    assert [(each.dataset, each.cause, each.shipped_batch, each.withdrawn_batch) for each in story.withdrawals] == [
        (dataset, "revoked", first.identity.batch_id, second.identity.batch_id) for dataset in ("rag", "sft")
    ]
    assert story.withdrawals[0].verdict == {
        "category": "rejected",
        "location": {"partition": B, "line_offset": 1},
    }


def test_absent_rows_are_told(lake: HistoryLake) -> None:
    """Rows of absent partitions are told with the place where they stood, and so is a verdict that stands there."""
    lake.both(A, run("r1", task_id=TASK), run("r2", "rejected", TASK), run("r3"))
    lake.scored(B, run("r3", "rejected"))
    lake.go()
    lake.move_away(lake.scored_path(A), lake.scored_path(B))
    lake.go()
    story = story_of(lake, "r1")
    assert [(row.partition, row.line, row.state, row.evidence) for row in story.rows] == [(A, 0, "absent", "unknown")]
    assert {fate.note for fate in fates(story)[0]} == {"retained: its partition is absent"}
    assert story.verdicts == ()  # an absent verdict clears nothing
    assert [pair.state for pair in story.pairs] == ["absent"]
    (verdict, _) = story_of(lake, "r3").verdicts
    assert (verdict.category, verdict.partition, verdict.absent, verdict.forbids) == ("rejected", B, True, True)
    assert fates(story_of(lake, "r3"))[0][0].errors == ("run revoked: the verdict in force is rejected",)


def test_absent_evidence_is_told(lake: HistoryLake) -> None:
    """A row that stays although its evidence file is absent says so."""
    lake.both(A, run("r1"))
    lake.go()
    lake.move_away(lake.evidence_path(A))
    lake.go()
    story = story_of(lake, "r1")
    assert story.rows[0].evidence == "absent"
    assert {fate.note for fate in fates(story)[0]} == {"kept: its evidence file is absent"}
    assert [each.present for each in story.evidence] == [False]


@pytest.mark.parametrize("tree", ["scored", "evidence"])
def test_vanished_row_is_told(lake: HistoryLake, tree: str) -> None:
    """A row that the tripwire keeps says so; if its line is still there, the line is told of, too."""
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    lake.both(A, run("r1"))
    lake.go()
    (lake.scored if tree == "scored" else lake.evidence)(A)
    lake.go()
    *present, row = story_of(lake, "r1").rows
    assert row.state == "vanished"
    note = "kept by the tripwire: its line or its evidence vanished"
    assert [(fate.dataset, fate.outcome, fate.note) for fate in row.fates] == [
        (Dataset.RAG, "exported", note),
        (Dataset.SFT, "exported", note),
    ]
    found = [(each.state, fate.outcome, fate.reason) for each in present for fate in each.fates]
    assert found == [("present", "quarantined", "missing_source_run_id")] * (2 if tree == "evidence" else 0)


def test_vanished_row_that_was_held_in_a_dataset_tells_of_the_other_alone(lake: HistoryLake) -> None:
    """The story: explain said of SFT, where the row had never exported, that another had taken its place."""
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    lake.both(A, run("r1", "partially_accepted"))
    lake.go()
    lake.scored(A)
    lake.go()
    assert [[(fate.dataset, fate.outcome) for fate in row] for row in fates(story_of(lake, "r1"))] == [
        [(Dataset.RAG, "exported")]
    ]


def test_orphan_and_adopted_row_are_told(lake: HistoryLake) -> None:
    """After a lost store a row has no batch: adopted where an input produces it, an orphan where none does."""
    lake.both(A, run("r1"))
    lake.both(B, run("r2"))
    lake.go()
    lake.lose_store()
    lake.move_away(lake.scored_path(B))
    lake.go()
    (adopted, _) = fates(story_of(lake, "r1"))[0]
    assert (adopted.outcome, adopted.batch_id, adopted.note) == (
        "exported",
        None,
        "stood in the file before its store knew of it",
    )
    (orphan,) = story_of(lake, "r2").rows
    assert (orphan.partition, orphan.state) == (None, "orphan")
    assert [(fate.outcome, fate.id) for fate in orphan.fates] == [
        ("exported", rag_id("r2")),
        ("exported", sft_id("r2")),
    ]


def test_replaced_retained_row_is_told(lake: HistoryLake) -> None:
    """A retained row whose id went to a present row tells that it is gone, and the present row that it ships.

    Why it is gone is for the withdrawals to tell: explain named a cause that was often another.
    """
    lake.both(A, run("r1"))
    lake.go()
    lake.move_away(lake.scored_path(A))
    lake.both(B, run("r1", reasons=["again"]))
    lake.go()
    story = story_of(lake, "r1")
    assert [[fate.outcome for fate in row] for row in fates(story)] == [["gone", "gone"], ["exported", "exported"]]
    note = "no line there is its own; what left is listed under Withdrawn"
    assert {fate.note for fate in fates(story)[0]} == {note}


def test_verdict_is_told_by_the_options_of_the_newest_batch(lake: HistoryLake) -> None:
    """Flags may have held for one run, or hold for a daemon: those of the configuration say nothing of its rows.

    The story: explain said that the verdict forbids a dataset, above the row that ships to it.
    """
    lake.restart(replace(lake.options, include_review=True))
    lake.both(A, run("r1", "needs_human_review"))
    lake.go()
    story = story_of(lake, "r1")
    assert [(each.dataset, each.forbids) for each in story.verdicts] == [(Dataset.RAG, False), (Dataset.SFT, True)]
    assert [fate.outcome for fate in fates(story)[0]] == ["exported", "quarantined"]


def test_row_that_waits_is_told(lake: HistoryLake) -> None:
    """A row that is about to be judged, or a line about to leave, is told as such."""
    lake.both(A, run("r1"))
    lake.go()
    lake.scored(A, run("r2"))
    lake.engine.ingest.index(scan(lake.root), lake.engine.new_pool(), read_again=False)
    assert story_of(lake, "r1").leaving == (("rag", "row_removed"), ("sft", "row_removed"))
    story = story_of(lake, "r2")
    assert story.rows[0].waits
    assert {fate.outcome for fate in fates(story)[0]} == {"not judged yet"}


def test_unknown_run_is_an_error(lake: HistoryLake) -> None:
    """A run that nothing names is an error that names it."""
    lake.both(A, run("r1"))
    lake.go()
    with pytest.raises(UnknownRunError, match="run 'r9' is not known"):
        story_of(lake, "r9")


def test_run_with_evidence_alone_is_known(lake: HistoryLake) -> None:
    """A run that only an evidence row names has a story without rows; after a withdrawal by prune there is that."""
    lake.both(A, run("r1"))
    lake.evidence(A, given("r1"), given("lonely"))
    lake.go()
    story = story_of(lake, "lonely")
    assert not story.rows
    assert not story.pairs
    assert not story.verdicts
    assert [each.partition for each in story.evidence] == [A]
    lake.move_away(lake.scored_path(A), lake.evidence_path(A))
    lake.go()
    lake.prune()
    gone = story_of(lake, "r1")
    assert gone.rows == ()
    assert {each.cause for each in gone.withdrawals} == {"pruned"}


def test_no_store_is_an_error(lake: HistoryLake) -> None:
    """Without a store there is nothing to tell."""
    with pytest.raises(OperatorError, match="there is no state store"):
        story_of(lake, "r1")


@pytest.mark.parametrize("run_id", ['quo"te', "back\\slash", "zwölf ☃ \U0001f40d", "new\nline", "a" * 3000, "|", "%"])
def test_odd_run_ids(lake: HistoryLake, run_id: str) -> None:
    """Whatever stands in a run id, its errors are found in the quarantine file."""
    lake.both(A, run(run_id, "rejected"), run(run_id + "x", "rejected"))
    lake.go()
    ((rag, sft),) = fates(story_of(lake, run_id))
    assert rag.errors
    assert sft.errors == ("category=rejected forbidden in SFT (spec non-negotiable)",)


@pytest.mark.parametrize("put", [lambda _: None, os.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_damaged_quarantine_is_told(lake: HistoryLake, put: Callable[[Path], None]) -> None:
    """A quarantine row that is not where it should be is told as such; the reason is known all the same.

    The story: what stood in place of the file was an error without a remedy, and nothing of the run was told.
    """
    lake.both(A, run("r1", "rejected"))
    lake.go()
    (lake.root / "exports/quarantine/sft.jsonl").write_bytes(b"junk\n")
    rag = lake.root / "exports/quarantine/rag.jsonl"
    rag.unlink()
    put(rag)
    for fate in fates(story_of(lake, "r1"))[0]:
        assert fate.reason is not None
        assert fate.errors == ()
        assert fate.note == "its quarantine row was not found, the file is changing or was changed"


def test_explain_changes_nothing_beside_a_writer(lake: HistoryLake) -> None:
    """Explain works while a writer has the store open, sees what is committed, and leaves everything as it is."""
    lake.both(A, run("r1"))
    lake.go()
    before = MappingProxyType(lake.files())
    lake.engine.store.connection.execute("BEGIN IMMEDIATE")
    lake.engine.store.connection.execute("DELETE FROM scored_rows")
    assert len(story_of(lake, "r1").rows) == 1
    lake.engine.store.connection.execute("ROLLBACK")
    assert lake.files() == before
    lake.scored(C, run("r1", "rejected"))
    lake.go()
    assert len(story_of(lake, "r1").rows) == 2


def test_names_that_look_alike_are_told_apart(lake: HistoryLake) -> None:
    """The story: the same name in another Unicode normal form in each tree; the row had no evidence, and all looked well."""
    composed, decomposed = (f"2026/04/27/caf{end}.jsonl" for end in ("\xe9", "e\u0301"))
    lake.scored(composed, run("r1"))
    lake.evidence(decomposed, given("r1"))
    lake.both("2026/04/27/caf\xe8.jsonl", run("r2"))
    lake.go()
    assert story_of(lake, "r1").look_alikes == ((composed, decomposed),)
    assert story_of(lake, "r2").look_alikes == ()
