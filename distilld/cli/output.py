"""Print tables and JSON on standard output, to a terminal or a pipe, and errors on standard error."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

import click

from distilld.logs import printable
from distilld.tables import Table, labelled, plain_text

PROBLEMS_SHOWN: Final = 10
"""The most problems of one name that are shown to people: thousands of files can have the same one."""
HOW_TO_LIST_ALL: Final = "distilld status --json lists all"


def say(line: str = "") -> None:
    """Print one line. Characters that do not print are escaped, so that none steers a terminal or begins a line."""
    click.echo(printable(line))


def say_coloured(line: str, colour: str) -> None:
    """Print one line, in colour if standard output is a terminal and NO_COLOR is not set."""
    text = printable(line)
    click.echo(text if os.environ.get("NO_COLOR") else click.style(text, fg=colour, bold=True))


def complain(line: str) -> None:
    """Print one line on standard error, escaped as by :func:`say`."""
    click.echo(f"distilld: {printable(line)}", err=True)


def say_block(head: str, parts: Sequence[tuple[str, str]]) -> None:
    """Print a line and below it indented ``label text`` lines, wrapped if a terminal is too narrow."""
    click.echo("\n".join((printable(head), *labelled(parts, _width()))))


def show(table: Table) -> None:
    """Print a table as aligned text. If a terminal is too narrow for it, print each row as a block of lines."""
    title, *lines = plain_text(table, _width()).splitlines()
    click.echo("\n".join((click.style(title, bold=True), *lines)))
    click.echo()


def _width() -> int | None:
    """Return how many columns the terminal has; None if standard output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_json(value: object) -> None:
    """Print a value as indented JSON in ASCII, so that nothing in it can steer a terminal."""
    click.echo(json.dumps(plain(value), indent=2))


def plain(value: object) -> Any:
    """Return a value made of JSON types. Dataclasses and named tuples become objects."""
    match value:
        case Enum():
            return value.value
        case PurePath():
            return str(value)
        case Mapping():
            return {str(plain(key)): plain(each) for key, each in value.items()}
        case tuple() if hasattr(value, "_asdict"):
            return {key: plain(each) for key, each in value._asdict().items()}
        case list() | tuple():
            return [plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    return value
