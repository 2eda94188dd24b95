"""What a daemon with nothing to do costs: 5,000 partitions watched, a minute between two rescans."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.bench.machine import describe_machine, spread
from tests.support.lake_by_formula import write_bench_lake
from tests.support.running import Running, daemon

PARTITIONS = 5_000
MINUTES = 3
GOAL_PERCENT = 0.3


def busy_seconds(running: Running) -> float:
    """Processor time of all its threads, to the nanosecond."""
    found = 0
    for task in Path(f"/proc/{running.pid}/task").iterdir():
        found += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return found / 1e9


def resident_mib(running: Running) -> float:
    """Its resident memory."""
    for line in Path(f"/proc/{running.pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main(seconds: int = 60) -> None:
    """Print the figures."""
    print(f"idle with {PARTITIONS} partitions in two trees, {MINUTES} times {seconds} s, no rescan in between")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root = Path(name) / "lake"
        write_bench_lake(root, rows=PARTITIONS, partitions=PARTITIONS)
        with daemon(root, env={"DISTILLD_RESCAN_SECONDS": "86400"}) as running:
            running.wait_for("scan_finished", seconds=300)
            time.sleep(10)  # the second pass, and the checkpoint
            percents = []
            for _ in range(MINUTES):
                start, before = time.perf_counter(), busy_seconds(running)
                time.sleep(seconds)
                percents.append(100 * (busy_seconds(running) - before) / (time.perf_counter() - start))
            print(f"  {spread(percents, '% of a core', 3)} (goal: at most {GOAL_PERCENT})")
            print(f"  resident memory {resident_mib(running):.0f} MiB")
            running.stop()


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
