"""A file with very many rows for its size is not held in memory as a whole; what comes of it is the same."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import InputKind, Trigger
from distilld.engine import index, jobs, read_file
from distilld.engine.read_file import WHOLE_ROW_BYTES, WHOLE_ROWS, FileRead, ShortRows
from tests.engine.test_executors import are_equal
from tests.engine.test_spans import NEVER, taken_in
from tests.support.builders import jsonl
from tests.support.history_lake import A, given, run


@pytest.mark.parametrize("unread", [0, NEVER], ids=["read with the rows", "read before"])
@pytest.mark.parametrize("workers", [0, 2], ids=["here", "elsewhere"])
def test_short_rows_change_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: int, workers: int
) -> None:
    """The exports and the store's facts are those of files that are read as a whole, also after all is read again."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    expected = taken_in(tmp_path / "whole")
    monkeypatch.setattr(read_file, "WHOLE_ROWS", 1)
    monkeypatch.setattr(read_file, "WHOLE_ROW_BYTES", 1 << 40)
    read: list[tuple[InputKind, str]] = []

    def reading(root: Path, kind: InputKind, path: str, max_line_bytes: int) -> FileRead | ShortRows:
        read.append((kind, path))
        found = read_file.read_file(root, kind, path, max_line_bytes)
        ended.append(isinstance(found, ShortRows))
        return found

    ended: list[bool] = []
    monkeypatch.setattr(jobs, "read_file", reading)
    with ThreadPoolExecutor(2) as executor:
        limits: dict[str, Any] = {"executor": executor} if workers else {}
        actual = taken_in(tmp_path / "blocks", **limits)
        are_equal(expected, actual)
        assert any(ended)
        # A file that was given up is not read as a whole a second time.
        assert set(Counter(read).values()) == {1}
        expected.go(Trigger.REBUILD)
        actual.go(Trigger.REBUILD)
        are_equal(expected, actual)
        assert not actual.go().changed
    for lake in (expected, actual):
        lake.stop()


@pytest.mark.parametrize("kind", InputKind)
@pytest.mark.parametrize("row", [b"{}\n", b"x\n", b'{"run_id":"1"}\n'], ids=ascii)
def test_short_rows_take_little_memory(tmp_path: Path, kind: InputKind, row: bytes) -> None:
    """The story: 2 MiB of rows such as ``{}`` took 260 MiB, and many such files are read at a time."""
    path = tmp_path / "data" / {"scored": "scored-runs", "evidence": "evidence"}[kind] / A
    path.parent.mkdir(parents=True)
    path.write_bytes(row * ((2 << 20) // len(row)))
    tracemalloc.start()
    found = read_file.read_file(tmp_path, kind, A, 8 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, ShortRows)
    assert found.rows <= WHOLE_ROWS + path.stat().st_size // WHOLE_ROW_BYTES
    assert peak < 20 << 20


@pytest.mark.parametrize("kind", InputKind)
def test_rows_of_usual_length_are_read_as_a_whole(tmp_path: Path, kind: InputKind) -> None:
    """The limit grows with the file, so that no number of rows of usual length is too many."""
    row = run("r") if kind is InputKind.SCORED else given("r", "short")
    path = tmp_path / "data" / {"scored": "scored-runs", "evidence": "evidence"}[kind] / A
    path.parent.mkdir(parents=True)
    path.write_bytes(jsonl([row]) * (3 * WHOLE_ROWS))
    found = read_file.read_file(tmp_path, kind, A, 8 << 20)
    assert isinstance(found, FileRead)
    assert found.reading.content.lines == 3 * WHOLE_ROWS
