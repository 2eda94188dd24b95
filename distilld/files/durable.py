"""File operations that survive a kill and a power cut: every durable write uses these functions.

When a function returns, its effect is on the disk; if it was interrupted, it can be called again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from distilld.files.regular import regular_stat

Descriptor = TypeVar("Descriptor", int, int | None)

_NOT_PERMITTED: Final = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of a forbidden change of owner or mode; EINVAL: the user namespace does not map the owner."""

FOLDER_MODE: Final = 0o750
FILE_MODE: Final = 0o640
_PRIVATE_MODE: Final = 0o600
_GROUP_MODE: Final = 0o060
_FOLDER_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def closed_after(descriptor: Descriptor) -> Iterator[Descriptor]:
    """Close an open file after the block; None: there is none."""
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def make_private(descriptor: int) -> None:
    """Restrict a file of this user to the user, and to the user's own group if the umask lets the group write.

    Read access is enough to hold a file's locks, so no one gets only read access. Another user's file is not changed.
    """
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        return
    # This path also works for a descriptor with O_PATH.
    path = f"/proc/self/fd/{descriptor}"
    is_own_group = status.st_gid == os.getegid()
    if not is_own_group:
        # The setgid bit of a folder gives a new file the folder's group, which may be one of readers.
        with suppress(OSError):
            os.chown(path, -1, os.getegid())
            is_own_group = True
    mode = _PRIVATE_MODE | _GROUP_MODE if is_own_group and _group_may_write() else _PRIVATE_MODE
    if stat.S_IMODE(status.st_mode) != mode:
        os.chmod(path, mode)


def make_private_again(path: Path) -> None:
    """Make a file private that an older version, or another umask, left open to others."""
    # O_PATH: closing any other descriptor of a database would release SQLite's locks in this process.
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileNotFoundError), closed_after(os.open(path, flags)) as descriptor:
        make_private(descriptor)


def _group_may_write() -> bool:
    umask = os.umask(0o077)
    os.umask(umask)
    return not umask & _GROUP_MODE


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and fsync the folder that holds each new entry."""
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


def open_in_folder(path: Path, flags: int) -> int:
    """Open a file of distilld; neither it nor its folder may be a link. A pipe in its place does not block."""
    with closed_after(os.open(path.parent, _FOLDER_FLAGS)) as folder:
        return os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE, dir_fd=folder)


def rename_in_folder(old: Path, new: Path) -> None:
    """Rename a file of distilld within its folder, which must not be a link."""
    with closed_after(os.open(new.parent, _FOLDER_FLAGS)) as folder:
        os.rename(old.name, new.name, src_dir_fd=folder, dst_dir_fd=folder)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that its entries are durable."""
    with closed_after(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        os.fsync(descriptor)


def sync_up(folder: Path, root: Path) -> None:
    """fsync a folder and its parents up to ``root``: a kill may have come between making one and its fsync."""
    sync_folder(folder)
    while folder not in {root, folder.parent}:
        folder = folder.parent
        sync_folder(folder)


def write_all(descriptor: int, block: bytes) -> None:
    """Write a whole block at the descriptor's position, in as many calls as needed."""
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def append_all(descriptor: int, block: bytes) -> int:
    """Append a whole block to a file that other processes append to as well; return where it begins."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        start = os.lseek(descriptor, 0, os.SEEK_END)
        write_all(descriptor, block)
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    return start


def replace_file(path: Path, content: bytes, *, mode: int | None = None, lasting: bool = True) -> None:
    """Replace ``path`` atomically: at any moment it has either the old or the new content.

    The new file gets the mode, owner and group of the old one, each if permitted. Without an old file it has ``mode``
    regardless of the umask, or else FILE_MODE under the umask. With ``lasting`` false a power cut may lose it.
    The temporary file in the same folder has a fixed name, so a retry replaces the one of an interrupted try.
    """
    temp = path.with_name(f".{path.name}.tmp")
    temp.unlink(missing_ok=True)
    with closed_after(open_in_folder(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL)) as descriptor:
        if (before := regular_stat(path)) is not None:
            take_after(descriptor, before)
        elif mode is not None:
            with _where_permitted():
                os.fchmod(descriptor, mode)
        write_all(descriptor, content)
        if lasting:
            os.fsync(descriptor)
    rename_in_folder(temp, path)
    if lasting:
        sync_folder(path.parent)


def take_after(descriptor: int, status: os.stat_result) -> None:
    """Give a file the owner, group and mode of another, each if permitted (SPEC 3.10)."""
    new = os.fstat(descriptor)
    if new.st_uid != status.st_uid:
        with _where_permitted():
            os.fchown(descriptor, status.st_uid, -1)
    if new.st_gid != status.st_gid:
        with _where_permitted():
            os.fchown(descriptor, -1, status.st_gid)
    # The mode comes last, because a change of owner clears some of its bits.
    with _where_permitted():
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


@contextmanager
def _where_permitted() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_PERMITTED:
            raise
