"""Jobs that other executors do: what comes back, what is believed of it, and how much of it is held in memory."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import EXPORT_PATHS, InputKind, Options, UsageError
from distilld.engine import cluster, index, jobs, pool
from distilld.engine.jobs import JobFailed, ReadJob, SpanJob, answer
from distilld.engine.pool import Pool
from distilld.engine.read_file import FileRead
from tests.engine.test_spans import NEVER, state, taken_in, unstamped
from tests.support.dask_cluster import dask_cluster, needs_dask
from tests.support.history_lake import A, B, HistoryLake, believe_facts, given, run


@contextmanager
def threads(_: Path) -> Iterator[Executor]:
    """Two threads of this process."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@contextmanager
def processes(_: Path) -> Iterator[Executor]:
    """Two processes that begin anew."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


@contextmanager
def dask(folder: Path) -> Iterator[Executor]:
    """A client of a Dask cluster, as Dask itself makes an executor of it."""
    from distributed import Client

    with dask_cluster(folder) as cluster:
        cluster.start_worker()
        with Client(cluster.address.replace("dask", "tcp")) as client:
            yield client.get_executor()


@pytest.mark.parametrize("unread", [0, NEVER], ids=["read with the rows", "read before"])
@pytest.mark.parametrize("make", [threads, processes, pytest.param(dask, marks=needs_dask)])
def test_any_executor_gives_what_this_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any], unread: int
) -> None:
    """Exports and facts do not depend on what runs the jobs; a second pass finds nothing to do."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    expected = taken_in(tmp_path / "other")
    tmp_path.joinpath("cluster").mkdir()
    with make(tmp_path / "cluster") as executor:
        actual = taken_in(tmp_path / "lake", executor=executor)
        are_equal(expected, actual)
        assert not actual.go().changed
    for lake in (expected, actual):
        lake.stop()


def are_equal(expected: HistoryLake, actual: HistoryLake) -> None:
    """Two lakes have the same exports, times apart, and the same facts."""
    for name in EXPORT_PATHS:
        assert unstamped(actual.content(name)) == unstamped(expected.content(name)), name
    assert state(actual) == state(expected)


class Another(ThreadPoolExecutor):
    """A worker that sees the root through a mount of its own, with another device."""

    def __init__(self, seen: Callable[[str], str] = lambda root: root) -> None:
        super().__init__(1)
        self.seen = seen

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        root, options, *rest = arguments
        return super().submit(lambda: [moved(each) for each in fn(self.seen(root), options, *rest, **named)])


def moved(result: Any) -> Any:
    """A job's result, as a mount with another device would give it."""
    if isinstance(result, FileRead):
        return _moved(result)
    if isinstance(result, list):
        for done in result:
            if getattr(done, "evidence", None) is not None:
                done.evidence = _moved(done.evidence)
    return result


def _moved(read: FileRead) -> FileRead:
    facts = read.reading.facts
    elsewhere = facts._replace(device=facts.device + 1, inode=facts.inode + 1)
    return read._replace(reading=read.reading._replace(facts=elsewhere))


