"""What a snapshot, a check of it and a change feed cost beside plain reading and copying of the same bytes.

The measures are a plain copy of the three datasets with sha256, and one sequential read of them with sha256. All are
processes of their own and take turns; processor time is compared, since the disk sets the pace of the rest.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from distilld.core.model import DATASET_PATHS, Category
from tests.bench.bench_first_pass import PARTITIONS, full_pass
from tests.bench.machine import describe_machine, spread
from tests.support.command import bring, command, environment
from tests.support.lake_by_formula import append_bench_rows, category_of, write_bench_lake

MEGABYTES: Final = 500
BYTES_A_ROW: Final = 2_900
"""What a row of the lake brings to the three datasets, at its mix of categories."""
CHANGED: Final = 100
TURNS: Final = 3
GOALS: Final = {"snapshot raw": 3.0, "snapshot trl": 8.0, "changes": 1.5}
MEMORY_GOAL: Final = 200

_READ: Final = """
import hashlib, os, sys
for number, path in enumerate(sys.argv[2:]):
    sha = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        target = open(os.path.join(sys.argv[1], str(number)), "wb", buffering=0) if sys.argv[1] else None
        while block := file.read(1 << 17):
            sha.update(block)
            if target:
                target.write(block)
        if target:
            os.fsync(target.fileno())
"""


class Cost(NamedTuple):
    """What a process took."""

    processor: float
    seconds: float
    memory: float
    """MiB, at most at one time."""


def cost_of(arguments: list[str], folder: Path) -> Cost:
    """Run a process to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(arguments, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss / 1024)


def main(megabytes: int = MEGABYTES, turns: int = TURNS) -> None:
    """Print the figures."""
    print(f"snapshot and changes, some {megabytes} MB of exports, {turns} turns")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        folder = Path(name)
        root, rows = folder / "lake", megabytes * 1_000_000 // BYTES_A_ROW
        write_bench_lake(root, rows=rows, partitions=PARTITIONS)
        full_pass(root, 0)
        since = newest_batch(root)
        news = CHANGED
        while sum(category_of(row) is Category.ACCEPTED for row in range(rows, rows + news)) < CHANGED:
            news += 1
        append_bench_rows(root, partition_index=0, first_row=rows, rows=news)
        bring(root)
        paths = [str(root / path) for path in DATASET_PATHS.values()]
        size = sum(os.path.getsize(path) for path in paths)
        print(f"  {size / 1e6:.0f} MB, {sum(line_count(Path(path)) for path in paths)} rows")
        rag = [str(root / DATASET_PATHS[next(iter(DATASET_PATHS))])]
        target, copied = folder / "snapshot", folder / "copied"
        known = folder / "known"
        cost_of(command("snapshot", str(known), "--root", str(root)), folder)
        make = ("snapshot", str(target), "--root", str(root), "--format")
        measured = {
            "plain copy": [sys.executable, "-c", _READ, str(copied), *paths],
            "snapshot raw": command(*make, "raw"),
            "snapshot trl": command(*make, "trl"),
            "snapshot trl, validation": command(*make, "trl", "--validation", "0.05"),
            "snapshot --check": command("snapshot", str(known), "--check", "--root", str(root)),
            "plain read of rag": [sys.executable, "-c", _READ, "", *rag],
            "changes": command("changes", "--dataset", "rag", "--since", since, "--root", str(root)),
        }
        found: dict[str, list[Cost]] = {each: [] for each in measured}
        for _ in range(turns):
            for each, arguments in measured.items():
                copied.mkdir()
                found[each].append(cost_of(arguments, folder))
                shutil.rmtree(target, ignore_errors=True)
                shutil.rmtree(copied)
    for each, costs in found.items():
        measure = "plain read of rag" if each == "changes" else "plain copy"
        ratios = [one.processor / other.processor for one, other in zip(costs, found[measure], strict=True)]
        goal = f" (goal: at most {GOALS[each]:g})" if each in GOALS else ""
        told = "" if each.startswith("plain") else f", {statistics.median(ratios):.2f} times the {measure}{goal}"
        print(f"  {each:<24} {spread([cost.processor for cost in costs], 's')}{told}")
        print(
            f"  {'':<24} {max(cost.memory for cost in costs):.0f} MiB, wall {spread([cost.seconds for cost in costs], 's')}"
        )
    print(f"  goal of memory: below {MEMORY_GOAL} MiB")


def newest_batch(root: Path) -> str:
    """The id of the newest batch."""
    return max(path.name for path in (root / "reports" / "distillation").iterdir() if path.is_dir())


def line_count(path: Path) -> int:
    """The lines of a file."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
