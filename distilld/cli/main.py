"""The command line: the only part that prints for users (SPEC 5; docs/cli.md).

Importing it is quick: the module of a command is imported when it runs. Errors that a user can resolve become
one line on standard error here, and nowhere else.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from distilld.cli.commands import ExitCode, distilld
from distilld.cli.output import complain
from distilld.cli.streams import StandardStreams
from distilld.core.model import DistilldError, ProgramError, UsageError, WriterBusy
from distilld.logs import get_logger
from distilld.service.failure_text import explain_failure


def main() -> NoReturn:
    """Run the command line of this process."""
    streams = StandardStreams()
    sys.exit(streams.exit_code(execute(sys.argv[1:])))


def execute(arguments: Sequence[str]) -> int:
    """Run one command. Print its error, if any, and return its exit code."""
    try:
        code = distilld.main(args=list(arguments), prog_name="distilld", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "distilld"
        _say_error(" ".join(error.format_message().split()), f"see '{command} --help'")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say_error("interrupted; what was committed stands, and the next run goes on from there")
        return ExitCode.INTERRUPTED
    except (DistilldError, sqlite3.Error, OSError) as error:
        return _tell(error)
    return int(code or ExitCode.DONE)


def _tell(error: Exception) -> ExitCode:
    if isinstance(error, ProgramError):
        get_logger().error("batch_failed", exc_info=error)
        _say_error(str(error), "a bug in distilld; nothing of the batch was committed, please report the line above")
        return ExitCode.FAILED
    _say_error(*explain_failure(error))
    if isinstance(error, WriterBusy):
        return ExitCode.BUSY
    return ExitCode.WRONG_USAGE if isinstance(error, UsageError) else ExitCode.FAILED


def _say_error(message: str, hint: str = "") -> None:
    """Print one line for each fault in the message, with the hint after the last."""
    *others, last = message.splitlines() or [""]
    for line in (*others, f"{last} ({hint})" if hint else last):
        complain(line)
