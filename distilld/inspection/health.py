"""Whether somebody must act (SPEC 5): what ``status`` calls a problem, and whether a daemon runs."""

from __future__ import annotations

from distilld.config.settings import Settings
from distilld.inspection.status import Problem, look


def diagnose(settings: Settings, *, daemon: bool = True) -> list[Problem]:
    """Everything that keeps the lake from being healthy, each with what resolves it; nothing where it is.

    ``daemon`` false is for a lake that a timer brings up to date: whether one runs, and when it scanned, is left out.

    Raises:
        OperatorError: The store or the lock cannot be read.
        UsageError: The store is from a newer version, or belongs to another root.
    """
    found = look(settings)
    if not daemon:
        return [each for each in found.problems if each.name != "scan_overdue"]
    if not found.writer.running:
        found.problems.append(
            Problem("no_writer", "no distilld is running", "systemctl start distilld, or distilld run")
        )
    return found.problems
