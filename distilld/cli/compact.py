"""``distilld compact``: remove the spaces from the files, and put them in canonical walk order."""

from __future__ import annotations

import os

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode
from distilld.cli.streams import WorkCommand


@click.command(cls=WorkCommand, short_help="Remove the spaces that withdrawn rows left in the files.")
@common_options
@json_option
def compact(common: Common, as_json: bool) -> ExitCode:
    """Remove the spaces that withdrawn rows left in the files, and put the files in canonical walk order.

    The datasets are brought up to date first. Rows keep their bytes. The files are those of a rebuild, but no input is
    read again. Exits with 1 if an input could not be read; the rest is done all the same.
    """
    from distilld import logs
    from distilld.cli.output import print_json
    from distilld.cli.run import print_changes, say_not_read
    from distilld.cli.settings import load_settings
    from distilld.cli.walk_order import put_in_order
    from distilld.core.model import Trigger
    from distilld.tables import Size

    settings = load_settings(common)
    logs.configure(level=settings.log_level, fmt=settings.log_format, environ=os.environ)
    done = put_in_order(settings, Trigger.COMPACT)
    spaces = done.space_bytes_removed
    if as_json:
        print_json({**done.as_json(), "space_bytes_removed": spaces})
    else:
        print_changes(done.report)
        done.say(f"{Size(spaces)} of white space were removed")
    return say_not_read(done.report)
