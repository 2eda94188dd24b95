"""A copy of a state store to work on, taken without leaving a trace on the original."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from distilld.model import OperatorError

_WAL = "-wal"


def copy_store(source: Path, target: Path, *, writer_runs: bool) -> None:
    """Copy the store at ``source``, which exists, to ``target``, which does not.

    Beside a running writer the copy is one committed state. Without one the files are copied as they are: even a
    reader of SQLite's would touch the ``-shm`` file then. The caller makes sure that no writer comes in between.

    Raises:
        OperatorError: The store cannot be read, or the copy not be written.
    """
    try:
        if writer_runs:
            _back_up(source, target)
            return
        shutil.copyfile(source, target)
        if (wal := _beside(source)).exists():
            shutil.copyfile(wal, _beside(target))
    except (OSError, sqlite3.DatabaseError) as error:
        raise OperatorError(f"cannot copy the state store {source} to {target}: {error}") from error


def file_facts(source: Path) -> tuple[tuple[int, int, int, int] | None, ...]:
    """What stat says of the store's two files: another answer means that it was written to."""
    return tuple(_facts(path) for path in (source, _beside(source)))


def _back_up(source: Path, target: Path) -> None:
    reader = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        copy = sqlite3.connect(target)
        try:
            reader.backup(copy)
        finally:
            copy.close()
    finally:
        reader.close()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + _WAL)


def _facts(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
