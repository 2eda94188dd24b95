"""``distilld rebuild``: read and judge everything again."""

from __future__ import annotations

import os

import click

from distilld.cli.commands import Common, common_options, executor_option, json_option
from distilld.cli.exit_codes import ExitCode
from distilld.cli.streams import WorkCommand


@click.command(cls=WorkCommand, short_help="Read everything again, and put the files in order.")
@common_options
@json_option
@executor_option
def rebuild(common: Common, as_json: bool, executor: str | None) -> ExitCode:
    """Read every input again, judge every row again, and put the files in canonical walk order.

    Rows with unchanged content keep their created_at. Retained rows and the history of withdrawals stay. On a healthy
    lake it changes the order of rows and nothing else. Exits with 1 if an input could not be read; the rest is done.
    """
    from distilld import logs
    from distilld.cli.output import print_json
    from distilld.cli.progress import progress_bar
    from distilld.cli.run import print_changes, say_not_read, say_work
    from distilld.cli.settings import load_settings
    from distilld.cli.walk_order import put_in_order
    from distilld.core.model import Trigger

    settings = load_settings(common, executor=executor)
    with progress_bar() as progress:
        logs.configure(level=settings.log_level, fmt=settings.log_format, environ=os.environ)
        done = put_in_order(settings, Trigger.REBUILD, progress)
    if as_json:
        print_json(done.as_json())
    else:
        print_changes(done.report)
        done.say("every input was read and every row judged again")
        say_work(done.report)
    return say_not_read(done.report)
