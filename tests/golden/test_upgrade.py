"""Lakes and stores that an earlier version wrote are carried on by this one.

tests/data/upgrade/make_lakes.py made them with commit 5c12707, and says what that commit's own next runs came to.
"""

from __future__ import annotations

import json
import lzma
import sqlite3
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.data.upgrade.make_lakes import HERE, KILLS, command, exports, steps_of
from tests.support.command import distilld


def unpacked(name: str, folder: Path) -> Path:
    """Unpack a lake, and tell its store that this is its root: a store belongs to one."""
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        # Python 3.11.2 of Debian 12 has no filters yet.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    root = folder / "lake"
    with closing(sqlite3.connect(root / "distilld.db")) as store, store:
        assert store.execute("UPDATE lake SET value = ? WHERE name = 'root'", (str(root),)).rowcount == 1
    return root


@cache
def expected() -> Any:
    """Return the lines of every export by lake, step and path."""
    with lzma.open(HERE / "expected.json.xz", "rt") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def at_rest(tmp_path_factory: pytest.TempPathFactory) -> tuple[frozenset[str], frozenset[str]]:
    """Return the lines and the batches that stood before the run that some of the lakes were killed in."""
    root = unpacked("at_rest", tmp_path_factory.mktemp("at_rest"))
    lines = frozenset(line for each in exports(root).values() for line in each)
    return lines, frozenset(path.parent.name for path in root.glob("reports/distillation/*/receipt.json"))


def comparable(
    files: Mapping[str, Sequence[str]], at_rest: tuple[frozenset[str], frozenset[str]]
) -> dict[str, list[str]]:
    """Return the lines in order of their text. One that stood before is compared to the byte, a newer one without times."""
    lines, batches = at_rest

    def plain(line: str) -> str:
        if line in lines:
            return line
        row = json.loads(line)
        for key in ("created_at", "recorded_at", "withdrawn_at", "withdrawn_batch"):
            row.pop(key, None)
        if row.get("shipped_batch") not in batches:
            row.pop("shipped_batch", None)
        if "created_at" in json.loads(line):
            row["provenance"].pop("recorded_at")
        return json.dumps(row)

    return {path: sorted(plain(line.strip(" ")) for line in each if line.strip(" ")) for path, each in files.items()}


@pytest.mark.parametrize("name", ["at_rest", *KILLS])
def test_lake_of_an_earlier_version(name: str, tmp_path: Path, at_rest: tuple[frozenset[str], frozenset[str]]) -> None:
    """An upgrade loses, leaks and doubles nothing: absent verdicts go on to forbid, retained rows and history stay."""
    root = unpacked(name, tmp_path)
    for step, (change, arguments) in steps_of(name).items():
        change(root)
        ran = distilld(*command(root, *arguments), cwd=tmp_path)
        assert ran.code == 0, (step, ran)
        checked = distilld(*command(root, "verify", "--deep"), cwd=tmp_path)
        assert checked.code == 0, (step, checked.out)
        assert comparable(exports(root), at_rest) == comparable(expected()[name][step], at_rest), step
