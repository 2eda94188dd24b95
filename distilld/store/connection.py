"""The state store: one SQLite file, written by one process, read by people (SPEC 4).

This package is the only one with SQL. :class:`Store` opens the file and owns its transactions; ``statements`` has the
base of all parts that use it. Each other module has one subject: ``inputs`` (files), ``scored_rows`` and
``evidence_rows`` (the rows of these files), ``verdicts`` (current verdicts), ``queues`` and ``work`` (what must be
judged, and the facts for it), ``retained`` (retained rows), ``departures`` (lines to be withdrawn), ``ledger``
(outcomes), ``export_records`` (the exports as files), ``receipts`` (batches and their receipts), ``queries`` (questions
of people).
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from distilld import __version__
from distilld.core.model import DistilldError, OperatorError, ProgramError, UsageError
from distilld.core.remedies import remedy_of
from distilld.files.durable import make_folder, make_private_again
from distilld.files.regular import is_there, open_regular, owned
from distilld.store.migrations import MIGRATION_SET, MIGRATIONS, MIGRATIONS_TABLE, migrate
from distilld.store.read_only import SIDES, ReadOnly, beside, open_read_only

_OURS: Final = {each.__name__ for each in MIGRATIONS}
CACHE_KIB: Final = 12_000
CACHED_STATEMENTS: Final = 512
"""More than a pass has, so that each is prepared once in the life of a writer."""
_PATIENCE_MS: Final = 5000
_CHECKPOINT_PATIENCE_MS: Final = 100
_HEADER: Final = b"SQLite format 3\0"
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_REFUSED: Final = frozenset(
    {
        sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS,
    }
)  # fmt: skip
"""SQLite errors whose cause is the system, not the program."""


class StoreTooNewError(UsageError):
    """A newer distilld wrote the store; it is left unchanged."""


class StoreCorruptError(OperatorError):
    """The file is not a usable SQLite database. If it was a store, it must be set aside and rebuilt."""

    hint = (
        "if it is this lake's store, the next run sets it aside and builds it again from the inputs and the exports; "
        "if it is another file, correct --state"
    )


class StoreOutdatedError(StoreCorruptError):
    """The exports were changed without this store; it must be set aside and rebuilt, like a corrupt one."""

    hint = "the next run sets it aside and builds it again from the inputs and the exports"


class StoreOfOtherRootError(UsageError):
    """The store belongs to another root."""


class NotAStoreError(UsageError):
    """The file is not a state store; it is left unchanged."""

    hint = "give --state a file of its own"


class StoreFaultError(OperatorError):
    """The system refused to read or write the store: a full disk, a missing permission, a lock, EIO."""


@contextmanager
def store_faults(path: Path, doing: str) -> Iterator[None]:
    """Convert SQLite errors about the system or the file into ours; errors in statements pass unchanged.

    Raises:
        StoreCorruptError: The file itself is broken.
        StoreFaultError: The system refused.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in _CORRUPT:
            raise StoreCorruptError(f"the state store {path} is corrupt: {error}") from error
        if code in _REFUSED:
            raise StoreFaultError(
                f"cannot {doing} the state store {path}: {error}{owned(path)}", hint=remedy_of(error)
            ) from error
        raise


@contextmanager
def _system_faults(path: Path, doing: str) -> Iterator[None]:
    """Convert an OSError about the store's file into StoreFaultError."""
    try:
        yield
    except OSError as error:
        text = f"cannot {doing} the state store {path}: {error.strerror or error}"
        raise StoreFaultError(text, hint=remedy_of(error)) from error


def _is_unforeseen(error: BaseException) -> bool:
    """Return whether an error shows a bug: a ProgramError, or an Exception that distilld does not raise."""
    return isinstance(error, Exception) and (isinstance(error, ProgramError) or not isinstance(error, DistilldError))


def is_kept(path: Path) -> bool:
    """Return whether a store exists at a path.

    Raises:
        StoreFaultError: The system cannot tell: a folder above it may not be entered.
    """
    with _system_faults(path, "look at"):
        return is_there(path)


def refuse_missing(path: Path) -> None:
    """Raise OperatorError if there is no store yet, for commands that read a store and must not create it."""
    if not is_kept(path):
        raise OperatorError(f"there is no state store at {path}", hint="run 'distilld run --once' first")


