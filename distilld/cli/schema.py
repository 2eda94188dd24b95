"""``distilld schema``: print the form of rows and files, as JSON Schema or as types for a loader."""

from __future__ import annotations

from typing import Final

import click
from pydantic import BaseModel

from distilld.cli.commands import Common, common_options
from distilld.cli.output import print_json, say
from distilld.core.columns import DIALECTS, columns_of
from distilld.core.documents import DOCUMENTS
from distilld.core.model import UsageError
from distilld.core.samples import SAMPLES, QuarantineRow

_MODELS: Final[dict[str, type[BaseModel]]] = {
    **{dataset.value: model for dataset, model in SAMPLES.items()},
    "quarantine": QuarantineRow,
    **DOCUMENTS,
}
_JSON_SCHEMA: Final = "json-schema"
_NO_EXPORTS: Final = ("scored-run", "evidence", "receipt")


@click.command()
@click.argument("name", type=click.Choice(tuple(_MODELS)))
@click.option(
    "--format",
    "form",
    type=click.Choice((_JSON_SCHEMA, *DIALECTS)),
    default=_JSON_SCHEMA,
    show_default=True,
    help="JSON Schema, or types for a loader: a Python module; for duckdb, the value of 'columns'.",
)
@common_options
def schema(_common: Common, name: str, form: str) -> None:
    """Print the form of NAME: the rows of a dataset, of the quarantine or the withdrawals, an input row, or a receipt.

    A dataset row that does not meet its JSON Schema is quarantined. That the two sides of a preference pair differ
    is checked as well, but cannot be said in JSON Schema. scored-run and evidence say what a producer writes.
    """
    model = _MODELS[name]
    if form == _JSON_SCHEMA:
        print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()})
        return
    if name in _NO_EXPORTS:
        raise UsageError(f"--format {form} is for the rows of exports; {name} has a JSON Schema alone")
    try:
        lines = DIALECTS[form].text(columns_of(model)).splitlines()
    except KeyError:
        raise UsageError(
            f"{form} has no type for what may be of any type, as source_record in {name}",
            hint="use --format hf or duckdb",
        ) from None
    for line in lines:
        say(line)
