"""The published withdrawals, for queries and to restore a damaged log from (SPEC 3.9)."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Final

import orjson

from distilld.core.model import Dataset
from distilld.store.decisions import PublishedWithdrawal
from distilld.store.statements import Statements

WITHDRAWAL: Final = ", ".join(PublishedWithdrawal._fields)
"""The columns of ``withdrawals`` but its number."""


class Withdrawals(Statements):
    """Stores the published withdrawals."""

    def of(self, dataset: Dataset) -> Generator[PublishedWithdrawal, None, None]:
        """Yield all withdrawals from a dataset, in the order in which they were published."""
        rows = self._run(
            f"SELECT {WITHDRAWAL} FROM withdrawals WHERE dataset = ? ORDER BY withdrawal_id", (dataset.value,)
        )
        yield from map(_published, rows)

    def lost_ids(self, dataset: str) -> list[str]:
        """Return the ids of the rows that a damaged dataset lost for good."""
        return self._column("SELECT DISTINCT id FROM withdrawals WHERE dataset = ? AND cause = 'lost'", dataset)

    def repeated(self, published: Iterable[PublishedWithdrawal]) -> dict[int, PublishedWithdrawal]:
        """Return earlier withdrawals that these repeat, by number: they differ only in batches and places."""
        said = {_what_it_says(each) for each in published}
        rows = self._run(
            f"SELECT {WITHDRAWAL}, withdrawal_id FROM withdrawals INDEXED BY withdrawals_by_id"
            " WHERE id IN (SELECT value FROM json_each(?))",
            (orjson.dumps(sorted({what[0] for what in said})).decode(),),
        )
        known = ((row[-1], _published(row[:-1])) for row in rows)
        return {number: each for number, each in known if _what_it_says(each) in said}

    def add(self, published: Iterable[PublishedWithdrawal], repeated: Iterable[int]) -> None:
        """Store published withdrawals, and delete those that they repeat."""
        self._many(
            f"INSERT INTO withdrawals ({WITHDRAWAL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            map(columns_of, published),
        )
        # Delete them last, so that no number is given twice: readers ask what came after a number.
        self._many("DELETE FROM withdrawals WHERE withdrawal_id = ?", [(number,) for number in repeated])


def columns_of(each: PublishedWithdrawal) -> tuple[Any, ...]:
    """Return a withdrawal as the store has it."""
    return (*each[:7], orjson.dumps(each.verdict).decode() if each.verdict is not None else None, *each[8:])


def _what_it_says(each: PublishedWithdrawal) -> tuple[Any, ...]:
    return (*each[1:7], each.verdict["category"] if each.verdict else None)


def _published(row: tuple[Any, ...]) -> PublishedWithdrawal:
    dataset, id_, source, chosen, rejected, cause, replaced, verdict, *batches = row
    told = orjson.loads(verdict) if verdict else None
    return PublishedWithdrawal(Dataset(dataset), id_, source, chosen, rejected, cause, bool(replaced), told, *batches)
