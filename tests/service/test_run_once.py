"""A run's passes: how it waits for inputs that are being written, and what it does when one fails."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from distilld.config.load import load
from distilld.core.model import EXPORT_PATHS, REPORTS, Dataset, OperatorError, Options, Trigger
from distilld.demo.sample_lake import rescore_in_place
from distilld.engine import ingest
from distilld.engine.engine import Engine
from distilld.engine.pass_result import Progress
from distilld.service.run_once import GRACE_SECONDS, bring_up_to_date, on_whole_store, writer
from distilld.service.schedule import LEAST_PAUSE_SECONDS
from distilld.store.connection import Store
from tests.support.history_lake import A, B, HistoryLake, history_lake, run
from tests.support.limits import limits
from tests.support.sample import SampleLake


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No log lines."""
    with capture_logs():
        yield


@pytest.fixture
def lake(tmp_path: Path) -> SampleLake:
    """A sample lake."""
    return SampleLake.write(tmp_path / "lake")


@pytest.fixture
def engine(lake: SampleLake) -> Iterator[Engine]:
    """An engine on it, for which no file is still for an hour."""
    store = Store.open(lake.root / "state" / "distilld.db", lake.root)
    yield Engine(lake.root, store, Options(), limits(settle_seconds=3600))
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
    waited = Time()
    report = bring_up_to_date(engine, pause=waited.pause, clock=waited.clock)
    assert waited.pauses == []
    assert report.changed
    assert report.not_read == ()


def test_run_waits_and_in_the_end_says_what_never_held_still(engine: Engine, lake: SampleLake) -> None:
    """A rewritten file is waited for in steps of settle_seconds, ten times and some grace, and then named."""
    bring_up_to_date(engine)
    path = rescore_in_place(lake.root)
    waited = Time()
    report = bring_up_to_date(engine, pause=waited.pause, clock=waited.clock)
    assert set(waited.pauses) == {3600.0}
    assert len(waited.pauses) == 11
    assert waited.now >= 10 * 3600 + GRACE_SECONDS
    assert report.not_read == (f"{path.relative_to(lake.root)} is still being written",)
    assert report.datasets[Dataset.SFT].withdrawn == 0


@pytest.mark.parametrize("never_still", [False, True])
@pytest.mark.parametrize("hours_ahead", [-24, 0, 24])
def test_file_is_still_by_our_own_looks(
    engine: Engine, lake: SampleLake, monkeypatch: pytest.MonkeyPatch, never_still: bool, hours_ahead: int
) -> None:
    """A rewritten file is read when no look saw a change for settle_seconds, or after ten times that in any case.

    The story: the file's times were compared with the wall clock. Of a server whose clock was behind, files were read
    in the middle of being rewritten; and where a clock was a day ahead, what a file revoked was not withdrawn for a day.
    """
    bring_up_to_date(engine)
    path = rescore_in_place(lake.root)
    passed = 0
    monkeypatch.setattr(ingest, "monotonic_ns", lambda: passed)
    last = 10 if never_still else 1
    for settlings in (0, last - 0.5, last):
        passed = round(settlings * engine.limits.settle_seconds * 1e9)
        stamp = (time.time() + hours_ahead * 3600) + (settlings if never_still else 0)
        if never_still or not settlings:
            os.utime(path, (stamp, stamp))
        assert bool(engine.run_pass(Trigger.WATCH).indexed.unsettled) is (settlings < last)


def test_file_that_changes_while_it_is_judged_is_planned_anew(lake: SampleLake) -> None:
    """A file that changes between reading and judging ends that pass; the next one judges what stands then."""
    path = lake.evidence_path(lake.partitions[0])
    store = Store.open(lake.root / "state" / "distilld.db", lake.root)
    state = {"changed": False}

    def change_once(progress: Progress) -> None:
        if progress.phase == "judge" and not state["changed"]:
            state["changed"] = True
            path.write_bytes(path.read_bytes().replace(b"the", b"THE"))

    engine = Engine(lake.root, store, Options(), limits(), progress=change_once)
    waited = Time()
    report = bring_up_to_date(engine, pause=waited.pause, clock=waited.clock)
    store.close()
    assert waited.pauses == [LEAST_PAUSE_SECONDS]
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
    engine.limits = limits()
    rescore_in_place(lake.root)
    second = bring_up_to_date(engine, withdrawals_listed=None)
    for dataset in Dataset:
        before, after = first.datasets[dataset], second.datasets[dataset]
        assert after.rows == before.rows + after.added - after.withdrawn
        assert sum(after.causes.values()) == after.withdrawn == 1
        assert sum(after.by_reason.values()) == after.quarantined
        if dataset is not Dataset.PREFERENCE:
            assert after.rows + after.quarantined == second.rows_read == lake.scored_rows
    assert sorted(each.dataset for each in second.withdrawn) == ["preference", "rag", "sft"]


