"""The first full pass: 100,000 rows with 1.5 KB of text in 270 partitions, everything written, beside its floor.

The floor is what no pass can do without: reading, sha256 and ``pydantic_core.from_json`` of the same bytes, in one
process. Passes and floor take turns, so that a machine whose speed drifts does not tilt the ratio. Memory is that of
the process that commits and of its workers together, pages that they share counted once.
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
from typing import Final, NamedTuple

import pydantic_core

from tests.bench.machine import describe_machine, peak_memory, spread
from tests.support.lake_by_formula import write_bench_lake

ROWS: Final = 100_000
PARTITIONS: Final = 270
TURNS: Final = 5

_PASS: Final = """
import sys, time
from pathlib import Path
from distilld import logs
from distilld.config.load import load
from distilld.core.model import Trigger
from distilld.service.run_once import writer
logs.configure(level="error", fmt="json")
root = Path(sys.argv[1])
environ = {"DISTILLD_ROOT": sys.argv[1], "DISTILLD_WORKERS": sys.argv[2]}
settings = load(flags={}, environ=environ, config_file=None, cwd=root)
with writer(settings) as engine:
    start = time.perf_counter()
    engine.run_pass(Trigger.ONCE)
    print(time.perf_counter() - start)
"""


class Pass(NamedTuple):
    """One full pass: seconds, and the peak of its memory in MiB."""

    seconds: float
    memory: float


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


def full_pass(root: Path, workers: int) -> Pass:
    """One full pass into an empty root, in a process of its own."""
    for name in ("exports", "state", "reports"):
        shutil.rmtree(root / name, ignore_errors=True)
    command = [sys.executable, "-c", _PASS, str(root), str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        memory = peak_memory(process)
        told = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"the pass ended with {process.returncode}")
    return Pass(float(told), memory)


def main() -> None:
    """Print the figures."""
    print(f"first full pass, {ROWS} rows in {PARTITIONS} partitions")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root = Path(name)
        size = write_bench_lake(root, rows=ROWS, partitions=PARTITIONS)
        floors: list[float] = []
        passes: dict[int, list[Pass]] = {1: [], 0: []}
        floor_seconds(root)
        for _ in range(TURNS):
            floors.append(floor_seconds(root))
            for workers, done in passes.items():
                done.append(full_pass(root, workers))
        store = (root / "state/distilld.db").stat().st_size
        print(f"  inputs          {size / 1e6:.0f} MB")
        print(f"  floor           {spread(floors, 's')}")
        for workers, done in passes.items():
            seconds = [each.seconds for each in done]
            ratios = [one / other for one, other in zip(seconds, floors, strict=True)]
            print(f"  workers = {workers}")
            print(f"    pass          {spread(seconds, 's')}, {ROWS / statistics.median(seconds):.0f} rows/s")
            print(f"    pass / floor  {spread(ratios, 'times')}")
            print(f"    peak memory   {spread([each.memory for each in done], 'MiB', 0)}")
        print(f"  state store     {store / ROWS:.0f} bytes a row")


if __name__ == "__main__":
    main()
