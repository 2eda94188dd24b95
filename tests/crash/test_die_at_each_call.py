"""Killed at each call that changes the disk or the store, the next start comes to what an undisturbed run comes to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distilld.core.model import Trigger
from tests.support.calls import Call, calls, one_of_each
from tests.support.committed import Outcome, committed_and_whole, outcome, settled
from tests.support.deaths import dies_at
from tests.support.histories import (
    FIRST,
    HISTORIES,
    MORE_HISTORIES,
    NINE,
    NINE_IN_PLACE,
    History,
    Lake,
    damage_the_exports,
    nothing,
)

Prepare = Callable[[History], Lake]

each_history = pytest.mark.parametrize("history", HISTORIES, ids=History.__str__)


def undisturbed(lake: Lake) -> tuple[list[Call], Outcome]:
    """The calls that a whole run makes, and what it comes to."""
    lake.reset()
    made: list[Call] = []
    with calls(made.append):
        lake.start()
    expected = outcome(lake.root)
    settled(lake.root, expected)
    return made, expected


def start_comes_to(lake: Lake, expected: Outcome) -> None:
    """A start brings every file to the last commit before anything else, and then to where it should be."""
    with lake.opened() as engine:
        engine.committer.recover()
        committed_and_whole(lake.root, taken_in=lake.history.mishap is nothing)
        lake.history.work(engine)
        settled(lake.root, expected)
        assert not engine.run_pass(Trigger.ONCE).changed
        damaged = lake.history.mishap is damage_the_exports
        assert len(engine.export_records.tamperings()) == damaged, "a kill was taken for another writer"


def die_at_each(lake: Lake, chosen: list[Call], expected: Outcome) -> None:
    """Die at each of these calls, start again, compare."""
    for call in chosen:
        lake.reset()
        assert dies_at(call.number, lake.start), f"{call} was not reached"
        try:
            start_comes_to(lake, expected)
        except BaseException as error:
            error.add_note(f"after a kill at {call}")
            raise


@each_history
def test_a_kill_at_one_of_each_call_loses_nothing(prepare: Prepare, history: History) -> None:
    """A kill at each kind of call at each place of the program is made good by the next start."""
    lake = prepare(history)
    made, expected = undisturbed(lake)
    borders = [call for call in made if not call.is_inner]
    die_at_each(lake, one_of_each(borders), expected)


@pytest.mark.slow
@pytest.mark.parametrize("history", [*HISTORIES, *MORE_HISTORIES], ids=History.__str__)
def test_a_kill_at_every_call_loses_nothing(prepare: Prepare, history: History) -> None:
    """A kill at every call, statements inside transactions included, is made good by the next start."""
    lake = prepare(history)
    made, expected = undisturbed(lake)
    die_at_each(lake, made, expected)
    print(f"{history.name}: killed at {len(made)} calls")


def die_twice(lake: Lake, chosen: list[Call], expected: Outcome, *, stride: int) -> int:
    """Die at each of these calls, and again at calls of the recovery that follows; returns how often."""
    deaths = 0
    for call in chosen:
        again = 1
        while True:
            lake.reset()
            assert dies_at(call.number, lake.start)
            if not dies_at(again, lake.recover):
                break
            deaths += 1
            try:
                start_comes_to(lake, expected)
            except BaseException as error:
                error.add_note(f"after a kill at {call} and at call {again} of the recovery")
                raise
            again += stride
    return deaths


@pytest.mark.parametrize("history", [NINE, NINE_IN_PLACE], ids=History.__str__)
def test_a_kill_in_the_recovery_loses_nothing(prepare: Prepare, history: History) -> None:
    """Killed in the middle of a batch that touches all nine files, and again in the recovery: the next one does it."""
    lake = prepare(history)
    made, expected = undisturbed(lake)
    commit = [call for call in made if call.name == "sql COMMIT" and "Committer.commit" in call.place][-1]
    around = [commit, made[commit.number]]
    assert die_twice(lake, around, expected, stride=3) > 10


@pytest.mark.slow
@pytest.mark.parametrize("history", [FIRST, NINE, NINE_IN_PLACE], ids=History.__str__)
def test_a_kill_at_every_call_of_every_recovery_loses_nothing(prepare: Prepare, history: History) -> None:
    """Killed at every call, and again at every call of the recovery that follows: the next start makes it good."""
    lake = prepare(history)
    made, expected = undisturbed(lake)
    borders = [call for call in made if not call.is_inner]
    print(f"{history.name}: killed twice {die_twice(lake, borders, expected, stride=1)} times")
