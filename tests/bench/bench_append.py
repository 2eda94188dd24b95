"""Appending 100 rows to lakes of 5,000, 50,000 and 500,000 rows in partitions of equal size, in one running process.

Work is to follow the change: the ratio of the largest lake to the smallest says whether it does. One appended-to
partition grows as the appends come, alike in each lake. The scan of all partitions is told apart, since it grows with
their number.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from distilld import logs
from distilld.core.model import Options, Trigger
from distilld.engine.engine import Engine
from distilld.lake import scan as lake
from distilld.store.connection import Store
from distilld.store.inputs import SURE_AFTER_NS
from tests.bench.machine import describe_machine, spread
from tests.support.lake_by_formula import append_bench_rows, write_bench_lake
from tests.support.limits import limits

SIZES = (5_000, 50_000, 500_000)
ROWS_PER_PARTITION = 370
APPENDS = 30


def append_seconds(root: Path, rows: int) -> tuple[list[float], list[float], int]:
    """Seconds of each pass after an append, seconds of its scan alone, rows judged by the last."""
    write_bench_lake(root, rows=rows, partitions=max(1, rows // ROWS_PER_PARTITION))
    store = Store.open(root / "state/distilld.db", root)
    engine = Engine(root, store, Options(), limits())
    engine.run_pass(Trigger.ONCE)
    time.sleep(SURE_AFTER_NS / 1e9)
    engine.run_pass(Trigger.ONCE)
    seconds, scans, judged = [], [], 0
    for turn in range(APPENDS + 1):
        append_bench_rows(root, partition_index=3, first_row=100_000_000 + turn * 100, rows=100)
        start = time.perf_counter()
        result = engine.run_pass(Trigger.WATCH)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        lake.scan(root)
        scans.append(time.perf_counter() - start)
        judged = sum(batch.receipt["work"]["rows_judged"] for batch in result.batches)
    store.close()
    return seconds[1:], scans[1:], judged


def main(sizes: tuple[int, ...] = SIZES) -> None:
    """Print the figures."""
    logs.configure(level="error", fmt="json")
    print(f"append of 100 rows, {APPENDS} times after a first touch")
    print(describe_machine())
    medians = []
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
            seconds, scans, judged = append_seconds(Path(name), rows)
        rest = [whole - scan for whole, scan in zip(seconds, scans, strict=True)]
        medians.append((statistics.median(seconds), statistics.median(rest)))
        print(f"  {rows:>7} rows: {spread([each * 1e3 for each in seconds], 'ms', 1)}, {judged} rows judged;")
        print(f"               without the scan {spread([each * 1e3 for each in rest], 'ms', 1)}")
    whole, work = (medians[-1][which] / medians[0][which] for which in (0, 1))
    print(f"  largest / smallest: {whole:.2f}; without the scan {work:.2f}")


if __name__ == "__main__":
    main(tuple(int(size) for size in sys.argv[1:]) or SIZES)
