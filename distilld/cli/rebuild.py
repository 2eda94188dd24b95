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
    from distilld.cli.output import print_json, say
    from distilld.cli.progress import progress_bar
    from distilld.cli.run import print_changes, say_not_read, say_work
    from distilld.cli.settings import load_settings
    from distilld.core.model import Trigger
    from distilld.service.run_once import RunReport, bring_up_to_date, on_whole_store, writer

    settings = load_settings(common, executor=executor)
    with progress_bar() as progress:
        logs.configure(level=settings.log_level, fmt=settings.log_format, environ=os.environ)

        def rebuilt() -> RunReport:
            with writer(settings, progress=progress) as engine:
                return bring_up_to_date(engine, Trigger.REBUILD)

        report = on_whole_store(rebuilt)
    if as_json:
        print_json({**_plain(report), "receipt": report.receipt})
    else:
        print_changes(report)
        say("every input was read and every row judged again; the files are in walk order")
        say_work(report)
    return say_not_read(report)


def _plain(report: object) -> dict[str, object]:
    from distilld.cli.output import plain

    shown: dict[str, object] = plain(report)
    del shown["withdrawn"]
    return shown
