"""Printing: tables and JSON on standard output, for people on a terminal and for whatever reads a pipe; and errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import click

from distilld.core.model import OperatorError
from distilld.logs import printable
from distilld.tables import Table, plain_text, text_of


class OutputError(OperatorError):
    """Standard output takes nothing more."""


def say(line: str = "") -> None:
    """Print one line; what stands in it is made safe for a terminal, and cannot begin another line."""
    _print(printable(line))


def complain(line: str) -> None:
    """Print one line on standard error, as safe. One that cannot be written is lost: the exit code still tells."""
    with suppress(OSError):
        click.echo(f"distilld: {printable(line)}", err=True)


def show(table: Table) -> None:
    """Print a table: with rules on a terminal, as aligned text elsewhere."""
    if sys.stdout.isatty():
        _show_on_terminal(table)
    else:
        _print(plain_text(table))
    _print()


def print_json(value: object) -> None:
    """Print a value as indented JSON in ASCII, so that nothing in it can steer a terminal."""
    _print(json.dumps(plain(value), indent=2))


def print_bytes(blocks: Iterable[bytes]) -> None:
    """Print what is JSON lines already."""
    for block in blocks:
        _print(block, nl=False)


def plain(value: object) -> Any:
    """A value made of what JSON has; dataclasses and named tuples become objects."""
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


def _print(text: str | bytes = "", *, nl: bool = True) -> None:
    try:
        click.echo(text, nl=nl)
    except BrokenPipeError:
        raise  # the reader has gone, and click ends the command
    except OSError as error:
        with suppress(OSError):
            sys.stdout.close()  # or Python would try once more at its end
        raise OutputError(
            f"cannot write to standard output: {error.strerror}", hint="what was committed stands; mend the cause"
        ) from error


def _show_on_terminal(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=Text(printable(table.title)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, name in enumerate(table.columns):
        shown.add_column(Text(name), justify="right" if table.is_number(number) else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(text_of(cell)) for cell in row))
    Console().print(shown)
