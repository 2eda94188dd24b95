"""What a writer records about itself in the store's table ``lake``, for ``health`` and ``status`` (SPEC 5).

Only changes are written, and the time of the last scan a few times per rescan period: most passes that find nothing to
do write nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeVar

from distilld.lake.scan import Oddity
from distilld.store.connection import Store

PID: Final = "daemon_pid"
STARTED: Final = "daemon_started_at"
SCANNED: Final = "last_scan_at"
FAILURE: Final = "last_failure"
UNREADABLE: Final = "unreadable_inputs"
OVERDUE: Final = "withdrawal_overdue_since"
WATCHING: Final = "watching"

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that lasts: its start, the last try, the number of tries, what it is and what to do about it."""

    since: str
    at: str
    tries: int
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An input that cannot be read, and since when."""

    path: str
    problem: str
    since: str


@dataclass(frozen=True, slots=True)
class Vitals:
    """The last state of a daemon; and, of any writer, what failed and what it could not read.

    Times are UTC with milliseconds; ``watching`` is 'events', or why there are none.
    """

    pid: int | None = None
    started_at: str | None = None
    last_scan_at: str | None = None
    failure: Failure | None = None
    unreadable: tuple[Unreadable, ...] = ()
    overdue_since: str | None = None
    watching: str | None = None

    def after_scan(self, now: str, *, note_every: float = 0.0) -> Vitals:
        """Return the vitals after a scan; the same ones if the last that is noted was within ``note_every`` seconds."""
        noted = self.last_scan_at
        if noted is not None and 0 <= seconds_of(now) - seconds_of(noted) < note_every:
            return self
        return replace(self, last_scan_at=now)

    def after_failure(self, now: str, text: str, hint: str, *, overdue: bool) -> Vitals:
        """Return the vitals after another failed try. ``overdue``: rows wait to leave a dataset."""
        before = self.failure
        failure = Failure(before.since if before else now, now, before.tries + 1 if before else 1, text, hint)
        return replace(self, failure=failure, overdue_since=(self.overdue_since or now) if overdue else None)

    def after_pass(self, now: str, unreadable: Iterable[Oddity]) -> Vitals:
        """Return the vitals after a pass that worked, but could not read these inputs."""
        since = {(each.path, each.problem): each.since for each in self.unreadable}
        found = tuple(
            Unreadable(each.path, each.problem, since.get((each.path, each.problem), now)) for each in unreadable
        )
        return replace(self, failure=None, overdue_since=None, unreadable=found)


def seconds_of(moment: str) -> float:
    """Return a recorded time in seconds since the epoch."""
    return datetime.fromisoformat(moment).timestamp()


def read_vitals(store: Store) -> Vitals:
    """Return what was written last; leave out a failure or an input in another version's form."""
    unreadable = _parsed(store.recall(UNREADABLE))
    pid = store.recall(PID) or ""
    found = [_as_written(Unreadable, each) for each in (unreadable if isinstance(unreadable, list) else ())]
    return Vitals(
        pid=int(pid) if pid.isdecimal() else None,
        started_at=_moment(store.recall(STARTED)),
        last_scan_at=_moment(store.recall(SCANNED)),
        failure=_as_written(Failure, _parsed(store.recall(FAILURE))),
        unreadable=tuple(each for each in found if each is not None),
        overdue_since=_moment(store.recall(OVERDUE)),
        watching=store.recall(WATCHING),
    )


def write_vitals(store: Store, vitals: Vitals, before: Vitals) -> None:
    """Write what differs from ``before``, in one transaction; write nothing if nothing differs.

    Raises:
        StoreFaultError: The system refused.
    """
    old, new = _as_facts(before), _as_facts(vitals)
    changed = {name: value for name, value in new.items() if value != old[name]}
    if changed:
        with store.transaction():
            for name, value in changed.items():
                store.remember(name, value)


def _as_facts(vitals: Vitals) -> dict[str, str | None]:
    return {
        PID: None if vitals.pid is None else str(vitals.pid),
        STARTED: vitals.started_at,
        SCANNED: vitals.last_scan_at,
        FAILURE: json.dumps(asdict(vitals.failure)) if vitals.failure else None,
        UNREADABLE: json.dumps([asdict(each) for each in vitals.unreadable]) if vitals.unreadable else None,
        OVERDUE: vitals.overdue_since,
        WATCHING: vitals.watching,
    }


def _as_written(kind: Callable[..., Record], facts: Any) -> Record | None:
    try:
        return kind(**facts)
    except TypeError:
        return None


def _moment(text: str | None) -> str | None:
    try:
        datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return text


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None
