"""Sets files aside that were found in place of an export, for people and for restoring; keeps a few per export.

Each export has one temporary name; a copy is renamed when it is complete. So retries on a full disk use no more space,
and a kill leaves at most one incomplete file, which the next try removes.
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
from typing import BinaryIO, Final

from distilld.files.durable import FOLDER_MODE, make_folder, open_in_folder, sync_folder, take_after
from distilld.files.regular import open_regular, regular_stat

COPIES_KEPT: Final = 5
BLOCK_BYTES: Final = 1 << 20
_STAMP: Final = re.compile(r"[0-9][0-9TZ.-]*")
"""What follows ``name-`` in a backup's name; all other files in the folder are foreign."""

Needed = Callable[[Path], bool]
"""Returns whether a backup holds content that is nowhere else."""


def copy_aside(path: Path, folder: Path, name: str, stamp: str, needed: Needed = lambda _: False) -> Path:
    """Copy a file to ``name-stamp`` in ``folder``, unless the newest copy has the same bytes; return the copy.

    Raises:
        OSError: The copy failed; ``folder`` holds no more than before.
    """
    _make_own(folder)
    newest = _copies(folder, name)[-1:]
    if newest and _same_bytes(newest[0], path):
        return newest[0]
    _thin_out(folder, name, needed)
    target = _free(folder, name, stamp)
    _make(path, target, name)
    return target


def move_aside(path: Path, folder: Path, name: str, stamp: str, needed: Needed = lambda _: False) -> Path | None:
    """Move a path that no reader has open to ``name-stamp`` in ``folder``; return its new path.

    From another file system, a file, a link or a folder is copied and removed. Anything else has no content to keep:
    it is removed, and None is returned.

    Raises:
        OSError: The move failed.
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
    """Return the copies of one export, the newest last."""
    start = f"{name}-"
    return sorted(
        each for each in folder.iterdir() if each.name.startswith(start) and _STAMP.fullmatch(each.name[len(start) :])
    )


def _free(folder: Path, name: str, stamp: str) -> Path:
    """Return an unused path: an export may be set aside twice within a millisecond."""
    target, number = folder / f"{name}-{stamp}", 1
    while os.path.lexists(target):
        number += 1
        target = folder / f"{name}-{stamp}-{number}"
    return target


def _thin_out(folder: Path, name: str, needed: Needed) -> None:
    """Make room for one more copy: remove the oldest ones, and keep the newest in case the next copy fails.

    Copies that are ``needed`` are removed last. A copy that cannot be removed stays: one copy too many is no reason to
    restore nothing.
    """
    copies = _copies(folder, name)
    if len(copies) < COPIES_KEPT:
        return
    for old in sorted(copies, key=needed)[: len(copies) + 1 - COPIES_KEPT]:
        with suppress(OSError):
            _remove(old)


def _make(source: Path, target: Path, name: str) -> None:
    """Copy ``source`` to ``target``, completely or not at all."""
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
    """Copy a file, a link, or a folder with its content; skip anything else."""
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
            _copy_content(old, new)
            new.flush()
            os.fsync(new.fileno())


def _copy_content(old: BinaryIO, new: BinaryIO) -> None:
    """Copy the bytes; a block of NUL bytes becomes a hole, so a sparse file takes no more room than it did."""
    while block := old.read(BLOCK_BYTES):
        if block.count(0) == len(block):
            new.seek(len(block), os.SEEK_CUR)
        else:
            new.write(block)
    new.truncate()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _same_bytes(one: Path, other: Path) -> bool:
    """Return whether ``one`` is a regular file with the bytes of the file ``other``."""
    status = regular_stat(one)
    if status is None or status.st_size != other.stat().st_size:
        return False
    with open_regular(one) as first, open_regular(other) as second:
        while block := first.read(BLOCK_BYTES):
            if block != second.read(BLOCK_BYTES):
                return False
        return not second.read(1)
