"""Faults that the crash and fault tests found, each by its name and with its story."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from distilld.core.model import DATASET_PATHS, SET_ASIDE, Dataset, Options, Trigger
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.publish.exports import Exports
from distilld.publish.new_file import Written
from tests.support.builders import jsonl
from tests.support.calls import Call, calls
from tests.support.committed import accounted, at_rest, committed_and_whole, outcome, rows_of
from tests.support.deaths import dies_at
from tests.support.histories import (
    NINE,
    SMALL,
    A,
    B,
    History,
    Inputs,
    Lake,
    append_rows,
    given,
    nothing,
    rescore,
    run,
    touch_all_nine,
    write_first,
)

Prepare = Callable[[History], Lake]


def calls_of(lake: Lake) -> list[Call]:
    """The calls that a start and its work make."""
    lake.reset()
    made: list[Call] = []
    with calls(made.append):
        lake.start()
    return made


def at(made: list[Call], name: str, place: str, nth: int = 0) -> Call:
    """One of the calls of this name at this place."""
    return [call for call in made if call.name == name and place in call.place][nth]


def is_as_read_at_once(lake: Lake) -> None:
    """The files at rest are those of a lake that is read for the first time."""
    committed_and_whole(lake.root)
    accounted(lake.root)
    found = at_rest(lake.root)
    for folder in ("exports", "reports", "state"):
        shutil.rmtree(lake.root / folder)
    lake.start()
    assert found == at_rest(lake.root)


def test_a_file_that_was_indexed_in_part_is_read_to_its_end(prepare: Prepare) -> None:
    """The rest of a long file is not forgotten when the process dies in the middle of it.

    The story: each transaction of the indexing recorded the facts of the whole file beside what it had read of it. A
    kill between two of them, and a file that was at rest: the next scan found its size and times as recorded, took it
    for unchanged, and all rows behind the first 20,000 were never read, with no sign of it anywhere.
    """
    lake = prepare(History("first", append_rows, before=None, limits=SMALL))
    made = calls_of(lake)
    expected = outcome(lake.root)
    lake.reset()
    assert dies_at(at(made, "sql COMMIT done", "count_rows").number, lake.start)
    lake.start()
    assert outcome(lake.root) == expected
    accounted(lake.root)


def test_a_copy_of_the_line_that_was_provisional_is_not_taken_for_it(prepare: Prepare) -> None:
    """A row that stands twice is counted twice, wherever the process died while it read the file.

    The story: the last line had no line feed yet and was judged for the time being. It was completed, its very copy
    followed, and the process died between the two. The mark of the provisional line was still set, the copy had its
    digest, and so the copy was taken for the line that was known already; one row too few, all later ones misplaced.
    """
    twin, other = run("twin", "t", "accepted"), run("other", "t", "rejected")

    def begin(inputs: Inputs) -> None:
        write_first(inputs)
        with inputs.scored(A).open("ab") as file:
            file.write(jsonl([twin])[:-1])

    def go_on(inputs: Inputs) -> None:
        with inputs.scored(A).open("ab") as file:
            file.write(b"\n" + jsonl([other, twin]))

    one_read = len(jsonl([twin, other])) + 10
    limits = {"distilld.engine.index_context.ROWS_PER_TRANSACTION": 1, "distilld.lake.lines.BLOCK_BYTES": one_read}
    lake = prepare(History("twins", go_on, before=begin, limits=limits))
    made = calls_of(lake)
    expected = outcome(lake.root)
    deaths = [call for call in made if call.name == "sql COMMIT done" and "count_rows" in call.place]
    assert deaths
    for call in deaths:
        lake.reset()
        assert dies_at(call.number, lake.start)
        lake.start()
        assert outcome(lake.root) == expected
        accounted(lake.root)


def test_receipts_that_are_kept_no_longer_go_whatever_happens(prepare: Prepare) -> None:
    """The store and the folder keep the same receipts, wherever the process died while the oldest were removed.

    The story: the store forgot old receipts first and removed their files then. A kill in between left files that
    nothing knew of any more, for good; a disk fills that way.
    """

    def keep_one(engine: Engine) -> PassResult:
        engine.committer.receipts_keep = 1
        engine.committer.recover()
        return engine.run_pass(Trigger.ONCE)

    lake = prepare(History("retire", touch_all_nine, work=keep_one))
    made = calls_of(lake)
    retiring = [call for call in made if "_retire_receipts" in call.place or "remove_receipts" in call.place]
    assert {call.name for call in retiring} >= {"os.unlink", "os.rmdir", "os.fsync", "sql COMMIT"}
    for call in retiring:
        lake.reset()
        assert dies_at(call.number, lake.start)
        lake.start()
        committed_and_whole(lake.root)
        assert len([path for path in (lake.root / "reports/distillation").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("how", ["copied", "swept"])
def test_a_version_that_waits_may_be_copied_or_swept_away(prepare: Prepare, how: str) -> None:
    """A root that is copied after a kill recovers like the original; a waiting file that is deleted is made good.

    The story: a waiting version was known by its inode alone. A box died behind a COMMIT, its disk was copied to a new
    one, and each start ended with 'was replaced while its new version waited'. A job that deletes *.tmp files did the
    same, and rows that were rejected stood in the datasets until somebody looked.
    """
    lake = prepare(NINE)
    made = calls_of(lake)
    expected, expected_rest = outcome(lake.root), at_rest(lake.root)
    lake.reset()
    assert dies_at(at(made, "os.rename", "install").number, lake.start)
    if how == "copied":
        copy = lake.root.with_name("copy")
        shutil.copytree(lake.root, copy, symlinks=True)
        shutil.rmtree(lake.root)
        copy.rename(lake.root)
    else:
        for waiting in lake.root.rglob(".*.tmp"):
            waiting.unlink()
    lake.start()
    committed_and_whole(lake.root)
    accounted(lake.root)
    assert at_rest(lake.root) == expected_rest
    if how == "copied":
        assert outcome(lake.root) == expected


@pytest.mark.parametrize("back", [True, False], ids=["back to the old options", "on with the new ones"])
def test_a_change_of_options_that_was_cut_off_leaves_nothing_half_judged(prepare: Prepare, back: bool) -> None:
    """Whichever options come next, every row is judged by them.

    The story: a run with ``include_partial`` was killed behind the first of its batches. The next run, without, saw
    that its options were those of the last finished run and judged nothing anew: partial rows stayed in the SFT file.
    """
    small = History("options", nothing, batch_rows=2)
    lake = prepare(small)
    old, new = lake.options, Options(source_files_root="/", include_partial=True, include_review=True)
    lake.options = new
    lake.reset()
    made = calls_of(lake)
    first_batch = at(made, "os.rename", "receipt_files._replace")
    lake.reset()
    assert dies_at(first_batch.number, lake.start)
    lake.options = old if back else new
    lake.start()
    is_as_read_at_once(lake)


@pytest.mark.parametrize("back", [True, False], ids=["back to the old limit", "on with the new one"])
def test_a_change_of_the_line_limit_that_was_cut_off_reads_all_lines_anew(prepare: Prepare, back: bool) -> None:
    """Lines that were read with one limit are read again with the other, even if the first reading was cut off.

    The story: as above; and lines that were too long for the limit of a run that never ended stayed malformed.
    """
    lake = prepare(History("limit", nothing, limits=SMALL))
    old, new = lake.options, Options(source_files_root="/", max_line_bytes=350)
    lake.options = new
    made = calls_of(lake)
    deaths = [call for call in made if call.name == "sql COMMIT done" and "index" in call.place]
    assert deaths
    for call in [*deaths, at(made, "os.rename", "receipt_files._replace")]:
        lake.options = new
        lake.reset()
        assert dies_at(call.number, lake.start)
        lake.options = old if back else new
        lake.start()
        is_as_read_at_once(lake)


def test_a_rewritten_partition_forms_the_pairs_of_its_new_rows(prepare: Prepare) -> None:
    """New rows of a partition that is not only appended to find their task.

    The story: rows that came with a rewrite were judged one by one, but nobody asked for their tasks; a pair of two
    such rows was never formed. Found by a rebuild with new rows, which lacked a pair that a plain run gave.
    """

    def rewrite(inputs: Inputs) -> None:
        inputs.append(inputs.evidence(A), given("n1", "new"), given("n2", "new"))
        content = inputs.scored(A).read_bytes()
        inputs.scored(A).write_bytes(jsonl([run("n1", "new", "accepted"), run("n2", "new", "rejected")]) + content)

    lake = prepare(History("head", rewrite))
    lake.reset()
    lake.start()
    pairs = rows_of(lake.root, Dataset.PREFERENCE) or []
    assert [row["chosen_run_id"] for row in pairs].count("n1") == 1
    is_as_read_at_once(lake)


def test_a_pair_of_an_older_exporter_whose_run_was_rejected_leaves(prepare: Prepare) -> None:
    """Without a store nobody knows which category a pair's rejected side had; the verdict in force decides.

    The story: the take-over of a preference file ended with a KeyError where a chosen run had been rejected since.
    """

    def lose_the_store(root: Path) -> None:
        shutil.rmtree(root / "state")

    def reject(inputs: Inputs) -> None:
        inputs.append(inputs.scored(B), run("a1", "one", "rejected"))

    lake = prepare(History("orphans", reject, mishap=lose_the_store))
    lake.reset()
    assert b'"chosen_run_id":"a1"' in (lake.root / DATASET_PATHS[Dataset.PREFERENCE]).read_bytes()
    lake.start()
    assert b'"chosen_run_id":"a1"' not in (lake.root / DATASET_PATHS[Dataset.PREFERENCE]).read_bytes()
    gone = rows_of(lake.root, "withdrawals_preference") or []
    assert [(row["chosen_run_id"], row["cause"]) for row in gone] == [("a1", "revoked")]


def test_a_restoration_that_is_cut_off_is_no_second_tampering(prepare: Prepare) -> None:
    """However often a restoration is killed, what one look found counts once.

    The story: each damaged file, and each try, counted as one more time; a kill while two files were restored made it
    the third time within the hour, and nothing was written any more. So did a deleted ``exports`` folder at once.
    """
    lake = prepare(History("restore", append_rows, mishap=_empty_the_exports))
    made = calls_of(lake)
    expected = outcome(lake.root)
    counting = at(made, "sql COMMIT done", "_count_tampering")
    lake.reset()
    for _ in range(4):
        assert dies_at(counting.number + 3, lake.start)
    lake.start()
    assert outcome(lake.root) == expected
    with lake.opened() as engine:
        assert len(engine.export_records.tamperings()) == 1


@pytest.mark.parametrize("place", ["install", "_install"], ids=["before the rename", "behind it"])
def test_an_edit_that_is_made_after_a_kill_is_undone(prepare: Prepare, place: str) -> None:
    """A version that waits, or was just put in place, and is edited at the same length while nothing runs.

    The story: recovery knew its file by inode and length, and recorded the facts of the edited one as those of the
    whole one; no later look read it again.
    """
    lake = prepare(History("rescore", rescore))
    made = calls_of(lake)
    expected = at_rest(lake.root)
    lake.reset()
    name = "os.rename" if place == "install" else "sql BEGIN"
    assert dies_at(at(made, name, f".{place}").number, lake.start)
    sft = lake.root / DATASET_PATHS[Dataset.SFT]
    edited = next(sft.parent.glob(".*.tmp")) if place == "install" else sft
    with edited.open("r+b") as file:
        content = file.read().replace(b"some words", b"SOME WORDS")
        file.seek(0)
        file.write(content)
    lake.start()
    committed_and_whole(lake.root)
    assert at_rest(lake.root) == expected
    assert any(b"SOME WORDS" in copy.read_bytes() for copy in (lake.root / SET_ASIDE).iterdir())


@pytest.mark.parametrize("what", ["folder", "link", "fifo"])
def test_what_is_no_file_makes_room_for_a_version_that_waits(prepare: Prepare, what: str) -> None:
    """It is set aside, counted once, and the version that waits is not lost for it.

    The story: recovery could not rename a file over a folder and said 'Is a directory' at every start, while a row that
    was rejected went on to ship. A link or a FIFO was replaced without a word.
    """
    lake = prepare(History("rescore", rescore))
    made = calls_of(lake)
    expected = outcome(lake.root)
    lake.reset()
    assert dies_at(at(made, "os.rename", ".install").number, lake.start)
    sft = lake.root / DATASET_PATHS[Dataset.SFT]
    sft.unlink()
    match what:
        case "folder":
            sft.mkdir()
            (sft / "note").write_bytes(b"of an operator")
        case "link":
            sft.symlink_to("elsewhere")
        case "fifo":
            os.mkfifo(sft)
    structlog.reset_defaults()
    with capture_logs() as logs:
        lake.start()
    told = [each["event"] for each in logs if each["event"].startswith("export")]
    assert told == ["export_tampered", "export_set_aside"]
    assert outcome(lake.root) == expected
    committed_and_whole(lake.root)
    (aside,) = (lake.root / SET_ASIDE).iterdir()
    assert (aside.is_dir(), aside.is_symlink(), aside.is_fifo()) == (what == "folder", what == "link", what == "fifo")
    with lake.opened() as engine:
        assert len(engine.export_records.tamperings()) == 1


def _empty_the_exports(root: Path) -> None:
    shutil.rmtree(root / "exports")


def test_a_batch_that_was_undone_leaves_no_empty_file(prepare: Prepare) -> None:
    """No file before the first row (SPEC 3.10), for a loader takes an empty one for a dataset."""
    lake = prepare(History("first", append_rows, before=None))
    made = calls_of(lake)
    lake.reset()
    assert dies_at(at(made, "sql COMMIT", "Committer.commit", nth=1).number, lake.start)
    assert list((lake.root / "exports").rglob("*.tmp"))
    assert not list((lake.root / "exports").rglob("*.jsonl"))
    lake.recover()
    assert not [path for path in (lake.root / "exports").rglob("*") if path.is_file()]


@pytest.mark.parametrize("when", ["before COMMIT", "behind it", "while it runs"])
def test_a_file_that_appears_during_the_first_pass_is_kept(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Another program makes an export before we do, while nothing runs after a kill, or at the same time.

    The story: to undo the first append to an export its file was deleted, whoever had made it and whatever was in it.
    """
    lake = prepare(History("first", write_first, before=None))
    made = calls_of(lake)
    expected = outcome(lake.root)
    lake.reset()
    rag = lake.root / DATASET_PATHS[Dataset.RAG]

    def make_theirs(*_: object) -> None:
        rag.parent.mkdir(parents=True, exist_ok=True)
        rag.write_bytes(b"the only copy\n")

    if when == "while it runs":
        real = Exports.rewrite

        def rewrite(self: Exports, name: str, *rest: Any) -> Written:
            if not rag.exists():
                make_theirs()
            return real(self, name, *rest)

        monkeypatch.setattr(Exports, "rewrite", rewrite)
    else:
        call = (
            at(made, "sql COMMIT", "Committer.commit", nth=1)
            if when == "before COMMIT"
            else at(made, "os.rename", ".install")
        )
        assert dies_at(call.number, lake.start)
        make_theirs()
    lake.start()
    committed_and_whole(lake.root)
    assert outcome(lake.root) == expected
    (copy,) = (lake.root / SET_ASIDE).iterdir()
    assert copy.read_bytes() == b"the only copy\n"
    with lake.opened() as engine:
        assert len(engine.export_records.tamperings()) == 1
