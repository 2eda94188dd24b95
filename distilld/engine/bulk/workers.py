"""Processes that read and judge new partitions, and what joins them to the one that commits.

A crew takes orders and gives back what came of them in the order of the orders. A worker keeps nothing but the order
in hand: it may be killed at any moment, and ends by itself when whoever started it is gone. Results do not depend on
how many there are.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

from distilld.core.model import InputChanged, OperatorError, Options, UnreadableError
from distilld.engine.bulk.judge_partition import Judge, Order, TakenIn
from distilld.files.spool import SpoolError

ORDERS_AHEAD: Final = 8
"""Orders that a worker holds unanswered; few and small enough to fit into the socket's buffer."""
BYTES_AHEAD: Final = 20 << 20
"""And of no more input than this, the last one apart: enough while a batch is committed, and some is left to others."""
_LENGTH_BYTES: Final = 8
_ENDING_SECONDS: Final = 5.0
_PROGRAM: Final = "import sys; sys.path[:] = sys.argv[1:]; from distilld.engine.bulk.workers import serve; serve()"


class WorkerDied(OperatorError):
    """A worker process ended in the middle of its work; the batch is undone."""

    def __init__(self, status: int) -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"a worker process {how}", hint="look for a lack of memory; the next run goes on")


class Done(NamedTuple):
    """An order that is worked off: its partitions, and the file that holds their lines; whoever takes it closes it."""

    taken: list[TakenIn]
    file: IO[bytes]


class Crew(Protocol):
    """Works orders off."""

    def give(self, order: Order) -> None:
        """Take an order."""

    def collect(self) -> Done:
        """Wait for the oldest order that was not collected yet.

        Raises:
            InputChanged: A file is no longer what it was.
            UnreadableError: A file cannot be read.
            SpoolError: The lines could not be kept.
            WorkerDied: A process ended.
        """

    def close(self) -> None:
        """End it; orders that were not collected are dropped."""