def test_progress_tells_how_far_a_pass_is(lake: SampleLake) -> None:
    """Progress begins at nothing, never goes back, and ends when every file is read, every row judged, every pair tried."""
    store = Store.open(lake.root / "state" / "distilld.db", lake.root)
    told: list[Progress] = []
    engine = Engine(lake.root, store, Options(), limits(batch_rows=20), progress=told.append)
    bring_up_to_date(engine)
    store.close()
    size = sum(path.stat().st_size for path in (lake.root / "data").rglob("*.jsonl"))
    for phase, least in (("read", size), ("judge", lake.scored_rows)):
        steps = [step for step in told if step.phase == phase]
        assert steps[0].done == 0
        assert steps[0].whole >= least
        assert [step.done for step in steps] == sorted(step.done for step in steps)
        assert [step.rows for step in steps] == sorted(step.rows for step in steps)
        assert (steps[-1].done, steps[-1].rows) == (steps[-1].whole, lake.scored_rows)
        assert steps[-1].bytes > 0
        assert steps[-1].files == 2 * len(lake.partitions)
        assert len(steps) > 5


# a store that is older than the exports


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake of one accepted run, with a copy of its store as it was then."""
    with history_lake(tmp_path) as made:
        made.both(A, run("r1"))
        made.go()
        made.stop()
        shutil.copytree(made.state.parent, made.root / "backup")
        yield made


def restore_store(lake: HistoryLake) -> None:
    """Put the copy in the place of the store."""
    lake.lose_store()
    shutil.copytree(lake.root / "backup", lake.state.parent)


def start(lake: HistoryLake) -> list[str]:
    """Start a writer, which does nothing else; returns why a store was set aside. The lake's own one goes on with it."""
    lake.stop()
    settings = load(flags={"root": str(lake.root)}, environ={}, config_file=None, cwd=lake.root)

    def opened() -> None:
        with writer(settings):
            pass

    with capture_logs() as logs:
        on_whole_store(opened)
    return [each["problem"] for each in logs if each["event"] == "store_set_aside"]


def newest(lake: HistoryLake) -> Path:
    """The folder of the newest receipt."""
    return max(each for each in (lake.root / REPORTS).iterdir() if each.is_dir())


def histories(lake: HistoryLake) -> dict[str, bytes]:
    """The published withdrawals."""
    return {name: lake.content(name) for name in EXPORT_PATHS if name.startswith("withdrawals_")}


def test_store_from_before_a_rejection_that_is_gone(kept: HistoryLake) -> None:
    """A run whose rejection came and went stays out, and what was published stays so, when an older store is restored.

    The story: the older store knew the run as accepted and nothing of the rejection. The row exported again, and the
    log of withdrawals was 'restored' to what that store knew.
    """
    kept.scored(B, run("r1", "rejected"))
    kept.go()
    kept.move_away(kept.scored_path(B))
    kept.go()
    before = histories(kept)
    assert all(kept.causes(dataset) == ["revoked"] for dataset in (Dataset.RAG, Dataset.SFT))
    unknown = newest(kept).name
    restore_store(kept)
    (problem,) = start(kept)
    assert f"is older than the exports: it does not know batch {unknown}, whose receipt" in problem
    for _ in range(2):
        kept.go()
        assert kept.exported("rag") == kept.exported("sft") == set()
        assert histories(kept) == before
        assert start(kept) == []
    assert len(list(kept.state.parent.glob("distilld.db.corrupt-*Z"))) == 1


