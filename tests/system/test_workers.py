"""A large first pass as a user runs it: worker processes come and go with it, and nothing depends on them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from distilld.core.model import EXPORT_PATHS
from tests.support.command import command, distilld, environment, snapshot
from tests.support.lake_by_formula import write_bench_lake
from tests.support.running import until

ROWS = 7_000
PARTITIONS = 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that is large enough for processes of its own."""
    root = tmp_path_factory.mktemp("inputs")
    write_bench_lake(root, rows=ROWS, partitions=PARTITIONS)
    return root


@pytest.fixture
def root(inputs: Path, tmp_path: Path) -> Path:
    """A root of its own with these inputs."""
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "data").symlink_to(inputs / "data")
    return tmp_path / "lake"


def settings(workers: int) -> dict[str, str]:
    """Small batches and so many workers."""
    return {"DISTILLD_BATCH_ROWS": "1000", "DISTILLD_WORKERS": str(workers)}


def exports_of(root: Path) -> dict[str, bytes]:
    """The exports without their times."""
    return {
        name: re.sub(rb'"(created_at|recorded_at)":"[^"]*"', b"", (root / path).read_bytes())
        for name, path in EXPORT_PATHS.items()
        if (root / path).exists()
    }


def children(pid: int) -> list[int]:
    """The processes that a process started and that are still there."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_gone(pid: int) -> bool:
    """Whether a process is no more, or is dead and nobody asked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_results_do_not_depend_on_the_number_of_workers(inputs: Path, tmp_path: Path) -> None:
    """One worker or three: the same bytes in the same order, the times apart; and the full pass agrees."""
    found = []
    for workers in (1, 3):
        root = tmp_path / str(workers)
        root.mkdir()
        (root / "data").symlink_to(inputs / "data")
        assert distilld("run", "--once", cwd=root, env=settings(workers)).code == 0
        found.append(exports_of(root))
    assert found[0] == found[1]
    checked = distilld("verify", "--deep", cwd=tmp_path / "1")
    assert (checked.code, checked.errors) == (0, [])


def test_killed_in_the_middle_it_leaves_no_process_and_loses_nothing(root: Path) -> None:
    """``kill -9`` of the process that commits: its workers end by themselves, and the next run does the rest."""
    process = subprocess.Popen(
        command("run", "--once", "--root", str(root)),
        env=environment(settings(2)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: list(root.glob("reports/distillation/*/receipt.json")), "the first batch")
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: all(map(is_gone, workers)), "the workers' end")
    assert distilld("run", "--once", cwd=root, env=settings(2)).code == 0
    assert distilld("verify", "--deep", cwd=root).code == 0


def test_dry_run_of_a_large_first_pass_writes_nothing(root: Path) -> None:
    """It says what would ship, which is what ships then, and makes nothing below the root."""
    before = snapshot(root)
    tried = distilld("run", "--once", "--dry-run", "--json", cwd=root, env=settings(2))
    assert tried.code == 0
    assert snapshot(root) == before
    done = distilld("run", "--once", "--json", cwd=root, env=settings(2))
    assert [each["rows"] for each in tried.json["datasets"].values()] == [
        each["rows"] for each in done.json["datasets"].values()
    ]
