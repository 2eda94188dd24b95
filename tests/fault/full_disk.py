"""Run inside a small file system of its own: fills it to the brim, a little less each time, and passes over a lake.

    python -m tests.fault.full_disk FOLDER

Prints how often the pass failed and how often there was room enough; ends with a traceback where something is wrong.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import structlog

from distilld.core.model import OperatorError, Trigger
from tests.support.committed import accounted, at_rest, committed_and_whole
from tests.support.histories import NINE, Lake

STEP_KIB = 12
MOST_KIB = 900


def leave_free(folder: Path, free_kib: int) -> Path:
    """Fill the file system up to what is to be left free; returns the file that fills it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    os.truncate(ballast, max(0, ballast.stat().st_size - free_kib * 1024))
    return ballast


def main(folder: Path) -> None:
    """Pass over the lake with ever more room, until there is enough."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    lake = Lake(NINE, folder)
    lake.start()
    expected = at_rest(lake.root)
    failed = 0
    for free_kib in range(0, MOST_KIB, STEP_KIB):
        lake.reset()
        ballast = leave_free(folder, free_kib)
        try:
            with lake.opened() as engine:
                try:
                    engine.committer.recover()
                    engine.run_pass(Trigger.ONCE)
                except OperatorError:
                    failed += 1
                    with suppress(OperatorError):
                        engine.committer.recover()
                ballast.unlink()
                engine.committer.recover()
                committed_and_whole(lake.root)
                engine.run_pass(Trigger.ONCE)
        except OperatorError:
            failed += 1  # there was not even room to open the store
            ballast.unlink()
            lake.start()
        committed_and_whole(lake.root)
        accounted(lake.root)
        assert at_rest(lake.root) == expected, f"with {free_kib} KiB free"
    print(f"failed {failed}, had room {len(range(0, MOST_KIB, STEP_KIB)) - failed}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
