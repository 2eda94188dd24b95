"""Jobs done in other processes, and in this one where it would wait for them; results in the order of the jobs.

Results do not depend on who does the work. A worker keeps nothing but the job in hand: it may be killed at any
moment, and ends by itself when whoever started it is gone.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, Final, Generic, NamedTuple, TypeVar

from distilld.core.model import OperatorError, Options
from distilld.engine.jobs import Job, ReadJob, Result, SpoolFault, answer, could_not_read, perform
from distilld.files.spool import SpoolError, unnamed_file

PROCESSES_FROM: Final = 12 << 20
"""Bytes to read from which worker processes pay; fewer are done before a process has started."""
BYTES_AHEAD: Final = 20 << 20
"""Bytes of input that a worker may have waiting: enough while a batch is committed, and some is left to others."""
BYTES_HELD: Final = 32 << 20
"""Bytes of input at most, for each worker, whose answers are held in memory or waited for."""
JOBS_AHEAD: Final = 64
BYTES_AHEAD_ELSEWHERE: Final = 256 << 20
"""Bytes of input at most of which another executor's answers are held in memory or waited for."""
ORDER_BYTES: Final = 2 << 20
"""Jobs go to another executor together until they come to this much: each order costs some milliseconds there."""
WAIT_SECONDS: Final = 1.0
"""How long an answer is waited for before a sign of life."""

J = TypeVar("J", bound=Job)


class Joined(NamedTuple):
    """An executor of other machines, which is shut down at the end of a pass, and how many jobs it does at a time."""

    executor: Executor
    workers: int


class WorkerDied(OperatorError):
    """A worker process ended in the middle of its work; the batch is undone."""

    def __init__(self) -> None:
        super().__init__("a worker process was killed or ended", hint="look for a lack of memory; the next run goes on")


@dataclass(slots=True)
class Done(Generic[J]):
    """A job that is done, and the file that its lines went to; whoever takes it closes it."""

    job: J
    result: Result
    file: IO[bytes] | None

    def close(self) -> None:
        """Give the file back."""
        if self.file is not None:
            self.file.close()


@dataclass(slots=True)
class _Given(Generic[J]):
    job: J
    file: IO[bytes] | None
    future: Future[list[Result]] | None = None
    """The answer to this job and to some beside it."""
    place: int = 0
    result: Result | None = None


