"""A Dask cluster does the jobs: what it must have in common with this process, and what happens where it fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from distilld.cli.commands import ExitCode
from distilld.core.model import EXPORT_PATHS, Options, Trigger
from distilld.engine import cluster as module
from distilld.engine import pool
from distilld.engine.answers import WrongAnswer
from distilld.engine.cluster import NONCE, ClusterAway, UnfitWorker, join
from distilld.engine.pool import Pool
from tests.engine.test_executors import are_equal
from tests.engine.test_spans import fill, taken_in
from tests.support.builders import evidence, jsonl
from tests.support.command import distilld
from tests.support.dask_cluster import A_MINUTE_AHEAD, HIDDEN, OTHER_VERSION, DaskCluster, dask_cluster, needs_dask
from tests.support.history_lake import A, B, HistoryLake, run
from tests.support.running import daemon, until

pytestmark = needs_dask


@pytest.fixture
def lakes(tmp_path: Path) -> Path:
    """The folder of the lakes; the processes of the cluster have theirs beside it."""
    for name in ("lakes", "cluster"):
        (tmp_path / name).mkdir()
    return tmp_path / "lakes"


@pytest.fixture
def cluster(lakes: Path) -> Iterator[DaskCluster]:
    """A scheduler without workers."""
    with dask_cluster(lakes.parent / "cluster") as started:
        yield started


@pytest.fixture(autouse=True)
def always_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is to do, the cluster does it."""
    monkeypatch.setattr(pool, "PROCESSES_FROM", 0)
    monkeypatch.setattr(Pool, "_take_back", lambda *_: False)


def small_lake(lakes: Path, address: str) -> HistoryLake:
    """A lake of two partitions that nobody has judged yet."""
    lake = HistoryLake(lakes / "small", executor=address)
    lake.both(A, run("one"), run("two", "rejected"))
    lake.both(B, run("three"))
    return lake


def test_cluster_gives_what_this_process_gives(lakes: Path, cluster: DaskCluster) -> None:
    """Two workers see the lakes through mounts of their own and are a minute ahead; nothing is left behind."""
    for _ in range(2):
        cluster.start_worker(lakes, preload=A_MINUTE_AHEAD)
    joined = join(cluster.address, lakes, lakes, Options())
    assert joined.executor.submit(os.stat, str(lakes)).result().st_dev != lakes.stat().st_dev
    assert joined.executor.submit(time.time).result() > time.time() + 30
    joined.executor.shutdown()
    expected = taken_in(lakes / "expected", executor=None)
    actual = taken_in(lakes / "actual", executor=cluster.address)
    are_equal(expected, actual)
    assert not actual.go().changed
    assert not list(actual.root.glob(f"**/{NONCE}*"))
    for lake in (expected, actual):
        lake.stop()


def test_nonce_that_a_kill_left_goes_with_the_next_one(lakes: Path, cluster: DaskCluster) -> None:
    """Of the files that show that a worker sees the root, none stays."""
    cluster.start_worker()
    left = lakes / f"{NONCE}left"
    left.touch()
    joined = join(cluster.address, lakes, lakes, Options())
    assert joined.workers == 1
    assert [path.name.startswith(NONCE) and path != left for path in lakes.glob(f"{NONCE}*")] == [True]
    joined.executor.shutdown()
    assert not list(lakes.glob(f"{NONCE}*"))


