"""``distilld schema``: the form of the rows as JSON Schema."""

from __future__ import annotations

import click

from distilld.cli.commands import Common, common_options
from distilld.cli.exit_codes import ExitCode
from distilld.core.model import Dataset

QUARANTINE = "quarantine"


@click.command(short_help="Print the JSON Schema of a dataset's rows.")
@click.argument("name", type=click.Choice([*(each.value for each in Dataset), QUARANTINE]))
@common_options
def schema(_common: Common, name: str) -> ExitCode:
    """Print the JSON Schema of the rows of NAME: a dataset, or the quarantine files.

    A row that does not meet it is quarantined. That the two sides of a pair differ is checked as well, but
    cannot be said in JSON Schema.
    """
    from distilld.cli.output import print_json
    from distilld.core.samples import SAMPLES, QuarantineRow

    model = QuarantineRow if name == QUARANTINE else SAMPLES[Dataset(name)]
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()})
    return ExitCode.DONE