def test_store_from_before_a_partition_that_is_gone(kept: HistoryLake) -> None:
    """Rows of a partition that an older store never knew, and that is absent now, stay where they are."""
    kept.both(B, run("r2"))
    kept.go()
    kept.move_away(kept.scored_path(B), kept.evidence_path(B))
    kept.go()
    before = {name: kept.content(name) for name in ("rag", "sft")}
    restore_store(kept)
    assert len(start(kept)) == 1
    kept.go()
    assert {name: kept.content(name) for name in ("rag", "sft")} == before
    assert set(histories(kept).values()) == {b""}


@pytest.mark.parametrize("batches_there", [1, 2])
def test_store_that_the_lake_was_not_kept_with(kept: HistoryLake, batches_there: int) -> None:
    """Going on with another store and back is noticed, also where the first store had gone as far by itself."""
    kept.scored(A, run("r1", "rejected"))
    kept.go()
    kept.stop()
    shutil.move(kept.state.parent, kept.root / "first")
    shutil.rmtree(kept.root / "backup")
    shutil.rmtree(newest(kept))  # as if the second store had gone on from the first batch
    for number in range(batches_there):
        kept.scored(A, run("r1", "rejected"), run(f"other{number}", "rejected"))
        kept.go()
    before = histories(kept)
    kept.stop()
    shutil.rmtree(kept.state.parent)
    shutil.move(kept.root / "first", kept.state.parent)
    assert len(start(kept)) == 1
    kept.go()
    assert histories(kept) == before
    assert start(kept) == []


def test_store_that_began_empty_is_older_too(tmp_path: Path) -> None:
    """A store that was copied before its first batch knows nothing of any batch that came later."""
    with history_lake(tmp_path) as lake:
        lake.go()
        lake.stop()
        shutil.copytree(lake.state.parent, lake.root / "backup")
        assert start(lake) == []
        lake.both(A, run("r1"))
        lake.go()
        restore_store(lake)
        assert len(start(lake)) == 1
        lake.go()
        assert start(lake) == []


def lose_receipt(lake: HistoryLake) -> None:
    """A crash came before the newest receipt was written, or somebody removed it."""
    shutil.rmtree(newest(lake))


def lose_receipts(lake: HistoryLake) -> None:
    """All receipts are gone."""
    shutil.rmtree(lake.root / REPORTS)


def damage_receipt(lake: HistoryLake) -> None:
    """The newest receipt is no receipt any more."""
    (newest(lake) / "receipt.json").write_bytes(b"{")


def edit_receipt(lake: HistoryLake) -> None:
    """The newest receipt has another number than its batch."""
    change_receipt(newest(lake), newest(lake), sequence=7)


def copy_receipt(lake: HistoryLake) -> None:
    """Somebody copied a receipt beside itself, and another one into a folder of a later time."""
    shutil.copytree(newest(lake), newest(lake).with_name(newest(lake).name + "-copy"))
    shutil.copytree(newest(lake), newest(lake).with_name("20991231T235959.999Z"))


def put_stage(lake: HistoryLake) -> None:
    """Another stage left a receipt; its number is its own."""
    change_receipt(newest(lake), newest(lake).with_name("20991231T235959.999Z-score"), stage="score", sequence=99)


def overflow_receipt(lake: HistoryLake) -> None:
    """A receipt with a number that the store cannot hold."""
    later = {"batch_id": "20991231T235959.999Z", "recorded_at": "2099-12-31T23:59:59.999Z"}
    change_receipt(newest(lake), newest(lake).with_name(later["batch_id"]), **later, sequence=1 << 63)


def date_receipt(lake: HistoryLake) -> None:
    """A receipt of the last moment that there is, which no batch can follow."""
    last = {"batch_id": "99991231T235959.999Z", "recorded_at": "9999-12-31T23:59:59.999Z"}
    change_receipt(newest(lake), newest(lake).with_name(last["batch_id"]), **last, sequence=99)


def change_receipt(source: Path, target: Path, **changes: object) -> None:
    """Write a receipt like another one, with some facts changed."""
    facts = json.loads((source / "receipt.json").read_bytes())
    target.mkdir(exist_ok=True)
    (target / "receipt.json").write_text(json.dumps({**facts, **changes}))


