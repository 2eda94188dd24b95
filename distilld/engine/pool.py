"""Do jobs in other processes, and in this one while it would wait; return results in the order of the jobs.

Results do not depend on which process does the work. A worker holds only its current job. It may be killed at any
moment, and ends by itself when the process that started it is gone.
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
from typing import Final, Generic, NamedTuple, TypeVar

from distilld.core.model import OperatorError, Options
from distilld.engine.jobs import Job, ReadJob, Result, SpoolFault, answer, could_not_read, perform
from distilld.files.spool import SharedFile, SpoolError

PROCESSES_FROM: Final = 12 << 20
"""Bytes to read from which worker processes pay off; less is done before a process has started."""
BYTES_AHEAD: Final = 20 << 20
"""Bytes of input that may wait for each worker: enough while a batch is committed, and some is left to others."""
BYTES_HELD: Final = 32 << 20
"""The most bytes of input, for each worker, whose answers are awaited or held in memory."""
JOBS_AHEAD: Final = 64
BYTES_AHEAD_ELSEWHERE: Final = 256 << 20
"""The most bytes of input whose answers from another executor are awaited or held in memory."""
ORDER_BYTES: Final = 2 << 20
"""Bytes of jobs that go to another executor in one order: each order costs some milliseconds there."""
WAIT_SECONDS: Final = 1.0
"""Seconds between calls of ``pulse`` while an answer is awaited."""

J = TypeVar("J", bound=Job)


class Joined(NamedTuple):
    """An executor on other machines, shut down at the end of a pass, and how many jobs it does at a time."""

    executor: Executor
    workers: int


class WorkerDied(OperatorError):
    """A worker process ended during its work; the batch is undone."""

    def __init__(self) -> None:
        super().__init__("a worker process was killed or ended", hint="look for a lack of memory; the next run goes on")


@dataclass(slots=True)
class Done(Generic[J]):
    """A finished job, and the file with its lines, shared with other jobs; the caller closes it."""

    job: J
    result: Result
    file: SharedFile | None

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()


@dataclass(slots=True)
class _Given(Generic[J]):
    job: J
    file: SharedFile | None
    future: Future[list[Result]] | None = None
    """The answer to this job and to the others of its order."""
    place: int = 0
    result: Result | None = None


class Pool:
    """Does jobs for one root during one pass; starts processes when there is much to do."""

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
        """``workers`` is the number of other processes; 0: one per core but one. ``folder`` is for files of lines.

        A given ``executor`` is used from the first job on and is not shut down. ``join`` returns one that replaces our
        own processes. Both return lines with the answers; what they could not read is tried again here.
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
        """Bytes of the jobs that workers have; the sizes in :attr:`_answered` are subtracted before it is used."""
        self._files: dict[str, SharedFile] = {}
        """The files for lines, by the time of their batch: one for each batch, however many jobs it has."""
        self._answered: deque[int] = deque()
        """The sizes of orders that workers have finished; filled by another thread."""

    def expect(self, size: int) -> None:
        """Start processes if the number of bytes to read is large enough."""
        if self._executor is not None or size < PROCESSES_FROM:
            return
        if self._join is not None:
            self._executor, self._workers = self._join()
            return
        self._executor = ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
        )
        try:
            # The first job starts all of them, while this process looks at its store.
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
        """Return whether jobs are done in other processes."""
        return self._executor is not None

    @property
    def is_elsewhere(self) -> bool:
        """Return whether these processes may be on other machines."""
        return self.has_workers and self._elsewhere

    def close(self) -> None:
        """End the processes; drop their unfinished jobs."""
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
        """Do jobs, in order; jobs are taken from ``jobs`` ahead of their results.

        Raises:
            SpoolError: Lines could not be written.
            WorkerDied: A worker process ended.
        """
        coming = iter(jobs)
        under_way: deque[_Given[J]] = deque()
        try:
            more = True
            while more or under_way:
                while more and self._has_room(under_way):
                    more = self._give(coming, under_way, options)
                if not under_way:
                    continue
                head = under_way[0]
                if head.future is not None and not head.future.done() and self._take_back(under_way, options):
                    self._pulse()
                    continue
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

    def _take_back(self, under_way: deque[_Given[J]], options: Options) -> bool:
        """Do the last order here, instead of waiting, if more are given out than workers can have begun."""
        given = [each.future for each in under_way if each.future is not None and not each.future.done()]
        if len(set(given)) <= self._workers or not given[-1].cancel():
            return False
        # If a worker dies, Python 3.11 sets an error on each future, and fails itself at one that was cancelled.
        given[-1].set_exception = _ignore  # type: ignore[assignment, method-assign]
        for each in under_way:
            if each.future is given[-1]:
                each.future, each.result = None, perform(self._root, options, each.job, _path_of(each.file))
        return True

    def _holds_much(self, under_way: deque[_Given[J]]) -> bool:
        limit = BYTES_AHEAD_ELSEWHERE if self._elsewhere else BYTES_HELD * self._workers
        return sum(each.job.size for each in under_way) >= limit

    def _give(self, coming: Iterator[J], under_way: deque[_Given[J]], options: Options) -> bool:
        job = next(coming, None)
        if job is None:
            return False
        executor = self._executor
        jobs, size, file = [job], job.size, None
        if executor is not None and self._elsewhere:
            while size < ORDER_BYTES and (job := next(coming, None)) is not None:
                jobs.append(job)
                size += job.size
        elif not isinstance(job, ReadJob):
            file = self._file_for(job.stamp)
        given = [_Given(job, file, place=place) for place, job in enumerate(jobs)]
        under_way.extend(given)
        if executor is None:
            given[0].result = perform(self._root, options, jobs[0], _path_of(file))
            return True
        try:
            future = executor.submit(answer, self._root, options, jobs, _path_of(file))
        except BrokenExecutor as error:
            raise WorkerDied from error
        for each in given:
            each.future = future
        self._unanswered += size
        future.add_done_callback(lambda _: self._answered.append(size))
        return True

    def _file_for(self, stamp: str) -> SharedFile:
        """Return the file for the lines of a batch to one more job."""
        if stamp not in self._files or self._files[stamp].closed:
            self._files = {other: file for other, file in self._files.items() if not file.closed}
            self._files[stamp] = SharedFile(self._folder)
        return self._files[stamp].share()

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
                # The worker's mount may be stale or missing; what this process reads decides.
                result = perform(self._root, options, given.job, None)
        assert result is not None  # noqa: S101  done here, or answered
        if isinstance(result, SpoolFault):
            raise SpoolError(self._folder, OSError(result.errno, result.why))
        return result


def _path_of(file: SharedFile | None) -> str | None:
    """Return the path by which any process opens the file."""
    return None if file is None else f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _end_tracker() -> None:
    """End the helper process that multiprocessing starts and leaves: a daemon would keep it for good."""
    # It tracks the semaphores of the queues, which must be gone first, or it is started again.
    gc.collect()
    if not multiprocessing.active_children():
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def _ignore(_error: BaseException | None) -> None:
    """Set no error on a future that nobody waits for."""


def _nothing() -> None:
    """Do nothing: submitting this job starts the workers."""


def _begin(starter: int) -> None:
    """Make this process a worker: it ignores signals, and ends when the process that started it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    # A worker makes no reference cycles, and lives for one pass.
    gc.disable()


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(0.5)
    os._exit(0)
