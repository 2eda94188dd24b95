"""Re-scoring 100 runs as rejected: they leave three exports, which are each streamed once.

The measure is reading, hashing, writing and fsyncing these three files once in blocks of 1 MiB. Memory is the peak of
the process: an export of any size streams.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from distilld.core.model import DATASET_PATHS
from tests.bench.machine import describe_machine, spread
from tests.support.lake_by_formula import write_bench_lake

ROWS = 50_000
PARTITIONS = 135
RESCORED = 100
TURNS = 5

RESCORE: Final = """
import json, resource, sys, time
from pathlib import Path
from typing import Final
from distilld import logs
from distilld.engine.engine import Engine
from distilld.core.model import Options, Trigger
from distilld.store.connection import Store
logs.configure(level="error", fmt="json")
root, count = Path(sys.argv[1]), int(sys.argv[2])
store = Store.open(root / "state/distilld.db", root)
engine = Engine(root, store, Options(), batch_rows=50_000, settle_seconds=0)
engine.run_pass(Trigger.ONCE)
runs = [run for (run,) in store.connection.execute(
    "SELECT run_id FROM scored_rows WHERE rag = 0 AND sft = 0 ORDER BY walk LIMIT ?", (count,))]
path = root / "data/scored-runs/2099/01/01/rejections.jsonl"
path.parent.mkdir(parents=True, exist_ok=True)
with path.open("a") as file:
    for run in runs:
        provenance = {"source_file": "x", "line_offset": 0, "sig_hash": run}
        file.write(json.dumps({"evidence_run_id": run, "evidence_task_id": "again", "category": "rejected",
                               "reasons": [], "provenance": provenance}) + "\\n")
start = time.perf_counter()
result = engine.run_pass(Trigger.WATCH)
seconds = time.perf_counter() - start
gone = sum(batch.receipt["record_counts"]["withdrawn"] for batch in result.batches)
store.close()
print(seconds, gone, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def copy_seconds(root: Path) -> float:
    """Read, hash, write and fsync the three datasets once."""
    start = time.perf_counter()
    for path in DATASET_PATHS.values():
        with open(root / path, "rb", buffering=0) as old, open(root / "copy.tmp", "wb", buffering=0) as new:
            sha = hashlib.sha256()
            while block := old.read(1 << 20):
                sha.update(block)
                new.write(block)
            os.fsync(new.fileno())
    seconds = time.perf_counter() - start
    (root / "copy.tmp").unlink()
    return seconds


def main() -> None:
    """Print the figures."""
    print(f"re-score of {RESCORED} runs as rejected in a lake of {ROWS} rows")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root = Path(name)
        write_bench_lake(root, rows=ROWS, partitions=PARTITIONS)
        copies, passes, memory, gone = [], [], [], 0
        for turn in range(TURNS + 1):
            words = [sys.executable, "-c", RESCORE, str(root), str(RESCORED)]
            seconds, left, peak = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
            if turn:  # the first one reads the whole lake
                passes.append(float(seconds))
                copies.append(copy_seconds(root))
                memory.append(float(peak))
                gone = int(left)
        ratios = [one / other for one, other in zip(passes, copies, strict=True)]
        print(f"  exports       {sum((root / path).stat().st_size for path in DATASET_PATHS.values()) / 1e6:.0f} MB")
        print(f"  withdrawn     {gone} rows a turn")
        print(f"  one copy      {spread(copies, 's')}")
        print(f"  pass          {spread(passes, 's')}")
        print(f"  pass / copy   {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"  peak memory   {spread(memory, 'MiB', 0)}")


if __name__ == "__main__":
    main()
