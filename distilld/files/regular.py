"""Files that are only looked at: a link is not followed, a FIFO is not waited for, and both are named errors.

The configuration may be reached by a link: it is the operator's own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: Path, *, follow_link: bool = False) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: There is none, it is something else, or the system refuses; the error holds the path.
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


def is_there(path: Path) -> bool:
    """Whether anything stands at a path, be it a link that leads nowhere.

    Raises:
        OSError: The system does not say.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def owned(path: Path | str | None) -> str:
    """Whose a file is that this process may not write, as the end of a message; empty where it may, or there is none.

    After one run as root, say, a service meets files that are not its own.
    """
    try:
        if path is None or os.access(path, os.W_OK):
            return ""
        status = os.stat(path)
    except OSError:
        return ""
    owner = user_name(status.st_uid)
    return (
        f"; it belongs to {owner} (mode {stat.S_IMODE(status.st_mode):04o}), and this runs as {user_name(os.geteuid())}"
    )


def user_name(number: int) -> str:
    """A user by name, or by number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def read_regular(path: Path, *, follow_link: bool = False) -> bytes:
    """All that stands in a regular file.

    Raises:
        OSError: As :func:`open_regular`.
    """
    with open_regular(path, follow_link=follow_link) as file:
        return file.read()


def committed_lines(path: Path, length: int) -> Iterator[bytes]:
    """The lines of an export up to its committed length, for who reads beside a writer.

    Raises:
        OSError: As :func:`open_regular`.
    """
    with open_regular(path) as file:
        yield from lines_up_to(file, length)


def lines_up_to(file: BinaryIO, length: int) -> Iterator[bytes]:
    """The lines from where an open file stands, as many as fit into ``length`` bytes."""
    for line in file:
        length -= len(line)
        if length < 0:
            return
        yield line
