"""What is asked of the published withdrawals costs what it concerns, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from distilld.core.model import Dataset
from distilld.store.connection import Store
from distilld.store.decisions import PublishedWithdrawal
from distilld.store.queries import Views
from distilld.store.run_queries import Stories
from distilld.store.withdrawals import Withdrawals
from tests.support.query_plans import counted_steps

MANY = 2000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with closing(Store.open(tmp_path / "distilld.db", tmp_path)) as store, store.transaction():
        yield store


def withdrawal(number: int, run_id: str, dataset: Dataset = Dataset.RAG) -> PublishedWithdrawal:
    """What left in the millisecond ``number``."""
    is_pair = dataset is Dataset.PREFERENCE
    at = f"2026-04-27T00:{number // 60_000:02}:{number // 1000 % 60:02}.{number % 1000:03}Z"
    sample_id = f"{dataset}-{number:016x}"
    return PublishedWithdrawal(
        dataset, sample_id, None if is_pair else run_id, run_id if is_pair else None,
        f"other {run_id}" if is_pair else None, "revoked", False, None, None, at, at,
    )  # fmt: skip


def test_withdrawals_of_a_run_are_found_by_it(store: Store) -> None:
    """Those of other runs are not read, of rows or of pairs."""
    some = [withdrawal(1, "mine"), *(withdrawal(at, "mine", Dataset.PREFERENCE) for at in (2, 3))]
    Withdrawals(store).add(some, [])
    steps = []
    for more in (range(10), range(10, MANY)):
        others = [withdrawal(at, f"run {at}", dataset) for at in more for dataset in Dataset]
        Withdrawals(store).add(others, [])
        with counted_steps(store.connection) as counted:
            for side in ("mine", "other mine"):
                assert len(Stories(store).withdrawals(side)) == (3 if side == "mine" else 2)
        steps += counted
    assert steps[1] < steps[0] * 2


def test_withdrawals_since_a_time_do_not_read_older_ones(store: Store) -> None:
    """The newest are found from the end."""
    steps = []
    for older in (range(10), range(10, MANY)):
        Withdrawals(store).add([withdrawal(at, f"run {at}") for at in older], [])
        last = older[-1]
        with counted_steps(store.connection) as counted:
            count, found = Views(store).withdrawals_since(withdrawal(last - 3, "").withdrawn_at, 2)
        assert (count, [each.source_run_id for each in found]) == (3, [f"run {last - 1}", f"run {last}"])
        steps += counted
    assert steps[1] < steps[0] * 2


def test_withdrawals_from_before_the_store_are_listed_by_their_times(store: Store) -> None:
    """They were taken in dataset by dataset; the newest are those that left last."""
    for number, dataset in ((1, Dataset.SFT), (3, Dataset.SFT), (2, Dataset.RAG), (4, Dataset.RAG)):
        Withdrawals(store).add([withdrawal(number, f"run {number}", dataset)], [])
    store.connection.execute("UPDATE withdrawals SET withdrawal_id = withdrawal_id - 4")
    Withdrawals(store).add([withdrawal(5, "run 5")], [])
    for since, expected in ((0, [1, 2, 3, 4, 5]), (2, [3, 4, 5]), (4, [5]), (5, [])):
        count, found = Views(store).withdrawals_since(withdrawal(since, "").withdrawn_at, None)
        assert (count, [each.source_run_id for each in found]) == (len(expected), [f"run {each}" for each in expected])
    _, newest = Views(store).withdrawals_since(withdrawal(0, "").withdrawn_at, 3)
    assert [each.source_run_id for each in newest] == ["run 3", "run 4", "run 5"]
