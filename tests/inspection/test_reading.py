"""What people who wait are told of how far an inspection has come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distilld.config.load import load
from distilld.core.model import DATASET_PATHS, Dataset
from distilld.engine.pass_result import Progress
from distilld.inspection import reading
from distilld.inspection.diff import compare
from distilld.inspection.verify import verify
from tests.support.history_lake import A, B, C, HistoryLake, history_lake, run


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HistoryLake]:
    """A lake with some rows, of which one is told about every few."""
    monkeypatch.setattr(reading, "_STEP_BYTES", 1 << 12)
    with history_lake(tmp_path) as lake:
        for partition in (A, B, C):
            lake.both(partition, *(run(f"{partition}-{number}") for number in range(20)))
        lake.go()
        lake.stop()
        yield lake


def evenly(told: list[Progress]) -> Progress:
    """The last of what was told, which came in steps from nothing on."""
    done = [each.done for each in told]
    assert done[0] == 0
    assert done == sorted(set(done))
    assert len({each.whole for each in told}) == 1
    assert len(done) > 5
    return told[-1]


def test_comparison_is_told_from_its_first_byte_to_its_last(lake: HistoryLake) -> None:
    """Both files are read, and what is told comes to the bytes of both."""
    told: list[Progress] = []
    settings = load(flags={}, environ={"DISTILLD_ROOT": str(lake.root)}, config_file=None, cwd=lake.root)
    path = lake.root / DATASET_PATHS[Dataset.RAG]
    assert compare(settings, path, Dataset.RAG, None, told.append).equal
    last = evenly(told)
    assert last.whole == 2 * path.stat().st_size
    assert last.whole - last.done < 1 << 13


def test_deep_check_is_told_of_the_inputs_as_they_are_read(lake: HistoryLake) -> None:
    """Inputs are read for verdicts, for rows and for pairs; without pairs the last third is never read."""
    told: list[Progress] = []
    assert verify(lake.root, lake.state, lake.options, deep=True, progress=told.append).faults == 0
    last = evenly(told)
    inputs = sum(path.stat().st_size for partition in (A, B, C) for path in lake.paths(partition, "both"))
    assert (last.done, last.whole) == (2 * inputs, 3 * inputs)