def hold(folder: str) -> int:
    """Say in a folder which process this is, and wait for leave to end."""
    Path(folder, f"held-{os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return os.getpid()


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def held_by(folder: Path, *, but: int = 0) -> int:
    """Wait for a process that holds a job; returns its id."""
    names = until(lambda: [path for path in folder.glob("held-*") if path.name != f"held-{but}"], "a worker has a job")
    return int(names[0].name.removeprefix("held-"))


def test_job_of_a_worker_that_is_killed_is_done_by_another(lakes: Path, cluster: DaskCluster) -> None:
    """Nobody notices."""
    processes = {process.pid: process for process in (cluster.start_worker(), cluster.start_worker())}
    joined = join(cluster.address, lakes, lakes, Options())
    future = joined.executor.submit(hold, str(lakes))
    killed = held_by(lakes)
    processes.pop(killed).kill()
    (lakes / "go").touch()
    assert [future.result()] == list(processes)
    joined.executor.shutdown()


DIES = """
import os, signal
from distilld.engine.judge_span import SpanJudge
SpanJudge.judge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_that_is_killed_in_the_middle_of_a_pass_changes_nothing(lakes: Path, cluster: DaskCluster) -> None:
    """It dies of the first rows that it is to judge, whatever these are; another judges them in the same pass."""
    expected = taken_in(lakes / "expected", executor=None)
    killed = cluster.start_worker(preload=DIES)
    lake = HistoryLake(lakes / "actual", expected.options, executor=cluster.address)
    fill(lake)

    def replace_it() -> None:
        if killed.poll() and len(cluster.workers) == 1:
            cluster.start_worker()

    lake.engine.pulse = replace_it
    lake.go()
    assert killed.wait() == -signal.SIGKILL
    are_equal(expected, lake)
    for each in (expected, lake):
        each.stop()


OTHER_IDS = """
from distilld.core.datasets import rows
rows.id_digits = lambda run_id, signature: 16 * "0"
"""


def test_worker_that_gives_other_ids_is_an_error(lakes: Path, cluster: DaskCluster) -> None:
    """Its code says that it is the same version; nothing that it did is committed, and another worker does all."""
    expected = taken_in(lakes / "expected", executor=None)
    wrong = cluster.start_worker(preload=OTHER_IDS)
    lake = HistoryLake(lakes / "actual", expected.options, executor=cluster.address)
    fill(lake)
    with pytest.raises(WrongAnswer, match="a line of rag is not that of its row"):
        lake.go()
    assert not any(lake.files().values())
    wrong.kill()
    cluster.start_worker()
    lake.go()
    are_equal(expected, lake)
    for each in (expected, lake):
        each.stop()


def test_job_that_kills_every_worker_is_an_error(lakes: Path, cluster: DaskCluster) -> None:
    """It is not given out for ever; the pool makes WorkerDied of the error, as of a process of our own."""
    for _ in range(4):
        cluster.start_worker()
    joined = join(cluster.address, lakes, lakes, Options())
    with pytest.raises(BrokenExecutor):
        joined.executor.submit(die).result()
    joined.executor.shutdown()


def test_scheduler_that_goes_away_ends_the_pass_and_nothing_is_lost(lakes: Path, cluster: DaskCluster) -> None:
    """The batch is undone; once the cluster is back, the next pass does it."""
    cluster.start_worker()
    joined = join(cluster.address, lakes, lakes, Options())
    future = joined.executor.submit(hold, str(lakes))
    held_by(lakes)
    cluster.processes[0].kill()
    with pytest.raises(ClusterAway, match=f"{cluster.address} went away"):
        future.result()
    joined.executor.shutdown()
    (lakes / "go").touch()

    lake = small_lake(lakes, cluster.address)
    with pytest.raises(ClusterAway, match="does not answer"):
        lake.engine.run_pass(Trigger.ONCE)
    assert not any(lake.files().values())
    cluster.start_scheduler()
    cluster.start_worker()
    lake.go()
    assert lake.exported("rag") == {"one", "three"}
    lake.stop()


def test_scheduler_that_goes_away_in_the_middle_of_a_pass(
    lakes: Path, cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed stands, and the next pass goes on with it."""
    cluster.start_worker()
    lake = small_lake(lakes, cluster.address)
    lake.limits["batch_rows"] = 1
    lake.engine.pulse = lambda: cluster.processes[0].kill() if lake.ask("SELECT 1 FROM batches") else None
    with pytest.raises(ClusterAway, match=r"went away|does not answer"):
        go_on(lake)
    lake.engine.committer.recover()
    lake.check()
    lake.engine.pulse = lambda: None
    lake.engine.limits = lake.engine.limits._replace(executor="")
    lake.go()
    assert lake.exported("rag") >= {"one", "three"}
    lake.stop()


def go_on(lake: HistoryLake) -> None:
    """Pass after pass, each over a new partition."""
    for number in range(1000):
        lake.go()
        lake.both(f"2026/05/01/{number}.jsonl", run(f"more-{number}"))


def test_worker_with_another_version_judges_nothing(lakes: Path, cluster: DaskCluster) -> None:
    """It says which versions differ, by name; what it would have done is done by nobody."""
    cluster.start_worker(preload=OTHER_VERSION)
    lake = small_lake(lakes, cluster.address)
    with pytest.raises(UnfitWorker, match=r"the worker on \S+ has other versions: distilld 0\.0\.1, not \d"):
        lake.go()
    assert not any(lake.files().values())
    lake.stop()


def test_worker_that_does_not_see_the_root_judges_nothing(lakes: Path, cluster: DaskCluster) -> None:
    """Not even one that sees a folder of that name: it has another lake there, or none."""
    cluster.start_worker(lakes, through=HIDDEN)
    lake = small_lake(lakes, cluster.address)
    with pytest.raises(UnfitWorker, match=r"does not see the root: nothing is at \S+"):
        lake.go()
    assert not any(lake.files().values())
    lake.stop()


def test_worker_without_the_source_files_judges_nothing(
    lakes: Path, cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would quarantine every row that names one."""
    sources = lakes.parent / "sources"
    sources.mkdir()
    (sources / "lib.rs").touch()
    cluster.start_worker(sources, through=HIDDEN)
    lake = small_lake(lakes, cluster.address)
    lake.options = Options(source_files_root=str(sources), check_source_files=True)
    with pytest.raises(UnfitWorker, match=f"sees nothing in {sources}"):
        lake.go()
    lake.stop()


def test_worker_that_joins_later_is_held_to_the_same(lakes: Path, cluster: DaskCluster) -> None:
    """The comparison stands before each job, not before the first one."""
    first = cluster.start_worker()
    joined = join(cluster.address, lakes, lakes, Options())
    assert joined.executor.submit(os.getpid).result() == first.pid
    cluster.start_worker(preload=OTHER_VERSION)
    first.kill()
    with pytest.raises(UnfitWorker, match="other versions"):
        joined.executor.submit(os.getpid).result()
    joined.executor.shutdown()


def test_cluster_without_a_worker_is_an_error(
    lakes: Path, cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for a while only."""
    monkeypatch.setattr(module, "JOIN_SECONDS", 1)
    with pytest.raises(ClusterAway, match="has no worker"):
        join(cluster.address, lakes, lakes, Options())
    assert not list(lakes.iterdir())


def large_lake(root: Path) -> None:
    """So much input that workers are asked for."""
    for number in range(4):
        names = [f"run-{number}-{row}" for row in range(50)]
        for tree, lines in (
            ("scored-runs", [run(name) for name in names]),
            ("evidence", [evidence(run_id=name, text=f"# {name}\n\n{'word ' * 14_000}") for name in names]),
        ):
            path = root / "data" / tree / "2026" / "04" / "27" / f"{number}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jsonl(lines))


def test_command_line_says_what_is_wrong_with_the_cluster(lakes: Path, cluster: DaskCluster) -> None:
    """Another version is exit code 2; what Dask itself logs is not seen; with the right worker all is done."""
    large_lake(lakes)
    wrong = cluster.start_worker(preload=OTHER_VERSION)
    ran = distilld("run", "--once", "--root", lakes, "--executor", cluster.address, cwd=lakes)
    assert ran.code == ExitCode.WRONG_USAGE
    assert "has other versions: distilld 0.0.1, not" in ran.err
    assert len(ran.errors) == 1
    wrong.kill()
    cluster.start_worker()
    ran = distilld("run", "--once", "--root", lakes, "--executor", cluster.address, cwd=lakes)
    assert ran.code == ExitCode.DONE, ran.err
    assert (lakes / EXPORT_PATHS["sft"]).read_bytes().count(b"\n") == 200
    assert not ran.errors


def test_daemon_waits_for_its_cluster(lakes: Path, cluster: DaskCluster) -> None:
    """A worker with another version, and then no scheduler, are told and tried again; then all that waited is done."""
    large_lake(lakes)
    wrong = cluster.start_worker(preload=OTHER_VERSION)
    with daemon(lakes, "--executor", cluster.address) as running:
        assert "other versions" in running.wait_for("batch_failed")["problem"]
        wrong.kill()
        cluster.processes[0].kill()
        cluster.processes[0].wait()
        until(lambda: "does not answer" in running.events("batch_failed")[-1]["problem"], "the scheduler is missed")
        cluster.start_scheduler()
        cluster.start_worker()
        running.wait_for("failure_over", seconds=60)
        assert running.stop() == 0
    assert (lakes / EXPORT_PATHS["sft"]).read_bytes().count(b"\n") == 200
    assert not list((lakes / "exports").glob(f"{NONCE}*"))
