"""What ``rebuild`` and ``compact`` say they did. They run within this process."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from distilld.core.model import UnreadableError
from distilld.engine import judge_span
from distilld.publish import exports as exports_module
from tests.support.command import Cli
from tests.support.history_lake import A, HistoryLake, run

AT_ONCE = {"DISTILLD_SETTLE_SECONDS": "0"}


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HistoryLake:
    """A lake with white space in its files: one of its rows left."""
    monkeypatch.setattr(exports_module, "LEAST_BYTES", 0)
    made = HistoryLake(tmp_path)
    rows = [run(f"r{number}") for number in range(30)]
    made.both(A, *rows)
    with capture_logs():
        made.go()
        made.scored(A, run("r0", "rejected"), *rows[1:])
        made.go()
    made.stop()
    return made


def refused(root: Path, kind: object, path: str) -> NoReturn:
    """Open no file."""
    raise UnreadableError(f"data/{path}", PermissionError(13, "Permission denied"))


@pytest.mark.parametrize("command", ["rebuild", "compact"])
def test_command_that_left_rows_waiting_says_so(
    cli: Cli, lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The story: every row was judged again, it said, while rows waited and no file was put in order."""
    lake.evidence(A)
    with monkeypatch.context() as patch:
        patch.setattr(judge_span, "open_partition", refused)
        ran = cli(command, "--root", lake.root, **AT_ONCE)
        assert ran.code == 1
        assert "1 input could not be read; " in ran.out
        assert "wait to be judged, so the files were not put in walk order\n" in ran.out
        assert "judged again" not in ran.out
        assert "removed" not in ran.out
        told = cli(command, "--json", "--root", lake.root, **AT_ONCE).json
        assert not told["in_walk_order"]
        assert told.get("space_bytes_removed", 0) == 0
    assert cli(command, "--root", lake.root, **AT_ONCE).code == 0


@pytest.mark.parametrize("command", ["rebuild", "compact"])
def test_command_that_could_not_read_an_input_says_so(cli: Cli, lake: HistoryLake, command: str) -> None:
    """If nothing waits for that input, the files are put in order all the same."""
    lake.scored_path("2026/04/27/link.jsonl").symlink_to("elsewhere")
    ran = cli(command, "--root", lake.root, **AT_ONCE)
    assert ran.code == 1
    assert "1 input could not be read; the files are in walk order\n" in ran.out


def test_compact_counts_the_spaces_that_it_removed(cli: Cli, lake: HistoryLake) -> None:
    """A second compact has nothing to remove."""
    spaces = sum(record.committed.spaces for record in lake.engine.export_records.exports().values())
    lake.stop()
    assert spaces > 0
    told = cli("compact", "--json", "--root", lake.root, **AT_ONCE).json
    assert (told["in_walk_order"], told["space_bytes_removed"]) == (True, spaces)
    assert cli("compact", "--json", "--root", lake.root, **AT_ONCE).json["space_bytes_removed"] == 0
