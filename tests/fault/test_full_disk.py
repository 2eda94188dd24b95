"""A disk that is really full: a small tmpfs in a mount namespace of its own, where the machine permits that."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MOUNT = 'mount -t tmpfs -o size=8m tmpfs "$1" && shift && exec "$@"'


def namespace() -> list[str] | None:
    """The command that gives a process mounts of its own; None where the machine does not permit it."""
    for options in (["-m"], ["-U", "-r", "-m"]):
        command = ["unshare", *options, "sh", "-c", MOUNT, "sh"]
        probe = [*command, "/mnt", "true"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return command
    return None


def test_a_disk_that_is_full_costs_nothing_but_time(tmp_path: Path) -> None:
    """With any amount of room from none to enough, a pass fails cleanly or is done, and recovers with more room."""
    command = namespace()
    if command is None:
        pytest.skip("this machine permits no mount")
    run = subprocess.run(
        [*command, str(tmp_path), sys.executable, "-m", "tests.fault.full_disk", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    failed, enough = map(int, re.findall(r"\d+", run.stdout))
    assert failed > 10
    assert enough > 10
