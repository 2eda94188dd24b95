"""Start and full reconcile of a lake in which nothing changed: 10,000 partitions, both trees.

The measure is one bare walk of the same trees: ``os.scandir`` and a stat of each file. Both run in a fresh process each
time, in turns, behind the interpreter's start and the imports; the folders are in the kernel's cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distilld.store.inputs import SURE_AFTER_NS
from tests.bench.machine import describe_machine, spread
from tests.support.command import bring, environment
from tests.support.lake_by_formula import write_bench_lake

PARTITIONS = 10_000
TURNS = 9
GOAL = 3.0

_WALK = """
import os, sys, time
def walk(folder):
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                walk(entry.path)
            else:
                entry.stat(follow_symlinks=False)
start = time.perf_counter()
walk(sys.argv[1] + "/data")
print(time.perf_counter() - start)
"""
_RECONCILE = """
import sys, time
from pathlib import Path
import distilld.publish.commit, distilld.core.datasets
from distilld import logs
from distilld.config.load import load
from distilld.core.model import Trigger
from distilld.service.run_once import recover, writer
import sqlite_utils
logs.configure(level="error", fmt="json")
settings = load(flags={"root": sys.argv[1]}, environ={}, config_file=None, cwd=Path("/"))
start = time.perf_counter()
with writer(settings) as engine:
    recover(engine)
    result = engine.run_pass(Trigger.STARTUP)
    seconds = time.perf_counter() - start
assert not result.changed and result.indexed.files_seen > 0 and result.indexed.bytes_read == 0
print(seconds)
"""


def seconds_of(code: str, root: Path) -> float:
    """What a fresh process says it took."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], env=environment(), check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main(partitions: int = PARTITIONS) -> None:
    """Print the figures."""
    print(f"start and full reconcile, nothing changed, {partitions} partitions in two trees, {TURNS} turns")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root = Path(name) / "lake"
        write_bench_lake(root, rows=partitions, partitions=partitions, text_bytes=200)
        bring(root)
        # A file whose facts were seen a moment before it was read is read once more: only then do they prove its bytes.
        time.sleep(SURE_AFTER_NS / 1e9)
        bring(root)
        walks, passes = [], []
        for turn in range(TURNS + 1):
            walk, reconcile = seconds_of(_WALK, root), seconds_of(_RECONCILE, root)
            if turn:  # the first turn fills the cache
                walks.append(walk * 1e3)
                passes.append(reconcile * 1e3)
    ratios = [one / other for one, other in zip(passes, walks, strict=True)]
    print(f"  bare walk         {spread(walks, 'ms', 1)}")
    print(f"  reconcile         {spread(passes, 'ms', 1)}")
    print(
        f"  reconcile / walk  {spread(ratios, 'times')}; of the medians "
        f"{statistics.median(passes) / statistics.median(walks):.2f} (goal: at most {GOAL:g})"
    )


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
