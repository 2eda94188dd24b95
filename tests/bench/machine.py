"""What every benchmark prints beside its figures: the machine, medians with their spread, ratios of one run."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.system.command import REPOSITORY


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


def without_pandas(folder: Path) -> dict[str, str]:
    """An environment for processes whose memory counts: sqlite-utils imports pandas where the tests' tools brought it."""
    stub = folder / "as-installed"
    stub.mkdir()
    (stub / "pandas.py").write_text('raise ImportError("not where distilld alone is installed")\n')
    return {"PYTHONPATH": f"{stub}:{REPOSITORY}"}
