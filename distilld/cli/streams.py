"""The standard streams of a command: a failed write never raises, and the exit code reports lost output.

Python flushes both streams when it ends, and exits with 120 if that fails. So each stream is wrapped at its lowest
level, where a failed write is dropped and remembered. Lost standard error never changes an exit code. Lost standard
output is a failure only of commands whose product it is. It is no failure if the reader closed its pipe.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, Final, TextIO

import click

from distilld.cli.commands import ExitCode

if TYPE_CHECKING:
    from typing_extensions import Buffer

_INPUT: Final = 0
_OUTPUT: Final = 1
_ERROR: Final = 2


class _Dropping(io.FileIO):
    """Writes to a descriptor until an error, and drops the rest of that write. ``lost`` is the first error.

    With ``ends`` nothing is written after a loss: a document has no gap. Without it, a log continues when it can.
    """

    def __init__(self, descriptor: int, lost: OSError | None, *, ends: bool = False) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._ends = ends
        self.lost = lost

    def write(self, data: Buffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = rest.nbytes
        while rest and not (self.lost and self._ends):
            try:
                rest = rest[os.write(self.fileno(), rest) :]
            except BlockingIOError:
                select.select([], [self.fileno()], [])
            except OSError as error:
                self.lost = self.lost or error
                break
        return size


class StandardStreams:
    """The output streams of this process, which replace ``sys.stdout`` and ``sys.stderr``."""

    def __init__(self) -> None:
        """Open the null device for each closed standard stream, so that no file opened later gets its number."""
        closed = {number: error for number in (_INPUT, _OUTPUT, _ERROR) if (error := _open_null_if_closed(number))}
        if _INPUT in closed:
            sys.stdin = os.fdopen(_INPUT, closefd=False)
        self._output = _Dropping(_OUTPUT, closed.get(_OUTPUT), ends=True)
        sys.stdout = _text(self._output, sys.stdout)
        sys.stderr = _text(_Dropping(_ERROR, closed.get(_ERROR)), sys.stderr, line_buffering=True)

    def exit_code(self, code: int) -> int:
        """Return the exit code for a command that returned ``code``. Report lost output."""
        sys.stdout.flush()
        lost = self._output.lost
        if lost is None or lost.errno == errno.EPIPE:
            return code
        if lost.errno != errno.EBADF:
            click.echo(f"distilld: cannot write to standard output: {lost.strerror}", err=True)
        return code if WorkCommand.ran else code or ExitCode.FAILED


class WorkCommand(click.Command):
    """A command whose product is its work: lost output does not change its exit code."""

    ran = False

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. To show its help is no run."""
        WorkCommand.ran = True
        return super().invoke(ctx)


def _open_null_if_closed(descriptor: int) -> OSError | None:
    """Open the null device on a closed descriptor, also for child processes. Lower descriptors must be open."""
    try:
        os.fstat(descriptor)
    except OSError as error:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        return error
    return None


def _text(raw: _Dropping, given: TextIO | None, *, line_buffering: bool = False) -> TextIO:
    """Return a text stream over ``raw``, in the encoding of ``given``. It escapes what that cannot encode.

    It has no buffered writer in between, which would write bytes twice if a signal ended a write.
    """
    return io.TextIOWrapper(
        raw,
        encoding=given.encoding if given is not None else None,
        errors="backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
    )
