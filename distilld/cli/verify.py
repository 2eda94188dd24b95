"""``distilld verify``: check that all files agree, and that they are what a full pass gives."""

from __future__ import annotations

import re

import click

from distilld.cli.commands import Common, ExitCode, common_options, json_option
from distilld.cli.output import plain, print_json, say, show
from distilld.cli.progress import progress_bar
from distilld.cli.settings import load_settings
from distilld.core.model import UsageError
from distilld.inspection.verify import Report
from distilld.inspection.verify import verify as check
from distilld.tables import Table, counted


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        allowed = f"--anchor = {text!r}; allowed: 64 hexadecimal digits"
        raise UsageError(allowed, hint="a log line has it: receipt_sha256")
    return text.lower()


@click.command()
@click.option("--deep", is_flag=True, help="Recompute all from the inputs and compare; needs 2 KB of memory a row.")
@click.option("--anchor", metavar="SHA256", help="Fail unless a receipt with this sha256 still stands.")
@common_options
@json_option
def verify(common: Common, deep: bool, anchor: str | None, as_json: bool) -> ExitCode:
    """Check the receipt chain, the exports against their receipts, the accounting and the firewall.

    Reads one committed batch, beside a running writer or without one, and repairs nothing. Exits with 1 if it finds a
    fault. Files that changed meanwhile are named as changed, not as faults.
    """
    settings = load_settings(common)
    noted = anchor and _sha256(anchor)
    with progress_bar(wanted=deep) as progress:
        report = check(settings.root, settings.state, settings.options(), deep=deep, anchor=noted, progress=progress)
    if as_json:
        print_json({"faults": report.faults, **plain(report)})
    else:
        _print(report)
    return ExitCode.FAILED if report.faults else ExitCode.DONE


def _print(report: Report) -> None:
    say(f"batch {report.batch_id}" if report.batch_id else "no batch was committed yet")
    show(Table("", ("check", "faults"), tuple((check.name, check.faults) for check in report.checks)))
    for each in report.checks:
        for line in each.shown:
            say(f"  {each.name}: {line}")
        if each.faults > len(each.shown):
            say(f"  {each.name}: ... and {each.faults - len(each.shown)} more")
    if report.kept:
        exported = ", ".join(f"{each.dataset} {each.rows} {each.kind}" for each in report.kept_exported)
        say(f"{counted(report.kept, 'row')} retained, exported or quarantined; exported: {exported or 'none'}")
        say("question 9 in docs/state.md lists them by partition, 'distilld prune' decides about the exported ones")
    for changed in report.changed:
        say(f"changed meanwhile: {changed}")
    say("everything agrees" if not report.faults else counted(report.faults, "fault"))
