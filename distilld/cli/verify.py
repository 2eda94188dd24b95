"""``distilld verify``: does everything on disk agree, and is it what a full pass would give?"""

from __future__ import annotations

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode


@click.command(short_help="Check receipts, exports, accounting and firewall.")
@click.option("--deep", is_flag=True, help="Recompute everything from the inputs and compare; holds them in memory.")
@common_options
@json_option
def verify(common: Common, deep: bool, as_json: bool) -> ExitCode:
    """Check the receipt chain, the exports against their receipts, the accounting and the firewall.

    Reads one committed batch, beside a running writer or without one, and repairs nothing. Exits with 1 if it finds a
    fault. Files that changed meanwhile are named as such.
    """
    from distilld.cli.output import print_json, say, show
    from distilld.cli.settings import load_settings
    from distilld.tables import Table
    from distilld.verify import verify as check

    settings = load_settings(common)
    report = check(settings.root, settings.state, settings.options(), deep=deep)
    if as_json:
        print_json({"batch_id": report.batch_id, "deep": deep, "faults": report.faults, "kept": report.kept,
                    "changed": report.changed, "checks": report.checks})  # fmt: skip
        return ExitCode.DONE if report.faults == 0 else ExitCode.FAILED
    say(f"batch {report.batch_id}" if report.batch_id else "no batch was committed yet")
    show(Table("", ("check", "faults"), tuple((check.name, check.faults) for check in report.checks)))
    for each in report.checks:
        for line in each.shown:
            say(f"  {each.name}: {line}")
        if each.faults > len(each.shown):
            say(f"  {each.name}: ... and {each.faults - len(each.shown)} more")
    if report.kept:
        say(f"{report.kept} rows stand by way of exception: 'distilld status' says which, 'distilld prune' decides")
    for changed in report.changed:
        say(f"changed meanwhile: {changed}")
    say("everything agrees" if report.faults == 0 else f"{report.faults} faults")
    return ExitCode.DONE if report.faults == 0 else ExitCode.FAILED
