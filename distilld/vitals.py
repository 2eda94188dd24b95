"""What a daemon leaves in the store about itself, for ``health`` and ``status`` (SPEC 5): kept in the table ``lake``.

Only what changed is written, and the time of the last scan a few times a rescan period: a pass that finds nothing to do
costs no write.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

from distilld.store import Store

PID: Final = "daemon_pid"
STARTED: Final = "daemon_started_at"
SCANNED: Final = "last_scan_at"
FAILURE: Final = "last_failure"
UNREADABLE: Final = "unreadable_inputs"
OVERDUE: Final = "withdrawal_overdue_since"
WATCHING: Final = "watching"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that lasts: since when, the last try, how many there were, what it is and what to do about it."""

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
    """The daemon's last words. Times are UTC with milliseconds; ``watching`` is 'events', or why there are none."""

    pid: int | None = None
    started_at: str | None = None
    last_scan_at: str | None = None
    failure: Failure | None = None
    unreadable: tuple[Unreadable, ...] = ()
    overdue_since: str | None = None
    watching: str | None = None


def read_vitals(store: Store) -> Vitals:
    """What was written last. What another version wrote in another form is left out."""
    failure = _parsed(store.recall(FAILURE))
    unreadable = _parsed(store.recall(UNREADABLE))
    pid = store.recall(PID) or ""
    try:
        return Vitals(
            pid=int(pid) if pid.isdecimal() else None,
            started_at=_moment(store.recall(STARTED)),
            last_scan_at=_moment(store.recall(SCANNED)),
            failure=Failure(**failure) if failure else None,
            unreadable=tuple(Unreadable(**each) for each in unreadable or ()),
            overdue_since=_moment(store.recall(OVERDUE)),
            watching=store.recall(WATCHING),
        )
    except TypeError:
        return Vitals()


def write_vitals(store: Store, vitals: Vitals, before: Vitals) -> None:
    """Write what is not as ``before``, in one transaction; nothing where nothing changed.

    Raises:
        StoreFaultError: The system refused.
    """
    old, new = _as_facts(before), _as_facts(vitals)
    changed = {name: value for name, value in new.items() if value != old[name]}
    if changed:
        with store.transaction():
            for name, value in changed.items():
                store.remember(name, value)


def forget_failure(store: Store) -> None:
    """A writer that is no daemon brought the lake up to date: what a daemon said of its failure is over."""
    vitals = read_vitals(store)
    write_vitals(store, replace(vitals, failure=None, unreadable=(), overdue_since=None), vitals)


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
