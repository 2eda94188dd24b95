"""What commands say about unusual states of a lake. They run within this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.command import Cli
from tests.support.history_lake import A, HistoryLake, run

WIDEST = 80


@pytest.fixture
def lake(tmp_path: Path) -> HistoryLake:
    """A lake of two rows after one pass."""
    made = HistoryLake(tmp_path / "lake")
    made.both(A, run("a"), run("b"))
    with capture_logs():
        made.go()
    made.stop()
    return made


# status


def test_status_names_what_is_no_partition(cli: Cli, lake: HistoryLake) -> None:
    """The story: only --json named it, so a producer's other suffix went unseen."""
    for name in ("b.ndjson", "c.ndjson", "d.jsonl.gz"):
        lake.scored_path(A).with_name(name).write_bytes(b"{}")
    lines = cli("status", "--root", lake.root).out.splitlines()
    at = lines.index("note: 2 paths in data/ can be no partition: .ndjson")
    assert lines[at + 1].split() == ["such", "as", "data/scored-runs/2026/04/27/b.ndjson"]
    assert "note: 1 path in data/ can be no partition: .jsonl.gz" in lines
    assert max(map(len, lines[at:])) <= WIDEST
