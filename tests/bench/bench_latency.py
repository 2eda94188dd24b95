"""How long it takes from a producer's write to the row in the export: single rows at random moments, the daemon running.

Ten partitions of 5,000 rows, whose evidence files are of 10 MB each; 300 rows of the formula, one at a time, to one of
the ten by turns, the evidence line first. The clock starts when the scored line is written and fsynced, and stops when
the row stands in the RAG export; which is looked at every millisecond.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from distilld.core.model import Category
from tests.bench.machine import describe_machine, spread
from tests.support.lake_by_formula import append_bench_rows, category_of, partition_of, run_of, write_bench_lake
from tests.support.running import daemon, until

PARTITIONS = 10
ROWS_A_PARTITION = 5_000
APPENDS = 300
TURNS = 3
MEDIAN_GOAL_MS = 250
SLOWEST_GOAL_MS = 600
"""For the 95th percentile."""
PAUSE_SECONDS = (0.02, 0.4)
LOOK_SECONDS = 0.001


def latencies(root: Path, appends: int, seed: int) -> list[float]:
    """Milliseconds of each row."""
    write_bench_lake(root, rows=PARTITIONS * ROWS_A_PARTITION, partitions=PARTITIONS)
    dice = random.Random(seed)
    accepted = (row for row in range(10_000_000, 20_000_000) if category_of(row) is Category.ACCEPTED)
    found = []
    with daemon(root, env={"DISTILLD_LOG_FORMAT": "json"}) as running:
        running.wait_for("scan_finished", seconds=300)
        export = (root / "exports/rag/playbooks.jsonl").open("rb")
        with export:
            export.seek(0, os.SEEK_END)
            for turn in range(appends):
                time.sleep(dice.uniform(*PAUSE_SECONDS))
                row = next(accepted)
                append_bench_rows(root, partition_index=turn % PARTITIONS, first_row=row, rows=1)
                descriptor = os.open(root / "data/scored-runs" / partition_of(turn % PARTITIONS), os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
                start = time.perf_counter()
                wanted, seen = f'"source_run_id":"{run_of(row)}"'.encode(), b""
                while wanted not in seen:
                    time.sleep(LOOK_SECONDS)
                    seen += export.read()
                    assert time.perf_counter() - start < 30, "the row never came"
                found.append((time.perf_counter() - start) * 1e3)
        assert until(lambda: running.stop() == 0, "the end")
    return found


def main(appends: int = APPENDS) -> None:
    """Print the figures."""
    print(f"latency of {appends} single rows, from the write to the export; {TURNS} turns, the best one counts")
    print(describe_machine())
    medians, slowest = [], []
    for turn in range(TURNS):
        with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
            found = latencies(Path(name), appends, seed=turn)
        medians.append(statistics.median(found))
        slowest.append(statistics.quantiles(found, n=20)[-1])
        print(f"  turn {turn + 1}: {spread(found, 'ms', 1)}, 95 % within {slowest[-1]:.1f} ms")
    print(f"  median {min(medians):.1f} ms (goal: below {MEDIAN_GOAL_MS})")
    print(f"  95th percentile {min(slowest):.1f} ms (goal: below {SLOWEST_GOAL_MS})")


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
