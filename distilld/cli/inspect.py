"""``distilld inspect``: show the lake and its state store in a browser."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import click

from distilld.cli.commands import Common, common_options
from distilld.cli.output import say
from distilld.cli.settings import load_settings
from distilld.core.model import OperatorError
from distilld.core.remedies import remedy_of_missing
from distilld.store.connection import Store
from distilld.store.queries import reading

_HIGHEST_PORT = 65_535


@click.command()
@click.option("--port", type=click.IntRange(0, _HIGHEST_PORT), metavar="N", default=8001, show_default=True,
              help="The port on 127.0.0.1; 0: any that is free.")  # fmt: skip
@common_options
def inspect(common: Common, port: int) -> None:
    """Serve a dashboard, the history of each run and row, and the state store in Datasette; Ctrl-C ends it.

    It prints the address, which has a random token and works on this machine alone. Without --root, the lake is the
    one that the store belongs to. Needs pip install 'distilld[inspect]'. Changes nothing.
    """
    settings = load_settings(common)
    if common.root is None:
        with Store.reading(settings.state) as store:
            settings = replace(settings, root=Path(store.recall("root") or settings.root))
    else:
        with reading(settings.state, settings.root):
            pass  # a store of another root is refused
    try:
        from distilld.inspection.browser import serve
    except ModuleNotFoundError as error:
        missing = f"inspect needs {error.name}, which is not installed"
        raise OperatorError(missing, hint=remedy_of_missing("inspect")) from error
    try:
        serve(settings, port, say)
    except KeyboardInterrupt:
        pass  # the usual end
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise OperatorError(
            f"cannot listen on port {port} of 127.0.0.1: {os.strerror(error.errno)}",
            hint="give another --port; 0 takes any that is free",
        ) from error