@pytest.mark.parametrize("unread", [0, NEVER], ids=["read with the rows", "read before"])
def test_facts_of_a_file_are_those_of_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: int) -> None:
    """The story: a worker's mount had another device, so the next look hashed every input file again."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    believe_facts(monkeypatch)
    lake = HistoryLake(tmp_path, executor=Another())
    lake.both(A, run("one"), run("two", "rejected"))
    lake.both(B, run("three"))
    assert lake.go().bytes_read > 0
    again = lake.go()
    assert again.bytes_read == 0
    assert not again.changed
    lake.stop()


@pytest.mark.parametrize("unread", [0, NEVER], ids=["read with the rows", "read before"])
@pytest.mark.parametrize("stale", ["older", "empty", "without evidence"])
def test_mount_that_shows_older_files_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: str, unread: int
) -> None:
    """What a worker sees otherwise than the scan is read here, in the same pass: a verdict that it missed is obeyed.

    The story: attributes that a network file system kept ended the intake.
    """
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    old = tmp_path / "old"
    here = HistoryLake(tmp_path / "lake", executor=Another(lambda _: str(old)))
    local = HistoryLake(tmp_path / "local")
    for lake in (here, local):
        lake.both(A, run("one"), run("two"))
        lake.both(B, run("three", task_id="t"), run("four", "rejected", task_id="t"))
    if stale == "empty":
        old.mkdir()
    else:
        shutil.copytree(here.root, old)
    if stale == "without evidence":
        shutil.rmtree(old / "data" / "evidence")
    for lake in (here, local):
        lake.scored(A, run("one", "rejected"), run("two", "accepted"), run("five"))
        lake.evidence(A, given("one"), given("two", "another answer"), given("five"))
        result = lake.go()
        assert not result.unfinished
        assert not result.unreadable
    assert here.exported("rag") == local.exported("rag") == {"two", "three", "five"}
    are_equal(local, here)
    for lake in (here, local):
        lake.both(B, run("three", "rejected", task_id="t"))
        lake.go()
    are_equal(local, here)
    for lake in (here, local):
        lake.stop()


class Odd(Exception):
    """An exception that does not unpickle: it is made of other arguments than it keeps."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def test_exception_of_a_job_unpickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: an exception with a constructor of its own broke the executor, and nobody learned what had happened."""

    def raising(*_: object) -> None:
        raise Odd("one", "other")

    monkeypatch.setattr(jobs, "perform", raising)
    with pytest.raises(JobFailed, match="Odd: one and other") as caught:
        answer("/", Options(), [ReadJob(InputKind.SCORED, A, 1)], None)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(("size", "most"), [(1 << 20, 257), (3 << 20, 86), (64 << 20, 4), (1 << 30, 1)])
def test_answers_that_are_held_are_bounded(tmp_path: Path, size: int, most: int) -> None:
    """Jobs are given out for 256 MiB of input, and one order, at most that are waited for or not yet taken, however many workers."""

    class AtOnce(Executor):
        given = 0

        def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self.given += len(arguments[2])
            future.set_result([[]] * len(arguments[2]))
            return future

    executor = AtOnce()
    given_out = Pool(tmp_path, tmp_path, workers=1000, executor=executor)
    seen = []
    for taken, _ in enumerate(given_out.run((SpanJob((), "", size) for _ in range(300)), Options())):
        seen.append(executor.given - taken)
    assert len(seen) == 300
    assert max(seen) == most


@pytest.mark.parametrize("tells", [True, False])
def test_process_that_waits_takes_orders_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    """Behind a worker that is busy with the first order, the last ones are done here: one that was begun is not.

    An executor elsewhere may not tell that it has begun an order, and let it be cancelled.
    """
    monkeypatch.setattr(pool, "ORDER_BYTES", 0)

    class Busy(Executor):
        def __init__(self) -> None:
            self.orders: list[Future[Any]] = []

        def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
            self.orders.append(Future())
            if len(self.orders) == 1 and tells:
                self.orders[0].set_running_or_notify_cancel()
            return self.orders[-1]

    executor, pulses = Busy(), count(1)

    def pulse() -> None:
        """End the first order in the pause after four were taken back."""
        if next(pulses) == 5:
            executor.orders[0].set_result([["by a worker"]])

    monkeypatch.setattr(pool, "WAIT_SECONDS", 0)
    doing = Pool(tmp_path, tmp_path, workers=1, executor=executor, pulse=pulse).run(
        (SpanJob((), str(number), 1) for number in range(5)), Options()
    )
    results = [(done.job.stamp, done.result) for done in doing]
    assert [(stamp, str(result)) for stamp, result in results] == [
        ("0", "['by a worker']"),
        ("1", "[]"),
        ("2", "[]"),
        ("3", "[]"),
        ("4", "[]"),
    ]
    assert [order.cancelled() for order in executor.orders] == [False, True, True, True, True]


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install; without an address nothing is missing."""
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    cluster.refuse_without_dask("")
    with pytest.raises(UsageError, match="needs Dask, which is not installed") as caught:
        cluster.refuse_without_dask("dask://host:8786")
    assert caught.value.hint == f"{sys.executable} -m pip install 'distilld[dask]'"
