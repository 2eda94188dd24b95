"""Whether an operator must act (SPEC 5): what ``status`` calls a problem, and whether a daemon runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from distilld.config.settings import Settings
from distilld.inspection.problem import Problem
from distilld.inspection.status import PERIODS, look
from distilld.service.lock import LOCK_FILE


def diagnose(settings: Settings, *, daemon: bool = True) -> list[Problem]:
    """Return every problem that makes the lake unhealthy, each with its remedy; none if it is healthy.

    If ``settings.writer`` is 'timer', the age of the last run is checked instead. ``daemon`` false checks neither.

    Raises:
        OperatorError: The store or the lock cannot be read.
        UsageError: The store is from a newer version, or belongs to another root.
    """
    found = look(settings)
    problems = found.problems
    if not daemon or settings.writer == "timer":
        problems = [each for each in problems if each.name != "scan_overdue"]
    if daemon and settings.writer == "timer":
        problems += _overdue_run(settings)
    elif daemon and not found.writer.running:
        remedy = "systemctl start distilld, or distilld run; where a timer runs distilld: set writer = timer"
        problems.append(Problem("no_writer", "no distilld is running", f"{remedy}, or ask with --no-daemon"))
    return problems


def _overdue_run(settings: Settings) -> Iterator[Problem]:
    try:
        # A writer writes its lock file when it begins.
        age = time.time() - os.stat(settings.root / LOCK_FILE).st_mtime
    except OSError:
        return  # distilld never ran, which ``look`` reports
    if age > PERIODS * settings.rescan_seconds:
        text = f"the last run began {age:,.0f} s ago, and one is due every {settings.rescan_seconds:g} s"
        yield Problem(
            "run_overdue", text, "see systemctl list-timers distilld.timer, then systemctl start distilld-once"
        )
