"""While rows of a damaged export are yet to be written again, no inspection says that they are gone, or that all is well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from distilld.core.model import EXPORT_PATHS, OperatorError
from distilld.inspection.row_history import find_row
from distilld.inspection.verify import verify
from tests.inspection.test_explain import settings_of
from tests.support.history_lake import A, HistoryLake, history_lake, rag_id, run


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake of whose RAG rows only the first one stands."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a1"), run("a2"), run("a3"))
        lake.go()
        os.truncate(lake.root / EXPORT_PATHS["rag"], len(lake.content("rag").splitlines(keepends=True)[0]))
        lake.engine.restorer.check(lake.now_ns)
        yield lake


def test_row_that_is_missing_has_not_left(lake: HistoryLake) -> None:
    """A row that stands is shown; one that does not may be one of those that are missing."""
    assert find_row(settings_of(lake), rag_id("a1")).row is not None
    with pytest.raises(OperatorError, match="is being restored"):
        find_row(settings_of(lake), rag_id("a2"))
    lake.go()
    assert find_row(settings_of(lake), rag_id("a2")).row is not None


def test_verify_names_what_is_missing(lake: HistoryLake) -> None:
    """It is no fault, but not all of the batch stands there."""
    told = f"{EXPORT_PATHS['rag']}: 2 rows are yet to be written again"
    assert told in verify(lake.root, lake.state, lake.options).changed
    lake.go()
    assert told not in verify(lake.root, lake.state, lake.options).changed
