"""What every test starts from: an environment that holds nothing of the shell that started it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator

import pytest

from tests.support.new_store import migrate_or_copy

KEPT = {"CI", "HISTORIES_SEED", "HOME", "LANG", "LOGNAME", "PATH", "TMPDIR", "USER"}
"""What a test may know of the shell. The rest, be it TZ, COLUMNS or NO_COLOR, would change what programs print."""

SLOW_SECONDS = 6 * 3600


def pytest_configure(config: pytest.Config) -> None:
    """Drop every other variable, for this process and for the programs that tests start."""
    for name in set(os.environ) - KEPT:
        if not name.startswith(("COV_", "PYTEST_")):
            del os.environ[name]
    os.environ["LANG"] = "C.UTF-8"
    time.tzset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests hours before they count as hanging: on a busy machine some take more than one."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture(scope="session", autouse=True)
def quick_new_stores() -> Iterator[None]:
    """Copy the tables of each new store from one that the migrations made.

    The migrations themselves are at work in each program that a test starts, and in the crash tests' first history.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distilld.store.connection.migrate", migrate_or_copy())
        yield


@pytest.fixture(autouse=True)
def one_look_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a pass from looking at its inputs again after some seconds: on a slow machine a small one would do so."""
    monkeypatch.setattr("distilld.engine.work_off._next_look", lambda _began: 1 << 62)


@pytest.fixture
def look_after_each_batch(one_look_a_pass: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a pass look at its inputs again after each batch, however long a look takes."""
    monkeypatch.setattr("distilld.engine.work_off._next_look", lambda _began: 0)


@pytest.fixture(autouse=True)
def quiet_callbacks() -> None:
    """Keep SQLite's callbacks as Python has them: to import Datasette has each exception in one told of.

    The daemon raises one on purpose to interrupt a statement.
    """
    sqlite3.enable_callback_tracebacks(False)
