"""Each call fails in turn: the pass says what the matter is, and once the cause is gone all is as if it never was."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest

from distilld.core.model import OperatorError, Trigger
from distilld.engine.engine import Engine
from distilld.publish.commit import Committer
from tests.support.calls import Call, calls, one_of_each
from tests.support.committed import accounted, at_rest, committed_and_whole
from tests.support.histories import FIRST, HISTORIES, MORE_HISTORIES, NINE, NINE_IN_PLACE, History, Lake, nothing

Prepare = Callable[[History], Lake]
Fault = Callable[[], Exception]


def system(code: int) -> Fault:
    """An error of the system, by its number."""

    def make() -> OSError:
        return OSError(code, os.strerror(code))

    make.__name__ = errno.errorcode[code]
    return make


def store(name: str, text: str) -> Fault:
    """An error of SQLite, by its name, as it raises it."""

    def make() -> sqlite3.OperationalError:
        error = sqlite3.OperationalError(text)
        error.sqlite_errorname, error.sqlite_errorcode = name, getattr(sqlite3, name)
        return error

    make.__name__ = name
    return make


FULL = store("SQLITE_FULL", "database or disk is full")
BROKEN = store("SQLITE_IOERR_FSYNC", "disk I/O error")
LOCKED = store("SQLITE_BUSY", "database is locked")
ENOSPC, EIO, EACCES, EMFILE = map(system, (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE))


def faults_of(call: Call) -> tuple[Fault, ...]:
    """How a call may fail."""
    match call.name:
        case "os.open":
            return ENOSPC, EIO, EACCES, EMFILE
        case "os.open to read":
            return EIO, EACCES, EMFILE
        case "os.scandir":
            return EMFILE, EACCES, EIO
        case "os.pread" | "spool read":
            return (EIO,)
        case "spool write" | "os.fsync" | "os.write" | "os.write, half done":
            return ENOSPC, EIO
        case "sql BEGIN":
            return LOCKED, BROKEN
        case "sql ROLLBACK":
            return ()
        case "sql COMMIT done":
            return (BROKEN,)
        case name if name.startswith("sql "):
            return FULL, BROKEN
    return ENOSPC, EIO, EACCES


@contextmanager
def failing(at: int, fault: Fault, *, lasting: bool) -> Iterator[None]:
    """The ``at``-th call fails, and with ``lasting`` every call behind it that can fail so."""

    def strike(call: Call) -> None:
        if call.number == at or (lasting and call.number > at and fault in faults_of(call)):
            raise fault()

    with calls(strike, reads=True):
        yield


def all_calls(lake: Lake) -> list[Call]:
    """The calls of an undisturbed run, those that only read included."""
    lake.reset()
    made: list[Call] = []
    with calls(made.append, reads=True):
        lake.start()
    return made


def attempt(lake: Lake, held: ExitStack) -> Engine | None:
    """A start and a pass, then recovery, as a daemon tries them; each may fail, and says what to do. None: no store."""
    engine = None
    with errors_are_for_operators():
        engine = held.enter_context(lake.opened())
    if engine is not None:
        for step in (Committer.recover, lambda _: lake.history.work(engine), Committer.recover):
            with errors_are_for_operators():
                step(engine.committer)
    return engine


@contextmanager
def errors_are_for_operators() -> Iterator[None]:
    """Whatever goes wrong in here is an error for operators, and says what to do."""
    told: list[OperatorError] = []
    try:
        yield
    except OperatorError as error:
        told.append(error)
    assert all(error.hint for error in told), f"{told} does not say what to do"


def survives(lake: Lake, call: Call, fault: Fault, expected: dict[str, object], *, lasting: bool) -> None:
    """With a fault at a call a pass ends in an error for operators, or goes on; then the same process recovers."""
    lake.reset()
    with ExitStack() as held:
        with failing(call.number, fault, lasting=lasting):
            engine = attempt(lake, held)
        engine = engine or held.enter_context(lake.opened())
        engine.committer.recover()
        committed_and_whole(lake.root, taken_in=lake.history.mishap is nothing)
        lake.history.work(engine)
        committed_and_whole(lake.root)
        accounted(lake.root)
        assert at_rest(lake.root) == expected
        assert not engine.run_pass(Trigger.ONCE).changed


def sweep(lake: Lake, chosen: Iterable[tuple[Call, Fault, bool]]) -> int:
    """Let each of these calls fail so, once or from there on; returns how many that were."""
    lake.reset()
    lake.start()
    expected = at_rest(lake.root)
    tried = 0
    for call, fault, lasting in chosen:
        tried += 1
        try:
            survives(lake, call, fault, expected, lasting=lasting)
        except BaseException as error:
            error.add_note(f"with {fault.__name__} {'from' if lasting else 'at'} {call}")
            raise
    return tried


@pytest.mark.parametrize("history", [FIRST, NINE, NINE_IN_PLACE], ids=History.__str__)
def test_a_fault_at_one_of_each_call_is_survived(prepare: Prepare, history: History) -> None:
    """Each kind of call at each place fails, in one of the ways it can: nothing is lost, nothing needs a restart."""
    lake = prepare(history)
    turns = count()
    chosen = []
    for call in one_of_each(all_calls(lake)):
        ways = faults_of(call)
        if ways:
            turn = next(turns)
            chosen.append((call, ways[turn % len(ways)], turn % 2 == 0))
    sweep(lake, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("history", [*HISTORIES, *MORE_HISTORIES], ids=History.__str__)
def test_a_fault_at_every_call_is_survived(prepare: Prepare, history: History) -> None:
    """Every call fails in every way that it can, once and for a while."""
    lake = prepare(history)
    made = [call for call in all_calls(lake) if not call.is_inner]
    chosen = [(call, fault, lasting) for call in made for fault in faults_of(call) for lasting in (False, True)]
    print(f"{history.name}: {sweep(lake, chosen)} faults")