def refuse_what_is_no_file(path: Path) -> None:
    """Raise for a path that SQLite would block on or write into: a FIFO, a device, a folder, a one-byte file.

    Raises:
        NotAStoreError: It is not a regular file.
        StoreCorruptError: It is a file of one byte, which SQLite treats as an empty one.
    """
    try:
        status = os.stat(path)
    except OSError:
        return  # there is none yet, or opening it reports why
    if not stat.S_ISREG(status.st_mode):
        raise NotAStoreError(f"the state store {path} is no regular file")
    if status.st_size == 1:
        raise StoreCorruptError(f"the state store {path} is corrupt: file is not a database")


def begins_as_database(path: Path) -> bool:
    """Return whether a file has SQLite's header: then it was a database, even if the rest is damaged.

    Do not call it while this process has the file open as a database: closing it here would end SQLite's locks.
    """
    with suppress(OSError), open_regular(path, follow_link=True) as file:
        return file.read(len(_HEADER)) == _HEADER
    return False


class Form:
    """Checks whether an open database is a store, its root and its version."""

    def __init__(self, store: Store) -> None:
        self._path = store.path
        self._run = store.connection.execute
        self._recall = store.recall

    @property
    def is_current(self) -> bool:
        """Whether it has every migration of this version."""
        return self.migrations() >= _OURS

    def migrations(self) -> set[str]:
        """Return the names of the migrations that it has; none if it is not a store."""
        if MIGRATIONS_TABLE not in self._tables():
            return set()
        asked = f"SELECT name FROM {MIGRATIONS_TABLE} WHERE migration_set = ?"
        return {name for (name,) in self._run(asked, (MIGRATION_SET,))}

    def refuse_unwritable(self, root: Path) -> None:
        """Raise if a writer of ``root`` must not use it: it is foreign, another root's, or of a later version."""
        self._refuse_others()
        if self.migrations():
            self.refuse_other_root(root)

    def refuse_other_root(self, root: Path) -> None:
        """Raise if it is the store of another root."""
        known = self._recall("root")
        if known not in (None, str(root)):
            raise StoreOfOtherRootError(
                f"the state store {self._path} belongs to the root {known}, not to {root}",
                hint="give each root its own --state: a lake that was moved or copied needs a new one",
            )

    def refuse_unreadable(self) -> None:
        """Raise if a reader cannot use it: it is foreign, of a later version, or a writer must finish it first."""
        self._refuse_others()
        if self.is_current:
            return
        hint = "run 'distilld run --once'"
        if not self._tables():
            problem = "is empty"
        elif not self.migrations() or self._recall("root") is None:
            problem = "was cut off while it was made"
        else:
            problem, hint = "is of an older version", f"restart the daemon if one runs, else {hint}"
        raise OperatorError(f"the state store {self._path} {problem}", hint=hint)

    def _refuse_others(self) -> None:
        migrations = self.migrations()
        if not migrations and self._tables() - {MIGRATIONS_TABLE}:
            raise NotAStoreError(f"{self._path} is a database of something else")
        if newer := sorted(migrations - _OURS):
            version = self._recall("distilld_version")
            raise StoreTooNewError(
                f"the state store {self._path} was written by distilld {version} (it has {newer[-1]}); "
                f"this is distilld {__version__}",
                hint="install the newer distilld again, or give another --state",
            )

    def _tables(self) -> set[str]:
        return {name for (name,) in self._run("SELECT name FROM sqlite_master WHERE type = 'table'")}


