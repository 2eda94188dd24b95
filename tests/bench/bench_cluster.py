"""A Dask cluster beside local workers, on the pair-rich lake: what it costs more, and what it gives where judging is slow.

Scheduler and workers run on this machine, so they share its cores with the process that commits. Beside the time stands
what all processes together used of the processor: on cores that are busy the time follows it. Where judging is to be
slow, each row that is judged waits four times as long as judging takes on this machine, as for the answer of a distant
file server: in the workers, and in the process that commits, which does a job itself where it would wait. The workers of
a cluster outlive a pass, so the first pass of new ones, in which they import what they need, does not count there.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.machine import describe_machine, spread
from tests.support.dask_cluster import DaskCluster, dask_cluster
from tests.support.lake_by_formula import write_bench_lake

ROWS: Final = 30_000
PARTITIONS: Final = 81
TURNS: Final = 3
SLOWER: Final = 5

_JUDGED: Final = """
import time
from distilld.engine.judge_span import SpanJudge
from distilld.engine.judge_task import TaskJudge
def wrapped(judge, rows_of):
    def judging(self, work, *rest):
        return judge_rows(lambda: judge(self, work, *rest), rows_of(work))
    return judging
if not hasattr(SpanJudge, "wrapped"):
    SpanJudge.wrapped = True
    SpanJudge.judge = wrapped(SpanJudge.judge, lambda span: span.size())
    TaskJudge.judge = wrapped(TaskJudge.judge, lambda tasks: sum(len(rows) for task in tasks for rows in task.rows))
"""
TIMED: Final = (
    _JUDGED
    + """
import atexit
from distilld.engine import pool
spent = [0.0, 0]
def judge_rows(judge, rows):
    start = time.process_time()
    try:
        return judge()
    finally:
        spent[0] += time.process_time() - start
        spent[1] += rows
pool.PROCESSES_FROM = 1 << 60
atexit.register(lambda: print(spent[0] / spent[1]))
"""
)
SLOW: Final = (
    _JUDGED
    + """
def judge_rows(judge, rows):
    time.sleep(rows * {seconds})
    return judge()
"""
)

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
exec(sys.argv[3], {})
if sys.argv[2]:
    import distributed
with writer(settings) as engine:
    start, used = time.perf_counter(), time.process_time()
    engine.run_pass(Trigger.ONCE)
    seconds, used = time.perf_counter() - start, time.process_time() - used
import resource
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(seconds, used + children.ru_utime + children.ru_stime)
"""


class Pass(NamedTuple):
    """One first pass: seconds, and seconds of processors in all processes."""

    seconds: float
    cpu: float


def first_pass(root: Path, cluster: DaskCluster | None = None, before: str = "") -> Pass:
    """One first pass, in a process of its own."""
    used = cluster.cpu_seconds() if cluster else 0.0
    told = _run_pass(root, cluster.address if cluster else "", before)
    return Pass(told[0], told[1] + (cluster.cpu_seconds() - used if cluster else 0.0))


def judging_seconds(root: Path) -> float:
    """What judging a row takes, in a pass without other processes."""
    return _run_pass(root, "", TIMED)[2]


def _run_pass(root: Path, address: str, before: str) -> list[float]:
    for name in ("exports", "state", "reports"):
        shutil.rmtree(root / name, ignore_errors=True)
    command = [sys.executable, "-c", _PASS, str(root), address, before]
    return list(map(float, subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()))


def say(name: str, passes: list[Pass]) -> None:
    """Print the figures of some passes."""
    seconds, cpu = zip(*passes, strict=True)
    print(f"  {name:<28}{spread(seconds, 's')}; processors {spread(cpu, 's')}")


def main() -> None:
    """Print the figures."""
    print(f"a Dask cluster on this machine, {ROWS} rows of the pair-rich lake in {PARTITIONS} partitions")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root, folder = Path(name, "lake"), Path(name, "cluster")
        folder.mkdir()
        write_bench_lake(root, rows=ROWS, partitions=PARTITIONS, rich=True)
        local, joined = list[Pass](), list[Pass]()
        with dask_cluster(folder) as cluster:
            cluster.start_worker()
            for _ in range(TURNS):
                local.append(first_pass(root))
                joined.append(first_pass(root, cluster))
        say("one local worker", local)
        say("one worker of a cluster", joined)
        for what in ("seconds", "cpu"):
            ratios = [getattr(one, what) / getattr(other, what) for one, other in zip(joined, local, strict=True)]
            print(f"    cluster / local, {what:<8} {spread(ratios, 'times')}")
        slow: dict[int, list[Pass]] = {1: [], 4: []}
        judging = judging_seconds(root)
        before = SLOW.format(seconds=(SLOWER - 1) * judging)
        for _ in range(TURNS):
            for workers, passes in slow.items():
                with dask_cluster(folder) as cluster:
                    for _ in range(workers):
                        cluster.start_worker(preload=before)
                    first_pass(root, cluster, before)
                    passes.append(first_pass(root, cluster, before))
        print(f"  where judging takes {SLOWER} times {judging * 1e6:.0f} us a row")
        for workers, passes in slow.items():
            say(f"  {workers} workers of a cluster", passes)
        one, four = (statistics.median(each.seconds for each in slow[workers]) for workers in slow)
        print(f"    1 worker / 4 workers       {one / four:.2f} times")


if __name__ == "__main__":
    main()
