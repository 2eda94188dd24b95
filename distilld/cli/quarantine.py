"""``distilld quarantine``: show what is quarantined, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import click
import orjson

from distilld.cli.commands import COUNT, Common, common_options, json_option
from distilld.cli.output import print_json, say, show
from distilld.cli.settings import load_settings
from distilld.core.model import Dataset, Reason
from distilld.publish.committed import CommittedBatch, at_one_batch
from distilld.store.queries import QuarantineCount, Views
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
    why = Reason(reason) if reason else None
    datasets = [Dataset(dataset)] if dataset else list(Dataset)

    def look(batch: CommittedBatch) -> tuple[list[QuarantineCount], list[QuarantineRow]]:
        counts = Views(batch.store).quarantine(Dataset(dataset) if dataset else None, why)
        return counts, list(islice(_rows(batch, dict.fromkeys(each.dataset for each in counts), why), limit))

    names = [f"quarantine_{each}" for each in datasets]
    counts, rows = at_one_batch(settings.root, settings.state, look, names=names)
    if as_json:
        print_json({"by_reason": counts, "rows": rows})
    elif not counts:
        say("nothing is quarantined" + (" for this" if dataset or why else ""))
    else:
        by_reason = [(str(count.dataset), str(count.reason), count.rows) for count in counts]
        show(Table("Quarantined", ("dataset", "reason", "rows"), by_reason))
        if rows:
            table = [(row.dataset, row.reason, f"{row.partition}:{row.line}", "; ".join(row.errors)) for row in rows]
            show(Table("Rows", ("dataset", "reason", "place", "errors"), table))


def _rows(batch: CommittedBatch, datasets: Iterable[Dataset], reason: Reason | None) -> Iterator[QuarantineRow]:
    for dataset in datasets:
        for line in batch.exports[f"quarantine_{dataset}"].lines():
            row = orjson.loads(line)
            if reason in (None, row["reason"]):
                place = row["location"]
                yield QuarantineRow(
                    row["exporter"], row["reason"], place["partition"], place["line_offset"], tuple(row["errors"])
                )
