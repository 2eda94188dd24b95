"""``distilld changes``: print which rows left or entered a dataset since a batch, for a copy or an index."""

from __future__ import annotations

import click

from distilld.cli.commands import Common, common_options
from distilld.cli.settings import load_settings
from distilld.core.model import Dataset
from distilld.delivery.changes import changes as changes_since


@click.command()
@click.option("--dataset", type=click.Choice([each.value for each in Dataset]), required=True, help="Which dataset.")
@click.option("--since", metavar="BATCH", required=True, help="The 'through' of the last end line; 0 for all rows.")
@common_options
def changes(common: Common, dataset: str, since: str) -> None:
    """Print what left a dataset and what came to it since BATCH, one JSON object a line, as of the newest batch.

    A begin line, a delete line for each id that left, an upsert line for each row that came or was replaced, and an end
    line, whose 'through' is the next BATCH. Without an end line, remember nothing. It is safe to apply twice. --since 0
    is for an empty copy: it deletes nothing. It may run beside the daemon, and changes nothing.
    """
    settings = load_settings(common)
    with changes_since(settings.root, settings.state, Dataset(dataset), since) as found:
        for block in found:
            click.echo(block, nl=False)
