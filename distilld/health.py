"""Whether somebody must act (SPEC 5): what ``status`` calls a problem, and whether a daemon does its work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from distilld.config import Settings
from distilld.status import Problem, Status, look

PERIODS: Final = 3
"""After so many rescan periods without a scan, a daemon that runs is taken for one that hangs."""


def diagnose(settings: Settings, *, daemon: bool = True) -> list[Problem]:
    """Everything that keeps the lake from being healthy, each with what resolves it; nothing where it is.

    ``daemon`` false is for a lake that a timer brings up to date: whether one runs, and when it scanned, is left out.

    Raises:
        OperatorError: The store or the lock cannot be read.
        UsageError: The store is from a newer version, or belongs to another root.
    """
    found = look(settings)
    return [*found.problems, *(_of_work(found, settings, time.time()) if daemon else ())]


def _of_work(found: Status, settings: Settings, now: float) -> Iterator[Problem]:
    if not found.writer.running:
        yield Problem("no_writer", "no distilld is running", "systemctl start distilld, or distilld run")
        return
    moments = [each for each in (found.vitals.started_at, found.vitals.last_scan_at) if each is not None]
    if not found.daemon_runs or not moments:
        return
    age = now - max(datetime.fromisoformat(each).timestamp() for each in moments)
    if age > PERIODS * settings.rescan_seconds:
        text = f"the last scan ended {age:.0f} s ago, and one is due every {settings.rescan_seconds:g} s"
        yield Problem("scan_overdue", text, "see what the log says last, then systemctl restart distilld")
