"""How the parts of the store run their statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from distilld.store.connection import Store

ASKED_AT_ONCE: Final = 200
"""The most texts that one statement takes."""
_ASKED: Final = f"WITH asked (value) AS (VALUES {', '.join(['(?)'] * ASKED_AT_ONCE)})"


def array(numbers: Iterable[int]) -> str:
    """Return numbers as a statement takes them for ``json_each``."""
    return f"[{','.join(map(str, numbers))}]"


class Statements:
    """Runs statements on the store's connection; the base of each part of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._run = store.connection.execute
        self._many = store.connection.executemany

    def _number(self, query: str, *values: object) -> int:
        """Return the number that a query selects."""
        return int(self._run(query, values).fetchone()[0])

    def _holds(self, condition: str, *values: object) -> bool:
        """Return whether an SQL condition holds."""
        return bool(self._run(f"SELECT {condition}", values).fetchone()[0])

    def _column(self, query: str, *values: object) -> list[Any]:
        """Return the only column that a query selects."""
        return [value for (value,) in self._run(query, values)]

    def _ask(self, query: str, texts: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Yield what a query selects for many texts, which it finds in table ``asked``, beside NULL.

        Its form is constant, so that SQLite prepares it only once. SQLite's JSON would cut a text at a NUL.
        """
        for start in range(0, len(texts), ASKED_AT_ONCE):
            some = texts[start : start + ASKED_AT_ONCE]
            yield from self._run(f"{_ASKED} {query}", [*some, *[None] * (ASKED_AT_ONCE - len(some))]).fetchall()

    def _stage(self, table: str, form: str, *values: object) -> None:
        """Make an empty temporary table, whatever a failed pass left in it; ``form`` is the SQL after its name.

        It is never dropped: each change of the temporary tables has SQLite prepare all statements again.
        """
        self._run(f"CREATE TEMP TABLE IF NOT EXISTS {table} {form}", values)
        self._unstage(table)

    def _stage_rows(self, table: str, query: str, *values: object) -> None:
        """Make a temporary table of the rows that a query selects."""
        self._stage(table, f"AS {query} LIMIT 0", *values)
        self._run(f"INSERT INTO temp.{table} {query}", values)

    def _unstage(self, *tables: str) -> None:
        """Empty temporary tables."""
        for table in tables:
            self._run(f"DELETE FROM temp.{table}")
