"""Histories that once went wrong, each cut down to its last few steps, and proofs that work follows the change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from distilld.core.model import Dataset, InputKind, OnDelete, Options, StatFacts, Trigger, UnreadableError
from distilld.engine import batch, index
from distilld.engine.work_off import QueueWorker
from distilld.lake.lines import Line, PartitionReader
from distilld.lake.scan import tree_path
from tests.property.model import PARTITIONS, Row, bad, evidence, scored
from tests.property.test_histories import Histories, KeepHistories, TripwireHistories, refused
from tests.support.target_state import Exports, read_lake

SCORED, EVIDENCE = InputKind.SCORED, InputKind.EVIDENCE
KEEP = Options(max_line_bytes=600)
WITHDRAW = Options(on_delete=OnDelete.WITHDRAW, max_line_bytes=600)


@pytest.fixture
def lake() -> Iterator[Histories]:
    """A lake without rows and an engine on it; ``check_pass`` holds every pass against the oracle."""
    with structlog.testing.capture_logs():
        machine = Histories()
        machine.options = machine.here(WITHDRAW)
        machine.restart()
        yield machine
        machine.teardown()


def restart(lake: Histories, options: Options, **limits: int) -> None:
    """Go on with another engine."""
    lake.options = lake.here(options)
    lake.batch_rows = limits.get("batch_rows", lake.batch_rows)
    lake.restart()


def put(lake: Histories, partition: int, rows: list[Row], given: list[Row] | None = None) -> None:
    """Append scored rows, and evidence."""
    lake.history.append(SCORED, partition, rows)
    lake.history.append(EVIDENCE, partition, given or [])


def judged(lake: Histories) -> int:
    """How many rows the next pass judges; it is held against the oracle."""
    before = lake.rows_judged
    lake.check_pass()
    return type(lake).rows_judged - before


def test_batch_that_changes_nothing_does_not_end_the_pass(lake: Histories) -> None:
    """A batch whose rows come to what they were is followed by the next one; the pass once ended there."""
    restart(lake, WITHDRAW, batch_rows=1)
    put(lake, 0, [scored("a", "accepted")])
    lake.check_pass()
    put(lake, 0, [scored("a", "accepted")] * 4 + [scored("a", "rejected"), scored("b", "accepted")])
    lake.check_pass()


def test_another_line_limit_changes_what_a_known_line_is(lake: Histories) -> None:
    """A line that was too deep is too long under a smaller limit; it once kept its old fault, having the same bytes."""
    put(lake, 0, [scored("a", "accepted"), bad(10)])
    lake.check_pass()
    restart(lake, replace(WITHDRAW, max_line_bytes=215))
    lake.check_pass()


@pytest.mark.parametrize("absent", [False, True])
def test_first_batch_of_other_options_takes_out_what_a_verdict_forbids(keep: KeepHistories, absent: bool) -> None:
    """Where verdicts revoke from now on, the first batch takes out all that they forbid, pairs and absent verdicts too.

    Pairs once waited for their turn, and so did rows that only an absent verdict forbids.
    """
    restart(keep, replace(KEEP, revoke=False), batch_rows=1)
    put(keep, 1, [scored("d", "accepted", task="u")], [evidence("d")])
    put(keep, 0, [scored("b", "accepted"), scored("a", "rejected")], [evidence("a"), evidence("b", "two")])
    put(keep, 3, [scored("b", "needs_human_review", task="u")])
    keep.check_pass()
    if absent:
        keep.history.delete(SCORED, 2)
        keep.check_pass()
    restart(keep, KEEP)
    keep.check_pass()


def test_unreadable_file_is_read_with_the_new_line_limit_later(lake: Histories) -> None:
    """A file that cannot be read as the line limit changes is read anew once it can; its lines once kept the old limit."""
    put(lake, 0, [], [evidence("a", "long" * 100)])
    lake.check_pass()
    restart(lake, replace(WITHDRAW, max_line_bytes=300))

    with refused(PARTITIONS[0], SCORED, EVIDENCE):
        for _ in range(2):
            assert lake.engine is not None
            assert lake.engine.run_pass(Trigger.RESCAN).unreadable
    restart(lake, lake.options)
    put(lake, 0, [scored("a", "accepted")])
    lake.check_pass()
    assert lake.store is not None
    assert lake.store.recall("files_to_read_again") == "[]"


def test_lines_are_read_with_another_limit_once(lake: Histories) -> None:
    """A row that waits for a file which cannot be read once made every pass read all files anew, after such a change."""
    put(lake, 0, [scored("a", "accepted")], [evidence("a")])
    put(lake, 1, [scored("b", "accepted")], [evidence("b")])
    lake.check_pass()
    restart(lake, replace(WITHDRAW, max_line_bytes=700))
    with refused(PARTITIONS[0], EVIDENCE):
        for read in (True, False):
            restart(lake, lake.options)
            assert lake.engine is not None
            assert bool(lake.engine.run_pass(Trigger.RESCAN).indexed.rows_indexed) is read
            assert lake.engine.work.waiting().anything
    lake.check_pass()


@pytest.mark.parametrize("kind", [SCORED, EVIDENCE])
def test_unreadable_file_stops_nothing(lake: Histories, kind: InputKind) -> None:
    """Rows that wait for a file which cannot be read wait alone; they once kept every other row from being judged."""
    put(lake, 0, [scored("a", "accepted")], [evidence("a")])
    put(lake, 1, [scored("b", "rejected"), scored("d", "accepted", task="u")], [evidence("b", "two"), evidence("d")])
    lake.check_pass()
    restart(lake, replace(WITHDRAW, missing_source_file="none"), batch_rows=1)
    put(lake, 1, [scored("d", "rejected", task="u")])
    put(lake, 2, [scored("e", "accepted")], [evidence("e")])
    assert lake.engine is not None
    with refused(PARTITIONS[0], kind):
        for _ in range(2):
            (told,) = lake.engine.run_pass(Trigger.RESCAN).unreadable
            assert told.path == PARTITIONS[0]
    exported = Exports.read(lake.folder).exported
    assert [json.loads(line)["source_run_id"] for line in exported[Dataset.RAG].values()] == ["a", "e"]
    assert len(exported[Dataset.PREFERENCE]) == 1
    lake.check_pass()


@pytest.mark.parametrize("batch_rows", [1, 100])
@pytest.mark.parametrize("kind", [SCORED, EVIDENCE])
def test_unreadable_row_that_a_verdict_forbids_leaves(lake: Histories, kind: InputKind, batch_rows: int) -> None:
    """It leaves, and so does its pair, though its quarantine row has to wait until its text can be read again."""
    restart(lake, WITHDRAW, batch_rows=batch_rows)
    put(lake, 0, [scored("a", "accepted"), scored("f", "accepted")], [evidence("a"), evidence("f")])
    put(lake, 1, [scored("b", "rejected"), scored("a", "accepted", reason="again")], [evidence("b", "two")])
    lake.check_pass()
    put(lake, 3, [scored("a", "rejected"), scored("d", "accepted")], [evidence("d", "three")])
    assert lake.engine is not None
    with refused(PARTITIONS[0], kind):
        for _ in range(2):
            assert lake.engine.run_pass(Trigger.RESCAN).unreadable
    exports = Exports.read(lake.folder)
    for dataset in (Dataset.RAG, Dataset.SFT):
        runs = [json.loads(line)["source_run_id"] for line in exports.exported[dataset].values()]
        assert runs == ["f", "d"]
        assert [row["cause"] for row in exports.withdrawn[dataset]] == ["revoked"]
    assert not [
        line for line in exports.exported[Dataset.PREFERENCE].values() if json.loads(line)["chosen_run_id"] == "a"
    ]
    lake.check_pass()


def test_one_of_equal_lines_stays_where_it_is(lake: Histories) -> None:
    """Where a line's twin comes in before it, the line that stayed is not written anew; they once changed places."""
    put(lake, 0, [bad(0), scored("a", "accepted")])
    lake.check_pass()
    lake.history.change_line(SCORED, 0, 0, scored("a", "accepted"), in_place=False)
    lake.check_pass()


