"""A Dask cluster beside local workers, on the pair-rich lake: what it costs more, and what it gives where judging is slow.

Scheduler and workers run on this machine, so they share its cores with the process that commits. Where judging is to be
slow, each row that is judged waits, as for the answer of a distant file server: in the workers and in the process that
commits, which does a job itself where it would wait.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.bench.machine import describe_machine, spread
from tests.support.dask_cluster import dask_cluster
from tests.support.lake_by_formula import write_bench_lake

ROWS: Final = 30_000
PARTITIONS: Final = 81
TURNS: Final = 5
SLOW_SECONDS: Final = 160e-6
"""What a row waits: with what judging takes, some five times that."""

SLOW: Final = f"""
import time
from distilld.engine import judge_span
def waiting(self, span, *rest):
    time.sleep(span.size() * {SLOW_SECONDS})
    return judge(self, span, *rest)
if not hasattr(judge_span, "slow"):
    judge_span.slow, judge = True, judge_span.SpanJudge.judge
    judge_span.SpanJudge.judge = waiting
"""

_PASS: Final = """
import sys, time
from pathlib import Path
from distilld import logs
from distilld.config.load import load
from distilld.core.model import Trigger
from distilld.service.run_once import writer
logs.configure(level="error", fmt="json")
root = Path(sys.argv[1])
settings = load(flags={"root": root, "workers": 1, "executor": sys.argv[2]}, environ={}, config_file=None, cwd=root)
exec(sys.argv[3])
with writer(settings) as engine:
    start = time.perf_counter()
    engine.run_pass(Trigger.ONCE)
    print(time.perf_counter() - start)
"""


def pass_seconds(root: Path, executor: str = "", first: str = "") -> float:
    """How long a first pass takes, in a process of its own."""
    for name in ("exports", "state", "reports"):
        shutil.rmtree(root / name, ignore_errors=True)
    command = [sys.executable, "-c", _PASS, str(root), executor, first]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Print the figures."""
    print(f"a Dask cluster on this machine, {ROWS} rows of the pair-rich lake in {PARTITIONS} partitions")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root, folder = Path(name, "lake"), Path(name, "cluster")
        folder.mkdir()
        write_bench_lake(root, rows=ROWS, partitions=PARTITIONS, rich=True)
        with dask_cluster(folder) as cluster:
            cluster.start_worker()
            local, joined = [], []
            for _ in range(TURNS):
                local.append(pass_seconds(root))
                joined.append(pass_seconds(root, cluster.address))
        ratios = [one / other for one, other in zip(joined, local, strict=True)]
        print(f"  one local worker            {spread(local, 's')}")
        print(f"  one worker of the cluster   {spread(joined, 's')}")
        print(f"    cluster / local           {spread(ratios, 'times')}")
        slow: dict[int, list[float]] = {1: [], 4: []}
        for workers, seconds in slow.items():
            with dask_cluster(folder) as cluster:
                for _ in range(workers):
                    cluster.start_worker(preload=SLOW)
                seconds += [pass_seconds(root, cluster.address, SLOW) for _ in range(TURNS)]
        print("  where judging takes five times as long")
        for workers, seconds in slow.items():
            print(f"    workers = {workers}               {spread(seconds, 's')}")
        print(f"    1 worker / 4 workers      {statistics.median(slow[1]) / statistics.median(slow[4]):.2f} times")


if __name__ == "__main__":
    main()
