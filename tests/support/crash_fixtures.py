"""What every crash and fault test stands on; the conftest of each folder takes it from here."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from distilld.engine import lake_context
from distilld.files.git import GitState
from distilld.store.migrations import migrate
from tests.support.histories import FIRST, History, Lake
from tests.support.history_lake import believe_facts


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No log lines: there would be thousands."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def still_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input files count as long at rest, so that one which a pass has read is not read again to make sure.

    Without this, reading everything anew would hide a file that was recorded as read too early.
    """
    believe_facts(monkeypatch)
    monkeypatch.setattr(lake_context, "git_state", lambda _: GitState())


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine has one: these tests wait for nothing else but fsync."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK | os.X_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="distilld-", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def prepare(quick_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[History], Lake]:
    """Makes the lake of a history, and the program's limits as small as the history wants them."""

    def make(history: History) -> Lake:
        made = Lake(history, quick_folder)
        if history is FIRST:
            # One history is struck within the migrations, too.
            monkeypatch.setattr("distilld.store.connection.migrate", migrate)
        for name, value in history.limits.items():
            module, constant = name.rsplit(".", 1)
            monkeypatch.setattr(importlib.import_module(module), constant, value)
        return made

    return make