def test_reformatted_row_keeps_its_quarantine_line(lake: Histories) -> None:
    """A row written with other white space is held in the same words, so its line is kept, with the time it had."""
    put(lake, 0, [scored("a", "accepted")])
    lake.check_pass()
    before = Exports.read(lake.folder)
    spaced = Row(scored("a", "accepted").replace(b'":', b'": '))
    lake.history.rewrite(SCORED, 0, [spaced], in_place=True)
    lake.check_pass()
    assert Exports.read(lake.folder).quarantined == before.quarantined


def test_rows_that_a_rewrite_brings_form_pairs(lake: Histories) -> None:
    """A task is formed anew for rows that came in with a rewrite, too; once only appended rows counted."""
    put(lake, 0, [bad(0)], [evidence("a"), evidence("b", "two")])
    lake.check_pass()
    lake.history.insert(SCORED, 0, 0, [scored("a", "accepted"), scored("b", "rejected")], in_place=False)
    lake.check_pass()


@pytest.mark.parametrize("then", ["a row goes", "a row comes", "a last line changes"])
def test_rows_that_wait_form_pairs_though_their_file_is_rewritten(lake: Histories, then: str) -> None:
    """Rows are indexed, the process dies before it judges them, and their file changes before the next one reads it.

    They stand where they stood, so they were judged one by one; but nobody asked for their tasks any more.
    """
    put(lake, 1, [scored("d", "accepted", "u")], [evidence("d")])
    lake.check_pass()
    put(lake, 0, [scored("a", "accepted"), scored("b", "rejected")], [evidence("a"), evidence("b", "two")])
    if then == "a last line changes":
        lake.history.leave_open(SCORED, 0, scored("e", "accepted", "u"))
    else:
        put(lake, 0, [scored("e", "accepted", "u")])
    dies_before_it_judges(lake)
    if then == "a row goes":
        lake.history.drop(SCORED, 0, 2, 1, in_place=True)
    elif then == "a row comes":
        lake.history.insert(SCORED, 0, 2, [bad(0)], in_place=True)
    else:
        lake.history.leave_open(SCORED, 0, b" ")
    lake.check_pass()
    assert len(Exports.read(lake.folder).exported[Dataset.PREFERENCE]) == 1


