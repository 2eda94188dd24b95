"""Trees, exports, reports and state stay apart, whatever links and mounts call them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import OperatorError, UsageError
from distilld.core.remedies import BY_ERRNO
from distilld.lake.apart import refuse_overlaps
from tests.support.command import distilld
from tests.support.lake_by_formula import write_bench_lake


def link(root: Path, name: str, target: Path) -> None:
    """Put a link in the place of what is there."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


OVERLAPS: dict[str, Callable[[Path], None]] = {
    "a tree is the lake's parent": lambda root: link(root, "data/scored-runs", root.parent),
    "a tree is the lake": lambda root: link(root, "data/scored-runs", root),
    "a tree is exports": lambda root: link(root, "data/scored-runs", root / "exports"),
    "a tree is quarantine": lambda root: link(root, "data/evidence", root / "exports/quarantine"),
    "a tree lies in reports": lambda root: link(root, "data/evidence", root / "reports/other"),
    "a tree is the other": lambda root: link(root, "data/evidence", root / "data/scored-runs"),
    "a tree lies in the other": lambda root: link(root, "data/evidence", root / "data/scored-runs/2026"),
    "a tree is the state's folder": lambda root: link(root, "data/evidence", root / "state"),
    "exports are a tree": lambda root: link(root, "exports", root / "data/scored-runs"),
    "quarantine leads elsewhere": lambda root: link(root, "exports/quarantine", root / "elsewhere"),
    "a dataset's folder leads elsewhere": lambda root: link(root, "exports/rag", root / "elsewhere"),
    "set-aside leads elsewhere": lambda root: link(root, "exports/.set-aside", root / "elsewhere"),
    "reports lead elsewhere": lambda root: link(root, "reports/distillation", root / "elsewhere"),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps_are_refused(tmp_path: Path, name: str) -> None:
    """A link from an input tree to the lake's parent made distilld read its own quarantine, doubling each pass."""
    root = tmp_path / "lake"
    OVERLAPS[name](root)
    with pytest.raises(UsageError):
        refuse_overlaps(root, root / "state/distilld.db")


def test_the_usual_places_are_apart(tmp_path: Path) -> None:
    """A store in the root, and trees and exports that are links to other disks, are allowed."""
    root = tmp_path / "lake"
    for name in ("data/scored-runs", "data/evidence", "exports"):
        link(root, name, tmp_path / "disks" / name)
    refuse_overlaps(root, root / "state/distilld.db")
    refuse_overlaps(root, root / "distilld.db")


def test_each_scan_refuses(tmp_path: Path) -> None:
    """A tree that became a link after the first run is refused with exit code 2, and 'health' names it."""
    write_bench_lake(tmp_path, rows=30, partitions=2, text_bytes=200)
    assert distilld("--root", tmp_path, "run", "--once", cwd=tmp_path).code == 0
    (tmp_path / "data/scored-runs").rename(tmp_path / "moved")
    link(tmp_path, "data/scored-runs", tmp_path / "exports/quarantine")
    ran = distilld("--root", tmp_path, "run", "--once", cwd=tmp_path)
    assert ran.code == 2
    assert "overlap" in ran.err
    assert "trees_overlap" in distilld("--root", tmp_path, "health", "--json", cwd=tmp_path).out


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("folder", ["exports/sft", "exports/.set-aside", "reports/distillation"])
def test_folder_that_cannot_be_looked_at_has_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, code: int
) -> None:
    """The story: pathlib passed the system's error on, which no caller expected; it ended the daemon."""
    look = os.lstat

    def lstat(path: Any) -> os.stat_result:
        if str(path).endswith(folder):
            raise OSError(code, os.strerror(code), str(path))
        return look(path)

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(OperatorError, match=f"{folder}: {os.strerror(code)}") as raised:
        refuse_overlaps(tmp_path, tmp_path / "state/distilld.db")
    assert raised.value.hint == BY_ERRNO[code]
