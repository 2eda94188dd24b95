"""Copy a store without changing the original, and set a corrupt store aside."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from distilld.core.model import OperatorError
from distilld.core.remedies import remedy_of
from distilld.files.durable import FILE_MODE, sync_folder, take_after
from distilld.store.read_only import SIDES, WAL, beside, open_read_only

COPIES_KEPT: Final = 5


def copy_store(source: Path, target: Path, *, writer_runs: bool) -> None:
    """Copy the existing store at ``source`` to ``target``, which does not exist yet.

    While a writer runs, the copy is one committed state. Otherwise the files are copied as they are, because even an
    SQLite reader would touch the ``-shm`` file. The caller makes sure that no writer starts meanwhile.

    Raises:
        OperatorError: The store cannot be read, or the copy cannot be written.
    """
    try:
        if writer_runs:
            _back_up(source, target)
            return
        shutil.copyfile(source, target)
        if (wal := beside(source, WAL)).exists():
            shutil.copyfile(wal, beside(target, WAL))
    except (OSError, sqlite3.DatabaseError) as error:
        raise OperatorError(
            f"cannot copy the state store {source} to {target}: {getattr(error, 'strerror', None) or error}",
            hint=remedy_of(error),
        ) from error


def set_store_aside(path: Path, stamp: str) -> Path:
    """Move a store and its side files to names with a stamp that sorts by time; keep at most five copies.

    Leave an empty file in its place, so that the next store has the same mode, owner and group.

    Raises:
        OperatorError: The system refused.
    """
    aside = f"{path.name}.corrupt-"
    try:
        for suffix in SIDES:
            source = beside(path, suffix)
            if source.exists():
                source.rename(path.with_name(f"{aside}{stamp}{suffix}"))
        if (like := path.with_name(aside + stamp)).exists():
            _leave_empty(path, like)
        copies = [each for each in path.parent.iterdir() if each.name.startswith(aside)]
        stamps = sorted({each.name[len(aside) :][: len(stamp)] for each in copies})
        for each in copies:
            if each.name[len(aside) :][: len(stamp)] in stamps[:-COPIES_KEPT]:
                each.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise OperatorError(
            f"cannot set the corrupt state store {path} aside: {error.strerror or error}", hint=remedy_of(error)
        ) from error
    return path.with_name(aside + stamp)


def _leave_empty(path: Path, like: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        take_after(descriptor, os.stat(like))
    finally:
        os.close(descriptor)


def _back_up(source: Path, target: Path) -> None:
    with closing(open_read_only(source)) as reader, closing(sqlite3.connect(target)) as copy:
        reader.connection.backup(copy)
