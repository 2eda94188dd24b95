"""``distilld health``: report to a monitor whether the lake is healthy."""

from __future__ import annotations

import click

from distilld.cli.commands import Common, ExitCode, common_options, json_option
from distilld.cli.output import print_json, say
from distilld.cli.settings import load_settings
from distilld.inspection.problem import UNKNOWN, not_known
from distilld.inspection.status import diagnose


@click.command()
@click.option("--no-daemon", is_flag=True, help="Do not check whether a daemon runs and when it last scanned.")
@common_options
@json_option
def health(common: Common, no_daemon: bool, as_json: bool) -> ExitCode:
    """Check whether the lake is healthy, for a monitor: exit code 0 if it is, else 1 and each reason on a line.

    Unhealthy: no writer runs; the last batch failed; a recovery is pending; the tripwire retains rows; an export was
    changed or set aside; a withdrawal is overdue; an input cannot be read; the last scan is older than three rescan
    periods. Each reason names the command that resolves it. Changes nothing.
    """
    settings = load_settings(common)
    try:
        problems = diagnose(settings, daemon=not no_daemon)
    except UNKNOWN as error:
        if as_json:
            print_json({"healthy": False, "problems": [not_known(error)]})
        raise
    if as_json:
        print_json({"healthy": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            say(f"unhealthy: {problem.text}; what to do: {problem.remedy}")
    else:
        say("healthy")
    return ExitCode.FAILED if problems else ExitCode.DONE
