"""``distilld diff``: compare one of our datasets with another exporter's file."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import click

from distilld.cli.commands import COUNT, Common, ExitCode, common_options, json_option
from distilld.cli.output import plain, print_json, say, show
from distilld.cli.progress import progress_bar
from distilld.cli.settings import load_settings
from distilld.core.model import Dataset
from distilld.inspection.diff import Difference, compare
from distilld.tables import Table


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--dataset",
    type=click.Choice([each.value for each in Dataset]),
    help="Which dataset FILE is; by default, its ids decide.",
)
@click.option("--limit", type=COUNT, metavar="N", default=20, show_default=True, help="List N rows of each kind.")
@common_options
@json_option
def diff(common: Common, file: Path, dataset: str | None, limit: int, as_json: bool) -> ExitCode:
    """Compare a dataset with FILE, the same dataset as another exporter wrote it.

    Rows are matched by id and compared as JSON values; created_at and provenance.recorded_at do not count, nor does the
    order. Exits with 0 if both hold the same rows, with 1 if they differ. Changes nothing. With --json and --limit 0
    all rows are listed.
    """
    listed = None if as_json and not limit else limit
    with progress_bar() as progress:
        found = compare(load_settings(common), file, Dataset(dataset) if dataset else None, listed, progress)
    if as_json:
        print_json({"equal": found.equal, **plain(found)})
    else:
        _print(found)
    return ExitCode.DONE if found.equal else ExitCode.FAILED


def _print(found: Difference) -> None:
    counts = [
        ("rows here", found.rows_here),
        ("rows there", found.rows_there),
        ("the same", found.same),
        ("only here", found.only_here),
        ("only there", found.only_there),
        ("with other content", found.different),
        ("there, and no row", found.unreadable),
        ("there, with an id that stood there before", found.repeated),
    ]
    show(Table(f"{found.ours} (here) and {found.theirs} (there)", ("rows", "count"), counts))
    if found.by_key:
        show(Table("Keys that differ", ("key", "rows"), found.by_key.most_common()))
    if found.different_rows:
        rows = [(each.id, ", ".join(each.keys)) for each in found.different_rows]
        show(Table("Rows with other content", ("id", "keys that differ"), rows))
    if found.ids_only_here or found.ids_only_there:
        show(
            Table(
                "Rows that stand in one file alone",
                ("only here", "only there"),
                list(zip_longest(found.ids_only_here, found.ids_only_there)),
            )
        )
    left = (
        found.different + found.only_here + found.only_there
        - len(found.different_rows) - len(found.ids_only_here) - len(found.ids_only_there)
    )  # fmt: skip
    if left:
        say(f"... and {left:,} more; --limit lists more, --json --limit 0 all")
    say("both hold the same rows" if found.equal else "they differ")
