"""A run's passes: how it waits for inputs that are being written, and what it does when one fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from distilld.batch import Engine, Progress
from distilld.model import Dataset, OperatorError, Options, Trigger
from distilld.once import GRACE_SECONDS, LEAST_PAUSE_SECONDS, bring_up_to_date
from distilld.sample_lake import SampleLake, rescore_in_place, write_sample_lake
from distilld.store import Store


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No log lines."""
    with capture_logs():
        yield


@pytest.fixture
def lake(tmp_path: Path) -> SampleLake:
    """A sample lake of one day."""
    return write_sample_lake(tmp_path / "lake", days=1)


@pytest.fixture
def engine(lake: SampleLake) -> Iterator[Engine]:
    """An engine on it, for which no file is still for an hour."""
    store = Store.open(lake.root / "state" / "distilld.db", lake.root)
    yield Engine(lake.root, store, Options(), batch_rows=50_000, settle_seconds=3600)
    store.close()


class Time:
    """A clock that goes on only by pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        """Let time go on."""
        self.pauses.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        """The time now."""
        return self.now


def test_run_does_not_wait_for_new_files(engine: Engine) -> None:
    """A first run takes every file as it is, and pauses never."""
    time = Time()
    report = bring_up_to_date(engine, pause=time.pause, clock=time.clock)
    assert time.pauses == []
    assert report.changed
    assert report.not_read == ()


def test_run_waits_and_in_the_end_says_what_never_held_still(engine: Engine, lake: SampleLake) -> None:
    """A rewritten file is waited for in steps of settle_seconds, ten times and some grace, and then named."""
    bring_up_to_date(engine)
    path = rescore_in_place(lake, lake.rescored_run_id)
    time = Time()
    report = bring_up_to_date(engine, pause=time.pause, clock=time.clock)
    assert set(time.pauses) == {3600.0}
    assert len(time.pauses) == 11
    assert time.now >= 10 * 3600 + GRACE_SECONDS
    assert report.not_read == (f"{path.relative_to(lake.root)} is still being written",)
    assert report.datasets[Dataset.SFT].withdrawn == 0


def test_file_that_changes_while_it_is_judged_is_planned_anew(lake: SampleLake) -> None:
    """A file that changes between reading and judging ends that pass; the next one judges what stands then."""
    path = lake.evidence_path(lake.partitions[0])
    store = Store.open(lake.root / "state" / "distilld.db", lake.root)
    state = {"changed": False}

    def change_once(progress: Progress) -> None:
        if progress.phase == "judge" and not state["changed"]:
            state["changed"] = True
            path.write_bytes(path.read_bytes().replace(b"the", b"THE"))

    engine = Engine(lake.root, store, Options(), batch_rows=50_000, settle_seconds=0, progress=change_once)
    time = Time()
    report = bring_up_to_date(engine, pause=time.pause, clock=time.clock)
    store.close()
    assert time.pauses == [LEAST_PAUSE_SECONDS]
    assert report.not_read == ()
    assert report.datasets[Dataset.RAG].rows > 0
    assert b"THE" in (lake.root / report.datasets[Dataset.RAG].path).read_bytes()


def test_failure_is_recovered_from_before_it_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a pass fails, what it left half done is undone at once, and the error goes on."""
    recovered = []

    def fail(_: Trigger) -> None:
        raise OperatorError("no room")

    monkeypatch.setattr(engine, "run_pass", fail)
    monkeypatch.setattr(engine.committer, "recover", lambda: recovered.append(True))
    with pytest.raises(OperatorError, match="no room"):
        bring_up_to_date(engine)
    assert len(recovered) == 2  # at the start, as every run does, and after the failure


def test_report_adds_up(engine: Engine, lake: SampleLake) -> None:
    """Rows before, plus what was added, minus what was withdrawn, are the rows after; the causes add up too."""
    first = bring_up_to_date(engine)
    engine.settle_ns = 0
    rescore_in_place(lake, lake.rescored_run_id)
    second = bring_up_to_date(engine, withdrawals_listed=None)
    for dataset in Dataset:
        before, after = first.datasets[dataset], second.datasets[dataset]
        assert after.rows == before.rows + after.added - after.withdrawn
        assert sum(after.causes.values()) == after.withdrawn == 1
        assert sum(after.by_reason.values()) == after.held
        if dataset is not Dataset.PREFERENCE:
            assert after.rows + after.held == second.rows_read == lake.scored_rows
    assert sorted(each.dataset for each in second.withdrawn) == ["preference", "rag", "sft"]


def test_progress_tells_how_far_a_pass_is(lake: SampleLake) -> None:
    """Progress begins at nothing, never goes back, and ends with every file read and every row judged."""
    store = Store.open(lake.root / "state" / "distilld.db", lake.root)
    told: list[Progress] = []
    engine = Engine(lake.root, store, Options(), batch_rows=20, settle_seconds=0, progress=told.append)
    bring_up_to_date(engine)
    store.close()
    size = sum(path.stat().st_size for path in (lake.root / "data").rglob("*.jsonl"))
    for phase, whole, rows in (("read", size, lake.scored_rows), ("judge", lake.scored_rows, lake.scored_rows)):
        steps = [step for step in told if step.phase == phase]
        assert (steps[0].done, steps[0].whole) == (0, whole)
        assert [step.done for step in steps] == sorted(step.done for step in steps)
        assert (steps[-1].done, steps[-1].rows) == (whole, rows)
        assert steps[-1].files == 2 * len(lake.partitions)
        assert len(steps) > 5
