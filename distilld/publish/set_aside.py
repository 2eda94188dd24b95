"""What stood in place of an export, kept for people and for restoring: whole or not at all, and only a few of each.

A copy is made under one temporary name for each export, and gets its own when it is whole. So a disk that is full costs
no room however often it is tried again, and a kill leaves one file that the next try takes the place of.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from distilld.files.durable import FOLDER_MODE, make_folder, open_in_folder, sync_folder, take_after
from distilld.files.regular import open_regular

COPIES_KEPT: Final = 5
BLOCK_BYTES: Final = 1 << 20
_STAMP: Final = re.compile(r"[0-9][0-9TZ.-]*")
"""What stands behind ``name-``; whatever else stands in the folder is somebody's own."""

Needed = Callable[[Path], bool]
"""Whether a copy holds what stands nowhere else."""


def _nothing(_: Path) -> bool:
    return False


def copy_aside(path: Path, folder: Path, name: str, stamp: str, needed: Needed = _nothing) -> Path:
    """Copy a file to ``name-stamp`` in ``folder``, or find the newest copy to hold the same bytes; returns the copy.

    Raises:
        OSError: The system refused; ``folder`` holds no more than before.
    """
    _make_own(folder)
    newest = _copies(folder, name)[-1:]
    if newest and _same_bytes(newest[0], path):
        return newest[0]
    _thin_out(folder, name, needed)
    target = _free(folder, name, stamp)
    _make(path, target, name)
    return target


def move_aside(path: Path, folder: Path, name: str, stamp: str, needed: Needed = _nothing) -> Path | None:
    """Move what nobody reads to ``name-stamp`` in ``folder``; returns where it is now.

    From another file system only a file, a link and a folder can be moved, by making them again. All else has no
    content that could be kept: it is removed, and None returned.

    Raises:
        OSError: The system refused.
    """
    _make_own(folder)
    _thin_out(folder, name, needed)
    target = _free(folder, name, stamp)
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        mode = os.lstat(path).st_mode
        kept = stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)
        if kept:
            _make(path, target, name)
        _remove(path)
        sync_folder(path.parent)
        return target if kept else None
    sync_folder(folder)
    return target


def _make_own(folder: Path) -> None:
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a link and is not followed", str(folder))
    make_folder(folder)


def _copies(folder: Path, name: str) -> list[Path]:
    """The copies of one export, the newest last."""
    start = f"{name}-"
    return sorted(
        each for each in folder.iterdir() if each.name.startswith(start) and _STAMP.fullmatch(each.name[len(start) :])
    )


def _free(folder: Path, name: str, stamp: str) -> Path:
    """A name that nothing has yet: an export may be set aside twice within a millisecond."""
    target, number = folder / f"{name}-{stamp}", 1
    while os.path.lexists(target):
        number += 1
        target = folder / f"{name}-{stamp}-{number}"
    return target


def _thin_out(folder: Path, name: str, needed: Needed) -> None:
    """Make room for one more copy; the newest ones stay, for nobody knows yet whether there will be another.

    One that is ``needed`` goes after those that are not. A copy that cannot be removed stays: a copy too many is no
    reason to restore nothing.
    """
    copies = _copies(folder, name)
    if len(copies) < COPIES_KEPT:
        return
    for old in sorted(copies, key=needed)[: len(copies) + 1 - COPIES_KEPT]:
        with suppress(OSError):
            _remove(old)


def _make(source: Path, target: Path, name: str) -> None:
    """Make ``target`` like ``source``, or leave nothing behind."""
    temp = target.with_name(f".{name}.tmp")
    _remove(temp)
    try:
        _copy(source, temp)
        os.rename(temp, target)
    except BaseException:
        with suppress(OSError):
            _remove(temp)
        raise
    sync_folder(target.parent)


def _copy(source: Path, target: Path) -> None:
    """A file, a link, or a folder with what it holds; nothing of what has no content."""
    mode = os.lstat(source).st_mode
    if stat.S_ISREG(mode):
        _copy_file(source, target)
    elif stat.S_ISLNK(mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISDIR(mode):
        target.mkdir(mode=FOLDER_MODE)
        for each in source.iterdir():
            _copy(each, target / each.name)
        sync_folder(target)


def _copy_file(source: Path, target: Path) -> None:
    with open_regular(source) as old:
        descriptor = open_in_folder(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with open(descriptor, "wb") as new:
            take_after(descriptor, os.fstat(old.fileno()))
            shutil.copyfileobj(old, new, BLOCK_BYTES)
            new.flush()
            os.fsync(new.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _same_bytes(one: Path, other: Path) -> bool:
    """Whether ``one`` is a file with the bytes of the file ``other``."""
    status = os.lstat(one)
    if not stat.S_ISREG(status.st_mode) or status.st_size != other.stat().st_size:
        return False
    with open_regular(one) as first, open_regular(other) as second:
        while block := first.read(BLOCK_BYTES):
            if block != second.read(BLOCK_BYTES):
                return False
        return not second.read(1)
