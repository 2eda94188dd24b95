"""How SQLite goes about what it was asked: for tests that work follows what changed, not what there is."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_EXCEPTIONS = "retained_pairs|half_judged_rows"
"""Indexes that hold only what is retained, or waits because it lost an outcome."""

_ROWS = "(scored_rows|evidence_rows|pairs|s|e)"
"""``s`` and ``e`` are how every query calls the scored rows and the evidence rows."""
_WHOLE = re.compile(rf"SCAN {_ROWS}\b(?!.* ({_EXCEPTIONS})\b)|SEARCH {_ROWS} USING AUTOMATIC|SCAN retained_rows$")
_SCAN = re.compile(r"SCAN (?!CONSTANT ROW|\()")


@contextmanager
def counted_steps(connection: sqlite3.Connection) -> Iterator[list[int]]:
    """Count the steps of SQLite's virtual machine in the block: the same on every machine."""
    steps = [0]

    def count() -> None:
        steps[0] += 1

    connection.set_progress_handler(count, 1)
    try:
        yield steps
    finally:
        connection.set_progress_handler(None, 0)


def whole_scans(connection: sqlite3.Connection, statements: Iterable[str]) -> list[str]:
    """The steps of these statements that read a table of rows from its beginning to its end, or any table for each row."""
    return [
        f"{step}: {statement}"
        for statement in statements
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))
        for step, for_each_row in _plan(connection, statement)
        if _WHOLE.match(step) or (for_each_row and _SCAN.match(step))
    ]


def _plan(connection: sqlite3.Connection, statement: str) -> list[tuple[str, bool]]:
    """The steps of a statement; of each, whether it belongs to a subquery that runs once for each row."""
    try:
        steps = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        # A temporary table of the pass: it held what changed, and is gone.
        return []
    within = {0: False}
    for number, parent, _, step in steps:
        within[number] = within[parent] or step.startswith("CORRELATED")
    return [(step, within[parent]) for _, parent, _, step in steps]
