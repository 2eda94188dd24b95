"""The few calls that every durable write is made of: what they have done when they return is on the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from distilld.files.durable import make_folder, replace_file, sync_folder, sync_up, write_all


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fsynced, in order, by its path."""
    found: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_each_folder_that_is_made_has_an_entry_that_lasts(tmp_path: Path, synced: list[str]) -> None:
    """The folder above it is synced, from the top down; one that is there is left alone."""
    make_folder(tmp_path / "a" / "b")
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) & 0o027 == 0
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_a_folder_that_somebody_else_makes_meanwhile_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a file in its place is not."""
    real = Path.mkdir

    def raced(self: Path, mode: int = 0o777) -> None:
        real(self, mode)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(Path, "mkdir", raced)
    make_folder(tmp_path / "a")
    assert (tmp_path / "a").is_dir()
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_sync_up_ends_at_the_root(tmp_path: Path, synced: list[str]) -> None:
    """Every folder on the way, the root too, and none above it."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    sync_up(tmp_path / "a" / "b", tmp_path)
    assert synced == [str(tmp_path / "a" / "b"), str(tmp_path / "a"), str(tmp_path)]


def test_write_all_goes_on_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take less than it was given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:3])))
    with (tmp_path / "x").open("wb") as file:
        write_all(file.fileno(), b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, synced: list[str]) -> None:
    """Its bytes are synced before its name changes, and the name after."""
    path = tmp_path / "page.md"
    path.write_bytes(b"old")
    kept = tmp_path / "kept"
    os.link(path, kept)
    replace_file(path, b"new")
    assert (path.read_bytes(), kept.read_bytes()) == (b"new", b"old")
    assert synced == [str(tmp_path / ".page.md.tmp"), str(tmp_path)]
    assert sorted(os.listdir(tmp_path)) == ["kept", "page.md"]


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next try takes the place of what it left."""
    path = tmp_path / "page.md"
    path.write_bytes(b"old")

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert sorted(os.listdir(tmp_path)) == ["page.md"]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Whatever is refused."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "gone" / "x", b"")
    sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
