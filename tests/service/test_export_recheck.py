"""Exports whose facts do not show a change: each segment is hashed again, soon after a commit and then once in a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from distilld.core.model import EXPORT_PATHS, Dataset, Trigger
from distilld.service import export_recheck
from distilld.service.export_recheck import LEAST_SECONDS_A_ROUND, ExportRecheck
from distilld.service.recheck import SCRUB_REST
from distilld.store.connection import StoreFaultError
from tests.support.history_lake import A, B, HistoryLake, history_lake, run

SEGMENT_BYTES = 4096
RAG = EXPORT_PATHS["rag"]


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with exports of several segments, scrubbed once an hour."""
    with history_lake(tmp_path, scrub_hours=1.0) as made:
        made.engine.exports.segment_bytes = SEGMENT_BYTES
        made.both(A, *(run(f"run-{number}") for number in range(30)))
        made.go()
        made.engine.restorer.note_committed()
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Our clock, which stands still until a test moves it; hashing takes no time."""
    hands = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(export_recheck, "monotonic", lambda: hands.now)
    return hands


def edit(lake: HistoryLake) -> None:
    """Change the first row of RAG, at the same length."""
    with (lake.root / RAG).open("r+b") as file:
        content = file.read(SEGMENT_BYTES).replace(b"Answer of run-0", b"Answer of run-9", 1)
        file.seek(0)
        file.write(content)


def titles(lake: HistoryLake) -> list[str]:
    """The titles in RAG."""
    return [row["title"] for row in lake.rows("rag")]


def edit_while_it_is_appended_to(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Append a row by a batch; another program edits RAG just before its append is made durable."""
    path, real = lake.root / RAG, os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            edit(lake)
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        lake.both(B, run("late"))
        lake.go(Trigger.WATCH)
    lake.engine.restorer.note_committed()


def test_edit_in_the_moment_of_an_append_is_found(
    lake: HistoryLake, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass sees it, for its time is that of our own append; the round after the batch does, and the next pass mends it."""
    edit_while_it_is_appended_to(lake, monkeypatch)
    edited = lake.content("rag")
    lake.go(Trigger.WATCH)
    assert lake.content("rag") == edited
    assert "# Answer of run-0" not in titles(lake)
    again = ExportRecheck(lake.engine)
    assert again.step() == LEAST_SECONDS_A_ROUND
    assert again.found
    assert lake.engine.restorer.disturbed()
    lake.go(Trigger.WATCH)
    assert lake.exported(Dataset.RAG) == {"late", *(f"run-{number}" for number in range(30))}
    assert "# Answer of run-0" in titles(lake)


def test_an_export_that_was_found_damaged_is_damaged_after_a_restart(
    lake: HistoryLake, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round finds does not depend on what the process remembers."""
    edit_while_it_is_appended_to(lake, monkeypatch)
    ExportRecheck(lake.engine).step()
    lake.restart()
    lake.engine.exports.segment_bytes = SEGMENT_BYTES
    lake.go()
    assert "# Answer of run-0" in titles(lake)


def test_rounds_follow_changes_and_the_scrub_period(
    lake: HistoryLake, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round for what changed, none while nothing does, and one after the scrub period."""
    hashed: list[tuple[str, int]] = []
    real = lake.engine.restorer.stands_in

    def stands_in(name: str, number: int) -> bool | None:
        hashed.append((name, number))
        return real(name, number)

    monkeypatch.setattr(lake.engine.restorer, "stands_in", stands_in)
    again = ExportRecheck(lake.engine)
    assert again.step() == LEAST_SECONDS_A_ROUND
    first = list(hashed)
    segments = -(-len(lake.content("rag")) // SEGMENT_BYTES)
    assert segments > 3
    assert [number for name, number in first if name == "rag"] == list(range(segments + 1))
    assert {name for name, _ in first} == set(EXPORT_PATHS)
    for _ in range(3):
        clock.now += LEAST_SECONDS_A_ROUND
        assert again.step() == LEAST_SECONDS_A_ROUND
    assert hashed == first
    clock.now += 3600
    again.step()
    assert hashed == first * 2
    with lake.scored_path(A).open("ab") as file:
        file.write(b"{}\n")
    lake.go(Trigger.WATCH)
    assert again.step() == LEAST_SECONDS_A_ROUND
    assert hashed == first * 2
    clock.now += LEAST_SECONDS_A_ROUND
    again.step()
    assert len(hashed) > len(first) * 2
    assert not again.found


def test_rounds_rest_between_their_steps(
    lake: HistoryLake, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step hashes for a moment and rests 49 times as long, however often it is called meanwhile."""
    real, hashed = lake.engine.restorer.stands_in, 0

    def slow(name: str, number: int) -> bool | None:
        nonlocal hashed
        hashed += 1
        clock.now += 0.01
        return real(name, number)

    monkeypatch.setattr(lake.engine.restorer, "stands_in", slow)
    again = ExportRecheck(lake.engine)
    assert again.step() == pytest.approx(0.02 * SCRUB_REST)
    assert again.step() == pytest.approx(0.02 * SCRUB_REST)
    assert hashed == 2
    clock.now += 0.02 * SCRUB_REST + 0.001
    again.step()
    assert hashed == 4


def test_round_goes_on_after_a_fault_of_the_store(
    lake: HistoryLake, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment at which the store failed is hashed again; before, the rest of the round was left out."""
    edit_while_it_is_appended_to(lake, monkeypatch)
    real, broken = lake.engine.restorer.stands_in, [True]

    def stands_in(name: str, number: int) -> bool | None:
        found = real(name, number)
        if found is False and broken:
            broken.clear()
            raise StoreFaultError("database or disk is full")
        return found

    monkeypatch.setattr(lake.engine.restorer, "stands_in", stands_in)
    again = ExportRecheck(lake.engine)
    with pytest.raises(StoreFaultError):
        again.step()
    assert not again.found
    again.step()
    assert again.found


def test_no_round_without_a_scrub_period(tmp_path: Path, clock: SimpleNamespace) -> None:
    """``scrub_hours = 0`` turns the rounds off, too."""
    with history_lake(tmp_path, scrub_hours=0.0) as lake:
        lake.both(A, run("a"))
        lake.go()
        edit(lake)
        again = ExportRecheck(lake.engine)
        assert again.step() == LEAST_SECONDS_A_ROUND
        assert not again.found


def test_export_that_is_gone_or_longer_is_left_to_the_next_pass(lake: HistoryLake, clock: SimpleNamespace) -> None:
    """Its facts show it."""
    (lake.root / RAG).unlink()
    with (lake.root / EXPORT_PATHS["sft"]).open("ab") as file:
        file.write(b"\n")
    again = ExportRecheck(lake.engine)
    again.step()
    assert not again.found
    assert len(lake.go(Trigger.WATCH).batches) > 0