class Pool:
    """Does jobs for one root, as long as one pass takes; processes are started when much is to be done."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        *,
        workers: int,
        executor: Executor | None = None,
        join: Callable[[], Joined] | None = None,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """``workers`` are the processes beside this one; 0: one a core in all. ``folder`` is for files of lines.

        An ``executor`` that is given is used from the first job on, and is not shut down. ``join`` gives one that takes
        the place of processes of our own. The lines of either come back with the answers, and what it could not read is
        tried here.
        """
        self._root = str(root)
        self._folder = folder
        self._given_executor = executor
        self._executor = executor
        self._join = join
        self._elsewhere = bool(executor or join)
        self._pulse = pulse
        self._workers = workers or max(1, len(os.sched_getaffinity(0)) - 1)
        self._unanswered = 0
        """Bytes of the jobs that were given to workers, without those that :attr:`_answered` names."""
        self._answered: deque[int] = deque()
        """The sizes of jobs that workers have done; filled by another thread."""

    def expect(self, size: int) -> None:
        """Say that so many bytes are to be read: where they are many, processes are started."""
        if self._executor is not None or size < PROCESSES_FROM:
            return
        if self._join is not None:
            self._executor, self._workers = self._join()
            return
        self._executor = ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
        )
        try:
            # The first job starts all of them: they come up while this process looks at its store.
            self._executor.submit(_nothing)
        except OSError as error:
            self.close()
            raise OperatorError(
                f"cannot start a worker process: {error.strerror or error}",
                hint="let it start processes: look at its limits and at the memory that is left",
            ) from error
        except BrokenExecutor as error:
            self.close()
            raise WorkerDied from error

    @property
    def has_workers(self) -> bool:
        """Whether jobs are done in other processes."""
        return self._executor is not None

    @property
    def is_elsewhere(self) -> bool:
        """Whether they may be processes of other machines."""
        return self.has_workers and self._elsewhere

    def close(self) -> None:
        """End the processes; what they have in hand is dropped."""
        executor, self._executor = self._executor, self._given_executor
        if executor is None or executor is self._given_executor:
            return
        if not isinstance(executor, ProcessPoolExecutor):
            executor.shutdown(cancel_futures=True)
        else:
            processes = list((executor._processes or {}).values())
            for process in processes:
                process.kill()
            executor.shutdown(wait=True, cancel_futures=True)
            del executor, processes
            _end_tracker()

    def run(self, jobs: Iterable[J], options: Options) -> Iterator[Done[J]]:
        """Do jobs, in order; they are asked for ahead of their results.

        Raises:
            SpoolError: Lines could not be kept.
            WorkerDied: A process ended.
        """
        coming = iter(jobs)
        under_way: deque[_Given[J]] = deque()
        try:
            more = True
            while more or under_way:
                while more and self._has_room(under_way):
                    more = self._give(coming, under_way, options, here=False)
                if not under_way:
                    continue
                head = under_way[0]
                while more and head.future is not None and not head.future.done() and self._lends_a_hand(under_way):
                    more = self._give(coming, under_way, options, here=True)
                result = self._result(head, options)
                self._pulse()
                under_way.popleft()
                yield Done(head.job, result, head.file)
        finally:
            for each in under_way:
                if each.future is not None:
                    each.future.cancel()
                if each.file is not None:
                    each.file.close()

    def _has_room(self, under_way: deque[_Given[J]]) -> bool:
        if self._executor is None:
            return not under_way
        while self._answered:
            self._unanswered -= self._answered.popleft()
        return not under_way or (
            len(under_way) < JOBS_AHEAD * self._workers
            and self._unanswered < BYTES_AHEAD * self._workers
            and not self._holds_much(under_way)
        )

    def _lends_a_hand(self, under_way: deque[_Given[J]]) -> bool:
        """Whether this process does a job itself while it waits; what is done lies in files, but not without end."""
        return len(under_way) < JOBS_AHEAD and not self._holds_much(under_way)

    def _holds_much(self, under_way: deque[_Given[J]]) -> bool:
        limit = BYTES_AHEAD_ELSEWHERE if self._elsewhere else BYTES_HELD * self._workers
        return sum(each.job.size for each in under_way) >= limit

    def _give(self, coming: Iterator[J], under_way: deque[_Given[J]], options: Options, *, here: bool) -> bool:
        job = next(coming, None)
        if job is None:
            return False
        executor = None if here else self._executor
        jobs, size, file, path = [job], job.size, None, None
        if executor is not None and self._elsewhere:
            while size < ORDER_BYTES and (job := next(coming, None)) is not None:
                jobs.append(job)
                size += job.size
        elif not isinstance(job, ReadJob):
            file = unnamed_file(self._folder)
            path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        given = [_Given(job, file, place=place) for place, job in enumerate(jobs)]
        under_way.extend(given)
        if executor is None:
            given[0].result = perform(self._root, options, jobs[0], path)
            return True
        try:
            future = executor.submit(answer, self._root, options, jobs, path)
        except BrokenExecutor as error:
            raise WorkerDied from error
        for each in given:
            each.future = future
        self._unanswered += size
        future.add_done_callback(lambda _: self._answered.append(size))
        return True

    def _result(self, given: _Given[J], options: Options) -> Result:
        result = given.result
        if given.future is not None:
            while not wait((given.future,), WAIT_SECONDS).done:
                self._pulse()
            try:
                result = given.future.result()[given.place]
            except BrokenExecutor as error:
                raise WorkerDied from error
            if self._elsewhere and could_not_read(given.job, result):
                # Its mount may be stale or away; what stands in the files is decided by what is seen here.
                result = perform(self._root, options, given.job, None)
        assert result is not None  # noqa: S101  done here, or answered
        if isinstance(result, SpoolFault):
            raise SpoolError(self._folder, OSError(result.errno, result.why))
        return result


def _end_tracker() -> None:
    """End the process that multiprocessing starts beside workers, and leaves: a daemon would keep it for good."""
    # What it looks after, the semaphores of the queues, must be gone before, or it is started again.
    gc.collect()
    if not multiprocessing.active_children():
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def _nothing() -> None:
    """Start the workers."""


def _begin(starter: int) -> None:
    """Make this process a worker: who started it decides when it ends, and it ends when that one is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    # It makes no cycles, and lives for one pass.
    gc.disable()


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(0.5)
    os._exit(0)
