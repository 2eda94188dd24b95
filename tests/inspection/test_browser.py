"""What the browser is shown is a store that can be read, whoever asks."""

from __future__ import annotations

import gc
import os
import sqlite3
import warnings
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from distilld.config.load import load
from distilld.inspection.problem import Problem
from distilld.service.failure_text import explain_failure
from tests.support.inspecting import needs_datasette
from tests.support.users import STRANGER, needs_root, open_folder

with warnings.catch_warnings(), suppress(ImportError):
    # Datasette leaves a database in memory open as it is imported, of which Python 3.13 warns.
    warnings.simplefilter("ignore", ResourceWarning)
    import datasette.app  # noqa: F401

    gc.collect()


@needs_datasette
@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), PermissionError(13, "Permission denied")]
)
def test_lake_that_cannot_be_looked_at_has_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The story: an error of the system, or of SQLite, was an internal error of every page; health said what to do."""
    from distilld.inspection import browser

    def refuse(*_: object, **__: object) -> NoReturn:
        raise error

    for name in ("diagnose", "look", "explain"):
        monkeypatch.setattr(browser, name, refuse)
    lake = browser._Lake(load(flags={"root": tmp_path}, environ={}, config_file=None, cwd=tmp_path))
    text, hint = explain_failure(error)
    assert lake._problems() == [Problem("not_known", text, hint)]
    assert lake._unread_files() == "[]"
    assert list(lake._history("a")) == [f"{text} ({hint})"]


@needs_datasette
@needs_root
@pytest.mark.parametrize("killed", [False, True])
def test_store_beside_which_no_file_can_be_made_is_copied(killed: bool) -> None:
    """SQLite reads a live store through files beside it; who may not make them was refused a store that they may read."""
    from distilld.inspection.browser import readable

    with open_folder() as folder:
        store = folder / "distilld.db"
        with closing(sqlite3.connect(store)) as writer:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("CREATE TABLE told (word TEXT)")
            writer.execute("INSERT INTO told VALUES ('yes')")
            writer.commit()
            store.chmod(0o644)
            log = store.with_name("distilld.db-wal")
            left = log.read_bytes()
        if killed:
            log.write_bytes(left)
            log.chmod(0o644)
        with ExitStack() as kept:
            os.seteuid(STRANGER.uid)
            try:
                found = readable(store, kept)
                with closing(sqlite3.connect(found)) as copy:
                    assert copy.execute("SELECT word FROM told").fetchall() == [("yes",)]
            finally:
                os.seteuid(0)
            assert found != store
            assert readable(store, kept) == store
        assert not found.exists()