@pytest.mark.parametrize(
    "happen",
    [
        lose_receipt,
        lose_receipts,
        damage_receipt,
        edit_receipt,
        copy_receipt,
        put_stage,
        overflow_receipt,
        date_receipt,
        HistoryLake.lose_store,
    ],
)
def test_store_is_kept_that_knows_what_there_is(kept: HistoryLake, happen: Callable[[HistoryLake], None]) -> None:
    """A store that is ahead of the receipts stays, whatever became of these; so does one that is to take over."""
    kept.scored(A, run("r1", "rejected"))
    kept.go()
    kept.stop()
    happen(kept)
    assert start(kept) == []
    kept.both(B, run("r2"))
    kept.go()
    assert start(kept) == []
    assert kept.exported("rag") == {"r2"}


def test_receipt_of_another_lake_gives_the_store_up_once(kept: HistoryLake) -> None:
    """A whole receipt that is not this lake's cannot be told from one that is; the new store goes on from it."""
    strange = {"batch_id": "20991231T235959.999Z", "recorded_at": "2099-12-31T23:59:59.999Z", "sequence": (1 << 62) - 9}
    change_receipt(newest(kept), newest(kept).with_name(str(strange["batch_id"])), **strange)
    before = kept.content("rag")
    assert len(start(kept)) == 1
    for _ in range(2):
        assert start(kept) == []
        kept.both(B, run("r2"))
        kept.go()
    assert kept.content("rag").startswith(before)


def receipts(lake: HistoryLake, since: int = 0) -> list[dict[str, Any]]:
    """The receipts of the batches behind the first ``since``."""
    return [json.loads(path.read_text()) for path in sorted((lake.root / REPORTS).glob("*/receipt.json"))[since:]]


def test_receipts_sum_their_run_up(tmp_path: Path) -> None:
    """The last receipt of a run has what all its batches did, and why rows left; the next run begins at nothing."""
    with history_lake(tmp_path) as lake:
        lake.restart(batch_rows=2)
        lake.both(A, *(run(f"run-{n}") for n in range(6)))
        lake.go()
        first = receipts(lake)
        assert len(first) > 1
        assert {each["run"]["run_id"] for each in first} == {first[0]["batch_id"]}
        assert [each["run"]["batches"] for each in first] == [*range(1, len(first) + 1)]
        assert first[-1]["run"]["datasets"]["rag"] == {"appended": 6, "withdrawn": 0, "by_cause": {}}
        page = (lake.root / REPORTS / "latest.md").read_text()
        assert f"of {len(first)} batches" in page
        assert "| rag | 6 | 0 | 6 | 0 |" in page
        lake.scored(B, run("run-1", "rejected"), run("run-2", "rejected"))
        with capture_logs() as logs:
            lake.go()
        second = receipts(lake, len(first))
        assert second[-1]["run"]["run_id"] == second[0]["batch_id"]
        assert second[-1]["run"]["datasets"]["sft"] == {"appended": 0, "withdrawn": 2, "by_cause": {"revoked": 2}}
        assert second[-1]["run"]["withdrawn_runs"] == ["run-1", "run-2"]
        told = [each for each in logs if each["event"] == "batch_committed"][-1]
        assert (told["run_withdrawn"], told["withdrawn_runs"]) == ({"revoked": 4}, ["run-1", "run-2"])
        assert told["run_id"] == second[0]["batch_id"]


def test_receipts_of_a_rebuild_record_its_work(tmp_path: Path) -> None:
    """The story: a rebuild judged 2,002 rows, and its receipt and ``batches`` said that it judged none."""
    with history_lake(tmp_path) as lake:
        lake.both(B, *(run(f"late-{n}") for n in range(3)))
        lake.go()
        lake.both(A, *(run(f"run-{n}") for n in range(6)))
        lake.go()
        done = len(receipts(lake))
        lake.go(Trigger.REBUILD)
        written = receipts(lake, done)
        assert sum(each["work"]["rows_judged"] for each in written) == 9
        judged = lake.ask("SELECT sum(rows_judged) FROM batches WHERE trigger = 'rebuild'")
        assert judged == [(9,)]
