"""Exports that are not what their last commit left: damaged, older, or those of a lost store (SPEC 3.11, 6)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NoReturn

import pytest
from structlog.testing import capture_logs

from distilld.core.json_text import MAX_DEPTH
from distilld.core.model import (
    EXPORT_PATHS,
    SET_ASIDE,
    TAMPERINGS_AN_HOUR,
    Dataset,
    InputKind,
    OperatorError,
    ProgramError,
    Trigger,
    UnreadableError,
)
from distilld.core.samples import faults_of
from distilld.engine import engine as batch
from distilld.engine import file_reading, ingest, judge_span, judge_task, mend, read_file
from distilld.engine.judge_rows import RowJudge
from distilld.engine.work_off import QueueWorker
from distilld.inspection import status
from distilld.inspection.verify import verify
from distilld.lake import lines
from distilld.lake.scan import ListingError, open_partition
from distilld.publish import restore, takeover
from distilld.publish import set_aside as copies
from distilld.publish.exports import Exports
from distilld.publish.new_file import Written
from distilld.publish.reading import CommittedFile, ExportReadError, ExportWriteError
from distilld.publish.restore import AnotherWriterError, Restorer
from distilld.publish.set_aside import COPIES_KEPT
from distilld.service.run_once import recover
from distilld.store.connection import NotAStoreError, StoreCorruptError, StoreTooNewError
from distilld.store.open_writer import opened_store
from distilld.store.retained import Only
from tests.support.builders import jsonl
from tests.support.history_lake import MINUTE_NS, A, B, C, HistoryLake, given, history_lake, rag_id, run
from tests.support.limits import limits
from tests.support.query_plans import counted_steps

PHASE4 = Path(__file__).parents[1] / "data" / "phase4"
STAMP = "2026-01-01T00:00:00.000Z"
TASK = "one-task"
ROW_FILES = [name for name in EXPORT_PATHS if not name.startswith("withdrawals_")]


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with nothing in it."""
    with history_lake(tmp_path) as made:
        yield made


@pytest.fixture
def full(lake: HistoryLake) -> HistoryLake:
    """A lake in which each of the nine exports has several rows."""
    rows = [run(f"a{n}", ("accepted", "rejected")[n % 2], f"t{n // 2}") for n in range(8)]
    lake.both(A, *rows, run("same1", task_id="same"), run("same2", "rejected", "same"))
    lake.evidence(A, *(given(row["evidence_run_id"]) for row in rows), given("same1", "x"), given("same2", "x"))
    lake.both(B, run("b1"), run("b2"), run("b3", task_id="t"), run("b4", "rejected", "t"))
    lake.go()
    lake.scored(B, run("b1", "rejected"), run("b2"), run("b3", "rejected", "t"), run("b4", "rejected", "t"))
    lake.go()
    assert all(len(lake.rows(name)) > 0 for name in EXPORT_PATHS)
    return lake


@pytest.fixture
def phase4(lake: HistoryLake) -> HistoryLake:
    """The phase4 lake with the older exporters' files in place, and no state."""
    shutil.rmtree(lake.root / "data")
    shutil.copytree(PHASE4 / "data", lake.root / "data")
    shutil.copytree(PHASE4 / "expected", lake.root / "exports")
    return lake


def path_of(lake: HistoryLake, name: str) -> Path:
    """Where an export stands."""
    return lake.root / EXPORT_PATHS[name]


def set_aside(lake: HistoryLake, name: str = "") -> list[str]:
    """What was set aside, of one export or of all."""
    folder = lake.root / SET_ASIDE
    return sorted(each.name for each in folder.iterdir() if each.name.startswith(name)) if folder.exists() else []


# damaged files


def truncate(path: Path) -> None:
    """Cut in the middle of a line."""
    os.truncate(path, path.stat().st_size * 2 // 3)


def edit(path: Path) -> None:
    """Change a byte in the middle and nothing else, size included."""
    content = bytearray(path.read_bytes())
    at = content.index(b"recorded_at", len(content) // 3) if b"recorded_at" in content else len(content) // 2
    content[at] ^= 1
    path.write_bytes(content)


def delete(path: Path) -> None:
    """Remove the file."""
    path.unlink()


def link(path: Path) -> None:
    """Put a link to a copy in the file's place."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def folder(path: Path) -> None:
    """Put a folder in the file's place, with something in it."""
    path.unlink()
    path.mkdir()
    (path / "something").touch()


def pipe(path: Path) -> None:
    """Put a pipe in the file's place."""
    path.unlink()
    os.mkfifo(path)


def append_junk(path: Path) -> None:
    """Append half a row."""
    with path.open("ab") as file:
        file.write(b'{"schema_version":1,"id":"rag-00000000000000')


def empty(path: Path) -> None:
    """Leave nothing."""
    path.write_bytes(b"")


def double(path: Path) -> None:
    """Append a second copy of the first row."""
    content = path.read_bytes()
    path.write_bytes(content + content.splitlines(keepends=True)[0])


DAMAGES = [truncate, edit, delete, link, folder, append_junk, empty, double]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for number, name in enumerate(EXPORT_PATHS)
        for damage in (DAMAGES if name in ("rag", "quarantine_rag", "withdrawals_rag") else DAMAGES[number % 4 :: 4])
    ],
)
def test_damaged_export_is_restored(full: HistoryLake, name: str, damage: Callable[[Path], None]) -> None:
    """Whatever is done to an export, the next pass restores its rows as they were, and keeps what it found aside."""
    before = {each: full.lines(each) for each in EXPORT_PATHS}
    damage(path_of(full, name))
    with capture_logs() as logs:
        result = full.go()
    told = [each["event"] for each in logs]
    assert told.count("export_tampered") == told.count("export_restored") == 1
    assert [each["log_level"] for each in logs if each["event"] == "export_tampered"] == ["error"]
    assert {each: full.lines(each) for each in EXPORT_PATHS} == before
    assert path_of(full, name).is_file()
    assert not path_of(full, name).is_symlink()
    assert len(set_aside(full, name)) == (damage is not delete)
    outputs = [each["path"] for batch_ in result.batches for each in batch_.receipt["outputs"] if each["rewritten"]]
    assert EXPORT_PATHS[name] in outputs
    assert not full.go().changed


@pytest.mark.parametrize("name", EXPORT_PATHS)
def test_damage_is_restored_after_a_restart(full: HistoryLake, name: str) -> None:
    """Damage done while no writer runs is found at the start, by stat facts alone where the file was touched."""
    before = full.lines(name)
    full.stop()
    edit(path_of(full, name))
    full.go()
    assert full.lines(name) == before


def test_touched_export_is_no_damage(full: HistoryLake) -> None:
    """A file whose times changed and whose bytes did not is left as it is."""
    for name in EXPORT_PATHS:
        os.utime(path_of(full, name))
    with capture_logs() as logs:
        assert not full.go().changed
    assert logs == []
    assert set_aside(full) == []


def test_damage_and_new_rows_at_once(full: HistoryLake) -> None:
    """A damaged export is restored and appended to in the same pass."""
    before = full.stamps("rag")
    truncate(path_of(full, "rag"))
    full.both("2026/05/01/new.jsonl", run("new"))
    full.go()
    assert full.exported("rag") == {"a0", "a2", "a4", "a6", "same1", "b2", "new"}
    assert {key: stamp for key, stamp in full.stamps("rag").items() if key != rag_id("new")} == before


def test_damage_and_withdrawal_at_once(full: HistoryLake) -> None:
    """A row that is to leave need not be found in a damaged file; it is published all the same."""
    gone = len(full.rows("withdrawals_rag"))
    empty(path_of(full, "rag"))
    full.scored(A, run("a0", "rejected", "t0"))
    full.go()
    assert full.exported("rag") == {"b2"}
    assert "a0" in {row["source_run_id"] for row in full.withdrawn("rag")[gone:]}


def test_whole_exports_folder_deleted(full: HistoryLake) -> None:
    """All nine files gone at once are one time, not nine, and all are restored.

    Nine damaged files counted as nine times once, and the third of them stopped the writing.
    """
    before = {name: full.lines(name) for name in EXPORT_PATHS}
    shutil.rmtree(full.root / "exports")
    full.go()
    assert {name: full.lines(name) for name in EXPORT_PATHS} == before
    assert len(full.engine.export_records.tamperings()) == 1


