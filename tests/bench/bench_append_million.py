"""Appending 100 rows to one partition of a lake of 1,000,000 rows, in a running process, beside what it cannot do without.

That is the sha256 of the files that changed, which proves that they only grew, and as many fsyncs as the pass makes:
its own, and one of SQLite's for each transaction. The pass is timed from the start of its plan to the end of its commit.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import pytest

from distilld import logs
from distilld.core.model import Options, Trigger
from distilld.engine.engine import Engine
from distilld.lake import scan as lake
from distilld.store.connection import Store
from distilld.store.inputs import SURE_AFTER_NS
from tests.bench.machine import describe_machine, spread
from tests.support.lake_by_formula import append_bench_rows, partition_of, write_bench_lake
from tests.support.limits import limits

ROWS: Final = 1_000_000
PARTITIONS: Final = 270
PARTITION: Final = 3
APPENDS: Final = 20


class Counted:
    """Counts the fsyncs of a pass and notes when its plan begins."""

    def __init__(self, patch: pytest.MonkeyPatch, store: Store) -> None:
        self.fsyncs = 0
        self.planned = 0.0
        fsync, scan = os.fsync, lake.scan

        def counting(descriptor: int) -> None:
            self.fsyncs += 1
            fsync(descriptor)

        def noting(root: Path) -> lake.Scan:
            found = scan(root)
            self.planned = time.perf_counter()
            return found

        def traced(statement: str) -> None:
            self.fsyncs += statement == "COMMIT"

        patch.setattr(os, "fsync", counting)
        patch.setattr(lake, "scan", noting)
        store.connection.set_trace_callback(traced)


def floor_seconds(root: Path, fsyncs: int) -> float:
    """Hash the partition's two files, and write and fsync one block as often."""
    start = time.perf_counter()
    for tree in ("scored-runs", "evidence"):
        hashlib.sha256((root / "data" / tree / partition_of(PARTITION)).read_bytes()).hexdigest()
    with open(root / "fsync.tmp", "wb", buffering=0) as file:
        for _ in range(fsyncs):
            file.write(bytes(4096))
            os.fsync(file.fileno())
    return time.perf_counter() - start


def main(rows: int = ROWS) -> None:
    """Print the figures."""
    logs.configure(level="error", fmt="json")
    print(
        f"append of 100 rows to a lake of {rows} rows in {PARTITIONS} partitions, {APPENDS} times after a first touch"
    )
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name, pytest.MonkeyPatch.context() as patch:
        root = Path(name)
        write_bench_lake(root, rows=rows, partitions=PARTITIONS)
        store = Store.open(root / "state/distilld.db", root)
        engine = Engine(root, store, Options(), limits())
        engine.run_pass(Trigger.ONCE)
        time.sleep(SURE_AFTER_NS / 1e9)
        engine.run_pass(Trigger.ONCE)
        counted = Counted(patch, store)
        seconds, floors = [], []
        for turn in range(APPENDS + 1):
            append_bench_rows(root, partition_index=PARTITION, first_row=100_000_000 + turn * 100, rows=100)
            counted.fsyncs = 0
            engine.run_pass(Trigger.WATCH)
            seconds.append(time.perf_counter() - counted.planned)
            floors.append(floor_seconds(root, counted.fsyncs))
        store.close()
    ratios = [one / other for one, other in zip(seconds[1:], floors[1:], strict=True)]
    print(f"  append          {spread([each * 1e3 for each in seconds[1:]], 'ms', 1)}, {counted.fsyncs} fsyncs")
    print(f"  floor           {spread([each * 1e3 for each in floors[1:]], 'ms', 1)}")
    print(
        f"  append / floor  {spread(ratios, 'times')}, of the medians "
        f"{statistics.median(seconds[1:]) / statistics.median(floors[1:]):.2f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
