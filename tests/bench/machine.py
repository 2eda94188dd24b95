"""What every benchmark prints beside its figures: the machine, medians with their spread, ratios of one run."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def describe_machine() -> str:
    """One line about where the figures come from."""
    model = "unknown processor"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        model = f"{len(names)} x {names[0]}" if names else model
    except OSError:
        pass
    return (
        f"{model}, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, load {os.getloadavg()[0]:.1f}"
    )


def spread(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """The median, with the smallest and the largest value."""
    return (
        f"{statistics.median(values):.{digits}f} {unit} "
        f"(of {len(values)}: {min(values):.{digits}f} to {max(values):.{digits}f})"
    )


def peak_memory(process: subprocess.Popen[str], *, every_seconds: float = 0.05) -> float:
    """The largest memory that a process and those below it took together while it ran, in MiB, shared pages once.

    It is looked at ``every_seconds``, so a peak that is shorter may be missed.
    """
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_pss_kib(pid) for pid in _family(process.pid)))
        time.sleep(every_seconds)
    return peak / 1024


def _family(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        try:
            children = Path(f"/proc/{each}/task/{each}/children").read_text(encoding="ascii")
        except OSError:
            continue
        found += map(int, children.split())
    return found


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