class InlineCrew:
    """Does the work in this process, when it is asked for: a few rows are done before a process has started."""

    def __init__(self, root: Path, options: Options, folder: Path) -> None:
        self._judge = Judge(root, options)
        self._folder = folder
        self._orders: deque[Order] = deque()

    def give(self, order: Order) -> None:
        """Take an order."""
        self._orders.append(order)

    def collect(self) -> Done:
        """Work the oldest order off."""
        file = _shared_file(self._folder)
        try:
            return Done(_work_off(self._judge, self._orders.popleft(), file.fileno(), self._folder), file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Drop the orders."""
        self._orders.clear()


class _Worker:
    """One process, and the orders that it has not answered."""

    def __init__(self, root: Path, options: Options) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, *sys.path],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                # A terminal's Ctrl-C is for the process that it belongs to, which then ends its workers.
                process_group=0,
            )
        self.socket = ours
        self.orders: deque[int] = deque()
        """The sizes of those that it has not answered."""
        self._say((root, options))

    def _say(self, message: object) -> None:
        try:
            _send(self.socket, pickle.dumps(message))
        except OSError:
            raise self._death() from None

    def give(self, order: Order, file: IO[bytes]) -> None:
        """Hand over an order and the file for its lines."""
        try:
            socket.send_fds(self.socket, [b"\0"], [file.fileno()])
        except OSError:
            raise self._death() from None
        self._say(order)
        self.orders.append(order.size)

    def answer(self) -> Any:
        """Wait for the answer to the oldest order."""
        try:
            content = _receive(self.socket)
        except OSError:
            content = None
        if content is None:
            raise self._death()
        self.orders.popleft()
        return pickle.loads(content)  # noqa: S301  our own worker wrote it

    @property
    def has_enough(self) -> bool:
        """Whether another order would lie waiting."""
        return len(self.orders) >= ORDERS_AHEAD or sum(self.orders) >= BYTES_AHEAD

    def has_answered(self) -> bool:
        """Whether the answer to the oldest order has come; also where the process is gone."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def _death(self) -> WorkerDied:
        self.process.kill()
        return WorkerDied(self.process.wait())

    def close(self) -> None:
        """End the process; it holds nothing that would be lost."""
        self.socket.close()
        self.process.kill()
        self.process.wait(_ENDING_SECONDS)


@dataclass(slots=True)
class _Given:
    """An order under way: who has it, and where its lines go; done already where this process did it itself."""

    worker: _Worker | None
    file: IO[bytes]
    taken: list[TakenIn] | None = None


class ProcessCrew:
    """Does the work in processes of its own; this one lends a hand instead of waiting for them."""

    def __init__(self, root: Path, options: Options, folder: Path, workers: int) -> None:
        self._folder = folder
        self._judge = Judge(root, options)
        self._workers: list[_Worker] = []
        self._waiting: deque[Order] = deque()
        self._given: deque[_Given] = deque()
        try:
            for _ in range(workers):
                self._workers.append(_Worker(root, options))
        except OSError as error:
            self.close()
            raise OperatorError(
                f"cannot start a worker process: {error.strerror or error}",
                hint="let it start processes: look at its limits and at the memory that is left",
            ) from error
        except BaseException:
            self.close()
            raise

    def give(self, order: Order) -> None:
        """Take an order; it goes to the worker that has least to do."""
        self._waiting.append(order)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            worker = min(self._workers, key=lambda each: sum(each.orders))
            if worker.has_enough:
                return
            given = _Given(worker, _shared_file(self._folder))
            self._given.append(given)
            worker.give(self._waiting.popleft(), given.file)

    def collect(self) -> Done:
        """Wait for the oldest order, and do one that nobody has begun in the meantime."""
        given = self._given[0]
        while given.taken is None and self._waiting and given.worker is not None and not given.worker.has_answered():
            mine = _Given(None, _shared_file(self._folder))
            self._given.append(mine)
            mine.taken = _work_off(self._judge, self._waiting.popleft(), mine.file.fileno(), self._folder)
        if given.worker is not None:
            given.taken = _unless_failed(given.worker.answer(), self._folder)
        assert given.taken is not None  # noqa: S101  done here, or answered
        self._given.popleft()
        self._hand_out()
        return Done(given.taken, given.file)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()
        for given in self._given:
            given.file.close()
        self._workers, self._given = [], deque()
        self._waiting.clear()


class _Failure(NamedTuple):
    """What a worker says where it could not do its work."""

    kind: str
    text: str
    errno: int | None = None


def _unless_failed(answer: list[TakenIn] | _Failure, folder: Path) -> list[TakenIn]:
    if not isinstance(answer, _Failure):
        return answer
    match answer.kind:
        case "changed":
            raise InputChanged(answer.text)
        case "unreadable":
            raise UnreadableError(answer.text, OSError(answer.errno or 0, os.strerror(answer.errno or 0)))
        case _:
            raise SpoolError(folder, OSError(answer.errno or 0, os.strerror(answer.errno or 0)))


def _shared_file(folder: Path) -> IO[bytes]:
    """A file without a name, so that a kill leaves nothing behind."""
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise SpoolError(folder, error) from error


def _work_off(judge: Judge, order: Order, descriptor: int, folder: Path) -> list[TakenIn]:
    try:
        return judge.work_off(order, descriptor)
    except OSError as error:
        raise SpoolError(folder, error) from error


# in the worker


def serve() -> None:
    """What a worker process does until whoever started it is gone."""
    # Who started it decides when to stop: a signal to the whole group is not for the workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as orders:
        content = _receive(orders)
        if content is None:
            return
        root, options = pickle.loads(content)  # noqa: S301  whoever started it wrote it
        judge = Judge(root, options)
        # It makes no cycles, and lives for one pass.
        gc.disable()
        while True:
            try:
                mark, descriptors, _, _ = socket.recv_fds(orders, 1, 1)
                content = _receive(orders) if mark else None
                if content is None:
                    return
                _send(orders, pickle.dumps(_answer(judge, pickle.loads(content), descriptors[0])))  # noqa: S301  as above
            except OSError:
                return
            os.close(descriptors[0])


def _answer(judge: Judge, order: Order, descriptor: int) -> list[TakenIn] | _Failure:
    try:
        return judge.work_off(order, descriptor)
    except InputChanged as error:
        return _Failure("changed", error.path)
    except UnreadableError as error:
        return _Failure("unreadable", error.path, error.errno)
    except OSError as error:
        return _Failure("spool", "", error.errno)


def _send(channel: socket.socket, content: bytes) -> None:
    channel.sendall(len(content).to_bytes(_LENGTH_BYTES, "big") + content)


def _receive(channel: socket.socket) -> bytes | None:
    """One message; None where the other side is gone."""
    head = _receive_exactly(channel, _LENGTH_BYTES)
    return None if head is None else _receive_exactly(channel, int.from_bytes(head, "big"))


def _receive_exactly(channel: socket.socket, length: int) -> bytes | None:
    content = bytearray()
    while len(content) < length:
        part = channel.recv(min(length - len(content), 1 << 18))
        if not part:
            return None
        content += part
    return bytes(content)