def test_export_restored_in_a_batch(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that is done after the first look of a pass is found when the file is written, and restored then."""
    real = full.engine.ingest.index

    def damaging(*args: object, **kwargs: object) -> object:
        truncate(path_of(full, "rag"))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(full.engine.ingest, "index", damaging)
    full.both("2026/05/01/new.jsonl", run("new"))
    before = full.lines("rag")
    full.go()
    assert full.lines("rag") > before
    assert "new" in full.exported("rag")


def test_lines_of_others_are_told_and_kept_aside(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another program appends after the first look of a pass is set aside, told and counted like any edit.

    The story: the batch was undone, and that cut it off, without a word however often it came.
    """
    real = full.engine.ingest.index

    def meddled(*args: object, **kwargs: object) -> object:
        append_junk(path_of(full, "rag"))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(full.engine.ingest, "index", meddled)
    monkeypatch.setattr(mend, "time", SimpleNamespace(time_ns=lambda: full.now_ns))
    for times in range(1, 4):
        full.both(f"2026/05/0{times}/new.jsonl", run(f"new{times}"))
        before = full.lines("rag")
        with capture_logs() as logs:
            full.go()
        assert [each["event"] for each in logs].count("export_tampered") == 1
        assert len(full.engine.export_records.tamperings()) == times
        assert full.lines("rag") - before == Counter([full.content("rag").splitlines()[-1]])
        copy = full.root / SET_ASIDE / set_aside(full, "rag-")[-1]
        assert copy.read_bytes().endswith(b'"id":"rag-00000000000000')


def test_lines_of_others_outlast_a_kill_behind_the_intent(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for before the intent is stated: recovery cuts back what stands behind one that is open."""
    real = full.engine.ingest.index

    def meddled(*args: object, **kwargs: object) -> object:
        append_junk(path_of(full, "rag"))
        monkeypatch.undo()
        monkeypatch.setattr(Exports, "append", killed)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    def killed(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(full.engine.ingest, "index", meddled)
    full.both("2026/05/01/new.jsonl", run("new"))
    with pytest.raises(KeyboardInterrupt):
        full.engine.run_pass(Trigger.ONCE)
    monkeypatch.undo()
    full.restart()
    full.go()
    (copy,) = set_aside(full, "rag-")
    assert (full.root / SET_ASIDE / copy).read_bytes().endswith(b'"id":"rag-00000000000000')
    assert "new" in full.exported("rag")


def test_lines_of_others_between_ours_are_kept_aside(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of what comes while a batch is written: its own lines in the file go, what others wrote is set aside."""
    real = os.fsync

    def meddled(descriptor: int) -> None:
        real(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path_of(full, "rag")):
            patch.undo()
            append_junk(path_of(full, "rag"))

    before = full.lines("rag")
    full.both("2026/05/01/new.jsonl", run("new"))
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(os, "fsync", meddled)
        full.go()
    (told,) = [each for each in logs if each["event"] == "export_tampered"]
    assert "bytes and should have" in told["problem"]
    (copy,) = set_aside(full, "rag-")
    assert (full.root / SET_ASIDE / copy).read_bytes().endswith(b'"id":"rag-00000000000000')
    assert full.lines("rag") - before == Counter([full.content("rag").splitlines()[-1]])
    assert "new" in full.exported("rag")
    assert not full.go().changed


def test_damage_that_stat_does_not_show_is_restored_by_an_append(full: HistoryLake) -> None:
    """Found before a batch is begun, it is not taken for whole by its stat facts again."""
    full.restart()
    before = full.lines("rag")
    edit_unseen(full, "rag")
    full.both("2026/05/01/new.jsonl", run("new"))
    full.go()
    assert before < full.lines("rag")
    assert len(set_aside(full, "rag")) == 1


def damaged_twice(full: HistoryLake, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lake whose clock is the test's, and an export that was damaged and restored two times within the hour."""
    monkeypatch.setattr(mend, "time", SimpleNamespace(time_ns=lambda: full.now_ns))
    before = full.lines(name)
    for _ in range(2):
        truncate(path_of(full, name))
        full.go(Trigger.WATCH)
        assert full.lines(name) == before


def test_third_damage_within_an_hour_waits_and_stops_no_batch(
    full: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon restores it within 30 s, once, and meanwhile commits what does not write that export.

    The story: all writing stopped for up to an hour; the foreign row stayed, and so did rows that were revoked.
    """
    damaged_twice(full, "sft", monkeypatch)
    whole = full.content("sft")
    append_junk(path_of(full, "sft"))
    damaged, moment = full.content("sft"), full.now_ns
    with capture_logs() as logs:
        for number in range(3):
            full.both(f"2026/05/01/held{number}.jsonl", run(f"held{number}", "partially_accepted"))
            full.engine.run_pass(Trigger.WATCH)
            assert f"held{number}" in full.exported("rag")
            assert full.content("sft") == damaged
    assert [each["event"] for each in logs].count("export_tampered") == 1
    assert len(full.engine.export_records.tamperings()) == TAMPERINGS_AN_HOUR
    full.now_ns = moment + 30 * MINUTE_NS // 60
    full.go(Trigger.WATCH)
    assert full.content("sft") == whole
    assert not full.engine.restorer.damaged()


@pytest.mark.parametrize("trigger", [Trigger.WATCH, Trigger.ONCE])
def test_third_damage_is_restored_at_once_by_who_must(
    full: HistoryLake, monkeypatch: pytest.MonkeyPatch, trigger: Trigger
) -> None:
    """A batch that must write the damaged export restores it first, and so does a run that will not come again."""
    damaged_twice(full, "sft", monkeypatch)
    append_junk(path_of(full, "sft"))
    if trigger is Trigger.WATCH:
        full.both("2026/05/01/new.jsonl", run("new"))
    full.go(trigger)
    assert b"00000000000000" not in full.content("sft")
    assert ("new" in full.exported("sft")) is (trigger is Trigger.WATCH)


def test_damage_that_was_taken_back_is_no_longer_waited_for(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the old bytes are there again before the pause is over, the next damage counts as another."""
    damaged_twice(full, "sft", monkeypatch)
    whole = full.content("sft")
    append_junk(path_of(full, "sft"))
    full.engine.run_pass(Trigger.WATCH)
    path_of(full, "sft").write_bytes(whole)
    full.engine.run_pass(Trigger.WATCH)
    first = full.engine.export_records.tamperings()
    append_junk(path_of(full, "sft"))
    full.engine.run_pass(Trigger.WATCH)
    assert full.engine.export_records.tamperings() == [*first[1:], full.now_ns]


def test_damages_of_a_clock_that_ran_ahead_do_not_count(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: two damages were counted a year ahead of time, and each one for a year to come was the third."""
    clock_ns = 365 * 24 * 60 * MINUTE_NS
    monkeypatch.setattr(mend, "time", SimpleNamespace(time_ns=lambda: full.now_ns + clock_ns))
    monkeypatch.setattr(status, "time", SimpleNamespace(time_ns=lambda: full.now_ns + clock_ns))
    before = full.lines("rag")
    for _ in range(3):
        truncate(path_of(full, "rag"))
        full.go()
    assert status._another_writer(full.engine.export_records) is not None
    clock_ns = 0
    assert status._another_writer(full.engine.export_records) is None
    full.go()
    truncate(path_of(full, "rag"))
    full.go()
    assert full.lines("rag") == before


def test_fourth_damage_is_counted_anew(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damages that lie more than an hour apart never stop the writing, and at most five copies of a file are kept."""
    monkeypatch.setattr(mend, "time", SimpleNamespace(time_ns=lambda: full.now_ns))
    before = full.lines("rag")
    for number in range(COPIES_KEPT + 2):
        os.truncate(path_of(full, "rag"), 100 * number)
        full.now_ns += 40 * MINUTE_NS
        full.go()
        assert full.lines("rag") == before
    assert len(set_aside(full, "rag")) == COPIES_KEPT
    assert not any(name.endswith(".jsonl") for name in set_aside(full))


def test_what_is_no_file_among_the_copies_holds_nothing(full: HistoryLake, tmp_path: Path) -> None:
    """The story: a pipe had stood in an export's place. Once its copies were too many, the writer hung on reading it.

    A link there is not followed: it may lead to a file without end.
    """
    before = full.lines("rag")
    folder = full.root / SET_ASIDE
    folder.mkdir()
    os.mkfifo(folder / "rag-2026-01-01T000000.000Z")
    (folder / "rag-2026-01-01T000000.001Z").symlink_to("/dev/zero")
    (folder / "rag-2026-01-01T000000.002Z").mkdir()
    for number in range(COPIES_KEPT):
        path_of(full, "rag").write_bytes(b"line %d of another program\n" % number)
        full.go()
        assert full.lines("rag") == before
    assert len(set_aside(full, "rag-")) == COPIES_KEPT


@pytest.mark.parametrize("damage", [append_junk, double])
def test_lines_are_restored_however_many_segments_they_are_in(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    """How long a line may be follows from the segments in which lines end; what is longer is none of ours."""
    monkeypatch.setattr(restore, "LONGEST_LINE_BYTES", 1)
    lake.engine.exports.segment_bytes = 64
    lake.both(A, *(run(f"r{n}") for n in range(5)))
    lake.evidence(A, *(given(f"r{n}", "x" * 200 * n * n) for n in range(1, 5)), given("r0"))
    lake.go()
    before = lake.lines("rag")
    with path_of(lake, "rag").open("ab") as file:
        file.write(b"x" * 100_000 + b"\n")
    damage(path_of(lake, "rag"))
    with capture_logs() as logs:
        lake.go()
    assert lake.lines("rag") == before
    assert [each["rows_missing"] for each in logs if each["event"] == "export_restored"] == [0]


def test_set_aside_copy_is_what_was_found(full: HistoryLake) -> None:
    """What is set aside is the damaged file, byte for byte."""
    append_junk(path_of(full, "sft"))
    found = full.content("sft")
    full.go()
    (copy,) = set_aside(full, "sft")
    assert (full.root / SET_ASIDE / copy).read_bytes() == found


def test_full_disk_leaves_no_copies(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: each try to set a damaged export aside on a full disk left half a copy, and took what room came free."""
    before = full.lines("rag")
    truncate(path_of(full, "rag"))

    def run_out(_: object, new: BinaryIO, *_rest: object) -> NoReturn:
        new.write(b"x" * 1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(copies, "_copy_content", run_out)
        for _ in range(3):
            with pytest.raises(ExportWriteError, match="No space left"):
                full.go()
            assert set_aside(full) == []
    full.go()
    assert full.lines("rag") == before
    assert len(set_aside(full, "rag")) == 1


def test_disk_that_is_full_behind_the_copy_is_given_no_second_one(
    full: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the restored file finds no room, each further try goes on from the copy that is there."""
    before = full.lines("rag")
    truncate(path_of(full, "rag"))
    found = full.content("rag")
    with monkeypatch.context() as patch:
        patch.setattr(Exports, "compose", refuse_to_write)
        for _ in range(3):
            with pytest.raises(ExportWriteError, match="No space left"):
                full.go()
    full.go()
    assert full.lines("rag") == before
    (copy,) = set_aside(full)
    assert (full.root / SET_ASIDE / copy).read_bytes() == found


def refuse_to_write(*_: object) -> NoReturn:
    """What a full disk does."""
    raise ExportWriteError(EXPORT_PATHS["rag"], OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.mark.parametrize("put", [link, folder, pipe])
def test_what_is_no_file_leaves_another_file_system(
    full: HistoryLake, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], None]
) -> None:
    """A link or a folder is made anew in the folder for it, all else has no content to keep; the export is restored.

    The story: where a dataset's folder was a mount of its own, each pass failed with 'Invalid cross-device link'.
    """
    before = full.lines("sft")
    put(path_of(full, "sft"))
    real = os.rename

    def rename(source: Path | str, target: Path | str, **folders: int) -> None:
        if not folders and Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target, **folders)

    monkeypatch.setattr(os, "rename", rename)
    full.go()
    assert full.lines("sft") == before
    copies = [full.root / SET_ASIDE / each for each in set_aside(full)]
    if put is link:
        assert [os.readlink(each) for each in copies] == [str(full.root / "exports" / "elsewhere")]
    elif put is folder:
        assert [os.listdir(each) for each in copies] == [["something"]]
    else:
        assert copies == []


def test_file_that_was_put_back_after_a_kill_in_an_append(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file in the place of one that was being appended to is set aside whole, and retained rows come from it.

    The story: recovery cut it to the length of the newer one first; a row of an absent partition, which stood behind
    that in the older file, was published as lost.
    """
    lake.both(A, run("a1"), run("a2"))
    lake.both(B, run("retained"))
    lake.go()
    older = lake.content("sft")
    lake.move_away(*lake.paths(B, "both"))
    lake.scored(A)
    lake.go()
    assert lake.exported("sft") == {"retained"}
    lake.both("2026/05/01/new.jsonl", run("new"))
    real = Exports.append

    def die(self: Exports, name: str, *rest: Any) -> Written:
        written = real(self, name, *rest)
        if name == "sft":
            raise KeyboardInterrupt
        return written

    with monkeypatch.context() as patch:
        patch.setattr(Exports, "append", die)
        with pytest.raises(KeyboardInterrupt):
            lake.go()
    lake.stop()
    path_of(lake, "sft").write_bytes(older)
    lake.go()
    assert lake.exported("sft") == {"retained", "new"}
    assert lake.causes("sft") == ["row_removed", "row_removed"]
    (copy,) = set_aside(lake)
    assert (lake.root / SET_ASIDE / copy).read_bytes() == older


def test_mode_survives_a_restoration(full: HistoryLake) -> None:
    """A restored file has the mode of the damaged one."""
    path_of(full, "rag").chmod(0o604)
    truncate(path_of(full, "rag"))
    full.go()
    assert path_of(full, "rag").stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("name", ["rag", "sft", "preference"])
def test_retained_rows_come_back_from_the_copy(full: HistoryLake, name: str) -> None:
    """Rows of absent partitions that still stand in the damaged file are kept, byte for byte."""
    before = full.lines(name)
    full.move_away(full.scored_path(A), full.evidence_path(A))
    full.go()
    append_junk(path_of(full, name))
    full.go()
    assert full.lines(name) == before
    assert "lost" not in full.causes(name)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_as_many_equal_lines_are_lost_as_the_file_lost(lake: HistoryLake, left: int) -> None:
    """Quarantined pairs of one run can have equal lines; those that still stand in the damaged file are kept.

    The story: one of two equal lines was gone, and both of their retained pairs left.
    """
    again = [run("r", "rejected", "t", reasons=[each]) for each in ("x", "y", "z")]
    lake.both(A, run("c", task_id="t"), *again)
    lake.go()
    lake.move_away(*lake.paths(A, "both"))
    lake.go()
    lines = lake.content("quarantine_preference").splitlines(keepends=True)
    assert len(lines) == 2
    assert lines[0] == lines[1]
    path_of(lake, "quarantine_preference").write_bytes(b"".join(lines[:left]))
    lake.go()
    assert lake.content("quarantine_preference").splitlines(keepends=True) == lines[:left]
    assert not lake.go().changed
    lake.bring_back(*lake.paths(A, "both"))
    lake.go()
    assert len(lake.rows("quarantine_preference")) == 2


@pytest.mark.parametrize("name", ["preference", "quarantine_preference"])
def test_retained_pair_of_a_task_that_is_out_of_reach_is_lost(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its task cannot be judged, but nothing could write its line again: it leaves at once.

    The story: pairs that were lost were put into a temporary table, which was emptied before anybody read it.
    """
    lake.both(A, run("c", task_id="t"), *(run("r", "rejected", "t", reasons=[each]) for each in ("x", "y")))
    lake.both(B, run("d", task_id="t"), run("s", "rejected", "t"))
    lake.go()
    lake.move_away(*lake.paths(A, "both"))
    lake.go()
    kept = "SELECT count(*) FROM pairs WHERE retained IS NOT NULL AND (outcome = 0) = ?"
    of_file = name == "preference"
    assert lake.ask(kept, of_file) != [(0,)]
    empty(path_of(lake, name))
    out_of_reach(lake, monkeypatch)
    lake.engine.run_pass(Trigger.ONCE)
    assert lake.ask(kept, of_file) == [(0,)]


@pytest.mark.parametrize("tree", ["scored", "evidence", "both"])
@pytest.mark.parametrize("name", ROW_FILES)
def test_retained_rows_that_cannot_be_restored_are_lost(full: HistoryLake, name: str, tree: str) -> None:
    """Rows of absent partitions that a damaged file lost cannot be made again: they leave, published as lost."""
    before = {each: full.exported(each) for each in Dataset}
    gone = {each: len(full.withdrawn(each)) for each in Dataset}
    full.move_away(*full.paths(A, tree))
    full.go()
    empty(path_of(full, name))
    full.go()
    lost = {"rag": {"a0", "a2", "a4", "a6", "same1"}, "sft": {"a0", "a2", "a4", "a6", "same1"}}
    for each in Dataset:
        new = full.withdrawn(each)[gone[each] :]
        if each != name:
            assert full.exported(each) == before[each]
            assert new == []
        elif each != "preference":
            assert full.exported(each) == before[each] - lost[each.value]
            assert {row["source_run_id"] for row in new} == lost[each.value]
            assert {row["cause"] for row in new} == {"lost"}
        else:
            assert full.exported(each) == set()
            assert {row["cause"] for row in new} == {"lost"}
    assert not full.go().changed


@pytest.mark.parametrize("gone", ["scored", "evidence", "both", "vanished"])
def test_damage_and_a_partition_that_is_gone_at_once(lake: HistoryLake, gone: str) -> None:
    """Exports are emptied and a partition goes before the next pass: nothing can write its lines again, they are lost.

    The story: they were to be written again from their rows, these were retained, and the lines were owed for ever.
    """
    lake.restart(tripwire_rows=0, tripwire_share=0.1)
    lake.both(A, run("r1"))
    lake.both(B, run("r2", task_id="t"), run("r3", "rejected", "t"))
    lake.go()
    lake.stop()
    for name in ROW_FILES:
        if path_of(lake, name).exists():
            empty(path_of(lake, name))
    if gone == "vanished":
        lake.both(B)
    else:
        lake.move_away(*lake.paths(B, gone))
    lake.go()
    for dataset in Dataset:
        assert lake.causes(dataset) == ["lost"], dataset
    assert lake.exported("rag") == lake.exported("sft") == {"r1"}
    assert lake.ask("SELECT count(*) FROM missing_lines") == [(0,)]
    assert not lake.go().changed
    assert verify(lake.root, lake.state, lake.options, deep=True).faults == 0


def test_copy_with_a_lost_row_is_kept_longest(full: HistoryLake) -> None:
    """Five copies are kept, and of those the one with rows that stand nowhere else.

    The story: six edits by a program that appended a line each pushed the only copy of lost rows out.
    """
    full.move_away(*full.paths(A, "both"))
    full.go()
    append_junk(path_of(full, "sft"))
    full.go()
    (only,) = set_aside(full, "sft")
    path_of(full, "sft").write_bytes(b"")
    full.go()
    assert "lost" in full.causes("sft")
    for number in range(2 * COPIES_KEPT):
        with path_of(full, "sft").open("ab") as file:
            file.write(b"line %d of another program\n" % number)
        full.go()
    assert len(set_aside(full, "sft")) == COPIES_KEPT
    assert only in set_aside(full, "sft")


def test_lost_row_ships_again_when_its_partition_returns(full: HistoryLake) -> None:
    """A lost row is made again as soon as its partition is back."""
    full.move_away(full.scored_path(A))
    full.go()
    empty(path_of(full, "rag"))
    full.go()
    assert full.exported("rag") == {"b2"}
    full.bring_back(full.scored_path(A))
    full.go()
    assert full.exported("rag") == {"a0", "a2", "a4", "a6", "same1", "b2"}


def test_log_of_withdrawals_survives_damage_after_a_lost_store(full: HistoryLake) -> None:
    """History from before a lost store is restored as well, when the log is damaged later.

    It was lost once: the store that was begun anew knew nothing of what the log held.
    """
    before = full.content("withdrawals_rag")
    assert before
    full.lose_store()
    full.go()
    assert full.content("withdrawals_rag") == before
    full.scored(A, run("a0", "rejected", "t0"))
    full.go()
    grown = full.content("withdrawals_rag")
    assert grown.startswith(before)
    assert grown != before
    empty(path_of(full, "withdrawals_rag"))
    full.go()
    assert full.content("withdrawals_rag") == grown


@pytest.mark.parametrize("name", EXPORT_PATHS)
def test_empty_file_before_the_first_row_is_no_damage(lake: HistoryLake, name: str) -> None:
    """No facts can be recorded of it: a daemon began pass after pass, for as long as the file stood."""
    lake.go()
    path_of(lake, name).parent.mkdir(parents=True, exist_ok=True)
    path_of(lake, name).touch()
    with capture_logs() as logs:
        lake.engine.run_pass(Trigger.ONCE)
    restorer = lake.engine.restorer
    restorer.note_committed()
    assert not restorer.disturbed()
    assert not restorer.damaged()
    assert [each for each in logs if each["event"] == "export_tampered"] == []


@pytest.mark.parametrize("damage", [link, pipe])
def test_empty_file_that_is_not_regular_is_damage(lake: HistoryLake, damage: Callable[[Path], None]) -> None:
    """What cannot hold rows stands in the way of the first one, however long it is."""
    lake.go()
    path_of(lake, "rag").parent.mkdir(parents=True, exist_ok=True)
    path_of(lake, "rag").touch()
    damage(path_of(lake, "rag"))
    assert set(lake.engine.restorer.damaged()) == {"rag"}


# taking over


def test_exports_of_the_older_exporters_are_adopted(phase4: HistoryLake) -> None:
    """The older exporters' rows are adopted as they stand: no byte of the datasets changes, nothing is withdrawn."""
    result = phase4.go()
    for dataset in Dataset:
        name = EXPORT_PATHS[dataset].removeprefix("exports/")
        assert phase4.content(dataset) == (PHASE4 / "expected" / name).read_bytes()
        assert set(phase4.stamps(dataset).values()) == {STAMP}
        assert phase4.withdrawn(dataset) == []
    (committed,) = result.batches
    adopted = {each["path"]: each["adopted"] for each in committed.receipt["outputs"]}
    assert [adopted[EXPORT_PATHS[dataset]] for dataset in Dataset] == [446, 351, 83]
    assert phase4.retained() == {}
    assert not phase4.go().changed


def test_old_quarantine_is_set_aside_and_written_anew(phase4: HistoryLake) -> None:
    """Old quarantine files are set aside as they were; new ones hold the same rows, with their locations."""
    before = {name: phase4.content(name) for name in ROW_FILES if name.startswith("quarantine_")}
    phase4.go()
    for name, content in before.items():
        (copy,) = set_aside(phase4, name)
        assert (phase4.root / SET_ASIDE / copy).read_bytes() == content
        assert len(phase4.rows(name)) == len(content.splitlines())
        assert all("location" in row and row["recorded_at"] != STAMP for row in phase4.rows(name))


def test_row_with_other_content_is_replaced(phase4: HistoryLake) -> None:
    """An old row whose content is not what the inputs give is replaced and published, others stay as they are."""
    path = path_of(phase4, "rag")
    lines = path.read_bytes().splitlines(keepends=True)
    row = json.loads(lines[3])
    row["title"] = "Another title"
    lines[3] = json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    phase4.go()
    (gone,) = phase4.withdrawn("rag")
    assert (gone["id"], gone["replaced"], gone["shipped_batch"]) == (row["id"], True, None)
    assert "Another title" not in {each["title"] for each in phase4.rows("rag")}
    assert len([stamp for stamp in phase4.stamps("rag").values() if stamp == STAMP]) == 445


def orphan_lines(lake: HistoryLake, run_id: str = "unknown") -> None:
    """Append a row to RAG and to SFT, and a pair, whose run no input names."""
    for dataset in (Dataset.RAG, Dataset.SFT):
        path = path_of(lake, dataset)
        row = json.loads(path.read_bytes().splitlines()[0])
        row["id"] = f"{dataset}-0123456789abcdef"
        row["source_run_id"] = run_id
        with path.open("ab") as file:
            file.write(json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    path = path_of(lake, "preference")
    row = json.loads(path.read_bytes().splitlines()[0])
    row |= {"id": "pref-0123456789abcdef", "chosen_run_id": run_id, "rejected_run_id": f"not-{run_id}"}
    with path.open("ab") as file:
        file.write(json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")


def test_orphan_is_kept(phase4: HistoryLake) -> None:
    """A row whose run no present scored row names is kept, retained and reported, through restart and rebuild."""
    orphan_lines(phase4)
    before = {dataset: phase4.lines(dataset) for dataset in Dataset}
    with capture_logs() as logs:
        phase4.go()
    assert [each["rows"] for each in logs if each["event"] == "orphan_kept"] == [3]
    assert phase4.retained() == {"orphan": 3}
    phase4.restart()
    phase4.go()
    phase4.go(Trigger.REBUILD)
    assert {dataset: phase4.lines(dataset) for dataset in Dataset} == before


def test_orphan_leaves_by_prune(phase4: HistoryLake) -> None:
    """Prune of orphans takes them out and nothing else, published as pruned with shipped_batch null."""
    orphan_lines(phase4)
    phase4.go()
    phase4.move_away(phase4.scored_path("2026/03/03/audits.jsonl"))
    phase4.go()
    phase4.prune(only=Only.ORPHAN)
    for dataset in Dataset:
        (gone,) = phase4.withdrawn(dataset)
        assert gone["id"].endswith("-0123456789abcdef")
        assert (gone["cause"], gone["shipped_batch"], gone["verdict"]) == ("pruned", None, None)
    assert "orphan" not in phase4.retained()
    assert phase4.retained()["absent"] > 0


def test_orphan_of_a_run_that_is_named_leaves(phase4: HistoryLake) -> None:
    """A row that no input produces, but whose run a present scored row names, leaves: the inputs decide.

    The tripwire does not hold it back.
    """
    named = json.loads(path_of(phase4, "rag").read_bytes().splitlines()[0])["source_run_id"]
    phase4.restart(tripwire_rows=0, tripwire_share=0.0)
    orphan_lines(phase4, named)
    phase4.go()
    for dataset in Dataset:
        assert [row["id"].rpartition("-")[2] for row in phase4.withdrawn(dataset)] == ["0123456789abcdef"]
        assert phase4.causes(dataset) == ["rescored"]
    assert phase4.retained() == {}


def test_orphan_leaves_when_an_input_names_its_run(lake: HistoryLake) -> None:
    """An orphan that was kept leaves as soon as a present scored row names its run, whatever that row comes to.

    The story: the first start after a lost store found no inputs. What it kept stayed for good, beside the quarantine
    row of the very same run.
    """
    lake.restart(replace(lake.options, include_partial=True))
    lake.both(A, run("r1", "partially_accepted", "t"), run("r2", task_id="t"))
    lake.go()
    lake.lose_store()
    lake.move_away(lake.scored_path(A), lake.evidence_path(A))
    lake.restart(replace(lake.options, include_partial=False))
    lake.go()
    assert lake.retained() == {"orphan": 5}
    lake.bring_back(lake.scored_path(A), lake.evidence_path(A))
    lake.go()
    assert (lake.exported("rag"), lake.exported("sft")) == ({"r1", "r2"}, {"r2"})
    assert lake.causes("sft") == ["rescored"]
    assert lake.retained() == {}
    assert verify(lake.root, lake.state, lake.options, deep=True).faults == 0


def orphan_x(lake: HistoryLake) -> None:
    """The row of run x is an orphan beside that of run q."""
    lake.both(A, run("x"), run("q"))
    lake.go()
    lake.lose_store()
    lake.both(A, run("q"))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"x", "q"}


def test_orphan_leaves_when_a_rewritten_file_names_its_run(lake: HistoryLake) -> None:
    """The row that names an orphan's run may stand in a partition that is known, in another line's place."""
    orphan_x(lake)
    lake.scored(A, run("x"), run("q"))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"q"}
    assert lake.causes("rag") == lake.causes("sft") == ["rescored"]


def test_orphan_that_leaves_changes_no_other(tmp_path: Path) -> None:
    """Inputs name the run of one orphan: what was decided on the others is not written again, however many there are."""

    def changes(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.both(A, *(run(f"r{n}", ("accepted", "rejected")[n % 2], f"t{n // 2}") for n in range(count)))
            lake.go()
            lake.lose_store()
            lake.move_away(*lake.paths(A, "both"))
            lake.go()
            lake.scored(B, run("r0"))
            before = lake.engine.store.connection.total_changes
            lake.go()
            assert "r0" not in lake.exported("rag")
            return lake.engine.store.connection.total_changes - before

    assert changes(40) == changes(4)


@pytest.mark.parametrize("said_by", ["row", "malformed line", "rest"])
@pytest.mark.parametrize(
    ("lenient", "category"), [({"revoke": False}, "rejected"), ({"include_review": True}, "needs_human_review")]
)
def test_orphan_is_looked_at_again_under_other_options(
    lake: HistoryLake, lenient: dict[str, Any], category: str, said_by: str
) -> None:
    """A verdict came that the options of its time let pass: it takes the orphan of its run out all the same."""
    broken = f'{{"evidence_run_id":"x","category":"{category}",'.encode()
    lines = {"row": jsonl([run("x", category)]), "malformed line": broken + b"\n", "rest": broken}
    strict = lake.options
    orphan_x(lake)
    lake.restart(replace(strict, **lenient))
    lake.go()
    lake.scored(B)
    lake.scored_path(B).write_bytes(lines[said_by])
    lake.go()
    lake.restart(strict)
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"q"}


def test_orphans_of_one_run_are_asked_about_once(tmp_path: Path) -> None:
    """Whether a verdict forbids a run is asked once, not for each of its orphans: older exporters had no limit on them."""

    def steps(count: int) -> int:
        with history_lake(tmp_path) as lake:
            lake.scored(A, *(run("one", provenance__sig_hash=f"sig-{number}") for number in range(count)))
            lake.evidence(A, given("one"))
            lake.go()
            lake.lose_store()
            lake.move_away(*lake.paths(A, "both"))
            with counted_steps(lake.engine.store.connection) as done:
                lake.go()
            assert lake.ask("SELECT kind, count(*) FROM retained_rows GROUP BY 1") == [("orphan", 2 * count)]
            return done[0]

    assert steps(160) < 5 * steps(40)


def test_orphan_that_the_old_quarantine_forbids_leaves_once_it_may_not_stay(lake: HistoryLake) -> None:
    """An old quarantine row that nobody reviewed forbids its run in RAG from the day that include_review is off."""
    strict = lake.options
    lake.both(A, run("x"))
    lake.go()
    lake.lose_store()
    lake.move_away(lake.scored_path(A), lake.evidence_path(A))
    record = {"evidence_run_id": "x", "category": "needs_human_review"}
    line = {"exporter": "rag", "reason": "category_disallowed", "source_record": record}
    path_of(lake, "quarantine_rag").parent.mkdir()
    path_of(lake, "quarantine_rag").write_text(json.dumps(line) + "\n")
    lake.restart(replace(strict, include_review=True))
    lake.go()
    assert (lake.exported("rag"), lake.exported("sft")) == ({"x"}, set())
    lake.restart(strict)
    lake.go()
    assert lake.exported("rag") == set()


def test_orphan_that_the_old_quarantine_forbids_leaves(phase4: HistoryLake) -> None:
    """A row whose run an old quarantine file calls rejected leaves, although no present scored row names it."""
    with path_of(phase4, "quarantine_sft").open("ab") as file:
        record = {"evidence_run_id": "unknown", "category": "rejected"}
        file.write(
            json.dumps({"exporter": "sft", "reason": "unsafe_sft_category", "source_record": record}).encode() + b"\n"
        )
    phase4.restart(tripwire_rows=0, tripwire_share=0.0)
    orphan_lines(phase4)
    phase4.go()
    for dataset in Dataset:
        assert phase4.causes(dataset) == ["revoked"]
        assert "unknown" not in "".join(phase4.exported(dataset))


def test_torn_and_unreadable_rows_are_removed_and_reported(phase4: HistoryLake) -> None:
    """A torn last line, unreadable rows and second copies go; the file as it was is set aside, and the log says so."""
    path = path_of(phase4, "rag")
    content = path.read_bytes()
    first = content.splitlines(keepends=True)[0]
    bad = [b"no JSON\n", b'{"id":"rag-0000000000000000"}\n', b"\n", first, b'{"schema_version":1,"id":"rag-', b"[1]\n"]
    found = b"".join([bad[0], content, *bad[1:4], bad[5], bad[4]])
    path.write_bytes(found)
    with capture_logs() as logs:
        phase4.go()
    assert phase4.content("rag") == content
    assert [each["rows_removed"] for each in logs if each["event"] == "takeover_finished"] == [6]
    (copy,) = set_aside(phase4, "rag-")
    assert (phase4.root / SET_ASIDE / copy).read_bytes() == found


def test_row_without_a_line_offset_is_replaced_at_the_takeover(lake: HistoryLake) -> None:
    """The older exporters left the key out where the scored row has none: it is other content, and no fault."""
    lake.both(A, run("old", provenance__line_offset=None))
    lake.go()
    (row,) = lake.rows("rag")
    lake.lose_store()
    del row["provenance"]["line_offset"]
    path_of(lake, "rag").write_bytes(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    with capture_logs() as logs:
        lake.go()
    assert [each["rows_removed"] for each in logs if each["event"] == "takeover_finished"] == [0]
    assert lake.rows("rag")[0]["provenance"]["line_offset"] is None
    assert [(each["source_run_id"], each["replaced"]) for each in lake.withdrawn("rag")] == [("old", True)]


@pytest.mark.parametrize("orphaned", [True, False])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("content", None),
        ("content", " "),
        ("content", ...),
        ("embedding_text", "bad \ud800 text"),
        ("extra", 1),
        ("success_score", "rejected"),
        ("source_run_id", ""),
        ("created_at", ""),
        ("provenance", {"recorded_at": STAMP}),
    ],
    ids=str,
)
def test_row_that_fails_its_schema_is_not_taken_over(
    lake: HistoryLake, key: str, value: object, orphaned: bool
) -> None:
    """It is removed and reported; what the inputs give is written in its place, with stamps of its own.

    The story: such rows of an older export stayed for ever, and ``verify`` counted them as faults for ever.
    """
    lake.both(A, run("kept"))
    lake.both(B, run("broken"))
    lake.go()
    before = lake.rows("rag")
    if orphaned:
        for path in lake.paths(B, "both"):
            path.unlink()
    lake.lose_store()
    row = {**before[1], key: value}
    if value is ...:
        del row[key]
    broken = json.dumps(row, separators=(",", ":")).encode() + b"\n"
    path_of(lake, "rag").write_bytes(broken + lake.content("rag").splitlines(keepends=True)[0])
    with capture_logs() as logs:
        lake.go()
    assert [each["rows_removed"] for each in logs if each["event"] == "takeover_finished"] == [1]
    assert len(set_aside(lake, "rag-")) == 1
    assert [faults_of(Dataset.RAG, row) for row in lake.rows("rag")] == [()] * (2 - orphaned)
    assert lake.rows("rag")[0] == before[0]
    assert lake.exported("sft") == {"kept", "broken"}
    assert lake.exported("rag") == ({"kept"} if orphaned else {"kept", "broken"})


def test_row_that_is_no_text_is_not_taken_over(lake: HistoryLake) -> None:
    """Bytes that are no UTF-8 would stop a loader; they are no row."""
    lake.both(A, run("kept"), run("broken"))
    lake.go()
    lake.scored(A, run("kept"))
    lake.lose_store()
    path = path_of(lake, "rag")
    path.write_bytes(path.read_bytes().replace(b"Answer of broken", b"Answer \xff broken"))
    lake.go()
    assert lake.exported("rag") == {"kept"}


@pytest.mark.parametrize("name", EXPORT_PATHS)
@pytest.mark.parametrize("damage", [link, folder])
def test_takeover_of_what_is_no_file(full: HistoryLake, name: str, damage: Callable[[Path], None]) -> None:
    """A link or a folder in the place of an older export is set aside; what the inputs give is written anew."""
    before = {each: full.exported(each) for each in Dataset}
    full.lose_store()
    damage(path_of(full, name))
    full.go()
    assert {each: full.exported(each) for each in Dataset} == before
    assert not path_of(full, name).is_symlink()
    assert path_of(full, name).is_file() or name.startswith("withdrawals_")
    assert len(set_aside(full, name)) == 1


def test_takeover_leaves_no_temporary_file(phase4: HistoryLake) -> None:
    """Temporary files of a batch that nobody remembers are removed; what is not ours is left alone.

    The story: a file that was only named a little like ours was deleted, and a folder failed every start.
    """
    folder = path_of(phase4, "rag").parent
    ours = {
        folder / ".playbooks.jsonl.20260101T000000.000Z.tmp",
        folder / ".playbooks.jsonl.20260101T000000.000Z.first.tmp",
    }
    others = {folder / ".notes", folder / ".playbooks.jsonl.mine.tmp", folder / ".playbooks.jsonl..tmp"}
    for path in ours | others:
        path.write_text("x")
    others |= {folder / ".playbooks.jsonl.20260102T000000.000Z.tmp", folder / ".playbooks.jsonl.old.tmp"}
    (folder / ".playbooks.jsonl.20260102T000000.000Z.tmp").mkdir()
    (folder / ".playbooks.jsonl.old.tmp").mkdir()
    phase4.go()
    assert {each for each in folder.iterdir() if each.name.startswith(".")} == others


def test_nothing_ships_twice_after_a_lost_batch(full: HistoryLake) -> None:
    """A store is lost while rows are appended that no receipt knows: each id stands once, a torn one is made again."""
    before = full.lines("rag")
    extra = full.content("rag").splitlines(keepends=True)[0]
    full.stop()
    with path_of(full, "rag").open("ab") as file:
        file.write(extra + extra[: len(extra) // 2])
    full.lose_store()
    full.go()
    assert full.lines("rag") == before


# a lost store


def test_lost_store_after_a_history(full: HistoryLake) -> None:
    """A store is lost: nothing ships twice, created_at and the log stay, and what was withdrawn stays out."""
    before = full.files()
    for _ in range(2):
        full.lose_store()
        full.go()
        for name in EXPORT_PATHS:
            if not name.startswith("quarantine_"):
                assert full.content(name) == before[name]
    assert "b1" not in full.exported("rag") | full.exported("sft")
    assert not full.go().changed


def test_receipt_chain_goes_on_from_the_last_on_disk(full: HistoryLake) -> None:
    """The first receipt after a lost store names the last one before it, and its number and id go on."""
    folder = full.root / "reports" / "distillation"
    last = max(each.name for each in folder.iterdir() if each.is_dir())
    content = (folder / last / "receipt.json").read_bytes()
    full.lose_store()
    full.now_ns = 1  # the clock stepped back, too
    (committed,) = full.go().batches
    assert committed.receipt["previous_receipt_sha256"] == hashlib.sha256(content).hexdigest()
    assert committed.receipt["sequence"] == json.loads(content)["sequence"] + 1
    assert committed.identity.batch_id > last


@pytest.mark.parametrize(
    "content", [None, b"\n", b"{", b'{"stage":"distill","sequence":7,"recorded_at":"yesterday"}'], ids=["link", *"123"]
)
def test_unusable_last_receipt_is_passed_over(full: HistoryLake, content: bytes | None) -> None:
    """A last receipt that cannot be read as one stops nothing: the chain goes on from the one before it."""
    folder = full.root / "reports" / "distillation"
    names = sorted(each.name for each in folder.iterdir() if each.is_dir())
    last = folder / names[-1] / "receipt.json"
    if content:
        last.write_bytes(content)
    else:
        last.rename(last.with_name("elsewhere"))
        last.symlink_to("elsewhere")
    before = (folder / names[-2] / "receipt.json").read_bytes()
    full.lose_store()
    (committed,) = full.go().batches
    assert committed.receipt["previous_receipt_sha256"] == hashlib.sha256(before).hexdigest()


def test_retained_rows_survive_a_lost_store(full: HistoryLake) -> None:
    """Rows of absent partitions are orphans after a lost store: kept, and adopted again when the partition returns."""
    before = {dataset: full.content(dataset) for dataset in Dataset}
    full.move_away(full.scored_path(A), full.evidence_path(A))
    full.go()
    full.lose_store()
    full.go()
    assert {dataset: full.content(dataset) for dataset in Dataset} == before
    full.bring_back(full.scored_path(A), full.evidence_path(A))
    full.go()
    assert {dataset: full.content(dataset) for dataset in Dataset} == before
    assert full.retained() == {}


def test_accepted_again_stays_while_its_file_settles_after_a_lost_store(lake: HistoryLake) -> None:
    """The quarantine knows only the earlier verdict of a run; the later one is read once its file is still.

    The story: a store was lost, and each run that was rejected first and accepted later left the datasets for the
    second that its file had to settle, published as revoked.
    """
    lake.both(A, run("x", "needs_human_review"), run("x", "accepted"))
    lake.go()
    before = {dataset: lake.content(dataset) for dataset in Dataset}
    lake.lose_store()
    lake.restart(settle_seconds=60)
    assert lake.go().indexed.unsettled == [(InputKind.SCORED, A)]
    lake.restart(settle_seconds=0)
    lake.go()
    assert {dataset: lake.content(dataset) for dataset in Dataset} == before
    assert lake.causes("rag") == lake.causes("sft") == []


def test_file_that_is_rewritten_all_the_time_holds_nothing_up_after_a_lost_store(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for such a file as long as it may settle: what they reject would stay for ever."""
    orders = [(run("x", category), run("y")) for category in ("needs_human_review", "accepted")]
    lake.both(A, *orders[0])
    lake.both(B, run("b"))
    lake.go()
    assert lake.exported("rag") == {"y", "b"}
    lake.lose_store()
    lake.scored(B, run("b", "rejected"))
    read, times = lines._read_block, [0]

    def rewritten(descriptor: int, start: int, length: int, shown: str) -> bytes:
        found = read(descriptor, start, length, shown)
        if shown.endswith(f"scored-runs/{A}"):
            times[0] += 1
            lake.scored(A, *orders[times[0] % 2], run("more" * times[0]))
        return found

    monkeypatch.setattr(lines, "_read_block", rewritten)
    now = [0]
    monkeypatch.setattr(ingest, "monotonic_ns", lambda: now[0])
    lake.restart(settle_seconds=60)
    assert lake.go().indexed.unsettled == [(InputKind.SCORED, A)]
    assert "b" in lake.exported("rag"), "the file may settle"
    now[0] = 600 * 10**9
    assert lake.go().indexed.unsettled == [(InputKind.SCORED, A)]
    assert lake.exported("rag") == {"y"}


def test_absent_rejection_forbids_after_a_lost_store(lake: HistoryLake) -> None:
    """The partition that rejected a run is deleted, then the store is lost, twice: the run stays out.

    It came back once, for absent verdicts stood in the store alone, and once after the second loss. The old quarantine
    file names them, and their lines stay in the new one.
    """
    lake.both(A, run("r1"))
    lake.scored(B, run("r0", "rejected"), run("r1", "needs_human_review"))
    lake.go()
    lake.move_away(lake.scored_path(B))
    lake.go()
    held = [line for line in lake.lines("quarantine_sft") if B.encode() in line]
    for _ in range(2):
        lake.lose_store()
        lake.go()
        assert lake.exported("rag") == lake.exported("sft") == set()
        assert [line for line in lake.lines("quarantine_sft") if B.encode() in line] == held
        assert len(lake.lines("quarantine_rag")) == len(lake.lines("quarantine_sft")) == 3
    lake.bring_back(lake.scored_path(B))
    lake.go()
    assert lake.exported("sft") == set()
    assert [row["reason"] for row in lake.rows("quarantine_rag")].count("category_disallowed") == 2
    lake.scored(B, run("r0", "rejected"))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"r1"}


def odd_verdicts() -> dict[str, dict[str, Any] | bytes]:
    """Scored lines that reject r1 or leave it unreviewed, though none of the four categories stands there."""
    nameless = {key: value for key, value in run("r1").items() if key != "category"}
    return {
        "spelled differently": run("r1", " Rejected\t"),
        "unknown word": run("r1", "bad"),
        "number": run("r1", 7),  # type: ignore[arg-type]
        "no category": nameless,
        "malformed": b'{"evidence_run_id":"r1","category":"rejected",',
        "malformed, of two runs": b'{"evidence_run_id":"r2"}{"evidence_run_id":"r1","category":"needs_human_review"}',
        "malformed, in another encoding": '{"evidence_run_id":"r1","category":"rejected",'.encode("utf-16"),
    }


@pytest.mark.parametrize("line", odd_verdicts().values(), ids=odd_verdicts())
def test_absent_verdict_forbids_after_a_lost_store_however_it_is_spelled(
    lake: HistoryLake, line: dict[str, Any] | bytes
) -> None:
    """Only exactly spelled verdicts were taken from the old quarantine files: the run came back, in RAG and in SFT."""
    lake.both(A, run("r1"), run("r2"), run("r3"))
    lake.scored(B, run("r0"), line)
    lake.go()
    forbidden = lake.exported("sft")
    assert "r1" not in forbidden
    lake.move_away(lake.scored_path(B))
    lake.go()
    held = [each for each in lake.lines("quarantine_rag") if B.encode() in each and b'"line_offset":1}' in each]
    for _ in range(2):
        lake.lose_store()
        lake.go()
        assert lake.exported("rag") == lake.exported("sft") == forbidden
        assert [each for each in held if lake.lines("quarantine_rag")[each] != 1] == []
        assert verify(lake.root, lake.state, lake.options, deep=True).faults == 0
    lake.bring_back(lake.scored_path(B))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == forbidden
    lake.scored(B, run("r0"))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"r1", "r2", "r3"}
    assert lake.ask("SELECT count(*) FROM retained_rows") == [(0,)]


@pytest.mark.parametrize("line", odd_verdicts().values(), ids=odd_verdicts())
def test_orphan_of_a_run_that_an_odd_quarantine_row_forbids_leaves(
    lake: HistoryLake, line: dict[str, Any] | bytes
) -> None:
    """An orphan stayed beside a quarantine row that forbids its run in any but an exact word."""
    lake.both(A, run("r1"))
    lake.go()
    old = lake.content("rag")
    lake.scored(A, line)
    lake.go()
    told = lake.content("quarantine_rag")
    lake.move_away(lake.scored_path(A), lake.evidence_path(A))
    lake.lose_store()
    path_of(lake, "rag").write_bytes(old)
    path_of(lake, "quarantine_rag").write_bytes(told)
    lake.go()
    assert lake.exported("rag") == set()
    assert lake.causes("rag")[-1] == "revoked"


def out_of_reach(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, hidden: InputKind = InputKind.SCORED
) -> Callable[[], None]:
    """A file of B gives an I/O error; returns what ends that."""

    def refusing(root: Path, kind: InputKind, path: str) -> Any:
        if (kind, path) == (hidden, B):
            raise UnreadableError(path, OSError(errno.EIO, os.strerror(errno.EIO)))
        return open_partition(root, kind, path)

    for module in (file_reading, judge_span, judge_task, read_file, takeover):
        monkeypatch.setattr(module, "open_partition", refusing)
    return monkeypatch.undo


def linked(lake: HistoryLake, _: pytest.MonkeyPatch, hidden: InputKind = InputKind.SCORED) -> Callable[[], None]:
    """A link stands in the place of a file of B; returns what ends that."""
    (path,), other = lake.paths(B, hidden.value), lake.root / "archived.jsonl"
    path.rename(other)
    path.symlink_to(other)
    return lambda: os.replace(other, path)


@pytest.mark.parametrize("hide", [out_of_reach, linked])
def test_rejection_that_cannot_be_read_forbids_after_a_lost_store(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, hide: Callable[..., Callable[[], None]]
) -> None:
    """The store is lost while the partition that rejected a run cannot be read: the run stays out, now and later."""
    lake.both(A, run("r1"))
    lake.scored(B, run("r1", "rejected"))
    lake.go()
    show = hide(lake, monkeypatch)
    for _ in range(2):
        lake.lose_store()
        lake.engine.run_pass(Trigger.ONCE)
        assert lake.exported("rag") == lake.exported("sft") == set()
    show()
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == set()
    assert lake.ask("SELECT count(*) FROM retained_rows") == [(0,)]


@pytest.mark.parametrize("hide", [out_of_reach, linked])
def test_rows_whose_evidence_cannot_be_read_stay_after_a_lost_store(
    full: HistoryLake, monkeypatch: pytest.MonkeyPatch, hide: Callable[..., Callable[[], None]]
) -> None:
    """The store is lost while an evidence file is out of reach: its rows are kept, and are the same when it is back."""
    before = {dataset: full.lines(dataset) for dataset in Dataset}
    history = full.files()["withdrawals_rag"]
    show = hide(full, monkeypatch, InputKind.EVIDENCE)
    for _ in range(2):
        full.lose_store()
        full.engine.run_pass(Trigger.ONCE)
        assert {dataset: full.lines(dataset) for dataset in Dataset} == before
    show()
    full.go()
    full.go()
    assert {dataset: full.lines(dataset) for dataset in Dataset} == before
    assert full.files()["withdrawals_rag"] == history
    assert full.ask("SELECT count(*) FROM retained_rows") == [(0,)]


def test_rejection_at_the_greatest_depth_forbids_after_a_lost_store(lake: HistoryLake) -> None:
    """The story: in its quarantine row a row stands a level deeper than in its partition, and then was too deep."""
    deep: Any = {}
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    lake.both(A, run("kept"), run("bad"))
    lake.both(B, run("bad", "rejected", extra=deep))
    lake.go()
    for path in lake.paths(B, "both"):
        path.unlink()
    lake.go()
    for _ in range(2):
        lake.lose_store()
        lake.go()
        assert lake.exported("rag") == lake.exported("sft") == {"kept"}


def test_rejection_in_a_partition_with_an_odd_name_forbids_after_a_lost_store(lake: HistoryLake) -> None:
    """Any name that a scan reads may stand in the old quarantine file, one with a no-break space too."""
    odd = "2026/04/28/no\u00a0break.jsonl"
    lake.both(A, run("r1"))
    lake.scored(odd, run("r1", "rejected"))
    lake.go()
    lake.move_away(lake.scored_path(odd))
    lake.go()
    lake.lose_store()
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == set()


@pytest.mark.parametrize("restarted", [False, True])
def test_lake_that_is_away_with_its_exports_loses_nothing(full: HistoryLake, restarted: bool) -> None:
    """The state stands elsewhere, and an empty mount point is left: no export is damaged, made anew or given up."""
    full.move_away(full.scored_path(B), full.evidence_path(B))
    full.go()
    before = full.files()
    for name in ("data", "exports"):
        (full.root / name).rename(full.root / f"{name}-away")
    if restarted:
        full.restart()
    for _ in range(2):
        with pytest.raises(ListingError, match="is missing"):
            recover(full.engine) if restarted else full.engine.run_pass(Trigger.RESCAN)
    assert not (full.root / "exports").exists()
    for name in ("data", "exports"):
        (full.root / f"{name}-away").rename(full.root / name)
    full.go()
    assert full.files() == before


def test_store_lost_while_the_inputs_are_away(lake: HistoryLake) -> None:
    """The first start after a lost store finds no inputs: it waits for them, and what was deleted before still forbids."""
    lake.both(A, run("r1"))
    lake.both(C, run("r2"))
    lake.scored(B, run("r1", "rejected"))
    lake.go()
    lake.move_away(lake.scored_path(B))
    lake.go()
    lake.lose_store()
    data, away = lake.root / "data", lake.root / "away"
    data.rename(away)
    with pytest.raises(ListingError, match="the folder is missing, and files of it are known"):
        lake.engine.run_pass(Trigger.ONCE)
    lake.stop()
    away.rename(data)
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == {"r2"}


def test_recalled_rejection_is_forgotten_by_prune(lake: HistoryLake) -> None:
    """Prune forgets an absent verdict that was recalled after a lost store."""
    lake.both(A, run("r1"))
    lake.scored(B, run("r1", "rejected"))
    lake.go()
    lake.move_away(lake.scored_path(B))
    lake.go()
    lake.lose_store()
    lake.go()
    lake.prune("2026/04/28/*")
    assert lake.exported("rag") == lake.exported("sft") == {"r1"}
    assert lake.ask("SELECT count(*) FROM files WHERE state = 'absent'") == [(0,)]


@pytest.mark.parametrize("again", ["recovery", "restart", "rebuild", "lost store", "damage"])
def test_withdrawn_stays_withdrawn(full: HistoryLake, again: str) -> None:
    """A row that left, by a verdict, by prune or with its line, comes back through none of these."""
    full.move_away(full.scored_path(A), full.evidence_path(A))
    full.go()
    full.prune()
    left = {dataset: full.exported(dataset) for dataset in Dataset}
    assert left == {"rag": {"b2"}, "sft": {"b2"}, "preference": set()}
    if again == "recovery":
        full.engine.committer.recover()
    elif again == "restart":
        full.restart()
    elif again == "lost store":
        full.lose_store()
    elif again == "damage":
        empty(path_of(full, "rag"))
    full.go(Trigger.REBUILD if again == "rebuild" else Trigger.ONCE)
    assert {dataset: full.exported(dataset) for dataset in Dataset} == left


# rebuild


def test_rebuild_puts_files_in_walk_order(lake: HistoryLake) -> None:
    """Rows that were appended in the order of their coming stand in walk order after a rebuild, created_at kept."""
    for partition, number in ((B, 2), (A, 1), ("2026/04/26/first.jsonl", 0)):
        task = f"t{number}"
        lake.both(
            partition,
            run(f"x{number}", task_id=task),
            run(f"y{number}", "rejected", task),
            run(f"z{number}", "partially_accepted", task),
        )
        lake.go()
    stamps = {dataset: lake.stamps(dataset) for dataset in Dataset}
    assert [row["source_run_id"] for row in lake.rows("rag")] == ["x2", "z2", "x1", "z1", "x0", "z0"]
    (committed,) = lake.go(Trigger.REBUILD).batches
    assert committed.receipt["work"]["rows_indexed"] == 18, "all lines of both trees were read anew"
    assert committed.receipt["work"]["bytes_read"] > 0
    assert [row["source_run_id"] for row in lake.rows("rag")] == ["x0", "z0", "x1", "z1", "x2", "z2"]
    assert [row["source_run_id"] for row in lake.rows("sft")] == ["x0", "x1", "x2"]
    assert [row["chosen_run_id"] for row in lake.rows("preference")] == ["x0", "x1", "x2"]
    places = [row["location"]["partition"] for row in lake.rows("quarantine_sft")]
    assert places == sorted(places)
    assert {dataset: lake.stamps(dataset) for dataset in Dataset} == stamps
    assert [lake.causes(dataset) for dataset in Dataset] == [[], [], []]


def test_rebuild_equals_a_first_pass(phase4: HistoryLake) -> None:
    """After any order of coming, a rebuild leaves the same bytes as one pass over everything, timestamps aside."""
    shutil.rmtree(phase4.root / "exports")
    paths = sorted(
        (phase4.root / "data").rglob("*.jsonl"),
        key=lambda path: hashlib.sha256(bytes(path.relative_to(phase4.root))).digest(),
    )
    phase4.move_away(*paths)
    for start in range(0, len(paths), 30):
        phase4.bring_back(*paths[start : start + 30])
        phase4.go()
    phase4.go(Trigger.REBUILD)
    for dataset in Dataset:
        expected = (PHASE4 / "expected" / EXPORT_PATHS[dataset].removeprefix("exports/")).read_bytes()
        assert [json.loads(line)["id"] for line in expected.splitlines()] == [row["id"] for row in phase4.rows(dataset)]


def test_rebuild_that_failed_half_way_can_be_run_again(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: the question for the order of the lines stayed open, so that the next rebuild found its tables locked."""
    before = {name: full.lines(name) for name in EXPORT_PATHS}

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(CommittedFile, "pick", lambda _, order: map(refuse, order))
    with pytest.raises(ExportWriteError, match="Input/output error") as kept:
        full.engine.run_pass(Trigger.REBUILD)
    monkeypatch.undo()
    full.engine.committer.recover()
    full.go(Trigger.REBUILD)
    assert kept.tb is not None  # as where somebody still holds the error
    assert {name: full.lines(name) for name in EXPORT_PATHS} == before


def while_it_judges(full: HistoryLake, monkeypatch: pytest.MonkeyPatch, meddle: Callable[[], None]) -> None:
    """A rebuild in which something is done to the exports each time before their lines are put in order."""
    real = Restorer.reorder

    def reorder(self: Restorer) -> None:
        meddle()
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Restorer, "reorder", reorder)
        full.go(Trigger.REBUILD)


def once(meddle: Callable[[], None]) -> Callable[[], None]:
    """Do it the first time only."""
    left = [meddle]
    return lambda: left.pop()() if left else None


@pytest.mark.parametrize(
    ("name", "damage"),
    [("sft", damage) for damage in DAMAGES]
    + [("quarantine_rag", damage) for damage in (edit, delete)]
    + [(name, "foreign") for name in ROW_FILES],
)
def test_damage_while_a_rebuild_judges_is_restored(
    full: HistoryLake, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None] | str
) -> None:
    """The story: a rebuild put in order what it found, and committed it: a row that somebody had appended meanwhile, one
    that was withdrawn for example, stood in the dataset for good, and one that somebody had deleted was gone for good.
    """
    before = {each: full.lines(each) for each in EXPORT_PATHS}
    full.both("2026/05/01/new.jsonl", run("new"), run("new2", "rejected"))
    full.go()
    foreign = b"".join(full.content(name).splitlines(keepends=True)[-1:])
    full.move_away(*full.paths("2026/05/01/new.jsonl", "both"))
    full.go()
    full.prune()
    with_foreign = {each: full.lines(each) for each in EXPORT_PATHS}
    assert {each: with_foreign[each] for each in ROW_FILES} == {each: before[each] for each in ROW_FILES}

    def meddle() -> None:
        if callable(damage):
            damage(path_of(full, name))
        else:
            with path_of(full, name).open("ab") as file:
                file.write(foreign)

    while_it_judges(full, monkeypatch, once(meddle))
    assert {each: full.lines(each) for each in EXPORT_PATHS} == with_foreign
    assert len(full.engine.export_records.tamperings()) == 1
    whole = full.files()
    full.go(Trigger.REBUILD)
    assert full.files() == whole


def edit_unseen(full: HistoryLake, name: str) -> None:
    """Change a byte of an export under recorded stat facts, as a failing disk does."""
    edit(path_of(full, name))
    now = path_of(full, name).stat()
    changed = "UPDATE export_files SET mtime_ns = ?, ctime_ns = ? WHERE name = ?"
    full.ask(changed, now.st_mtime_ns, now.st_ctime_ns, name)


def test_damage_that_stat_does_not_show_is_restored_by_a_rebuild(
    full: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that changed under recorded stat facts are found where they are read."""
    before = full.lines("rag")
    while_it_judges(full, monkeypatch, once(lambda: edit_unseen(full, "rag")))
    assert full.lines("rag") == before


def test_damage_that_stat_does_not_show_is_restored_by_a_batch(
    full: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of a rewrite.

    The story: the batch was undone, the file taken for whole by its stat facts, and the batch made again, for ever.
    """
    full.restart()
    edit_unseen(full, "rag")
    tries = iter(range(5))
    real = QueueWorker.run_batch

    def run_batch(*args: Any, **kwargs: Any) -> object:
        next(tries)
        return real(*args, **kwargs)

    monkeypatch.setattr(QueueWorker, "run_batch", run_batch)
    full.scored(B, run("b1", "rejected"), run("b2", "rejected"), run("b3", "rejected", "t"), run("b4", "rejected", "t"))
    full.go()
    assert full.exported("rag") == {"a0", "a2", "a4", "a6", "same1"}
    assert len(set_aside(full, "rag")) == 1


def test_rebuild_beside_another_writer_ends(full: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that comes again and again is no endless rebuild; what was found stays as it is."""
    with pytest.raises(AnotherWriterError, match="another writer"):
        while_it_judges(full, monkeypatch, lambda: append_junk(path_of(full, "sft")))
    assert full.content("sft").endswith(b"00000000000000")
    assert len(full.engine.export_records.tamperings()) == 2


def test_pass_that_failed_half_way_can_be_run_again(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of the queue of the rows to be judged, though somebody still holds the error."""
    lake.both(A, *(run(f"run-{n}") for n in range(30)))
    lake.go()
    lake.both(A, *(run(f"run-{n}", "rejected") for n in range(30)))

    def refuse(*_: object) -> object:
        raise OperatorError("no", hint="try again")

    with monkeypatch.context() as patch:
        patch.setattr(RowJudge, "settle", refuse)
        with pytest.raises(OperatorError, match="no") as kept:
            lake.engine.run_pass(Trigger.ONCE)
    lake.engine.committer.recover()
    lake.both(A, *(run(f"run-{n}", "rejected") for n in range(29)))
    lake.go()
    assert kept.tb is not None
    assert lake.rows("rag") == []


def test_take_over_where_a_folder_cannot_be_listed(phase4: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no descriptor left it is an error for operators; the next pass takes the files over."""

    def refuse(*_: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    engine = phase4.engine
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(ExportReadError, match="Too many open files"):
            engine.run_pass(Trigger.ONCE)
    phase4.go()
    assert len(phase4.exported(Dataset.RAG)) == 446


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("folder", ["rag", "sft", "quarantine", "withdrawals"])
def test_take_over_where_a_folder_cannot_be_searched(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, folder: str, code: int
) -> None:
    """The story: exports that could not be looked at counted as none, for good.

    A run whose rejection was deleted exported again, and retained rows and published withdrawals were lost.
    """
    lake.both(A, run("kept"), run("bad"))
    lake.both(C, run("retained"))
    lake.go()
    lake.both(B, run("bad", "rejected"))
    lake.go()
    for path in (*lake.paths(B, "both"), *lake.paths(C, "both")):
        path.unlink()
    lake.go()
    before = [lake.lines(each) for each in (*Dataset, *(f"withdrawals_{each}" for each in Dataset))]
    assert lake.causes("rag") == ["revoked"]
    lake.lose_store()
    real = os.lstat

    def refuse(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if Path(path).parent == lake.root / "exports" / folder:
            raise OSError(code, os.strerror(code))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", refuse)
        with pytest.raises(ExportReadError, match=f"cannot read exports/{folder}/"):
            lake.engine.run_pass(Trigger.ONCE)
    lake.go()
    assert [lake.lines(each) for each in (*Dataset, *(f"withdrawals_{each}" for each in Dataset))] == before


@pytest.mark.parametrize("trees", ["scored", "evidence", "both"])
def test_rebuild_keeps_retained_rows_and_history(full: HistoryLake, trees: str) -> None:
    """A rebuild beside absent partitions keeps their rows where they stood, and the log of withdrawals as it was."""
    full.go(Trigger.REBUILD)
    before = full.files()
    full.move_away(*full.paths(A, trees))
    full.go()
    full.go(Trigger.REBUILD)
    for name, content in before.items():
        assert full.lines(name) == Counter(content.splitlines())
        if name not in ("preference", "quarantine_preference"):  # retained pairs come last
            assert full.content(name) == content


def test_rebuild_twice_changes_nothing(full: HistoryLake) -> None:
    """A second rebuild finds everything in its place: no row is judged otherwise, and no byte changes."""
    full.go(Trigger.REBUILD)
    before = full.files()
    full.go(Trigger.REBUILD)
    assert full.files() == before


# a corrupt store


def test_corrupt_store_is_set_aside_at_the_start(full: HistoryLake) -> None:
    """A store that is no database any more is set aside beside itself, and a new store takes the exports over.

    The new one is private: who may only read it could hold its locks.
    """
    before = {dataset: full.content(dataset) for dataset in Dataset}
    full.stop()
    full.state.chmod(0o664)
    full.state.write_bytes(b"no database at all" * 1000)
    with capture_logs() as logs, opened_store(full.state, full.root, kept=True):
        pass
    assert [each["log_level"] for each in logs if each["event"] == "store_set_aside"] == ["error"]
    (copy,) = full.state.parent.glob("distilld.db.corrupt-*Z")
    assert copy.read_bytes() == b"no database at all" * 1000
    assert full.state.stat().st_mode & 0o777 == 0o600
    full.go()
    assert {dataset: full.content(dataset) for dataset in Dataset} == before


def test_store_that_turns_out_to_be_corrupt_is_set_aside(full: HistoryLake) -> None:
    """A store that opens, and proves broken when a pass reads it, is set aside with its log; the next one is whole."""
    before = {dataset: full.content(dataset) for dataset in Dataset}
    (page,) = full.ask("SELECT rootpage FROM sqlite_master WHERE name = 'files'")[0]
    full.stop()
    with full.state.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(StoreCorruptError), opened_store(full.state, full.root) as store:
        batch.Engine(full.root, store, full.options, limits(batch_rows=100)).run_pass(Trigger.ONCE)
    assert len(list(full.state.parent.glob("distilld.db.corrupt-*Z"))) == 1
    full.go()
    assert {dataset: full.content(dataset) for dataset in Dataset} == before


def page_of(lake: HistoryLake, name: str) -> tuple[int, bytes]:
    """Where a small table or index stands in the store's file, and its one page as it is now."""
    lake.engine.store.checkpoint()
    ((number,),) = lake.ask("SELECT rootpage FROM sqlite_master WHERE name = ?", name)
    with lake.state.open("rb") as file:
        file.seek((number - 1) * 4096)
        return (number - 1) * 4096, file.read(4096)


@pytest.fixture
def stale(lake: HistoryLake) -> HistoryLake:
    """A lake whose store has a page that a lost write left as it was, and with something new in it."""
    lake.both(A, run("a1"))
    lake.go()
    at, page = page_of(lake, "sft_ids")
    lake.scored(A, run("a2"))
    lake.both(C, run("c1"))
    lake.go()
    lake.engine.store.checkpoint()
    lake.stop()
    with lake.state.open("r+b") as file:
        file.seek(at)
        file.write(page)
    lake.both(B, run("a1"))
    return lake


def test_store_with_a_stale_page_is_set_aside(stale: HistoryLake) -> None:
    """The story: every pass failed, with 'a bug in distilld' or a constraint of SQLite, and none asked the store."""
    with (
        pytest.raises(StoreCorruptError, match="missing from index sft_ids"),
        opened_store(stale.state, stale.root) as store,
    ):
        batch.Engine(stale.root, store, stale.options, limits(batch_rows=100)).run_pass(Trigger.ONCE)
    assert len(list(stale.state.parent.glob("distilld.db.corrupt-*Z"))) == 1
    stale.go()
    assert stale.exported("rag") == stale.exported("sft") == {"a1", "c1"}


@pytest.mark.parametrize("error", [ProgramError("x"), sqlite3.IntegrityError("x"), AssertionError("x"), KeyError("x")])
def test_only_an_unsound_store_is_to_blame(stale: HistoryLake, error: Exception) -> None:
    """What nobody foresaw is told as it is where the store is sound."""
    with pytest.raises(StoreCorruptError, match="sft_ids") as raised, stale.engine.store.at_work():
        raise error
    assert raised.value.__cause__ is error
    stale.lose_store()
    with pytest.raises(type(error), match="x"), stale.engine.store.at_work():
        raise error


def test_store_is_not_asked_about_what_was_foreseen(stale: HistoryLake) -> None:
    """A full disk, and a daemon that is to end, say nothing about it."""
    for error in (OperatorError("x"), KeyboardInterrupt("x")):
        with pytest.raises(type(error), match="x"), stale.engine.store.at_work():
            raise error


def test_store_with_a_broken_schema_is_known_by_its_first_bytes(full: HistoryLake) -> None:
    """Where no lock names it, what begins as a database is set aside as a store that is corrupt."""
    full.stop()
    with full.state.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)
    with opened_store(full.state, full.root):
        pass
    assert len(list(full.state.parent.glob("distilld.db.corrupt-*Z"))) == 1


@pytest.mark.parametrize("content", [b"no database at all\n" * 1000, b"root = '.'\n", b"\n", b"\0" * 8192])
def test_file_of_something_else_is_not_set_aside(full: HistoryLake, content: bytes) -> None:
    """The story: ``--state`` named a partition, or the configuration; it was renamed, and a store took its place."""
    other = full.root / "other"
    other.write_bytes(content)
    with pytest.raises(NotAStoreError, match="is no state store"), opened_store(other, full.root):
        pass
    assert other.read_bytes() == content
    assert [each.name for each in full.root.glob("other*")] == ["other"]


def test_few_corrupt_stores_are_kept(full: HistoryLake) -> None:
    """Of the stores that were set aside the newest five stay."""
    full.stop()
    for number in range(8):
        full.state.write_bytes(b"broken %d" % number * 200)
        with opened_store(full.state, full.root, kept=True):
            pass
    kept = sorted(full.state.parent.glob("distilld.db.corrupt-*Z"))
    assert [each.read_bytes()[:8] for each in kept] == [b"broken %d" % number for number in range(3, 8)]


def test_newer_store_is_refused_and_left_alone(full: HistoryLake) -> None:
    """A store that a newer release wrote is no corrupt one: it is refused, and stays as it is."""
    full.stop()
    with closing(sqlite3.connect(full.state)) as store, store:
        store.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('distilld', 'm999_later', '')"
        )
    with pytest.raises(StoreTooNewError, match="m999_later"), opened_store(full.state, full.root):
        pass
    assert list(full.state.parent.glob("distilld.db.corrupt-*")) == []
