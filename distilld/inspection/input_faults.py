"""Compare the input trees with what the store knows of them: what waits, and what cannot be read. Only reads."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from distilld.core.model import OperatorError, UsageError
from distilld.core.plan import FileKey, Look, compare
from distilld.inspection.problem import Problem
from distilld.lake import scan as lake
from distilld.lake.apart import refuse_overlaps
from distilld.lake.scan import ListingError, Scan, Stray, tree_path
from distilld.store.inputs import FileRecord

_OLDEST: Final = 10
_THEN_RUN: Final = "then distilld run --once"

Files = Mapping[FileKey, FileRecord]
"""What the store knows of each file."""


@dataclass(frozen=True, slots=True)
class UnreadFile:
    """A new or changed file: seconds since its last change, and how many of its bytes were not read."""

    path: str
    seconds: float
    unread_bytes: int


@dataclass(frozen=True, slots=True)
class Lag:
    """What is in data/ and was not read yet. The changed files may include one that is still being written."""

    new_files: int = 0
    changed_files: int = 0
    gone_files: int = 0
    unread_bytes: int = 0
    seconds: float = 0.0
    """Seconds since the last change of the file that waits longest, by the file system's own clock."""
    oldest: tuple[UnreadFile, ...] = ()
    """The files that wait longest, at most ten."""


@dataclass(slots=True)
class InputFaults:
    """What a look at the input trees found."""

    problems: list[Problem] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    """The paths of the files and folders that the problems are about."""
    strays: tuple[Stray, ...] = ()
    """What is in the input trees and is no partition."""
    lag: Lag | None = None
    empty: bool = False
    """Whether there is no partition file, and none that may stand in a folder that cannot be listed."""

    def not_listed(self, path: str, text: str, remedy: str) -> None:
        """Add a folder that cannot be listed."""
        self.problems.append(Problem("not_listed", text, remedy))
        self.told.add(path)

    def not_read(self, path: str, problem: str, remedy: str) -> None:
        """Add a file that cannot be read."""
        self.problems.append(Problem("not_read", f"{path} {problem}", remedy))
        self.told.add(path)


def look_at_inputs(root: Path, state: Path, files: Files) -> InputFaults:
    """Return how the input trees differ from ``files``, and what of them cannot be read."""
    found = InputFaults()
    try:
        refuse_overlaps(root, state)
    except UsageError as error:
        found.problems.append(Problem("trees_overlap", str(error), error.hint))
        return found
    except OperatorError as error:
        found.problems.append(Problem("not_listed", str(error), error.hint))
    try:
        scan = lake.scan(root)
    except ListingError as error:
        found.not_listed(error.path, str(error), f"{error.remedy}, {_THEN_RUN}")
        return found
    for folder in scan.not_listed:
        found.not_listed(folder.path, f"{folder.path} {folder.problem}", f"make the folder readable, {_THEN_RUN}")
    found.strays, found.empty = scan.strays, not (scan.files or scan.unlisted)
    found.lag = _lag(found, root, scan, files)
    for oddity in scan.oddities:
        found.not_read(oddity.path, oddity.problem, remedy_of_input(oddity.problem, "put a regular file in its place"))
    return found


def remedy_of_input(problem: str, remedy: str) -> str:
    """Return what to do about an entry of a tree: ``remedy``, but a name that cannot be used must be another one."""
    return f"{'rename it' if ' name' in problem else remedy}, or take it away"


def _lag(found: InputFaults, root: Path, scan: Scan, files: Files) -> Lag:
    seen = scan.facts()
    plan = compare(seen, files, scan.is_unknown)
    waiting = []
    for key, _ in plan.to_read:
        facts, record = seen[key], files.get(key)
        unread = max(0, facts.size - (record.content.size if record else 0))
        path = tree_path(*key)
        waiting.append(UnreadFile(path, max(0, time.time_ns() - facts.ctime_ns) / 1e9, unread))
        if not os.access(root / path, os.R_OK):
            found.not_read(path, "cannot be read", "make it readable for distilld's user")
    waiting.sort(key=lambda each: -each.seconds)
    return Lag(
        new_files=sum(look is Look.NEW for _, look in plan.to_read),
        changed_files=sum(look is not Look.NEW for _, look in plan.to_read),
        gone_files=len(plan.gone),
        unread_bytes=sum(each.unread_bytes for each in waiting),
        seconds=waiting[0].seconds if waiting else 0.0,
        oldest=tuple(waiting[:_OLDEST]),
    )
