"""Lakes to run the command on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from distilld.cli.main import execute
from tests.support.command import Cli, Ran, bring, once, phase4
from tests.support.sample import SampleLake


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
    """A sample lake that has seen one run."""
    lake = SampleLake.write(tmp_path / "sample")
    bring(lake.root)
    return lake


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """Runs a command in this process."""
    for name in os.environ:
        if "DISTILL" in name:
            monkeypatch.delenv(name)

    def said(*arguments: str | Path, **env: str) -> Ran:
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            code = execute(list(map(str, arguments)))
        return Ran(code, *capsys.readouterr())

    yield said
    structlog.reset_defaults()
