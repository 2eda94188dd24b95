"""The first full pass: 100,000 rows with 1.5 KB of text in 270 partitions, everything written, beside its floor.

The floor is what no pass can do without: reading, sha256 and ``pydantic_core.from_json`` of the same bytes, in one
process. Pass and floor take turns, so that a machine whose speed drifts does not tilt the ratio. Memory is the peak of
the process that passes.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pydantic_core

from tests.bench.lake_by_formula import write_bench_lake
from tests.bench.machine import describe_machine, spread

ROWS = 100_000
PARTITIONS = 270
TURNS = 5

_PASS = """
import resource, sys, time
from pathlib import Path
from distilld import logs
from distilld.batch import Engine
from distilld.model import Options, Trigger
from distilld.store import Store
logs.configure(level="error", fmt="json")
root = Path(sys.argv[1])
store = Store.open(root / "state/distilld.db", root)
engine = Engine(root, store, Options(), batch_rows=50_000, settle_seconds=0)
start = time.perf_counter()
engine.run_pass(Trigger.ONCE)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def floor_seconds(root: Path) -> float:
    """Read, hash and parse every input once."""
    start = time.perf_counter()
    for path in sorted((root / "data").rglob("*.jsonl")):
        content = path.read_bytes()
        hashlib.sha256(content).hexdigest()
        for line in content.split(b"\n"):
            if line:
                pydantic_core.from_json(line)
    return time.perf_counter() - start


def pass_figures(root: Path) -> tuple[float, float]:
    """Seconds and peak memory in MiB of one full pass into an empty root."""
    for name in ("exports", "state", "reports"):
        shutil.rmtree(root / name, ignore_errors=True)
    done = subprocess.run([sys.executable, "-c", _PASS, str(root)], check=True, capture_output=True, text=True)
    seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


def main() -> None:
    """Print the figures."""
    print(f"first full pass, {ROWS} rows in {PARTITIONS} partitions")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root = Path(name)
        size = write_bench_lake(root, rows=ROWS, partitions=PARTITIONS)
        floors, passes, memory = [], [], []
        floor_seconds(root)
        for _ in range(TURNS):
            floors.append(floor_seconds(root))
            seconds, peak = pass_figures(root)
            passes.append(seconds)
            memory.append(peak)
        store = (root / "state/distilld.db").stat().st_size
        ratios = [one / other for one, other in zip(passes, floors, strict=True)]
        print(f"  inputs        {size / 1e6:.0f} MB")
        print(f"  floor         {spread(floors, 's')}")
        print(f"  pass          {spread(passes, 's')}, {ROWS / statistics.median(passes):.0f} rows/s")
        print(f"  pass / floor  {spread(ratios, 'times')}")
        print(f"  peak memory   {spread(memory, 'MiB', 0)}")
        print(f"  state store   {store / ROWS:.0f} bytes a row")


if __name__ == "__main__":
    main()
