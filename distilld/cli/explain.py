"""``distilld explain`` and ``distilld show``: the history of one run, or of one row of a dataset and its runs."""

from __future__ import annotations

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.output import print_json, say, say_block
from distilld.cli.settings import load_settings
from distilld.inspection.explain import explain as tell
from distilld.inspection.row_history import find_row
from distilld.inspection.story_text import Text, text_of_row, text_of_run


@click.command()
@click.argument("run_id")
@common_options
@json_option
def explain(common: Common, run_id: str, as_json: bool) -> None:
    """Show everything about the run RUN_ID.

    Every scored row that names it, its current verdict, its evidence, where it is exported or why not and in which
    batch, the pairs that it is in, and what was withdrawn. Exits with 1 if nothing names the run. Changes nothing.
    """
    # The inputs were read in the same way: bytes that are not UTF-8 became U+FFFD.
    run_id = run_id.encode(errors="surrogateescape").decode(errors="replace")
    story = tell(load_settings(common), run_id)
    if as_json:
        print_json(story)
    else:
        _print(text_of_run(story))


@click.command()
@click.argument("row_id", metavar="ID")
@common_options
@json_option
def show(common: Common, row_id: str, as_json: bool) -> None:
    """Show the row ID of a dataset, and everything about the run or the two runs that it comes from.

    If the row was withdrawn, only its runs are shown. Exits with 1 if no dataset ever had the id. Changes nothing.
    """
    found = find_row(load_settings(common), row_id)
    if as_json:
        print_json({"id": found.id, "row": found.row, "runs": found.runs})
    else:
        _print(text_of_row(found))


def _print(text: Text) -> None:
    for each in text:
        if isinstance(each, str):
            say(each)
        else:
            say_block(*each)
