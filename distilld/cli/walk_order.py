"""``distilld rebuild`` and ``distilld compact``: a pass that ends by putting the files in walk order."""

from __future__ import annotations

from typing import NamedTuple

import click

from distilld.cli.commands import Common, ExitCode, common_options, executor_option, json_option
from distilld.cli.one_run import at_work, print_changes, report_as_json, say_not_read, say_work
from distilld.cli.output import print_json, say
from distilld.cli.settings import load_settings
from distilld.cli.streams import WorkCommand
from distilld.config.settings import Settings
from distilld.core.model import Trigger
from distilld.engine.engine import Engine
from distilld.service.run_once import RunReport, bring_up_to_date
from distilld.store.work import Waiting
from distilld.tables import Size, counted


@click.command(cls=WorkCommand)
@common_options
@json_option
@executor_option
def rebuild(common: Common, as_json: bool, executor: str | None) -> ExitCode:
    """Read every input again, judge every row again, and put the files in canonical walk order.

    Rows with unchanged content keep their created_at. Retained rows and the history of withdrawals stay. On a healthy
    lake it changes the order of rows and nothing else. Exits with 1 if an input could not be read; the rest is done.
    """
    done = _put_in_order(load_settings(common, executor=executor), Trigger.REBUILD)
    if as_json:
        print_json({**report_as_json(done.report), "in_walk_order": done.in_walk_order})
    else:
        print_changes(done.report)
        _say_order(done, "every input was read and every row judged again")
        say_work(done.report)
    return say_not_read(done.report)


@click.command(cls=WorkCommand)
@common_options
@json_option
def compact(common: Common, as_json: bool) -> ExitCode:
    """Remove the spaces that withdrawn rows left in the files, and put the files in canonical walk order.

    The datasets are brought up to date first. Rows keep their bytes. The files are those of a rebuild, but no input is
    read again. Exits with 1 if an input could not be read; the rest is done all the same.
    """
    done = _put_in_order(load_settings(common), Trigger.COMPACT)
    spaces = done.space_bytes_removed
    if as_json:
        order = {"in_walk_order": done.in_walk_order, "space_bytes_removed": spaces}
        print_json({**report_as_json(done.report), **order})
    else:
        print_changes(done.report)
        _say_order(done, f"{Size(spaces)} of white space were removed")
    return say_not_read(done.report)


class _Ordered(NamedTuple):
    """The report of the run, what still waits to be judged after it, and how much white space it removed."""

    report: RunReport
    waiting: Waiting
    space_bytes_removed: int

    @property
    def in_walk_order(self) -> bool:
        return not self.waiting.anything


def _put_in_order(settings: Settings, trigger: Trigger) -> _Ordered:
    """Do a pass that ends by putting the files in walk order, unless rows still wait to be judged."""

    def ordered(engine: Engine) -> _Ordered:
        def spaces() -> int:
            return sum(record.committed.spaces for record in engine.export_records.exports().values())

        before = spaces()
        report = bring_up_to_date(engine, trigger)
        return _Ordered(report, engine.work.waiting(), max(0, before - spaces()))

    return at_work(settings, ordered)


def _say_order(done: _Ordered, did: str) -> None:
    """Print ``did`` and that the files are in order; but what was not read, and what waits, if anything does."""
    not_read, waiting = done.report.not_read, done.waiting
    left = [f"{counted(len(not_read), 'input')} could not be read"] if not_read else []
    if waiting.anything:
        rows = waiting.rows + waiting.departures + waiting.retained
        waits = f"{counted(rows, 'row')} and {counted(waiting.tasks, 'task')} wait to be judged"
        say("; ".join([*left, f"{waits}, so the files were not put in walk order"]))
    else:
        say("; ".join([*(left or [did]), "the files are in walk order"]))
