"""Whose turn it is in a batch of rows, and which lines come free in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Cause, Dataset, Options
from distilld.engine.dataset_lines import DatasetLines, FreedLines
from distilld.engine.row_batch import RowBatch
from distilld.store.decisions import Decisions
from distilld.store.work import Recorded


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[RowBatch]:
    """A batch without rows, on a store that is asked nothing."""
    decisions = Decisions.begin(7, "2026-01-01T00:00:00.000Z", tmp_path, {})
    yield RowBatch(Mock(), Options(), decisions, options_changed=False)
    decisions.close()


def test_rows_that_joined_have_their_turn_in_walk_order(batch: RowBatch) -> None:
    """Rows come in walk order and not before their place; one that was judged meanwhile does not come again."""
    for walk in (9, 3, 5, 3):
        batch.join(walk)
    assert batch.next_joined(9) == 3
    batch.done.add(3)
    assert [batch.next_joined(9), batch.next_joined(9), batch.next_joined(10)] == [5, None, 9]


def test_row_that_is_displaced_joins_and_cannot_be_left(batch: RowBatch) -> None:
    """A row whose id another one took is judged in the same batch."""
    batch.displace(4)
    assert (batch.displaced, batch.next_joined(5)) == ({4}, 4)


def test_waiter_that_was_judged_is_passed_over(batch: RowBatch) -> None:
    """An id that came free goes to the first row that waits for it and is yet to be judged."""
    batch.done.add(2)
    batch.work.waiter_after = Mock(side_effect=[2, 6])  # type: ignore[method-assign]
    batch.wake(Dataset.RAG, 1, -1)
    assert batch.next_joined(1 << 62) == 6


def test_free_line_is_taken_over_once_or_leaves(batch: RowBatch) -> None:
    """A line that came free goes to one row; what nobody took leaves the dataset, and is published."""
    lines = FreedLines(batch, DatasetLines(batch.work, Dataset.RAG, batch.out))
    taken, left = Recorded(EXPORTED, b"one", 3), Recorded(EXPORTED, b"other", 4)
    lines.add(1, taken, "run-1", Cause.UNDONE)
    lines.add(2, left, "run-2", Cause.UNDONE)
    assert (lines.take(1), lines.take(1)) == (taken, None)
    lines.finish()
    exported = batch.out.changes[Dataset.RAG].exported
    assert (exported.leaving, exported.leaving_keys) == ({b"other": 1}, {2})
    assert [(each.key, each.cause, each.shipped_batch) for each in batch.out.withdrawals] == [(2, Cause.UNDONE, 4)]
