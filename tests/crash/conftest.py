"""What every crash and fault test stands on."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import structlog

from distilld import batch, lake
from distilld.receipt import GitState
from tests.crash.histories import History, Lake


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No log lines: there would be thousands."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _still_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input files count as long at rest, so that one which a pass has read is not read again to make sure.

    Without this, reading everything anew would hide a file that was recorded as read too early.
    """
    later = SimpleNamespace(time_ns=lambda: time.time_ns() + 10_000_000_000)
    monkeypatch.setattr(lake, "time", later)
    monkeypatch.setattr(batch, "git_state", lambda _: GitState())


@pytest.fixture
def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing."""


@pytest.fixture
def lake_of_history(
    history: History, tmp_path: "pytest.TempPathFactory", monkeypatch: pytest.MonkeyPatch
) -> Lake:
    """The lake of the test's history, with the program's limits made as small as the history wants them."""
    for name, value in history.limits.items():
        module, constant = name.rsplit(".", 1)
        monkeypatch.setattr(importlib.import_module(module), constant, value)
    return Lake(history, tmp_path)  # type: ignore[arg-type]
