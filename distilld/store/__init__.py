"""The state store: one SQLite file, written by one process, read by people (SPEC 4).

This package is the only place that knows SQL. :class:`Store` opens the file and owns its transactions; its parts each
own a group of tables: ``inputs`` (files and the facts of their rows), ``work`` (what must be judged and with what),
``ledger`` (outcomes, exports, batches, receipts), ``views`` (questions that people ask).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlite_utils import Database

from distilld import __version__
from distilld.model import OperatorError, UsageError
from distilld.store.schema import migrations

CACHE_KIB: Final = 24_000
_CORRUPT: Final = ("malformed", "not a database", "disk image", "file is encrypted")


class StoreTooNewError(UsageError):
    """The store was written by a newer distilld; it is left as it is."""


class StoreCorruptError(OperatorError):
    """The file is no usable SQLite database; it is to be set aside and rebuilt."""


class StoreOfOtherRootError(UsageError):
    """A store belongs to one root."""


def is_corruption(error: sqlite3.DatabaseError) -> bool:
    """Whether SQLite says that the file itself is broken, as opposed to busy, full or forbidden."""
    return any(word in str(error) for word in _CORRUPT)


class Store:
    """An open state store."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection
        self.db = Database(connection, execute_plugins=False, strict=True)

    @classmethod
    def open(cls, path: Path, root: Path) -> Store:
        """Open for writing; make or migrate it where needed.

        Raises:
            StoreTooNewError: A newer distilld wrote it.
            StoreOfOtherRootError: It belongs to another root.
            StoreCorruptError: It is no usable database.
        """
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            store = cls(path, sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False))
        except (OSError, sqlite3.OperationalError) as error:
            raise OperatorError(f"cannot open the state store {path}: {error}") from error
        try:
            store._prepare(root)
        except sqlite3.DatabaseError as error:
            store.connection.close()
            if is_corruption(error):
                raise StoreCorruptError(f"the state store {path} is corrupt: {error}") from error
            raise OperatorError(f"cannot open the state store {path}: {error}") from error
        except BaseException:
            store.connection.close()
            raise
        return store

    @classmethod
    def open_readonly(cls, path: Path) -> Store:
        """Open for reading beside a running writer; it must exist and be of this version.

        Raises:
            OperatorError: There is none, or it cannot be read.
        """
        if not path.exists():
            raise OperatorError(f"there is no state store at {path}", hint="run 'distilld run --once' first")
        try:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5
            )
            store = cls(path, connection)
            store._refuse_newer()
            if migrations.pending(store.db):
                raise OperatorError(f"the state store {path} is of an older version", hint="run 'distilld run --once'")
        except sqlite3.DatabaseError as error:
            raise OperatorError(f"cannot read the state store {path}: {error}") from error
        return store

    def _prepare(self, root: Path) -> None:
        pragmas = (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"cache_size = -{CACHE_KIB}",
            "journal_size_limit = 67108864",
        )
        self._refuse_newer()
        for pragma in pragmas:
            self.connection.execute(f"PRAGMA {pragma}")
        if migrations.pending(self.db):
            migrations.apply(self.db)
            self.remember("distilld_version", __version__)
        known = self.recall("root")
        if known is None:
            self.remember("root", str(root))
        elif known != str(root):
            raise StoreOfOtherRootError(
                f"the state store {self.path} belongs to the root {known}, not to {root}",
                hint="give each root its own --state",
            )

    def _refuse_newer(self) -> None:
        ours = {migration.name for migration in migrations.pending(self.db)}
        applied = {migration.name for migration in migrations.applied(self.db)}
        known = ours | {migration.name for migration in migrations._migrations}
        newer = sorted(applied - known)
        if newer:
            version = self.recall("distilld_version")
            raise StoreTooNewError(
                f"the state store {self.path} was written by distilld {version} (it has {newer[-1]}); "
                f"this is distilld {__version__}",
                hint="install the newer distilld again, or give another --state",
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction: all of it or nothing. The lock is taken at once, never in the middle."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            with self.db.atomic():
                yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several reads of one committed state."""
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            self.connection.execute("ROLLBACK")

    def recall(self, name: str) -> str | None:
        """A fact about the lake as a whole, or None."""
        found = self.connection.execute("SELECT value FROM lake WHERE name = ?", (name,)).fetchone()
        return found[0] if found else None

    def remember(self, name: str, value: str | None) -> None:
        """Keep a fact about the lake as a whole."""
        self.connection.execute("INSERT OR REPLACE INTO lake VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Close it so that people can still read it: a reader without write permission needs -wal and -shm to exist."""
        self.connection.close()
        try:
            last = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            last.execute("SELECT count(*) FROM lake").fetchone()
            last.close()
        except sqlite3.DatabaseError:
            pass  # a courtesy to readers; the store itself is closed and whole
