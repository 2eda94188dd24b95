"""The README's example: what it shows is what distilld does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from distilld.core.model import EXPORT_PATHS
from tests.support.command import REPOSITORY, once, put, rows


def test_readme_example_is_real(tmp_path: Path) -> None:
    """The README's scored row and its evidence become the rows that it shows, key by key, times aside."""
    text = (REPOSITORY / "README.md").read_text()
    scored, evidence, sample, withdrawal = map(json.loads, re.findall(r"^```json\n(.*?)^```", text, re.M | re.S))
    partition = re.findall(r"`data/(?:scored-runs|evidence)/(2026/.*?)`", text)
    assert len(partition) == 2
    assert len(set(partition)) == 1
    put(tmp_path / "data/scored-runs" / partition[0], f"{json.dumps(scored)}\n")
    put(tmp_path / "data/evidence" / partition[0], f"{json.dumps(evidence)}\n")
    assert once(tmp_path).code == 0
    assert len(rows(tmp_path / EXPORT_PATHS["rag"])) == 1
    (row,) = rows(tmp_path / EXPORT_PATHS["sft"])
    rejected = {**scored, "category": "rejected"}
    put(tmp_path / "data/scored-runs" / withdrawal["verdict"]["location"]["partition"], f"{json.dumps(rejected)}\n")
    assert once(tmp_path).code == 0
    assert rows(tmp_path / EXPORT_PATHS["rag"]) == rows(tmp_path / EXPORT_PATHS["sft"]) == []
    (left,) = rows(tmp_path / EXPORT_PATHS["withdrawals_sft"])
    for shown, real in ((sample, row), (withdrawal, left)):
        assert list(shown) == list(real)
        assert timeless(shown) == timeless(real)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs from batch to batch."""
    row = {key: timeless(value) if isinstance(value, dict) else value for key, value in row.items()}
    return {key: value for key, value in row.items() if not key.endswith(("_at", "_batch"))}
