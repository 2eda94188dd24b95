"""Files that are only looked at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from distilld.files.regular import is_there, open_regular, owned, read_regular

KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a FIFO": (os.mkfifo, "is no regular file"),
    "a folder": (Path.mkdir, "is no regular file"),
    "a link": (lambda path: path.symlink_to(path.with_name("file")), "is a link and is not followed"),
    "nothing": (lambda _: None, "No such file or directory"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_an_error_with_a_name(tmp_path: Path, kind: str) -> None:
    """Nothing blocks, and nothing is read through a link."""
    (tmp_path / "file").write_bytes(b"x\n")
    path = tmp_path / "there"
    make, why = KINDS[kind]
    make(path)
    with pytest.raises(OSError, match=why) as error:
        open_regular(path)
    assert Path(error.value.filename) == path


def test_file_is_read_whole(tmp_path: Path) -> None:
    """To its last byte."""
    path = tmp_path / "file"
    path.write_bytes(b"a\nbc\nd")
    assert read_regular(path) == b"a\nbc\nd"


def test_what_the_system_does_not_say_is_not_taken_for_nothing(tmp_path: Path) -> None:
    """A link that leads nowhere is there; a name that cannot be asked for is an error."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert is_there(tmp_path / "link")
    assert not is_there(tmp_path / "nothing")
    assert not is_there(tmp_path / "file" / "below")
    with pytest.raises(OSError, match="File name too long"):
        is_there(tmp_path / ("x" * 300))


@pytest.mark.parametrize(("flags", "names"), [(os.ST_RDONLY, False), (0, True)])
def test_owner_is_told_unless_nobody_may_write_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, names: bool
) -> None:
    """On a read-only file system another owner would change nothing."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    assert ("belongs to" in owned(tmp_path)) == names
