"""Open or copy a state store for readers; this needs only read permission and leaves no trace.

SQLite reads a store in WAL mode through two files next to it, ``-wal`` and ``-shm``. If they are missing and cannot be
created (no write permission, a read-only mount), the files are read directly: in place if the log is empty, else from a
copy of store and log. SQLite takes no lock then, so the files' stat facts show whether a writer changed them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distilld.core.model import OperatorError
from distilld.core.remedies import remedy_of

PATIENCE_SECONDS: Final = 5
_ATTEMPTS: Final = 5
WAL: Final = "-wal"
SIDES: Final = ("", WAL, "-shm")
"""What follows the store's name in the names of its three files."""
_NOT_THROUGH_THE_LOG: Final = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})

Facts = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(slots=True)
class ReadOnly:
    """A read-only connection; ``facts`` are the stat facts of a store that is read without locks."""

    path: Path
    connection: sqlite3.Connection
    kept: ExitStack
    facts: Facts | None = None

    def moved(self) -> bool:
        """Return whether a writer changed the store while it was read without locks, so that the data may be torn."""
        return self.facts is not None and file_facts(self.path) != self.facts

    def close(self) -> None:
        """Close the connection, and delete a copy."""
        self.connection.close()
        self.kept.close()


def open_read_only(path: Path) -> ReadOnly:
    """Open an existing store for reading, with or without a running writer.

    Raises:
        sqlite3.Error: SQLite cannot read it.
        OSError: The copy cannot be made.
    """
    connection = _connect(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        code = (error.sqlite_errorcode or 0) & 0xFF
        if code not in _NOT_THROUGH_THE_LOG or not os.access(path, os.R_OK):
            raise
        return _as_it_lies(path, error)
    except BaseException:
        connection.close()
        raise
    return ReadOnly(path, connection, ExitStack())


def _as_it_lies(path: Path, refused: sqlite3.OperationalError) -> ReadOnly:
    for _ in range(_ATTEMPTS):
        before = file_facts(path)
        wal = before[1]
        if wal is None or wal[1] == 0:
            return ReadOnly(path, _connect(path, "immutable=1"), ExitStack(), before)
        with ExitStack() as kept:
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="distilld-reading-"))
            copy = Path(folder) / path.name
            for suffix in ("", WAL):
                shutil.copyfile(beside(path, suffix), beside(copy, suffix))
            if file_facts(path) == before:
                return ReadOnly(path, _connect(copy, "mode=rw"), kept.pop_all())
    raise refused


def file_facts(path: Path) -> Facts:
    """Return the stat facts of a store's two files; different facts mean that it was written to."""
    return tuple(_facts(beside(path, suffix)) for suffix in ("", WAL))


def copy_store(source: Path, target: Path, *, writer_runs: bool) -> None:
    """Copy the existing store at ``source`` to ``target``, which does not exist yet.

    While a writer runs, the copy is one committed state. Otherwise the files are copied as they are, because even an
    SQLite reader would touch the ``-shm`` file. The caller makes sure that no writer starts meanwhile.

    Raises:
        OperatorError: The store cannot be read, or the copy cannot be written.
    """
    try:
        if writer_runs:
            with closing(open_read_only(source)) as reader, closing(sqlite3.connect(target)) as copy:
                reader.connection.backup(copy)
            return
        shutil.copyfile(source, target)
        if (wal := beside(source, WAL)).exists():
            shutil.copyfile(wal, beside(target, WAL))
    except (OSError, sqlite3.DatabaseError) as error:
        raise OperatorError(
            f"cannot copy the state store {source} to {target}: {getattr(error, 'strerror', None) or error}",
            hint=remedy_of(error),
        ) from error


def _connect(path: Path, how: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=PATIENCE_SECONDS)


def beside(path: Path, suffix: str) -> Path:
    """Return the path of one of the store's files."""
    return path.with_name(path.name + suffix)


def _facts(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
