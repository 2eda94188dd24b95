"""A first full pass over 1,000,000 rows beside one over 100,000: rows per second, and the memory of all processes.

Both lakes have 270 partitions, so those of the large one are ten times as long.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from tests.bench.bench_first_pass import PARTITIONS, full_pass
from tests.bench.machine import describe_machine
from tests.support.lake_by_formula import write_bench_lake

SMALL: Final = 100_000
LARGE: Final = 1_000_000


def main() -> None:
    """Print the figures."""
    print(f"first full pass, {LARGE} rows beside {SMALL}, {PARTITIONS} partitions each")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        rates = []
        # The small one before and after: the rate of the machine may drift meanwhile.
        for number, rows in enumerate((SMALL, LARGE, SMALL)):
            root = Path(name) / str(number)
            write_bench_lake(root, rows=rows, partitions=PARTITIONS)
            done = full_pass(root, 0)
            rates.append(rows / done.seconds)
            print(f"  {rows:9d} rows  {done.seconds:.1f} s, {rates[-1]:.0f} rows/s, {done.memory:.0f} MiB at most")
        print(f"  share of the small lake's rate  {rates[1] / ((rates[0] + rates[2]) / 2):.2f}")


if __name__ == "__main__":
    main()