def dies_before_it_judges(lake: Histories) -> None:
    """A pass that indexes what changed and comes no further; then another engine."""

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert lake.engine is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QueueWorker, "run_batch", dies)
        with pytest.raises(KeyboardInterrupt):
            lake.engine.run_pass(Trigger.WATCH)
    lake.restart()


def test_row_that_moves_takes_what_it_waits_for_along(lake: Histories) -> None:
    """A row moves within its file as its evidence goes; it once stayed exported, its turn forgotten."""
    put(lake, 0, [scored("a", "accepted")], [evidence("a")])
    lake.check_pass()
    lake.history.move(EVIDENCE, 0, 1)
    lake.history.insert(SCORED, 0, 0, [scored("b", "accepted")], in_place=False)
    lake.check_pass()


def test_batch_cut_by_bytes_judges_what_a_verdict_forbids(lake: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch judges all rows that a verdict may forbid now; one that was cut by bytes once left some for later."""
    restart(lake, replace(WITHDRAW, revoke=False))
    put(lake, 0, [scored("a", "accepted")] * 6, [evidence("a")])
    put(lake, 1, [scored("b", "accepted")], [evidence("b")])
    put(lake, 2, [scored("b", "rejected")], [])
    lake.check_pass()
    monkeypatch.setattr(batch, "BATCH_BYTES", 1)
    restart(lake, WITHDRAW)
    lake.check_pass()


def test_batch_full_of_departures_takes_out_what_a_verdict_forbids(
    lake: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more lines that go than one batch takes, it takes all those that a verdict forbids; they once had to queue up."""
    runs = ["a", "b", "d", "e"]
    put(lake, 0, [scored(run, "accepted", task=run) for run in runs], [evidence(run) for run in runs])
    lake.check_pass()
    monkeypatch.setattr(batch, "DEPARTURES_PER_BATCH", 1)
    lake.history.rewrite(SCORED, 0, [bad(0), bad(0), bad(0), scored("e", "rejected")], in_place=True)
    lake.check_pass()


def test_row_that_a_later_gate_holds_becomes_a_duplicate(lake: Histories) -> None:
    """A row without shape is a duplicate once an earlier row ships its id, and has no shape again once that row goes.

    The gate for ids comes before the one for shape. Rows were once looked at again only if they were duplicates before.
    """
    early, late = 1, 0
    put(lake, late, [scored("a", "accepted")], [evidence("a", "  ")])
    lake.check_pass()
    put(lake, early, [scored("a", "accepted")], [evidence("a")])
    lake.check_pass()
    lake.history.rewrite(SCORED, lake.history.files(SCORED).index(lake.history.path(SCORED, early)), [], in_place=True)
    lake.check_pass()


# tasks that share an id


HOLDER = [scored("a", "accepted", "t"), scored("b|d|c", "rejected", "t")]
WAITS = [scored("a", "accepted", "c|t"), scored("b|d", "rejected", "c|t")]
ALSO_WAITS = [scored("a", "accepted", "d|c|t"), scored("b", "rejected", "d|c|t")]
"""Rows of three tasks whose pairs have one id: where the runs end and the task begins is not seen in it."""
GIVEN = [evidence("a"), *(evidence(run, "two") for run in ("b|d|c", "b|d", "b"))]
FIRST = scored("e", "needs_human_review", "t")


def task_that_ships(lake: Histories) -> str:
    """Whose pair has the one id."""
    (line,) = Exports.read(lake.folder).exported[Dataset.PREFERENCE].values()
    return str(json.loads(line)["prompt"]).partition(" · ")[0].removeprefix("Task: ")


@pytest.mark.parametrize("how", ["goes", "loses its evidence", "moves"])
def test_pair_that_waits_ships_when_its_task_comes_first(lake: Histories, how: str) -> None:
    """The holder's task had its first row before all others, and still ships; now the task that waits is the first.

    The holder kept its line, and nobody asked for the task that waits. So that one was a duplicate of a later pair.
    """
    put(lake, 1, [FIRST], [evidence("e")])
    put(lake, 0, [*WAITS, *HOLDER], GIVEN)
    lake.check_pass()
    assert task_that_ships(lake) == "t"
    early = lake.history.files(SCORED).index(lake.history.path(SCORED, 1))
    if how == "loses its evidence":
        lake.history.rewrite(EVIDENCE, early, [], in_place=True)
    elif how == "moves":
        lake.history.move_both(early, 3)
    else:
        lake.history.rewrite(SCORED, early, [], in_place=True)
    lake.check_pass()
    assert task_that_ships(lake) == "c|t"


@pytest.mark.parametrize("category", ["needs_human_review", "?"])
@pytest.mark.parametrize("in_one_go", [False, True])
def test_pair_that_waits_ships_when_a_row_that_forms_no_pair_comes_first(
    lake: Histories, category: str, in_one_go: bool
) -> None:
    """The place of a task is that of its first row with evidence, whatever its category.

    A row that can stand in no pair was once no reason to ask for its task.
    """
    if in_one_go:
        lake.limits.setattr(index, "LEAVE_FROM", 0)
        lake.let_settle()
    put(lake, 0, [*HOLDER, *WAITS], GIVEN)
    lake.check_pass()
    assert task_that_ships(lake) == "t"
    put(lake, 1, [scored("e", category, "c|t")], [evidence("e")])
    lake.check_pass()
    assert task_that_ships(lake) == "c|t"


def test_pair_is_a_duplicate_before_its_schema_counts(lake: Histories) -> None:
    """A pair that fails its schema is a duplicate where it comes behind a pair with its id, and only there.

    The order of the two tasks changes, back and forth; once the outcome stayed what it was.
    """
    put(lake, 0, [scored("a", "accepted", "t", flaw="bad text"), HOLDER[1], *WAITS], GIVEN)
    lake.check_pass()
    put(lake, 1, [scored("e", "?", "c|t")], [evidence("e")])
    lake.check_pass()
    lake.history.rewrite(SCORED, lake.history.files(SCORED).index(lake.history.path(SCORED, 1)), [], in_place=True)
    lake.check_pass()


def test_task_whose_turn_is_over_is_formed_in_the_next_batch(lake: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tasks share an id; the holder moves to the end, another one comes, and the batch takes no more than one.

    The new one takes the id from the last, and the first has to take it from the new one.
    """
    put(lake, 1, [FIRST], [evidence("e")])
    put(lake, 0, [*ALSO_WAITS, bad(0), bad(0), *HOLDER], GIVEN)
    lake.check_pass()
    assert task_that_ships(lake) == "t"
    monkeypatch.setattr(batch, "TASKS_PER_BATCH", 1)
    lake.history.rewrite(SCORED, lake.history.files(SCORED).index(lake.history.path(SCORED, 1)), [], in_place=True)
    lake.history.rewrite(
        SCORED, lake.history.files(SCORED).index(lake.history.path(SCORED, 0)), [*ALSO_WAITS, *WAITS, *HOLDER],
        in_place=True,
    )  # fmt: skip
    lake.check_pass()
    assert task_that_ships(lake) == "d|c|t"


# what is retained


@pytest.fixture
def keep() -> Iterator[KeepHistories]:
    """The same with files that are kept when they disappear."""
    with structlog.testing.capture_logs():
        machine = KeepHistories()
        machine.options = machine.here(KEEP)
        machine.restart()
        yield machine
        machine.teardown()


def test_held_pair_of_a_renamed_partition_stands_once(keep: KeepHistories) -> None:
    """Rows that moved to another partition are not absent; their held pair once stayed beside the one formed anew."""
    put(keep, 0, [scored("a", "accepted"), scored("b", "rejected")], [evidence("a"), evidence("b")])
    keep.check_pass()
    keep.history.move_both(0, 3)
    keep.check_pass()


def test_held_pair_stays_when_its_partition_and_a_verdict_change_its_side(keep: KeepHistories) -> None:
    """A held pair is retained whatever is said of its sides; it once left, for an absent verdict overruled it."""
    put(keep, 0, [scored("a", "accepted"), scored("a", "rejected")], [evidence("a")])
    keep.check_pass()
    keep.history.delete(SCORED, 0)
    keep.check_pass()


def test_retained_pair_goes_when_its_line_stands_elsewhere(keep: KeepHistories) -> None:
    """A line that stands in a present partition counts only there, and so do pairs of it; one once stood twice."""
    put(keep, 2, [scored("b", "partially_accepted"), scored("b", "accepted")], [evidence("b")])
    keep.check_pass()
    keep.history.move_both(0, 0)
    keep.history.drop(SCORED, 0, 1, 1, in_place=True)
    keep.check_pass()
    keep.history.insert(SCORED, 0, 1, [scored("b", "accepted")], in_place=False)
    keep.check_pass()


def test_retained_pair_goes_with_its_line_where_no_evidence_is(keep: KeepHistories) -> None:
    """The same where the line stands without evidence, and forms no pair."""
    restart(keep, replace(KEEP, revoke=False))
    rows = [scored("a", "accepted"), scored("b", "rejected")]
    put(keep, 2, rows, [evidence("a"), evidence("b", "two")])
    keep.check_pass()
    keep.history.delete(SCORED, 0)
    keep.check_pass()
    put(keep, 0, rows)
    keep.check_pass()


@pytest.mark.parametrize("first", [0, 3])
def test_held_pair_with_an_absent_side_stays_beside_its_like(keep: KeepHistories, first: int) -> None:
    """Of two pairs held in the same words the one whose side is absent stays, and the other is not taken for it."""
    put(keep, 2, [scored("a", "accepted"), scored("a", "rejected")], [evidence("a")])
    put(keep, first, [scored("a", "rejected", reason="again")], [evidence("a")])
    keep.check_pass()
    keep.history.delete(SCORED, keep.history.files(SCORED).index(keep.history.path(SCORED, first)))
    keep.check_pass()
    keep.history.append(EVIDENCE, 2, [evidence("a", "two")])
    keep.check_pass()


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_retained_pair_goes_with_its_row(keep: KeepHistories, how: str) -> None:
    """A pair on absent evidence goes when its scored row does, or when its file goes and the line stands elsewhere too.

    Its task was once left alone, for a row without evidence forms no pair.
    """
    restart(keep, replace(KEEP, revoke=False))
    put(keep, 0, [scored("a", "accepted"), scored("b", "rejected")], [evidence("a"), evidence("b", "two")])
    put(keep, 3, [scored("a", "accepted")])
    keep.check_pass()
    keep.history.delete(EVIDENCE, 0)
    keep.check_pass()
    if how == "changed":
        keep.history.change_line(SCORED, 0, 0, scored("d", "accepted"), in_place=True)
    else:
        put(keep, 3, [scored("b", "rejected")])
        keep.check_pass()
        keep.history.delete(SCORED, 0)
    keep.check_pass()


def test_renamed_partition_returns_to_its_old_name(keep: KeepHistories) -> None:
    """Lines that return count there alone; those under the other name once stayed beside them."""
    restart(keep, replace(KEEP, revoke=False))
    put(keep, 2, [scored("b", "accepted")])
    keep.check_pass()
    keep.history.move(SCORED, 0, 3)
    keep.check_pass()
    keep.history.move(SCORED, 0, 2)
    keep.check_pass()


def test_absent_file_is_read_with_the_new_line_limit_later(keep: KeepHistories) -> None:
    """A scored file that is absent as the line limit changes is read anew when it returns, too."""
    put(keep, 0, [scored("a", "accepted"), scored("b", "accepted", reason="long" * 50)], [evidence("a")])
    keep.check_pass()
    keep.history.delete(SCORED, 0)
    restart(keep, replace(KEEP, max_line_bytes=300))
    keep.check_pass()
    keep.history.bring_back(0)
    keep.check_pass()


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("kind", [SCORED, EVIDENCE])
def test_file_that_returns_counts_once_it_is_read(
    keep: KeepHistories, monkeypatch: pytest.MonkeyPatch, kind: InputKind, rewritten: bool
) -> None:
    """An absent file that returns and cannot be read to its end stays absent; its rows once never got their evidence."""
    put(keep, 0, [scored("a", "accepted"), scored("b", "rejected")], [evidence("a"), evidence("b", "two")])
    keep.check_pass()
    keep.history.delete(kind, 0)
    keep.check_pass()
    keep.history.bring_back(0)
    if rewritten:
        keep.history.drop(kind, 0, 0, 1, in_place=False)
    assert keep.engine is not None
    with monkeypatch.context() as patch:
        patch.setattr(PartitionReader, "blocks", cannot_be_read)
        assert keep.engine.run_pass(Trigger.RESCAN).unreadable
    keep.check_pass()
    put(keep, 0, [scored("a", "accepted", signature="another")])
    keep.check_pass()


def cannot_be_read(reader: PartitionReader) -> Iterator[list[Line]]:
    """What stands where a file's lines are read, and the disk fails."""
    raise UnreadableError(reader._shown, OSError(5, "Input/output error"))


@pytest.mark.parametrize("category", ["accepted", "rejected"])
def test_renamed_line_that_is_too_long_now_counts_where_it_stands(keep: KeepHistories, category: str) -> None:
    """A line that moved and is too long under a smaller limit stands once, as malformed; what it forbade stays forbidden.

    It was once not found under its new name, where it says no run any more.
    """
    put(keep, 0, [scored("a", category, reason="long" * 50)], [evidence("a")])
    put(keep, 1, [scored("a", "accepted")], [evidence("a")])
    keep.check_pass()
    keep.history.move_both(1, 3)
    restart(keep, replace(KEEP, max_line_bytes=300))
    keep.check_pass()


@pytest.fixture
def tripwire() -> Iterator[TripwireHistories]:
    """The same with a tripwire that every row passes."""
    with structlog.testing.capture_logs():
        machine = TripwireHistories()
        machine.options = machine.here(KEEP)
        machine.restart()
        yield machine
        machine.teardown()


@pytest.mark.parametrize("first", ["", "holder"])
def test_pair_that_waits_ships_when_the_one_that_holds_its_id_is_retained(keep: KeepHistories, first: str) -> None:
    """A present pair ships the id of a retained one, wherever it stands; a pair that waited once went on waiting."""
    put(keep, 1, [FIRST] if first else [], [evidence("e")])
    put(keep, 0, HOLDER, GIVEN)
    put(keep, 3, WAITS, GIVEN)
    keep.check_pass()
    assert task_that_ships(keep) == "t"
    keep.history.delete(SCORED, keep.history.files(SCORED).index(keep.history.path(SCORED, 0)))
    keep.check_pass()
    assert task_that_ships(keep) == "c|t"
    keep.history.bring_back(0)
    keep.check_pass()
    assert task_that_ships(keep) == "t"


def test_retained_and_live_pairs_of_a_task_give_their_ids_up_together(keep: KeepHistories) -> None:
    """An earlier task comes whose pairs have the ids of a later one's, of which one is live and one is retained.

    The retained one was counted out twice, once for the task that took its id and once for its own; no batch that holds its
    accounting could be committed any more.
    """
    put(keep, 2, WAITS, GIVEN)
    put(keep, 3, [scored("m", "accepted", "c|t")], [evidence("m", "three")])
    keep.check_pass()
    keep.history.delete(EVIDENCE, keep.history.files(EVIDENCE).index(keep.history.path(EVIDENCE, 3)))
    keep.check_pass()
    keep.history.rewrite(SCORED, keep.history.files(SCORED).index(keep.history.path(SCORED, 3)), [], in_place=True)
    put(keep, 0, [*HOLDER, scored("m", "accepted", "t")], [*GIVEN, evidence("m", "three")])
    keep.check_pass()


def test_tripwire_holds_a_pair_one_side_of_which_moved(tripwire: TripwireHistories) -> None:
    """A pair leaves because one side vanished, while the file of the other is absent: it once passed the tripwire."""
    restart(tripwire, replace(KEEP, revoke=False))
    put(tripwire, 1, [scored("e", "accepted")], [evidence("e")])
    put(tripwire, 0, [scored("b", "rejected")], [evidence("b", "two")])
    tripwire.check_pass()
    tripwire.history.move_both(1, 0)
    tripwire.check_pass()


def test_tripwire_holds_a_pair_that_was_absent_and_is_no_more(tripwire: TripwireHistories) -> None:
    """A pair was retained for its absent side while its other side vanished; then a present line counts for the absent one.

    It once left then, for what vanished in the scan before.
    """
    put(tripwire, 0, [scored("a", "accepted")], [evidence("a", "one")])
    rows = [scored("a", "accepted"), scored("b", "accepted"), scored("c", "rejected")]
    put(tripwire, 1, rows, [evidence("b", "one"), evidence("c", "two")])
    tripwire.check_pass()
    tripwire.history.move(EVIDENCE, 0, 1)
    tripwire.check_pass()
    tripwire.history.delete(SCORED, 0)
    tripwire.check_pass()
    assert tripwire.engine is not None
    assert tripwire.engine.retained.kept_by_tripwire()["preference"] == 2


def test_row_that_takes_an_id_over_in_the_next_batch_is_not_forgotten(tripwire: TripwireHistories) -> None:
    """A batch that takes one row from the queue and puts another one in does not end the pass, as it once did."""
    restart(tripwire, KEEP, batch_rows=1)
    rows = [scored("a", "accepted"), scored("b", "accepted"), scored("b", "rejected", signature="b|s")]
    put(tripwire, 1, rows, [evidence("a"), evidence("b")])
    put(tripwire, 0, [scored("b", "accepted")], [evidence("b", "two")])
    tripwire.check_pass()
    tripwire.history.rewrite(EVIDENCE, 1, [], in_place=True)
    tripwire.check_pass()


def test_tripwire_holds_rows_that_move_away_from_their_evidence(tripwire: TripwireHistories) -> None:
    """A scored partition is renamed, and its evidence after the next scan: nothing leaves, and no byte changes."""
    put(tripwire, 1, [scored("a", "accepted"), scored("b", "rejected")], [evidence("a"), evidence("b", "two")])
    tripwire.check_pass()
    before = Exports.read(tripwire.folder).exported
    tripwire.history.move(SCORED, 0, 3)
    tripwire.check_pass()
    assert Exports.read(tripwire.folder).exported == before
    tripwire.history.move(EVIDENCE, 0, 3)
    tripwire.check_pass()
    assert Exports.read(tripwire.folder).exported == before
    assert tripwire.engine is not None
    assert not tripwire.engine.retained.kept_by_tripwire()


def test_row_waits_that_would_take_an_id_from_one_that_cannot_be_read(lake: Histories) -> None:
    """Who loses an id needs a new quarantine row, and so its text; the whole pass once failed as long as it had none."""
    assert lake.engine is not None
    put(lake, 0, [scored("a", "accepted"), scored("b", "accepted")], [evidence("a"), evidence("b")])
    put(lake, 3, [scored("c", "accepted")], [evidence("c")])
    lake.check_pass()
    put(lake, 1, [scored("a", "accepted")], [evidence("a", "two")])  # stands before the one that has the id
    put(lake, 3, [scored("c", "rejected"), scored("d", "accepted")], [evidence("d")])
    with refused(PARTITIONS[0], *InputKind):
        result = lake.engine.run_pass(Trigger.WATCH)
    assert [PARTITIONS[0] in problem for problem in result.problems] == [True]
    exported = map(json.loads, Exports.read(lake.folder).exported[Dataset.SFT].values())
    assert {row["source_run_id"]: row["response"] for row in exported} == {"a": "one", "b": "one", "d": "one"}
    lake.before, lake.lake = Exports.read(lake.folder), read_lake(lake.folder, lake.options)
    lake.check_pass()


def test_row_waits_whose_displaced_row_would_displace_one_that_cannot_be_read(lake: Histories) -> None:
    """It loses its id in one dataset, and takes it from a third row in the other: the whole pass once failed."""
    assert lake.engine is not None
    put(lake, 0, [scored("a", "accepted", task="")], [evidence("a", "two", "extractor")])
    put(lake, 2, [scored("a", "accepted", task="", reason="x")], [evidence("a", "three")])
    put(lake, 3, [scored("q", "accepted", task="")], [evidence("q")])
    lake.check_pass()
    lake.history.path(EVIDENCE, 0).write_bytes(evidence("a", "two") + b"\n")
    put(lake, 1, [scored("a", "accepted", task="", reason="y")], [evidence("a", "one", "extractor")])
    put(lake, 3, [scored("q", "rejected", task="")])
    with refused(PARTITIONS[2], SCORED):
        for _ in range(2):
            assert lake.engine.run_pass(Trigger.WATCH).unreadable
    exported = map(json.loads, Exports.read(lake.folder).exported[Dataset.SFT].values())
    assert [row["source_run_id"] for row in exported] == ["a"]
    lake.before, lake.lake = Exports.read(lake.folder), read_lake(lake.folder, lake.options)
    lake.check_pass()


@pytest.mark.parametrize("kind", [SCORED, EVIDENCE])
def test_file_that_is_not_what_was_read_of_it_stops_nothing(lake: Histories, kind: InputKind) -> None:
    """Its rows wait alone until it is read again, even where its facts did not change; it once stopped every batch."""
    put(lake, 0, [scored("a", "accepted", task="u", reason="one")], [evidence("a", "one")])
    put(lake, 1, [scored("b", "rejected", task="u"), scored("q", "accepted")], [evidence("b", "two"), evidence("q")])
    lake.check_pass()
    assert lake.engine is not None
    path = lake.history.path(kind, 0)
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    record = lake.engine.inputs.files()[kind, PARTITIONS[0]]
    record.facts = StatFacts.of(path.stat())
    record.unsure_since_ns = None
    with lake.engine.store.transaction():
        lake.engine.inputs.write_file(record)
    # The first needs the text of the changed line, the second takes a row out, the third comes in.
    restart(lake, replace(WITHDRAW, missing_source_file="none"))
    put(lake, 2, [scored("q", "rejected"), scored("e", "accepted")], [evidence("e")])
    assert lake.engine is not None
    result = lake.engine.run_pass(Trigger.WATCH)
    assert result.changed_inputs == (tree_path(kind, PARTITIONS[0]),)
    assert result.unfinished
    exported = map(json.loads, Exports.read(lake.folder).exported[Dataset.SFT].values())
    assert {row["source_run_id"] for row in exported} == {"a", "e"}
    lake.before, lake.lake = Exports.read(lake.folder), read_lake(lake.folder, lake.options)
    lake.check_pass()


def test_path_check_that_is_refused_writes_no_pair(lake: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task waits (SPEC 3.5); the pairs before it once went into the file, in batch after batch."""
    real = os.stat

    def refusing(path: Any, **named: Any) -> os.stat_result:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return real(path, **named)

    restart(lake, replace(WITHDRAW, check_source_files=True))
    assert lake.engine is not None
    rows = [scored("c", "accepted"), scored("r", "rejected"), scored("s", "rejected")]
    put(lake, 0, rows, [evidence("c"), evidence("r", "two"), evidence("s", "three", files="secret")])
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refusing)
        assert lake.engine.run_pass(Trigger.WATCH).unreadable
    assert not Exports.read(lake.folder).exported[Dataset.PREFERENCE]
    lake.check_pass()


# work follows the change


def test_late_evidence_judges_the_rows_that_wait_for_it(lake: Histories) -> None:
    """Evidence that comes late judges the rows of its runs, not its partition."""
    runs = [f"run-{number}" for number in range(200)]
    put(lake, 0, [scored(run, "accepted", task=run) for run in runs], [evidence(run) for run in runs[10:]])
    assert judged(lake) == 200
    lake.history.append(EVIDENCE, 0, [evidence(run) for run in runs[:3]])
    assert judged(lake) == 3


def test_appended_rows_alone_are_judged(lake: Histories) -> None:
    """A hundred appended rows of new runs are all that is judged."""
    runs = [f"run-{number}" for number in range(300)]
    put(lake, 0, [scored(run, "accepted", task=run) for run in runs[:200]], [evidence(run) for run in runs])
    lake.check_pass()
    put(lake, 0, [scored(run, "accepted", task=run) for run in runs[200:]])
    assert judged(lake) == 100


def test_row_inserted_at_the_head_judges_no_shipped_row(lake: Histories) -> None:
    """Rows that ship and only move are not judged; held ones are, because their quarantine row names their place."""
    runs = [f"run-{number}" for number in range(200)]
    lake.options = lake.here(replace(WITHDRAW, include_partial=True))
    restart(lake, lake.options)
    put(lake, 0, [scored(run, "accepted", task=run) for run in runs], [evidence(run, f"by {run}") for run in runs])
    put(lake, 0, [scored("held", "accepted")])
    lake.check_pass()
    lake.history.insert(SCORED, 0, 0, [scored("new", "accepted")], in_place=False)
    assert judged(lake) == 2


def test_verdict_judges_the_rows_of_its_run(lake: Histories) -> None:
    """A rejection judges its own row and the earlier rows of the run."""
    runs = [f"run-{number}" for number in range(200)]
    put(lake, 0, [scored(run, "accepted", task=run) for run in runs], [evidence(run) for run in runs])
    lake.check_pass()
    put(lake, 3, [scored("run-7", "rejected", task="run-7")])
    assert judged(lake) == 2


def test_row_that_is_forced_before_its_turn_is_judged_once() -> None:
    """A rejected row of a rewritten file was judged with another batch and again in its turn, and quarantined twice."""
    state = Histories()
    state.start(
        options=Options(max_line_bytes=600), size=700, in_place=None, job=4000, files=[], departures=200000,
        in_one_go=False, tasks=10000, settled=False, page=4000, rows=50000,
    )  # fmt: skip
    state.insert_scored(at=0, in_place=False, number=0, rows=[scored("a", "accepted")], then=True)
    state.leave_scored_open(partition=0, row=scored("a", "accepted"), then=True)
    rows = [bad(0), *[scored("a", "accepted")] * 2, scored("e", "rejected"), scored("a", "accepted")]
    state.append_both(both=(rows, [evidence("a")]), partition=0, then=True, torn=None)
    state.teardown()


def test_row_that_is_queued_behind_the_place_of_its_batch_is_judged_in_the_same_pass() -> None:
    """A row whose kept holder gave its id up is judged again; where it was the last one, it once waited for the next pass."""
    rows = [scored("d", "accepted", "t", "s", "", "no task"), scored("a", "accepted", "t", "s", "", "")]
    given = [evidence("d", "one", "executor", "", "")]
    with structlog.testing.capture_logs():
        machine = Histories()
        try:
            machine.start(
                options=Options(include_review=True, missing_source_file="", max_line_bytes=600), rows=1, size=1 << 25,
                tasks=10_000, departures=200_000, job=4000, page=4000, settled=False, in_one_go=False, in_place=None,
                files=[(rows, given), (rows, given)],
            )  # fmt: skip
            machine.complete(number=0, then=True)
            machine.duplicate(at=1, count=0, kind=SCORED, number=0, then=True, to=0)
            machine.complete(number=0, then=True)
            other = [bad(0), evidence("a", " two \n", "executor", "", "")]
            machine.insert_evidence(at=0, in_place=True, number=0, rows=other, then=True)
            machine.duplicate(at=2, count=3, kind=SCORED, number=2, then=True, to=5)
            machine.rescore(at=2, number=1, then=False)
            machine.complete(number=5, then=True)
            last = [evidence("d", "", "executor", "", ""), evidence("a", "one", "extractor", "", "")]
            machine.insert_evidence(at=2, in_place=True, number=7, rows=last, then=False)
            machine.truncate(kind=EVIDENCE, number=4, size=1999, then=False)
            machine.truncate(kind=EVIDENCE, number=5, size=514, then=True)
        finally:
            machine.teardown()
