"""Every kind of pass over a pair-rich lake, beside its floor and beside a first pass.

100,000 rows of 1.5 KB text in 540 files, two pairs tried of every eight rows. A first pass; a rebuild; other options and
back again; a first pass in which one row of ten names a run of a partition before it; a first pass in which one
evidence file has 64 MiB more. Processor time of the committing process is told as a ratio to the floor's: with the jobs
that it does itself where it would wait, and without them, which is what no worker can take from it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.bench_first_pass import floor_seconds
from tests.bench.machine import describe_machine, spread
from tests.support.lake_by_formula import append_bench_rows, partition_of, write_bench_lake

ROWS: Final = 100_000
PARTITIONS: Final = 540
TURNS: Final = 3
LARGE_BYTES: Final = 64 << 20

_PASS: Final = """
import sys, time
from pathlib import Path
from distilld import logs
from distilld.config.load import load
from distilld.core.model import Trigger
from distilld.engine import pool
from distilld.service.run_once import writer
jobs, perform = [0.0], pool.perform
def done_here(*job):
    began = time.thread_time()
    try:
        return perform(*job)
    finally:
        jobs[0] += time.thread_time() - began
pool.perform = done_here
logs.configure(level="error", fmt="json")
root = Path(sys.argv[1])
environ = {"DISTILLD_ROOT": sys.argv[1], "DISTILLD_INCLUDE_PARTIAL": sys.argv[3]}
settings = load(flags={}, environ=environ, config_file=None, cwd=root)
with writer(settings) as engine:
    start, used = time.perf_counter(), time.process_time()
    engine.run_pass(Trigger(sys.argv[2]))
    print(time.perf_counter() - start, time.process_time() - used, jobs[0])
"""


class Took(NamedTuple):
    """What a pass took: seconds, and seconds of processor time of the process that commits, of which for jobs."""

    seconds: float
    committing: float
    jobs: float


def one_pass(root: Path, trigger: str = "once", *, partial: bool = False) -> Took:
    """One pass, in a process of its own."""
    command = [sys.executable, "-c", _PASS, str(root), trigger, str(partial).lower()]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return Took(*map(float, told))


def forget(root: Path) -> None:
    """Make the root one that no pass has seen."""
    for name in ("exports", "state", "reports"):
        shutil.rmtree(root / name, ignore_errors=True)


def first_pass(root: Path) -> Took:
    """A first pass."""
    forget(root)
    return one_pass(root)


def lake(root: Path) -> Path:
    """A pair-rich lake."""
    write_bench_lake(root, rows=ROWS, partitions=PARTITIONS, rich=True)
    return root


def lake_of_known_runs(root: Path) -> Path:
    """The same; every partition names, behind its own rows, runs of the one before it: one row of ten."""
    each = ROWS // PARTITIONS
    write_bench_lake(root, rows=ROWS * 9 // 10, partitions=PARTITIONS, rich=True)
    for index in range(1, PARTITIONS):
        first = (index - 1) * (ROWS * 9 // 10) // PARTITIONS
        append_bench_rows(root, partition_index=index, first_row=first, rows=each // 10)
    return root


def lake_with_a_large_file(root: Path) -> Path:
    """The same; one evidence file has 64 MiB of other rows, too."""
    lake(root)
    with (root / "data/evidence" / partition_of(7)).open("ab") as file:
        line = b'{"run_id":"none %d","text":"' + b"x" * 1500 + b'"}\n'
        for number in range(LARGE_BYTES // 1550):
            file.write(line % number)
    return root


def main() -> None:
    """Print the figures."""
    print(f"every kind of pass, {ROWS} rows in {2 * PARTITIONS} files, pair-rich")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        made: dict[str, Callable[[Path], Path]] = {
            "plain": lake, "known": lake_of_known_runs, "large": lake_with_a_large_file
        }  # fmt: skip
        roots = {each: make(Path(name) / each) for each, make in made.items()}
        ratios: dict[str, list[float]] = {}
        for _ in range(TURNS):
            floor = floor_seconds(roots["plain"])
            first = first_pass(roots["plain"])
            took = {
                "rebuild": one_pass(roots["plain"], "rebuild"),
                "options on": one_pass(roots["plain"], partial=True),
                "options off": one_pass(roots["plain"]),
                "one row of ten names a known run": first_pass(roots["known"]),
                "one file of 64 MiB": first_pass(roots["large"]),
            }
            ratios.setdefault("first pass / floor", []).append(first.seconds / floor)
            ratios.setdefault("committing process / floor", []).append(first.committing / floor)
            own = first.committing - first.jobs
            ratios.setdefault("committing process without jobs / floor", []).append(own / floor)
            for kind, each in took.items():
                ratios.setdefault(f"{kind} / first pass", []).append(each.seconds / first.seconds)
        for kind, found in ratios.items():
            print(f"  {kind:45s} {spread(found, 'times')}")


if __name__ == "__main__":
    main()
