"""A power cut takes what was not synced; the next start comes to what an undisturbed run comes to all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.power import Disk
from tests.crash.test_die_at_each_call import Prepare, start_comes_to, undisturbed
from tests.support.calls import Call, one_of_each
from tests.support.committed import Outcome
from tests.support.deaths import breaks_off_at, dies_at
from tests.support.histories import APPEND, FIRST, HISTORIES, MORE_HISTORIES, NINE, NINE_IN_PLACE, History, Lake

both_kinds = pytest.mark.parametrize("names_last", [False, True], ids=["names-lost", "names-last"])


def cut_at_each(lake: Lake, chosen: list[Call], expected: Outcome, stash: Path, *, names_last: bool) -> None:
    """Cut the power at each of these calls, start again, compare."""
    end = Call(1 << 30, "the end", "")
    for call in [*chosen, end]:
        lake.reset()
        assert dies_at(call.number, lake.start, Disk(lake.root, stash, names_last=names_last)) == (call is not end)
        try:
            start_comes_to(lake, expected)
        except BaseException as error:
            error.add_note(f"after a power cut at {call}")
            raise
        for kept in stash.iterdir():
            kept.unlink()


@pytest.fixture
def stash(quick_folder: Path) -> Path:
    """A folder for files that may come back."""
    folder = quick_folder / "stash"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("history", "names_last"), [(FIRST, True), (NINE, False)], ids=["first", "nine"])
def test_a_power_cut_at_one_of_each_call_loses_nothing(
    prepare: Prepare, stash: Path, history: History, names_last: bool
) -> None:
    """What no fsync has made to last is gone, at each kind of call at each place, and nothing is missed."""
    lake = prepare(history)
    made, expected = undisturbed(lake)
    borders = [call for call in made if not call.is_inner]
    cut_at_each(lake, one_of_each(borders), expected, stash, names_last=names_last)


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("history", [*HISTORIES, *MORE_HISTORIES], ids=History.__str__)
def test_a_power_cut_at_every_call_loses_nothing(
    prepare: Prepare, stash: Path, history: History, names_last: bool
) -> None:
    """The same at every call of every history."""
    lake = prepare(history)
    made, expected = undisturbed(lake)
    borders = [call for call in made if not call.is_inner]
    cut_at_each(lake, borders, expected, stash, names_last=names_last)
    print(f"{history.name}: power cut at {len(borders)} calls")


def cut_in_each_recovery(lake: Lake, chosen: list[Call], expected: Outcome, stash: Path, *, stride: int) -> int:
    """Kill the program at each of these calls, cut the power at calls of the recovery and behind it; how often."""
    cuts = 0
    for call in chosen:
        at, reached = 1, True
        while reached:
            lake.reset()
            disk = Disk(lake.root, stash, names_last=False)

            def kill_and_recover(call: Call = call, disk: Disk = disk) -> None:
                breaks_off_at(call.number, lake.start, disk)

            reached = dies_at(at, lake.recover, disk, first=kill_and_recover)
            try:
                start_comes_to(lake, expected)
            except BaseException as error:
                error.add_note(f"after a kill at {call} and a power cut at call {at} of the recovery")
                raise
            for kept in stash.iterdir():
                kept.unlink()
            at, cuts = at + stride, cuts + 1
    return cuts


@pytest.mark.parametrize("history", [APPEND, NINE, NINE_IN_PLACE], ids=History.__str__)
def test_a_power_cut_in_the_recovery_loses_nothing(prepare: Prepare, stash: Path, history: History) -> None:
    """What a killed process left unsynced, recovery makes to last before it takes it for granted."""
    lake = prepare(history)
    made, expected = undisturbed(lake)
    commit = [call for call in made if call.name == "sql COMMIT" and "Committer.commit" in call.place][-1]
    renames = [call for call in made if call.name == "os.rename" and "install" in call.place]
    after_rename = [made[call.number] for call in renames[:1]]
    assert cut_in_each_recovery(lake, [commit, *after_rename], expected, stash, stride=5) > 5


@pytest.mark.slow
@pytest.mark.parametrize("history", [FIRST, NINE, NINE_IN_PLACE], ids=History.__str__)
def test_a_power_cut_in_every_recovery_loses_nothing(prepare: Prepare, stash: Path, history: History) -> None:
    """The same after a kill at every call."""
    lake = prepare(history)
    made, expected = undisturbed(lake)
    borders = [call for call in made if not call.is_inner]
    cuts = cut_in_each_recovery(lake, borders, expected, stash, stride=3)
    print(f"{history.name}: power cut in {cuts} recoveries")
