"""What another program wrote into an export makes no command stumble: it says which file was edited, or skips the line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distilld.core.model import EXPORT_PATHS, Dataset, OperatorError
from distilld.delivery.changes import changes
from distilld.delivery.check import check
from distilld.delivery.snapshot import Wanted, make
from tests.support.history_lake import A, B, HistoryLake, history_lake, rag_id, run

FOREIGN = (
    b"{}",
    b"[1]",
    b"x}",
    b"\xff}",
    b'{"id":[],"cause":1,"withdrawn_batch":2}',
    b'{"id":"rag-0000000000000000","cause":"revoked","withdrawn_batch":"x"}',
    b'{"schema_version":1,"id":"rag-0000000000000000","created_at":"x,"recorded_at":"y}',
)
"""Lines that are no rows of ours."""


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with a snapshot, after a row of it was withdrawn."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a1"), run("a2"), run("a3"))
        lake.go()
        make(lake.root, lake.state, lake.root / "snap", Wanted())
        lake.scored(B, run("a2", "rejected"))
        lake.go()
        lake.stop()
        yield lake


def edit(lake: HistoryLake, name: str, line: bytes) -> None:
    """Put a line over the beginning of an export, which keeps its length."""
    content = lake.content(name)
    assert len(line) < len(content)
    (lake.root / EXPORT_PATHS[name]).write_bytes(line + b"\n" + content[len(line) + 1 :])


@pytest.mark.parametrize("line", FOREIGN)
@pytest.mark.parametrize("name", ["rag", "withdrawals_rag"])
def test_edited_export_is_named(lake: HistoryLake, name: str, line: bytes) -> None:
    """The bytes are told from committed ones only at their end, and may be anything before."""
    first = lake.ask("SELECT min(batch_id) FROM batches")[0][0]
    edit(lake, name, line)
    named = f"{EXPORT_PATHS[name]} is not what the last commit left"
    with pytest.raises(OperatorError, match=named), changes(lake.root, lake.state, Dataset.RAG, first):
        pass
    with pytest.raises(OperatorError, match=named):
        check(lake.root, lake.state, lake.root / "snap")
    if name == "rag":
        with pytest.raises(OperatorError, match=named):
            make(lake.root, lake.state, lake.root / "other", Wanted(("trl", "raw"), 0.5))
        assert not (lake.root / "other").exists()


@pytest.mark.parametrize("line", FOREIGN)
@pytest.mark.parametrize("name", ["rag", "withdrawals_rag"])
def test_check_without_a_store_skips_what_is_no_row(lake: HistoryLake, name: str, line: bytes) -> None:
    """The rows that an edit destroyed count as withdrawn, and a cause that it destroyed is unknown."""
    lake.lose_store()
    edit(lake, name, line)
    found = {each.id: each.cause for each in check(lake.root, lake.state, lake.root / "snap").changed}
    assert found[rag_id("a2")] == ("revoked" if name == "rag" else None)
    assert (rag_id("a1") in found) is (name == "rag")
    assert rag_id("a3") not in found
