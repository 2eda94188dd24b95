"""``distilld status``: the state of the lake, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from distilld.inspection.status import Status


@click.command(short_help="Show the state of the lake, and what is wrong with it.")
@common_options
@json_option
def status(common: Common, as_json: bool) -> ExitCode:
    """Show whether a writer runs, the rows of the datasets, what is quarantined, and how far the input is read.

    Each problem is shown in words, with the command that resolves it. Changes nothing.
    """
    from distilld.cli.output import print_json
    from distilld.cli.settings import load_settings
    from distilld.inspection.status import look

    found = look(load_settings(common))
    if as_json:
        print_json(found)
    else:
        _print(found)
    return ExitCode.DONE


def _print(found: Status) -> None:
    from distilld.cli.output import say, show
    from distilld.core.model import DATASET_PATHS
    from distilld.tables import Table

    say(f"root         {found.root}")
    say(f"state        {found.state}")
    say(f"writer       {_writer(found)}")
    if found.last_batch is not None:
        last = found.last_batch
        counts = f"{last.rows_shipped:,} shipped, {last.rows_held:,} quarantined, {last.rows_withdrawn:,} withdrawn"
        say(f"last batch   {last.batch_id}, set off by {last.trigger}: {counts}")
    if found.lag is not None:
        say(f"behind       {_lag(found)}")
    say()
    if found.exports:
        datasets = {dataset.value for dataset in DATASET_PATHS}
        rows = [
            (each.name, each.rows, each.frozen, each.committed_bytes, each.path)
            for each in found.exports
            if each.name in datasets
        ]
        show(Table("Datasets", ("dataset", "rows", "frozen", "bytes", "file"), rows))
    if found.quarantine:
        held = [(str(each.dataset), str(each.reason), each.rows) for each in found.quarantine]
        show(Table("Held back", ("dataset", "reason", "rows"), held))
    if found.trees:
        trees = [
            (str(each.kind), each.present, each.absent, each.lines, each.malformed_lines, each.size_bytes)
            for each in found.trees
        ]
        show(Table("Input, as it was read", ("tree", "files", "absent", "lines", "malformed", "bytes"), trees))
    if found.strays:
        strays = [(each.kind, each.entries, each.example) for each in found.strays]
        show(Table("Not read: no partitions", ("kind", "entries", "for example"), strays))
    if found.pending_tails:
        tails = [(each.path, each.bytes) for each in found.pending_tails]
        show(Table("Last lines that are not finished", ("file", "bytes"), tails))
    sizes = [(name, getattr(found.sizes, name)) for name in ("state", "receipts", "withdrawals", "set_aside")]
    show(Table("distilld's own files", ("what", "bytes"), [(name.replace("_", " "), size) for name, size in sizes]))
    for note in found.notes:
        say(f"note: {note}")
    for problem in found.problems:
        say(f"problem: {problem.text}; to put it right: {problem.remedy}")
    if not found.problems:
        say("no problem is known")


def _writer(found: Status) -> str:
    if not found.writer.running:
        return "none is running"
    said = "running" if found.writer.pid is None else f"running, pid {found.writer.pid}"
    if not found.daemon_runs:
        return said
    vitals = found.vitals
    how = {None: "", "events": ", watching"}.get(vitals.watching, f", scanning only ({vitals.watching})")
    return f"{said}, the daemon since {vitals.started_at}, last scan {vitals.last_scan_at or 'under way'}{how}"


def _lag(found: Status) -> str:
    lag = found.lag
    if lag is None or not (lag.new_files or lag.changed_files or lag.gone_files):
        return "nothing: every file is read as it stands"
    text = (
        f"{lag.new_files:,} new, {lag.changed_files:,} changed and {lag.gone_files:,} missing files,"
        f" {lag.unread_bytes:,} bytes not read yet"
    )
    return f"{text}, for {lag.seconds:,.0f} s" if lag.new_files or lag.changed_files else text
