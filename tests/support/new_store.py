"""The tables of a new store, copied from one that the migrations made: sixteen migrations take longer than most tests."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from distilld.store.migrations import migrate


def migrate_or_copy() -> Callable[[sqlite3.Connection], None]:
    """What makes an empty database what the migrations make of it, and applies to any other those that it lacks.

    The migrations are done at once, so that nothing depends on which test is the first to make a store.
    """
    made = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    migrate(made)

    def make(connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            migrate(connection)
        else:
            made.backup(connection)

    return make
