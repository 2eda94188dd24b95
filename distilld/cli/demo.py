"""``distilld demo``: show distilld at work on a sample lakehouse."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import click

from distilld import logs
from distilld.cli.commands import json_option
from distilld.cli.output import print_json, say, show
from distilld.cli.streams import WorkCommand
from distilld.demo.demo import Stage, run_demo
from distilld.tables import Table


@click.command(cls=WorkCommand)
@click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("demo-lake"),
    show_default=True,
    help="Where to make it: a folder that is new, empty, or an earlier demo.",
)
@json_option
def demo(folder: Path, as_json: bool) -> None:
    """Make a sample lakehouse, run once, change the lake, run again, and show the results.

    Takes some seconds and touches nothing outside its folder. An earlier demo in the folder is replaced.
    """
    logs.configure(level="error", fmt="auto")
    tables: list[Table] = []
    stage = Stage(lambda _line: None, tables.append, _program()) if as_json else Stage(say, show, _program())
    try:
        run_demo(folder, stage)
    except OSError as error:  # that of a write names no file
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error
    if as_json:
        print_json({"folder": folder, "tables": tables})


def _program() -> str:
    """Return the command that runs this program here: its name if that finds it, else its path."""
    called = sys.argv[0]
    if Path(called).name != "distilld":
        return "distilld"
    found = shutil.which("distilld")
    if found is not None and os.path.samefile(found, called):
        return "distilld"
    return shlex.quote(os.path.relpath(called))
