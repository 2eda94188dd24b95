"""Faults that the crash and fault tests found, each by its name and with its story."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distilld.batch import Engine
from distilld.model import DATASET_PATHS, Dataset, Options, Trigger
from tests.crash.calls import Call, calls
from tests.crash.deaths import breaks_off_at, dies_at
from tests.crash.histories import (
    APPEND,
    NINE,
    SMALL,
    A,
    B,
    History,
    Inputs,
    Lake,
    append_rows,
    given,
    nothing,
    run,
    touch_all_nine,
)
from tests.crash.invariants import accounted, at_rest, committed_and_whole, outcome, rows_of

Prepare = Callable[[History], Lake]


def calls_of(lake: Lake) -> list[Call]:
    """The calls that a start and its work make."""
    lake.reset()
    made: list[Call] = []
    with calls(made.append):
        lake.start()
    return made


def at(made: list[Call], name: str, place: str, nth: int = 0) -> Call:
    """One of the calls of this name at this place."""
    return [call for call in made if call.name == name and place in call.place][nth]


def is_as_read_at_once(lake: Lake) -> None:
    """The files at rest are those of a lake that is read for the first time."""
    committed_and_whole(lake.root)
    accounted(lake.root)
    found = at_rest(lake.root)
    for folder in ("exports", "reports", "state"):
        shutil.rmtree(lake.root / folder)
    lake.start()
    assert found == at_rest(lake.root)


def test_a_file_that_was_indexed_in_part_is_read_to_its_end(prepare: Prepare) -> None:
    """The rest of a long file is not forgotten when the process dies in the middle of it.

    The story: each transaction of the indexing recorded the facts of the whole file beside what it had read of it. A
    kill between two of them, and a file that was at rest: the next scan found its size and times as recorded, took it
    for unchanged, and all rows behind the first 20,000 were never read, with no sign of it anywhere.
    """
    lake = prepare(History("first", append_rows, begun=False, limits=SMALL))
    made = calls_of(lake)
    expected = outcome(lake.root)
    lake.reset()
    assert dies_at(at(made, "sql COMMIT done", "_breathe").number, lake.start)
    lake.start()
    assert outcome(lake.root) == expected
    accounted(lake.root)


def test_a_copy_of_the_line_that_was_provisional_is_not_taken_for_it(prepare: Prepare) -> None:
    """A row that stands twice is counted twice, wherever the process died while it read the file.

    The story: the last line had no line feed yet and was judged for the time being. It was completed, its very copy
    followed, and the process died between the two. The mark of the provisional line was still set, the copy had its
    digest, and so the copy was taken for the line that was known already; one row too few, all later ones misplaced.
    """
    row = run("twin", "t", "accepted")

    def complete(inputs: Inputs) -> None:
        content = inputs.scored(A).read_bytes()
        line = content[content.rindex(b"\n") + 1 :]
        with inputs.scored(A).open("ab") as file:
            file.write(b"\n" + line + b"\n" + line + b"\n")

    history = History("twins", complete, limits={**SMALL, "distilld.index.ROWS_PER_TRANSACTION": 1})
    lake = prepare(History("first", nothing, begun=False))
    del lake
    lake = _with_provisional_line(prepare, history, row)
    made = calls_of(lake)
    expected = outcome(lake.root)
    for call in made:
        if call.name == "sql COMMIT done":
            lake.reset()
            assert dies_at(call.number, lake.start)
            lake.start()
            assert outcome(lake.root) == expected
            accounted(lake.root)


def _with_provisional_line(prepare: Prepare, history: History, row: dict[str, object]) -> Lake:
    raise NotImplementedError
