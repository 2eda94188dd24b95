"""``distilld quarantine``: show what is quarantined, and why."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import click
import orjson

from distilld.cli.commands import COUNT, Common, common_options, json_option
from distilld.cli.output import print_json, say, show
from distilld.cli.settings import load_settings
from distilld.core.model import EXPORT_PATHS, Dataset, Reason
from distilld.files.regular import committed_lines
from distilld.store.export_records import ExportRecords
from distilld.store.queries import QuarantineCount, Views, reading
from distilld.tables import Table


class QuarantineRow(NamedTuple):
    """A row of a quarantine file, without its record."""

    dataset: str
    reason: str
    partition: str
    line: int
    errors: tuple[str, ...]


@click.command()
@click.option("--dataset", type=click.Choice([each.value for each in Dataset]), help="Only this dataset's quarantine.")
@click.option(
    "--reason", type=click.Choice([each.value for each in Reason]), metavar="REASON", help="Only rows with this reason."
)
@click.option("--limit", type=COUNT, metavar="N", default=0, help="Also list N rows, with place and errors.")
@common_options
@json_option
def quarantine(common: Common, dataset: str | None, reason: str | None, limit: int, as_json: bool) -> None:
    """Show how many rows are quarantined, by dataset and reason.

    With --limit, the first rows of each quarantine file are listed too, with place and errors. The rows themselves
    are in exports/quarantine/.
    """
    settings = load_settings(common)
    only = Dataset(dataset) if dataset else None
    why = Reason(reason) if reason else None
    with reading(settings.state, settings.root) as store:
        counts = Views(store).quarantine(only, why)
        records = ExportRecords(store).exports()
    lengths = {each: records[f"quarantine_{each}"].committed.size for each in Dataset}
    rows = list(islice(_rows(settings.root, counts, lengths, why), limit))
    if as_json:
        print_json({"by_reason": counts, "rows": rows})
    elif not counts:
        say("nothing is quarantined" + (" for this" if only or why else ""))
    else:
        by_reason = [(str(count.dataset), str(count.reason), count.rows) for count in counts]
        show(Table("Quarantined", ("dataset", "reason", "rows"), by_reason))
        if rows:
            table = [(row.dataset, row.reason, f"{row.partition}:{row.line}", "; ".join(row.errors)) for row in rows]
            show(Table("Rows", ("dataset", "reason", "place", "errors"), table))


def _rows(
    root: Path, counts: list[QuarantineCount], lengths: dict[Dataset, int], reason: Reason | None
) -> Iterator[QuarantineRow]:
    """Yield the committed rows of the quarantine files, for the datasets that have any."""
    for dataset in Dataset:
        if any(count.dataset is dataset for count in counts):
            for row in _read(root / EXPORT_PATHS[f"quarantine_{dataset}"], lengths[dataset]):
                if reason in (None, row.reason):
                    yield row


def _read(path: Path, length: int) -> Iterator[QuarantineRow]:
    for line in committed_lines(path, length):
        try:
            found = orjson.loads(line)
            place = found["location"]
            yield QuarantineRow(
                str(found["exporter"]), str(found["reason"]), str(place["partition"]), int(place["line_offset"]),
                tuple(map(str, found["errors"])),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError):
            continue  # the file was edited; 'status' and 'verify' report it
