"""How the cost grows: with rows, with partitions, with the size of the exports, with the share of withdrawals.

Three sizes each, the others held still. What grows in proportion shows as a level cost by row, by partition or by MB.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from distilld.core.model import DATASET_PATHS
from tests.bench.bench_first_pass import full_pass
from tests.bench.bench_withdraw import RESCORE
from tests.bench.machine import describe_machine
from tests.support.lake_by_formula import write_bench_lake

TURNS: Final = 3
ROWS: Final = (20_000, 60_000, 180_000)
PARTITIONS: Final = (100, 1_000, 10_000)
EXPORT_ROWS: Final = (10_000, 30_000, 90_000)
SHARES: Final = (0.01, 0.1, 0.5)


def first_pass_seconds(rows: int, partitions: int) -> float:
    """The median of a few first passes."""
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        write_bench_lake(Path(name), rows=rows, partitions=partitions)
        return statistics.median(full_pass(Path(name), 0).seconds for _ in range(TURNS))


def rescore_seconds(rows: int, runs: int) -> tuple[float, int, int]:
    """Seconds that the re-score of ``runs`` runs takes, rows that leave, bytes of the three exports before."""
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        root = Path(name)
        write_bench_lake(root, rows=rows, partitions=max(1, rows // 370))
        full_pass(root, 0)
        size = sum((root / path).stat().st_size for path in DATASET_PATHS.values())
        command = [sys.executable, "-c", RESCORE, str(root), str(runs)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return float(told[0]), int(told[1]), size


def main() -> None:
    """Print the figures."""
    print("growth of the cost, three sizes each")
    print(describe_machine())
    start = time.perf_counter()
    print("  first pass by rows, 100 partitions")
    for rows in ROWS:
        seconds = first_pass_seconds(rows, 100)
        print(f"    {rows:7d} rows        {seconds:6.2f} s, {seconds / rows * 1e6:5.1f} us a row")
    print("  first pass by partitions, 60,000 rows")
    for partitions in PARTITIONS:
        seconds = first_pass_seconds(60_000, partitions)
        print(f"    {partitions:7d} partitions  {seconds:6.2f} s")
    print("  re-score of 100 runs by the size of the exports")
    for rows in EXPORT_ROWS:
        seconds, gone, size = rescore_seconds(rows, 100)
        print(
            f"    {size / 1e6:7.0f} MB          {seconds:6.3f} s, {seconds / size * 1e9:5.2f} ms a MB, {gone} rows left"
        )
    print("  re-score by the share of the runs that ship to RAG and SFT, 30,000 rows")
    for share in SHARES:
        seconds, gone, _ = rescore_seconds(30_000, round(30_000 * 0.4 * share))
        print(f"    {share:7.0%}             {seconds:6.3f} s, {gone} rows left, {seconds / gone * 1e6:5.0f} us each")
    print(f"  ({time.perf_counter() - start:.0f} s in all)")


if __name__ == "__main__":
    main()
