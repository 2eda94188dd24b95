"""Runs that are rejected one at a time, and a hundred at once, with exports of three sizes.

Time is that of a pass of a running process, from the rejection in its partition until the row is out of all datasets
and the receipt stands. Bytes are all that the process wrote meanwhile: exports, store, receipt.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from distilld.core.model import DATASET_PATHS
from tests.bench.machine import describe_machine
from tests.support.lake_by_formula import write_bench_lake

SIZES: Final = (10_000, 35_000, 700_000)
"""Rows of 1.5 KB: exports of 30 MB, 100 MB and 2 GB."""
PARTITIONS: Final = 95
"""The same for all sizes: each pass looks at every one of them."""
TURNS: Final = 20
AT_ONCE: Final = 100

REJECT: Final = """
import json, resource, sys, time
from pathlib import Path
from distilld import logs
from distilld.engine.engine import Engine
from distilld.core.model import Options, Trigger
from distilld.store.connection import Store
from tests.support.limits import limits
logs.configure(level="error", fmt="json")
root, turns, at_once = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = Store.open(root / "state/distilld.db", root)
engine = Engine(root, store, Options(), limits())
start = time.perf_counter()
engine.run_pass(Trigger.ONCE)
first = time.perf_counter() - start
engine.run_pass(Trigger.RESCAN)
rows = store.connection.execute("SELECT count(*) FROM scored_rows").fetchone()[0]
runs = [run for (run,) in store.connection.execute(
    "SELECT run_id FROM scored_rows WHERE rag = 0 AND sft = 0 ORDER BY (walk * 7919) % 10007 LIMIT ?",
    (turns + at_once,))]
path = root / "data/scored-runs/2099/01/01/rejections.jsonl"
path.parent.mkdir(parents=True, exist_ok=True)

def written():
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])

def reject(runs):
    with path.open("a") as file:
        for run in runs:
            provenance = {"source_file": "x", "line_offset": 0, "sig_hash": run}
            file.write(json.dumps({"evidence_run_id": run, "evidence_task_id": "again", "category": "rejected",
                                   "reasons": [], "provenance": provenance}) + "\\n")
    before, start = written(), time.perf_counter()
    result = engine.run_pass(Trigger.WATCH)
    seconds, size = time.perf_counter() - start, written() - before
    gone = sum(batch.receipt["record_counts"]["withdrawn"] for batch in result.batches)
    assert gone >= len(runs), gone
    return seconds, size, gone

one = [reject([run]) for run in runs[:turns]]
many = reject(runs[turns:])
store.close()
store_bytes = (root / "state/distilld.db").stat().st_size / rows
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"first": first, "one": one, "many": many, "store": store_bytes, "peak": peak}))
"""


def reject(root: Path, one_by_one: int, at_once: int) -> dict[str, Any]:
    """Reject runs of a lake in a process of its own; each time gives seconds, bytes written and rows that left."""
    words = [sys.executable, "-c", REJECT, str(root), str(one_by_one), str(at_once)]
    found: dict[str, Any] = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def measure(rows: int) -> dict[str, Any]:
    """What one size comes to."""
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root = Path(name)
        write_bench_lake(root, rows=rows, partitions=PARTITIONS)
        found = reject(root, TURNS, AT_ONCE)
        found["exports"] = sum((root / path).stat().st_size for path in DATASET_PATHS.values())
        return found


def main(sizes: Sequence[int] = SIZES) -> None:
    """Print the figures; sizes may be given as numbers of rows."""
    print("one run rejected at a time, in a process that runs on")
    print(describe_machine())
    medians = []
    for rows in sizes:
        found = measure(rows)
        seconds = sorted(second for second, _, _ in found["one"])
        medians.append(statistics.median(seconds))
        print(f"  exports of {found['exports'] / 1e6:.0f} MB, {rows} rows")
        print(f"    first pass      {found['first']:.1f} s, store {found['store']:.0f} bytes a row")
        print(
            f"    one run         median {medians[-1] * 1e3:.0f} ms, 95 % {seconds[len(seconds) * 95 // 100] * 1e3:.0f} ms"
        )
        print(f"    bytes written   {statistics.median(size for _, size, _ in found['one']) / 1024:.0f} KiB")
        print(f"    {AT_ONCE} runs at once {found['many'][0]:.2f} s, {found['many'][1] / 1024:.0f} KiB")
        print(f"    peak memory     {found['peak']:.0f} MiB")
    print(f"  largest / middle  {medians[-1] / medians[len(medians) // 2]:.2f}")


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or SIZES)
