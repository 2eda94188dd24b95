"""What the tests of the store share."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilld.core.model import Trigger
from distilld.files.git import GitState
from tests.support.histories import NINE, Lake


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake with something in every table that one pass fills."""
    monkeypatch.setattr("distilld.engine.lake_context.git_state", lambda _: GitState())
    made = Lake(NINE, tmp_path)
    with made.opened() as engine:
        engine.run_pass(Trigger.ONCE)
    return made
