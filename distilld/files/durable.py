"""Bytes and names that outlast a kill and a power cut: the few calls that every durable write is made of.

What a call here has done when it returns is on the disk; cut off in the middle, it may be made again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_NOT_PERMITTED: Final = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
"""What says that an owner or a mode cannot be had here: EINVAL, that the user namespace has no number for the owner."""

FOLDER_MODE: Final = 0o750
FILE_MODE: Final = 0o640
_PRIVATE_MODE: Final = 0o600
_GROUP_MODE: Final = 0o060


def make_private(descriptor: int) -> None:
    """Close a file of ours to everybody but this user, and this user's own group where the umask lets it write.

    Who may only read a file can hold its locks, so nobody may only read it. Another's file is left as it is.
    """
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        return
    # By this name it works on a descriptor of O_PATH, too.
    path = f"/proc/self/fd/{descriptor}"
    is_own_group = status.st_gid == os.getegid()
    if not is_own_group:
        # A folder that hands its group on (setgid) gave the file a group of readers.
        with suppress(OSError):
            os.chown(path, -1, os.getegid())
            is_own_group = True
    mode = _PRIVATE_MODE | _GROUP_MODE if is_own_group and _group_may_write() else _PRIVATE_MODE
    if stat.S_IMODE(status.st_mode) != mode:
        os.chmod(path, mode)


def make_private_again(path: Path) -> None:
    """Make a file private that an older version, or somebody's umask, left open to others."""
    with suppress(FileNotFoundError):
        # To close any other descriptor of a database would end SQLite's locks in this process.
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            make_private(descriptor)
        finally:
            os.close(descriptor)


def _group_may_write() -> bool:
    umask = os.umask(0o077)
    os.umask(umask)
    return not umask & _GROUP_MODE


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; the entries of those that it made last."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    sync_folder(folder.parent)


def open_in_folder(path: Path, flags: int, mode: int = FILE_MODE) -> int:
    """Open a file of ours; neither it nor the folder that holds it may be a link."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.open(path.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
    finally:
        os.close(folder)


def rename_in_folder(old: Path, new: Path) -> None:
    """Rename a file of ours within its folder, which may be no link."""
    folder = os.open(new.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.rename(old.name, new.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that its entries last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_up(folder: Path, root: Path) -> None:
    """fsync a folder and those above it, up to ``root``: a kill may have come between making one and its fsync."""
    sync_folder(folder)
    while folder not in {root, folder.parent}:
        folder = folder.parent
        sync_folder(folder)


def write_all(descriptor: int, block: bytes) -> None:
    """Write a whole block where the descriptor stands, however many calls that takes."""
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: Path, content: bytes, *, mode: int | None = None, lasting: bool = True) -> None:
    """Put a file with this content in place of ``path``, which holds the old or the new content at any moment.

    It keeps the mode, owner and group of the file that it replaces, each where permitted. A new one has ``mode``,
    whatever the umask, or else FILE_MODE under the umask. With ``lasting`` false a power cut may lose it.
    The temporary file beside it has a name of its own, so a second try takes the place of one that was cut off.
    """
    temp = path.with_name(f".{path.name}.tmp")
    temp.unlink(missing_ok=True)
    descriptor = open_in_folder(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        if (before := _regular(path)) is not None:
            take_after(descriptor, before)
        elif mode is not None:
            with _where_permitted():
                os.fchmod(descriptor, mode)
        write_all(descriptor, content)
        if lasting:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    rename_in_folder(temp, path)
    if lasting:
        sync_folder(path.parent)


def _regular(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        return status if stat.S_ISREG(status.st_mode) else None
    return None


def take_after(descriptor: int, status: os.stat_result) -> None:
    """Give a file the owner, the group and the mode of another, each where permitted (SPEC 3.10)."""
    new = os.fstat(descriptor)
    if new.st_uid != status.st_uid:
        with _where_permitted():
            os.fchown(descriptor, status.st_uid, -1)
    if new.st_gid != status.st_gid:
        with _where_permitted():
            os.fchown(descriptor, -1, status.st_gid)
    # Last, because a change of owner clears some bits.
    with _where_permitted():
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


@contextmanager
def _where_permitted() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_PERMITTED:
            raise
