"""``distilld snapshot``: copy one batch for training, or list the rows of a copy that have left since."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import click

from distilld.cli.commands import COUNT, Common, ExitCode, common_options, json_option
from distilld.cli.output import complain, print_json, say, show
from distilld.cli.settings import load_settings, refuse_place_in_lake
from distilld.cli.streams import WorkCommand
from distilld.config.settings import Settings
from distilld.core.model import UsageError
from distilld.delivery.check import Checked, check
from distilld.delivery.forms import FORMS
from distilld.delivery.snapshot import Wanted, make
from distilld.tables import Size, Table, counted


def _share(context: click.Context, parameter: click.Parameter, value: float) -> float:  # noqa: ARG001  click's signature
    """Refuse NaN, which compares with no limit."""
    if isnan(value):
        raise click.BadParameter("nan is not in the range 0<=x<=1.")
    return value


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format", "forms", multiple=True, type=click.Choice(tuple(FORMS)), default=("trl",), show_default=True,
    help="The form of the rows. May be repeated.",
)  # fmt: skip
@click.option(
    "--validation", metavar="SHARE", type=click.FloatRange(0, 1), default=0.0, show_default=True, callback=_share,
    help="The share of tasks whose rows go to validation files.",
)  # fmt: skip
@click.option("--parquet", is_flag=True, help="Write Parquet instead of JSON lines; needs distilld[parquet].")
@click.option("--check", "checking", is_flag=True, help="Name the rows of DIR that left or were replaced since.")
@click.option("--limit", type=COUNT, metavar="N", default=20, show_default=True, help="List N such rows.")
@common_options
@json_option
def snapshot(
    common: Common, folder: Path, forms: tuple[str, ...], validation: float, parquet: bool, checking: bool, limit: int,
    as_json: bool,
) -> ExitCode:  # fmt: skip
    """Copy the newest batch to DIR, which must not exist, in the forms that trainers read.

    It may run beside the daemon, and changes nothing in the lake. A task's rows are all for training, or all for
    validation. With --check, DIR is a snapshot: exits with 1 if it is damaged, or if rows of it were withdrawn or
    replaced since; with --json all of them are listed.
    """
    settings = load_settings(common)
    folder = folder.absolute()
    if checking:
        return _check(settings, folder, limit, as_json=as_json)
    refuse_place_in_lake(settings.root, folder)
    if not folder.parent.is_dir():
        raise UsageError(f"{folder.parent} is no folder, so no snapshot can stand in it", hint="make that folder first")

    WorkCommand.ran = True  # from here on the product is DIR
    manifest = make(settings.root, settings.state, folder, Wanted(forms, validation, parquet))
    if as_json:
        print_json({"folder": folder, **manifest})
    else:
        _print(folder, manifest)
    return ExitCode.DONE


def _print(folder: Path, manifest: dict[str, Any]) -> None:
    files = [(file["path"], file["rows"], Size(file["bytes"])) for file in manifest["files"]]
    show(Table(f"Batch {manifest['batch_id']}", ("file", "rows", "size"), files))
    for dataset, counts in manifest["datasets"].items():
        if counts["duplicates_dropped"] or counts["validation_left_out"]:
            say(
                f"{dataset}: {counts['duplicates_dropped']:,} exact duplicates dropped,"
                f" {counts['validation_left_out']:,} validation rows left out since their answer stands in train"
            )
        if unknown := counts["unknown_task_left_out"]:
            say(f"{dataset}: {unknown:,} rows left out of the split since their task is unknown: they are orphans")
    say(f"written to {folder}")


def _check(settings: Settings, folder: Path, limit: int, *, as_json: bool) -> ExitCode:
    found = check(settings.root, settings.state, folder)
    if found.without_store:
        complain(f"note: {found.without_store}; the exports were read as they are")
    if as_json:
        print_json(found)
    else:
        _print_check(found, limit)
    return ExitCode.FAILED if found.damaged or found.changed else ExitCode.DONE


def _print_check(found: Checked, limit: int) -> None:
    if found.damaged:
        for each in found.damaged:
            say(f"damaged: {each}")
        say(f"the snapshot is damaged ({counted(len(found.damaged), 'file')}): take another one")
        return
    if not found.changed:
        say(f"all {counted(found.rows, 'row')} of the snapshot of batch {found.batch_id} stand as they were")
        return
    rows = [
        (each.id, "replaced" if each.replaced else "withdrawn", each.cause, each.withdrawn_batch)
        for each in found.changed[:limit]
    ]
    show(Table("Rows to drop", ("id", "what", "cause", "in batch"), rows))
    if len(found.changed) > limit:
        say(f"... and {len(found.changed) - limit:,} more; --limit lists more, --json all")
    gone = f"{len(found.changed):,} of {counted(found.rows, 'row')}"
    say(f"{gone} were withdrawn or replaced since batch {found.batch_id}")
