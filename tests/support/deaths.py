"""Processes that die: a child that is killed, for good and by the kernel, when it comes to its n-th call."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.resource_tracker import _resource_tracker as tracker

from tests.support.calls import Call, Watcher, calls


def dies_at(
    number: int,
    work: Callable[[], object],
    watcher: Watcher | None = None,
    *,
    first: Callable[[], object] = lambda: None,
) -> bool:
    """Do some work in a child process that is killed when it is about to make its ``number``-th call.

    Returns whether it was killed; False means that the work was done before it came to so many calls. With a watcher
    the power is cut there, or else at the end. What is done ``first`` in that process does not count.
    """

    def strike(call: Call) -> None:
        if call.number == number:
            if watcher is not None:
                watcher.cut()
            os.kill(os.getpid(), signal.SIGKILL)

    def struck() -> None:
        first()
        with calls(strike, watcher=watcher):
            work()
        if watcher is not None:
            watcher.cut()

    return in_child(struck) == -signal.SIGKILL


class Killed(BaseException):
    """Stands for a kill where the process must live on: nothing of the program catches it."""


def breaks_off_at(number: int, work: Callable[[], object], watcher: Watcher) -> None:
    """Do some work in this process up to its ``number``-th call; from there on every call fails, as for one killed."""

    def strike(call: Call) -> None:
        if call.number >= number:
            raise Killed

    with calls(strike, watcher=watcher), suppress(Killed):
        work()


def in_child(work: Callable[[], object]) -> int:
    """Do some work in a child process; returns how it ended, 0 or the negative number of the signal that killed it."""
    child = start_child(work)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code <= 0, "the child failed; its traceback is among what was printed"
    return code


def start_child(work: Callable[[], object]) -> int:
    """Do some work in a child process; returns its process id."""
    with warnings.catch_warnings():
        # Newer Pythons warn of threads that other tests left; the child uses none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            # The parent's tracker of shared semaphores is no child of this process, which could not wait for its end.
            tracker._pid = tracker._fd = None  # type: ignore[attr-defined]
            work()
            code = 0
        except BaseException:  # noqa: BLE001  nothing may leave the child but its exit code
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return child
