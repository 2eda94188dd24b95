"""Lakes to run the command on."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilld.demo.sample_lake import SampleLake, write_sample_lake
from tests.support.command import bring, once, phase4


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phase4 lake after one run; tests only look at it."""
    root = phase4(tmp_path_factory.mktemp("done"))
    assert once(root).code == 0
    return root


@pytest.fixture
def worked(tmp_path: Path) -> Path:
    """The phase4 lake after one run, to be changed."""
    root = phase4(tmp_path)
    bring(root)
    return root


@pytest.fixture
def sample(tmp_path: Path) -> SampleLake:
    """A sample lake of one day that has seen one run."""
    lake = write_sample_lake(tmp_path / "sample", days=1)
    bring(lake.root)
    return lake
