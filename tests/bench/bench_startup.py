"""How long the commands take that people type: their start is most of it.

The measure is ``python -c "import pydantic"`` with the same interpreter. Commands and measure take turns, so that a
machine whose speed drifts does not tilt the ratios. The lake is the sample lake of one day after one run.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.machine import describe_machine, spread
from tests.support.command import bring, command, environment
from tests.support.sample import SampleLake

TURNS = 15
GOAL = 2.0


def seconds_of(arguments: list[str], folder: Path) -> float:
    """How long a command takes from its start to its end."""
    start = time.perf_counter()
    subprocess.run(arguments, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(turns: int = TURNS) -> None:
    """Print the figures."""
    print(f"start of commands, {turns} turns")
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="distilld-bench-") as name:
        folder = Path(name)
        lake = SampleLake.write(folder / "lake")
        bring(lake.root)
        measured = {
            "import pydantic": [sys.executable, "-c", "import pydantic"],
            "distilld --help": command("--help"),
            "distilld status": command("status", "--root", str(lake.root)),
            "distilld health": command("health", "--no-daemon", "--root", str(lake.root)),
        }
        found: dict[str, list[float]] = {each: [] for each in measured}
        for turn in range(turns + 1):
            for each, arguments in measured.items():
                seconds = seconds_of(arguments, folder)
                if turn:  # the first turn compiles and fills the cache
                    found[each].append(seconds * 1e3)
    measure = statistics.median(found["import pydantic"])
    for each, times in found.items():
        ratio = statistics.median(times) / measure
        goal = "" if each == "import pydantic" else f", {ratio:.2f} times import pydantic (goal: at most {GOAL:g})"
        print(f"  {each:<16} {spread(times, 'ms', 1)}{goal}")


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
