"""What cannot be listed or read is an error, never a deletion."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import OnDelete, Options, Trigger
from distilld.lake.scan import ListingError, scan
from distilld.service.run_once import bring_up_to_date
from tests.support.committed import committed_and_whole, outcome
from tests.support.deaths import in_child
from tests.support.histories import APPEND, B, History, Lake
from tests.support.history_lake import A, C, HistoryLake, given, run

DAY = "2026/04/28/beta.jsonl"
Prepare = Callable[[History], Lake]


@pytest.fixture(params=list(OnDelete))
def lake(prepare: Prepare, request: pytest.FixtureRequest) -> Lake:
    """A lake after its first pass, with and without ``on_delete = "withdraw"``."""
    made = prepare(APPEND)
    made.options = Options(source_files_root="/", on_delete=request.param)
    with made.opened() as engine:
        engine.run_pass(Trigger.ONCE)
    return made


def refuse(monkeypatch: pytest.MonkeyPatch, code: int, *endings: str) -> None:
    """Let the system refuse to list folders whose paths end so."""
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith(endings):
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("folder", ["scored-runs", "evidence", "scored-runs/2026", "2026/04", "2026/04/28"])
def test_a_folder_that_cannot_be_listed_withdraws_nothing(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, folder: str, code: int
) -> None:
    """The pass names the folder, whatever ``on_delete`` says, and no byte is written; its files count as recorded."""
    before = outcome(lake.root)
    with lake.opened() as engine:
        with monkeypatch.context() as patch:
            refuse(patch, code, folder)
            passed = engine.run_pass(Trigger.RESCAN)
        assert passed.unreadable
        assert all(each.problem == f"cannot be listed: {os.strerror(code)}" for each in passed.unreadable)
        assert all(each.path.endswith(f"{folder}/") for each in passed.unreadable)
        assert not passed.changed
        assert outcome(lake.root) == before
        assert not engine.run_pass(Trigger.RESCAN).changed


@pytest.mark.parametrize("on_delete", list(OnDelete))
def test_a_folder_that_cannot_be_listed_holds_no_rejection_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_delete: OnDelete
) -> None:
    """The story: a day folder of mode 000 kept a rejection in another folder from being applied, and its own rows in."""
    lake = HistoryLake(tmp_path, Options(source_files_root=str(tmp_path), on_delete=on_delete))
    lake.both(A, run("a"))
    lake.both(DAY, run("b"), run("forbidden"), run("forbidden", "rejected"))
    lake.go()
    assert lake.exported("sft") == {"a", "b"}
    lake.scored(C, run("a", "rejected"), run("b", "rejected"), run("new"))
    lake.evidence(C, given("new"), given("forbidden"))
    refuse(monkeypatch, errno.EACCES, "2026/04/28")
    report = bring_up_to_date(lake.engine)
    # The run of a readable folder and that of the folder which cannot be listed are both forbidden, by the same file.
    assert lake.exported("sft") == {"new"}
    assert report.not_read == tuple(
        f"data/{tree}/2026/04/28/ cannot be listed: Permission denied" for tree in ("scored-runs", "evidence")
    )
    # What is recorded below it goes on forbidding.
    lake.both("2026/04/27/0.jsonl", run("forbidden"))
    bring_up_to_date(lake.engine)
    assert lake.exported("sft") == {"new"}
    monkeypatch.undo()
    lake.go()
    assert lake.exported("sft") == {"new"}
    lake.stop()


def test_a_folder_that_goes_while_the_scan_looks_withdraws_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: a producer that makes and removes folders in a loop ended nine of ten passes."""
    before = outcome(lake.root)
    with lake.opened() as engine:
        with monkeypatch.context() as patch:
            refuse(patch, errno.ENOENT, "2026/04/28")
            passed = engine.run_pass(Trigger.RESCAN)
        assert passed.scan is not None
        assert len(passed.scan.unlisted) == 2
        assert passed.unreadable == ()
        assert outcome(lake.root) == before


def test_a_tree_that_is_gone_although_files_of_it_are_known_withdraws_nothing(lake: Lake) -> None:
    """A mount that is missing is a listing error, not ten thousand deletions."""
    before = outcome(lake.root)
    for tree in ("scored-runs", "evidence"):
        folder = lake.root / "data" / tree
        folder.rename(folder.with_name("elsewhere"))
        with lake.opened() as engine, pytest.raises(ListingError, match="the folder is missing"):
            engine.run_pass(Trigger.RESCAN)
        assert outcome(lake.root) == before
        folder.with_name("elsewhere").rename(folder)


def test_a_tree_that_is_empty_is_what_it_is(lake: Lake) -> None:
    """An empty folder was listed: its partitions are absent, and kept, or withdrawn where the operator said so."""
    before = outcome(lake.root)
    shutil.rmtree(lake.root / "data" / "scored-runs" / "2026")
    with lake.opened() as engine:
        engine.run_pass(Trigger.RESCAN)
    after = outcome(lake.root)
    assert after["sft"] == (before["sft"] if lake.options.on_delete is OnDelete.KEEP else [])
    committed_and_whole(lake.root)


def test_no_descriptor_left_is_no_empty_folder(lake: Lake) -> None:
    """With no descriptor left a scan raises; ``os.walk`` and ``glob`` would have found nothing and said nothing."""

    def look() -> None:
        free = os.dup(0)
        os.close(free)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        with pytest.raises(ListingError, match="Too many open files"):
            scan(lake.root)

    assert in_child(look) == 0


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files that the system refuses to open; the tests may run as root, whom no mode binds."""
    names: set[str] = set()
    real = os.open

    def refusing(path: Any, *arguments: Any, **named: Any) -> int:
        if path in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refusing)
    return names


def test_a_partition_that_cannot_be_read_keeps_its_rows_and_stops_nothing(prepare: Prepare, refused: set[str]) -> None:
    """Its rows stay as they are, it is named as a problem, the other partitions go on, and later it is read."""
    lake = prepare(APPEND)
    with lake.opened() as engine:
        before = outcome(lake.root)
        refused.add(Path(B).name)
        passed = engine.run_pass(Trigger.RESCAN)
        assert list(passed.problems) == [
            f"cannot read data/evidence/{B}: Permission denied",
            f"cannot read data/scored-runs/{B}: Permission denied",
        ]
        assert outcome(lake.root) == before
        refused.clear()
        assert engine.run_pass(Trigger.RESCAN).changed
        assert outcome(lake.root) != before
        committed_and_whole(lake.root)
