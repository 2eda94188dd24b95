"""Lines on their way to an export: in order, whatever their number; in memory while they are few."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilld.files import spool as module
from distilld.files.spool import LineSpool, SharedFile, SpoolError
from tests.support.builders import PROPERTY


@PROPERTY
@given(st.lists(st.binary(max_size=30), max_size=40), st.integers(0, 200))
def test_lines_come_out_as_they_went_in(lines: list[bytes], memory_bytes: int) -> None:
    """However many are kept in the file; rows and bytes are counted, and they can be read again."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(module, "MEMORY_BYTES", memory_bytes)
        spool = LineSpool(Path(folder))
        for number, line in enumerate(lines, 1):
            spool.add(line)
            if number == len(lines) // 2:
                assert b"".join(spool.blocks()) == b"".join(lines[:number])
        for _ in range(2):
            assert b"".join(spool.blocks()) == b"".join(lines)
        assert (spool.rows, spool.bytes) == (len(lines), len(b"".join(lines)))
        spool.close()


def test_few_lines_make_no_file(tmp_path: Path) -> None:
    """The folder need not even exist."""
    spool = LineSpool(tmp_path / "nowhere")
    spool.add(b"x" * 1000)
    assert list(spool.blocks()) == [b"x" * 1000]
    spool.close()


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash leaves nothing behind, and closing gives the descriptor back."""
    monkeypatch.setattr(module, "MEMORY_BYTES", 1)
    before = len(os.listdir("/proc/self/fd"))
    spool = LineSpool(tmp_path)
    spool.add(b"xx")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert list(tmp_path.iterdir()) == []
    spool.close()
    spool.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shared_file_is_open_until_its_last_user_lets_go(tmp_path: Path) -> None:
    """It is closed then, and gives its descriptor back."""
    file = SharedFile(tmp_path)
    users = [file.share() for _ in range(3)]
    users.pop().close()
    users.pop().close()
    assert not file.closed
    users.pop().close()
    assert file.closed


def test_what_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is gone, a full disk: an error for operators that names the folder.

    The story: the OSError of the temporary file came through as if it were a bug.
    """
    monkeypatch.setattr(module, "MEMORY_BYTES", 1)
    spool = LineSpool(tmp_path / "gone")
    with pytest.raises(SpoolError, match=r"cannot keep a temporary file in .*gone: No such file") as raised:
        spool.add(b"xx")
    assert raised.value.hint
    full = LineSpool(tmp_path)
    full.add(b"xx")
    assert full._file is not None
    full._file.close()
    full._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115  closed by close()
    with pytest.raises(SpoolError, match="No space left on device"):
        full.add(b"xx")
    full.close()
