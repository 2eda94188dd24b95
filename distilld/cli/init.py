"""``distilld init``: write a config file to begin with."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from distilld.cli.commands import Common, common_options
from distilld.cli.output import say
from distilld.cli.streams import WorkCommand
from distilld.config.settings import DEFAULT_CONFIG_FILE
from distilld.config.template import config_text
from distilld.core.model import UsageError


@click.command(cls=WorkCommand)
@common_options
def init(common: Common) -> None:
    """Write a config file with every key, its default and what it does, each commented out.

    It is written to config/distilld.toml, or to the file that --config names, and never over a file that is there.
    --root and --state are set in it.
    """
    path = common.config or DEFAULT_CONFIG_FILE
    named = {"root": common.root, "state": common.state}
    # Absolute paths, so that the file is valid in any working directory.
    given = {name: path and os.path.abspath(path) for name, path in named.items() if path is not None}
    text = config_text(given, source="the command line")
    _create(path, text)
    say(f"wrote {path}")
    if common.config is not None:
        say(f"use it with --config {shlex.quote(str(path))}")


def _create(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise UsageError(
            f"{path} is there already and stays as it is", hint="name another file with --config, or take it away first"
        ) from None
    try:
        with file:
            file.write(text)
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
