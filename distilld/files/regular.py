"""Read regular files: a link is not followed and a FIFO does not block; both are errors that say so."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: Path, *, follow_link: bool = False) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: It does not exist, is not a regular file, or cannot be opened; the error has the path.
    """
    try:
        descriptor = os.open(path, _FLAGS if follow_link else _FLAGS | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_link and path.is_symlink():
            raise OSError(errno.ELOOP, "is a link and is not followed", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def lstat(path: Path) -> os.stat_result | None:
    """Return the stat of a path, without following a link, or None if nothing is there."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def regular_stat(path: Path) -> os.stat_result | None:
    """Return the stat of a regular file, or None if there is none."""
    status = lstat(path)
    return status if status is not None and stat.S_ISREG(status.st_mode) else None


def is_there(path: Path) -> bool:
    """Return whether anything exists at a path, even a broken link.

    Raises:
        OSError: The system cannot tell.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def owned(path: Path | str | None) -> str:
    """Return the owner of a file that this process may not write, as the end of a message; else an empty text.

    Who owns it does not matter on a file system that is read-only.
    For example, after one run as root a service finds files that belong to root.
    """
    try:
        if path is None or os.access(path, os.W_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
            return ""
        status = os.stat(path)
    except OSError:
        return ""
    owner = user_name(status.st_uid)
    return (
        f"; it belongs to {owner} (mode {stat.S_IMODE(status.st_mode):04o}), and this runs as {user_name(os.geteuid())}"
    )


def user_name(number: int) -> str:
    """Return a user's name, or its number if it has none."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: As :func:`open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def without_space(line: bytes) -> bytes:
    """Return a line of an export without the leading spaces that replaced withdrawn rows."""
    return line.lstrip(b" ") if line.startswith(b" ") else line
