"""The command line: the only part that speaks to people (SPEC 5; docs/cli.md).

Importing it is quick: what a command needs is imported when that command runs. Errors that somebody can act on become
one line on standard error here, and nowhere else.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Final, NoReturn

import click

from distilld.cli.commands import distilld
from distilld.cli.exit_codes import ExitCode
from distilld.core.model import DistilldError, ProgramError, UsageError, WriterBusy
from distilld.core.remedies import remedy_of

_STANDARD_ERROR: Final = 2


def main() -> NoReturn:
    """The command line of this process."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A path that the terminal's encoding cannot show is escaped, and stops nothing.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(execute(sys.argv[1:]))


def _open_closed_streams() -> None:
    """Put the null device in the place of each standard stream that is closed: what is written there is dropped.

    A file that is opened later would take its number otherwise, and a child's output would go there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def execute(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code, having told what went wrong."""
    try:
        code = distilld.main(args=list(arguments), prog_name="distilld", standalone_mode=False)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say_error("interrupted; what was committed stands, and the next run goes on from there")
        return ExitCode.INTERRUPTED
    except DistilldError as error:
        return _tell(error)
    except sqlite3.Error as error:
        _say_error(f"the state store failed: {error}", f"what was committed stands; {remedy_of(error)}")
        return ExitCode.FAILED
    except OSError as error:
        at = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        # A message of our own ('is no regular file') says what is to be done.
        is_the_systems = error.errno is not None and error.strerror == os.strerror(error.errno)
        _say_error(f"{at}{error.strerror or error}", remedy_of(error) if is_the_systems else "")
        return ExitCode.FAILED
    return int(code or ExitCode.DONE)


def _tell(error: DistilldError) -> ExitCode:
    if isinstance(error, ProgramError):
        from distilld.logs import get_logger

        get_logger().error("batch_failed", exc_info=error)
        _say_error(str(error), "a bug in distilld; nothing of the batch was committed, please report the line above")
        return ExitCode.FAILED
    _say_error(str(error), error.hint)
    if isinstance(error, WriterBusy):
        return ExitCode.BUSY
    return ExitCode.WRONG_USAGE if isinstance(error, UsageError) else ExitCode.FAILED


def _say_error(message: str, hint: str = "") -> None:
    """One line for each fault that the message names, the hint behind the last."""
    from distilld.cli.output import complain

    *others, last = message.splitlines() or [""]
    for line in (*others, f"{last} ({hint})" if hint else last):
        complain(line)


__all__ = ["ExitCode", "execute", "main"]
