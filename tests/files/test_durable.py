"""The few calls that every durable write is made of: what they have done when they return is on the disk."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from distilld.files.durable import (
    append_all,
    make_folder,
    open_in_folder,
    replace_file,
    sync_folder,
    sync_up,
    write_all,
)


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


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path: Path, flags: int) -> None:
    """It may come between a look and the opening, and then nobody would be at its other end."""
    os.mkfifo(tmp_path / "pipe")
    with suppress(OSError):
        os.close(open_in_folder(tmp_path / "pipe", flags))


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


def test_blocks_of_several_writers_stand_whole_behind_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each writer has its own descriptor and learns where its block begins, even if the block takes several writes."""
    path = tmp_path / "x"
    real = os.write
    with open(path, "wb", buffering=0) as one, open(path, "r+b", buffering=0) as other:
        monkeypatch.setattr(os, "write", lambda descriptor, block: real(descriptor, block[:3]))
        begins = [append_all(file.fileno(), block) for file, block in ((one, b"01234"), (other, b"567"), (one, b"89"))]
    assert begins == [0, 5, 8]
    assert path.read_bytes() == b"0123456789"


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


class TestReplacedFilesKeepWhatTheOperatorSet:
    """The story: chmod on a metrics file held until the next pass, and node_exporter could not read it."""

    def test_mode_owner_and_group_are_kept(self, tmp_path: Path) -> None:
        """Of any file that is replaced, latest.md too; the umask does not count."""
        page = tmp_path / "latest.md"
        page.write_text("old")
        page.chmod(0o664)
        if os.geteuid() == 0:
            os.chown(page, 12, 34)
        before = page.stat()
        replace_file(page, b"new")
        after = page.stat()
        assert page.read_bytes() == b"new"
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
        assert after.st_ino != before.st_ino

    @pytest.mark.parametrize(("mode", "expected"), [(None, 0o640), (0o644, 0o644)])
    def test_a_new_file_has_the_mode_that_is_asked_for(self, tmp_path: Path, mode: int | None, expected: int) -> None:
        """Under the unit's umask of 0027, which only the default mode heeds."""
        before = os.umask(0o027)
        try:
            replace_file(tmp_path / "new", b"", mode=mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == expected

    def test_a_link_is_replaced_and_gives_nothing(self, tmp_path: Path) -> None:
        """Its own mode is no mode that anybody set."""
        (tmp_path / "elsewhere").write_text("kept")
        (tmp_path / "page").symlink_to(tmp_path / "elsewhere")
        replace_file(tmp_path / "page", b"new")
        assert not (tmp_path / "page").is_symlink()
        assert stat.S_IMODE((tmp_path / "page").stat().st_mode) & 0o137 == 0
        assert (tmp_path / "elsewhere").read_text() == "kept"
