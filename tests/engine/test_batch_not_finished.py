"""A batch that is committed counts, even if an export is found damaged while it is finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilld.publish.commit import Committer
from distilld.publish.reading import ExportTamperedError
from tests.support.history_lake import A, B, C, history_lake, run

ROWS_OF_A_PARTITION = 2


def test_committed_batch_counts_though_finishing_it_finds_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result has all batches of the pass; each indexed row is in one receipt; all receipts have one run."""
    real = Committer.finish
    damage = [ExportTamperedError("rag", "was found changed while the batch was finished")]

    def finish(committer: Committer) -> None:
        real(committer)
        if damage:
            raise damage.pop()

    with history_lake(tmp_path, batch_rows=ROWS_OF_A_PARTITION) as lake:
        lake.go()
        monkeypatch.setattr(Committer, "finish", finish)
        for partition in (A, B, C):
            lake.both(partition, *(run(f"{partition}-{number}") for number in range(ROWS_OF_A_PARTITION)))
        result = lake.go()
        assert lake.ask("SELECT count(*) FROM batches") == [(3,)]
        assert len(result.batches) == 3
        receipts = [batch.receipt for batch in result.batches]
        # Scored rows and their evidence.
        assert sum(receipt["work"]["rows_indexed"] for receipt in receipts) == 2 * 3 * ROWS_OF_A_PARTITION
        assert len({receipt["run"]["run_id"] for receipt in receipts}) == 1
