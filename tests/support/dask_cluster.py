"""A Dask cluster of processes on this machine: a scheduler, and workers that may see the lake through another mount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from tests.support.command import environment
from tests.support.running import until

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="the extra 'dask' is not installed")

OVERLAY: Final = 'mount -t overlay overlay -o lowerdir="$1:$2" "$1" && shift 2 && exec "$@"'
HIDDEN: Final = 'mount -t tmpfs none "$1" && shift 2 && exec "$@"'
A_MINUTE_AHEAD: Final = """
import time
time.time = lambda real=time.time: real() + 60
time.time_ns = lambda real=time.time_ns: real() + 60 * 10**9
"""
OTHER_VERSION: Final = "import distilld\ndistilld.__version__ = '0.0.1'\n"


class DaskCluster:
    """A scheduler and its workers; all of them are killed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.port = 0

    @property
    def address(self) -> str:
        """What the setting ``executor`` takes."""
        return f"dask://127.0.0.1:{self.port}"

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """Start it on a free port, the first time, and on the same one from then on."""
        told = self.folder / f"scheduler-{len(self.processes)}.json"
        told.unlink(missing_ok=True)
        process = self._start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard",
            "--no-show", "--scheduler-file", str(told),
        )  # fmt: skip

        def port() -> int:
            assert process.poll() is None, self.log(process)
            try:
                return int(json.loads(told.read_text())["address"].rpartition(":")[2])
            except (OSError, ValueError):
                return 0

        self.port = until(port, "the scheduler listens")
        return process

    def start_worker(
        self, seen: Path | None = None, *, through: str = OVERLAY, preload: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a worker, to which a mount of its own stands over ``seen``; it runs ``preload`` first."""
        name = f"worker-{len(self.processes)}"
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        script = self.folder / f"{name}.py"
        script.write_text(preload)
        prefix = (*a_mount_of_its_own(), "sh", "-c", through, "sh", str(seen), str(empty)) if seen is not None else ()
        process = self._start(
            "distributed.cli.dask_worker", f"tcp://127.0.0.1:{self.port}", "--name", name, "--nthreads", "1",
            "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder / name), "--preload", str(script),
            prefix=prefix,
        )  # fmt: skip
        until(lambda: "Registered to" in self.log(process) or process.poll() is not None, f"{name} has joined")
        assert process.poll() is None, self.log(process)
        self.workers.append(process)
        return process

    def cpu_seconds(self) -> float:
        """What all of them have used of the processor so far."""
        texts = [Path(f"/proc/{process.pid}/stat").read_text() for process in self.processes if process.poll() is None]
        ticks = [sum(map(int, text.rpartition(")")[2].split()[11:13])) for text in texts]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has logged so far."""
        return (self.folder / f"log-{self.processes.index(process)}").read_text(errors="replace")

    def _start(self, module: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module, *arguments],
                env=environment({"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process


def a_mount_of_its_own() -> tuple[str, ...]:
    """What starts a process that may mount; the test is skipped where nobody may."""
    probe = ("sh", "-c", OVERLAY, "sh", "/mnt", "/media", "true")
    for options in (("--mount",), ("--user", "--map-root-user", "--mount")):
        command = ("unshare", *options)
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, *probe], capture_output=True, check=False).returncode
        ):
            return command
    pytest.skip("a mount of one's own needs unshare and overlayfs, which are not permitted here")


@contextmanager
def dask_cluster(folder: Path) -> Iterator[DaskCluster]:
    """A scheduler without workers so far."""
    cluster = DaskCluster(folder)
    try:
        cluster.start_scheduler()
        yield cluster
    finally:
        for process in cluster.processes:
            process.kill()
        for process in cluster.processes:
            process.wait()
