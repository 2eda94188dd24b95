"""What stood in an export's place: a whole copy of it or none, and few of them."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from distilld.publish import set_aside
from distilld.publish.set_aside import COPIES_KEPT, copy_aside, move_aside


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A file to be kept."""
    path = tmp_path / "playbooks.jsonl"
    path.write_bytes(b"what was found")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where it is kept; others have copies there too."""
    path = tmp_path / ".set-aside"
    path.mkdir()
    (path / "sft-00").write_bytes(b"of another export")
    return path


def names(folder: Path) -> list[str]:
    """What is kept there of the export, temporary files too."""
    return sorted(each.name for each in folder.iterdir() if each.name != "sft-00")


def run_out(_: object, new: BinaryIO, *_rest: object) -> NoReturn:
    """What a full disk does to a copy."""
    new.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_newest_copies_stay(export: Path, folder: Path) -> None:
    """Five in all."""
    for number in range(COPIES_KEPT + 2):
        export.write_bytes(b"found %d" % number)
        assert copy_aside(export, folder, "rag", f"{number:02}").read_bytes() == b"found %d" % number
    assert names(folder) == [f"rag-{number:02}" for number in range(2, COPIES_KEPT + 2)]
    assert (folder / "sft-00").exists()


def test_room_is_made_first_and_the_newest_stay_where_it_is_not_enough(
    export: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is tried."""
    for number in range(COPIES_KEPT):
        (folder / f"rag-{number:02}").write_bytes(b"found %d" % number)
    monkeypatch.setattr(set_aside, "_copy_content", run_out)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            copy_aside(export, folder, "rag", "99")
        assert names(folder) == [f"rag-{number:02}" for number in range(1, COPIES_KEPT)]


def test_a_copy_survives_though_others_have_later_stamps(export: Path, folder: Path) -> None:
    """As under a clock that was put back: the copy is what the export is restored from."""
    for number in range(COPIES_KEPT):
        (folder / f"rag-9{number}").write_bytes(b"found %d" % number)
    assert copy_aside(export, folder, "rag", "00").read_bytes() == b"what was found"
    assert len(names(folder)) == COPIES_KEPT


def test_what_a_kill_left_is_taken_the_place_of(export: Path, folder: Path) -> None:
    """Half a file, or half a folder that stood in the export's place."""
    (folder / ".rag.tmp").mkdir()
    (folder / ".rag.tmp" / "something").touch()
    copy_aside(export, folder, "rag", "00")
    assert names(folder) == ["rag-00"]


def test_the_same_bytes_are_kept_once(export: Path, folder: Path) -> None:
    """Only a file counts as a copy, not a link to one, and the newest one only."""
    (folder / "rag-00").symlink_to(export)
    assert copy_aside(export, folder, "rag", "01") == folder / "rag-01"
    assert copy_aside(export, folder, "rag", "02") == folder / "rag-01"
    export.write_bytes(b"WHAT was found")
    assert copy_aside(export, folder, "rag", "03") == folder / "rag-03"
    assert names(folder) == ["rag-00", "rag-01", "rag-03"]


def test_a_hole_takes_no_room(export: Path, folder: Path) -> None:
    """The story: an export that somebody made 300 MB longer without a write took 300 MB of disk once it was copied."""
    os.truncate(export, 1 << 26)
    with export.open("ab") as file:
        file.write(b"after the hole")
    copy = copy_aside(export, folder, "rag", "00")
    assert copy.stat().st_blocks * 512 < 1 << 22
    assert copy.stat().st_size == export.stat().st_size
    assert copy.read_bytes() == export.read_bytes()
    os.truncate(export, 1 << 20)
    copy = copy_aside(export, folder, "rag", "01")
    assert copy.read_bytes() == export.read_bytes()


def test_a_folder_that_is_moved_by_a_copy_is_whole_or_not_there(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it leaves its place only when it is."""
    stood = tmp_path / "folder"
    (stood / "deeper").mkdir(parents=True)
    (stood / "deeper" / "file").write_bytes(b"content")
    (stood / "link").symlink_to("nowhere")
    os.mkfifo(stood / "pipe")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if source == stood:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with monkeypatch.context() as patch:
        patch.setattr(set_aside, "_copy_content", run_out)
        with pytest.raises(OSError, match="No space left"):
            move_aside(stood, folder, "rag", "00")
    assert names(folder) == []
    assert (stood / "deeper" / "file").exists()
    assert move_aside(stood, folder, "rag", "00") == folder / "rag-00"
    assert (folder / "rag-00" / "deeper" / "file").read_bytes() == b"content"
    assert os.readlink(folder / "rag-00" / "link") == "nowhere"
    assert names(folder) == ["rag-00"]
    assert not stood.exists()


def test_a_refusal_that_is_no_border_is_told(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is copied where a file system is read-only."""
    stood = tmp_path / "link"
    stood.symlink_to("nowhere")

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="Read-only"):
        move_aside(stood, folder, "rag", "00")
    assert stood.is_symlink()


def test_what_is_no_copy_stays(export: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's notes on the copies, and a copy that the system does not let go."""
    (folder / "rag-notes.txt").write_bytes(b"looked at on Monday")
    (folder / "rag-00").mkdir()

    def refuse(path: Path) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    for number in range(1, COPIES_KEPT + 3):
        export.write_bytes(b"found %d" % number)
        copy_aside(export, folder, "rag", f"{number:02}")
    assert names(folder) == ["rag-00", *(f"rag-{number:02}" for number in range(3, COPIES_KEPT + 3)), "rag-notes.txt"]


def test_two_copies_of_one_moment_are_two(export: Path, folder: Path) -> None:
    """A version that waited and the live one, each of them edited."""
    copy_aside(export, folder, "rag", "00")
    export.write_bytes(b"and this")
    assert move_aside(export, folder, "rag", "00") == folder / "rag-00-2"
    assert (folder / "rag-00").read_bytes() == b"what was found"
