"""The chain of a lake's own receipts, as verify and 'distilld receipts' check it."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilld.core.model import OperatorError
from distilld.files import regular
from distilld.inspection.receipt_chain import checked_receipts
from distilld.inspection.verify import verify
from distilld.publish import receipt_files
from distilld.store.queries import reading
from tests.support.history_lake import A, HistoryLake, history_lake, run


def grow(lake: HistoryLake, batches: int) -> None:
    """Commit so many batches."""
    for _ in range(batches):
        lake.both(A, *(run(f"r{number}") for number in range(len(lake.rows("rag")) + 1)))
        lake.go()


def states_of(lake: HistoryLake) -> list[str]:
    """What is said of each receipt that is kept."""
    with reading(lake.state, lake.root) as store:
        return [each.state for each in checked_receipts(store, lake.root)]


def test_receipt_that_is_retired_meanwhile_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that commits beside verify removes the oldest receipts; those of them that are gone were not lost."""
    with history_lake(tmp_path) as lake:
        grow(lake, 5)
        real, left = regular.read_regular, [0]

        def read_later(path: Path) -> bytes:
            if left:
                left.clear()
                lake.restart(receipts_keep=2)
                grow(lake, 1)
            return real(path)

        monkeypatch.setattr("distilld.inspection.receipt_chain.read_regular", read_later)
        assert not verify(lake.root, lake.state, lake.options).faults
        assert not left
        assert states_of(lake) == ["ok", "ok"]


def test_receipt_that_is_about_to_be_removed_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store forgets a receipt before its file goes, and removes the file at the next start if that failed."""
    with history_lake(tmp_path) as lake:
        grow(lake, 3)
        removed = receipt_files.remove_receipts

        def fail_afterwards(root: Path, batch_ids: list[str]) -> None:
            removed(root, batch_ids[:1])
            raise OperatorError("the disk is gone")

        lake.restart(receipts_keep=1)
        with monkeypatch.context() as patch:
            patch.setattr(receipt_files, "remove_receipts", fail_afterwards)
            with pytest.raises(OperatorError):
                lake.engine.committer.recover()
            assert states_of(lake) == ["ok"]
        lake.restart()
        lake.go()
        assert len(list((lake.root / "reports/distillation").glob("*/receipt.json"))) == 1


def test_lost_receipt_is_a_fault_beside_retired_ones(tmp_path: Path) -> None:
    """Only what the store no longer keeps may be missing."""
    with history_lake(tmp_path) as lake:
        lake.restart(receipts_keep=3)
        grow(lake, 5)
        min((lake.root / "reports/distillation").glob("*/receipt.json")).unlink()
        assert states_of(lake) == ["ok", "ok", "missing"]
