"""``distilld schema``: print the form of rows and files, as JSON Schema or as types for a loader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from distilld.cli.commands import Common, common_options
from distilld.cli.exit_codes import ExitCode
from distilld.core.model import Dataset, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

NAMES = (*(each.value for each in Dataset), "quarantine", "withdrawals", "scored-run", "evidence", "receipt")
FORMATS = ("json-schema", "hf", "arrow", "polars", "duckdb")
_INPUTS = ("scored-run", "evidence", "receipt")


@click.command(short_help="Print the form of rows, inputs or receipts.")
@click.argument("name", type=click.Choice(NAMES))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="JSON Schema, or types for a loader: a Python module; for duckdb, the value of 'columns'.",
)
@common_options
def schema(_common: Common, name: str, form: str) -> ExitCode:
    """Print the form of NAME: the rows of a dataset, of the quarantine or the withdrawals, an input row, or a receipt.

    A dataset row that does not meet its JSON Schema is quarantined. That the two sides of a preference pair differ
    is checked as well, but cannot be said in JSON Schema. scored-run and evidence say what a producer writes.
    """
    from distilld.cli.output import print_json, say
    from distilld.core.documents import DOCUMENTS
    from distilld.core.samples import SAMPLES, QuarantineRow

    models: dict[str, type[BaseModel]] = {each.value: model for each, model in SAMPLES.items()}
    models |= {"quarantine": QuarantineRow, **DOCUMENTS}
    if form == FORMATS[0]:
        print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **models[name].model_json_schema()})
        return ExitCode.DONE
    from distilld.core.columns import DIALECTS, columns_of

    if name in _INPUTS:
        raise UsageError(f"--format {form} is for the rows of exports; {name} has a JSON Schema alone")
    try:
        lines = DIALECTS[form].text(columns_of(models[name])).splitlines()
    except KeyError:
        raise UsageError(
            f"{form} has no type for what may be of any type, as source_record in {name}",
            hint="use --format hf or duckdb",
        ) from None
    for line in lines:
        say(line)
    return ExitCode.DONE
