"""Whether an operator must act (SPEC 5): what ``status`` calls a problem, and whether a daemon runs."""

from __future__ import annotations

from distilld.config.settings import Settings
from distilld.inspection.problem import Problem
from distilld.inspection.status import look


def diagnose(settings: Settings, *, daemon: bool = True) -> list[Problem]:
    """Return every problem that makes the lake unhealthy, each with its remedy; none if it is healthy.

    If ``settings.writer`` is 'timer', no daemon is missed. ``daemon`` false also leaves out when the last scan was.

    Raises:
        OperatorError: The store or the lock cannot be read.
        UsageError: The store is from a newer version, or belongs to another root.
    """
    found = look(settings)
    problems = found.problems
    if not daemon:
        return [each for each in problems if each.name not in {"scan_overdue", "run_overdue"}]
    if not (found.timer or found.writer.running):
        remedy = "systemctl start distilld, or distilld run; where a timer runs distilld: set writer = timer"
        problems.append(Problem("no_writer", "no distilld is running", f"{remedy}, or ask with --no-daemon"))
    return problems
