"""``distilld stage``: run an outside stage and write a receipt for it."""

from __future__ import annotations

import click

from distilld.cli.commands import Common, ExitCode, common_options
from distilld.cli.output import complain
from distilld.cli.settings import load_settings, start_log
from distilld.cli.streams import WorkCommand
from distilld.service.stage import run_stage


@click.command(cls=WorkCommand)
@click.argument("name")
@click.option("--input", "inputs", metavar="GLOB", multiple=True, help="What it reads, from the root. May be repeated.")
@click.option(
    "--output", "outputs", metavar="GLOB", multiple=True, help="What it writes, from the root. May be repeated."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@common_options
def stage(
    common: Common, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], command: tuple[str, ...]
) -> int:
    """Run COMMAND, which is stage NAME of the pipeline, and write a receipt of what it read and wrote.

    Put '--' before the command. NAME consists of a to z, digits, '_' and '-'. A glob may contain '*', '?', '[...]' and
    '**'. The receipt has the form of a batch's, in a chain per stage; it contains the command line. Needs no store and
    no lock, and exits with the command's own exit code.
    """
    settings = load_settings(common)
    start_log(settings)
    ran = run_stage(
        settings.root,
        name,
        inputs=inputs,
        outputs=outputs,
        command=command,
        receipts_keep=settings.receipts_keep,
    )
    for problem in ran.problems:
        complain(problem)
    return ran.exit_code or ExitCode.DONE