class Store:
    """An open state store."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection
        self.was_older = False
        """Whether it was migrated from an older version when it was opened."""

    @classmethod
    def open(cls, path: Path, root: Path) -> Store:
        """Open a store for writing; create or migrate it if needed.

        Raises:
            StoreTooNewError: A newer distilld wrote it.
            StoreOfOtherRootError: It belongs to another root.
            NotAStoreError: It is another program's database, or not a regular file.
            StoreCorruptError: It is not a usable database.
            StoreFaultError: The system refused.
        """
        refuse_what_is_no_file(path)
        with _system_faults(path, "open"):
            make_folder(path.parent)
        with store_faults(path, "open"):
            connection = sqlite3.connect(
                path,
                isolation_level=None,
                timeout=_PATIENCE_MS / 1000,
                check_same_thread=False,
                cached_statements=CACHED_STATEMENTS,
            )
            try:
                store = cls(path, connection)
                store._prepare(root)
                store._make_private()
            except BaseException:
                connection.close()
                raise
        return store

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator[Store]:
        """Read one committed state of a store, also while a writer runs; it must exist and be of this version.

        Raises:
            OperatorError: There is none, it cannot be read, or a writer must finish or migrate it first.
            StoreTooNewError: A newer distilld wrote it.
            NotAStoreError: It is another program's database, or not a regular file.
            StoreFaultError: A writer changed it while it was read without a lock, or the system refused.
        """
        refuse_missing(path)
        refuse_what_is_no_file(path)
        with store_faults(path, "read"), _system_faults(path, "read"):
            source = open_read_only(path)
        store = cls(path, source.connection)
        try:
            with store_faults(path, "read"):
                source.connection.execute("BEGIN")
                Form(store).refuse_unreadable()
            with store.faults():
                yield store
        except (sqlite3.Error, DistilldError) as error:
            store._refuse_torn(source, error)
            raise
        else:
            store._refuse_torn(source, None)
        finally:
            source.close()

    def _refuse_torn(self, source: ReadOnly, error: Exception | None) -> None:
        if source.moved():
            problem = f"the state store {self.path} was written to while it was read"
            raise StoreFaultError(problem, hint="run it again") from error

    def _make_private(self) -> None:
        """Make the store and its two side files private; SQLite creates these with the store's mode."""
        with _system_faults(self.path, "protect"):
            for suffix in SIDES:
                make_private_again(beside(self.path, suffix))

    def _prepare(self, root: Path) -> None:
        pragmas = (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"cache_size = -{CACHE_KIB}",
            "journal_size_limit = 67108864",
            # Each checkpoint rewrites pages that the next batch changes again.
            "wal_autocheckpoint = 4000",
            # The store has facts and digests, no text: deleted data need not be overwritten with zeros.
            "secure_delete = OFF",
        )
        form = Form(self)
        form.refuse_unwritable(root)
        for pragma in pragmas:
            self.connection.execute(f"PRAGMA {pragma}")
        if not form.is_current:
            self.was_older = bool(form.migrations())
            migrate(self.connection)
        for name, value in (("distilld_version", __version__), ("root", str(root))):
            if self.recall(name) != value:
                self.remember(name, value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction, all or nothing; the write lock is taken at its start.

        Raises:
            StoreFaultError: The system refused. After a refused COMMIT, only the next commit makes certain that the
                transaction is undone (see ``Recovery.recover``).
        """
        with self.faults():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def faults(self) -> AbstractContextManager[None]:
        """Return a context that converts SQLite errors to StoreFaultError or StoreCorruptError."""
        return store_faults(self.path, "use")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Convert errors as :meth:`faults` does; after an error that shows a bug, check the store's integrity.

        A lost write leaves an old page, which breaks the store's invariants; SQLite reports it only on such a check.

        Raises:
            StoreCorruptError: The check failed.
        """
        try:
            with self.faults():
                yield
        except BaseException as error:
            if _is_unforeseen(error):
                self._refuse_unsound(error)
            raise

    def _refuse_unsound(self, error: BaseException) -> None:
        with self.faults():
            (found,) = self.connection.execute("PRAGMA main.integrity_check(1)").fetchone()
        if found != "ok":
            raise StoreCorruptError(f"the state store {self.path} is corrupt: {' '.join(found.split())}") from error

    def recall(self, name: str) -> str | None:
        """Return a fact about the lake as a whole, or None."""
        found = self.connection.execute("SELECT value FROM lake WHERE name = ?", (name,)).fetchone()
        return found[0] if found else None

    def remember(self, name: str, value: str | None) -> None:
        """Store a fact about the lake as a whole."""
        self.connection.execute("INSERT OR REPLACE INTO lake VALUES (?, ?)", (name, value))

    def checkpoint(self) -> bool:
        """Move the log's content into the file and truncate the log; return whether it is truncated.

        If it is not, a reader still needs the log: try again later.

        Raises:
            StoreFaultError: The system refused.
        """
        with self.faults(), self.patience(_CHECKPOINT_PATIENCE_MS):
            busy, _, _ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    @contextmanager
    def patience(self, milliseconds: int) -> Iterator[None]:
        """Wait up to ``milliseconds`` for another program's lock within the block."""
        self.connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
        try:
            yield
        finally:
            self.connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")

    def close(self) -> None:
        """Close the store but leave -wal and -shm: a reader without write permission needs them."""
        self.connection.close()
        # This read creates both files for readers; the store itself is closed and complete.
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as last,
        ):
            last.execute("SELECT count(*) FROM lake").fetchone()
