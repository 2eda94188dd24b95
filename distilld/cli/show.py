"""``distilld show``: show one row of a dataset, and the history of its run."""

from __future__ import annotations

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode


@click.command(short_help="Show one row of a dataset, and the history of its run.")
@click.argument("row_id", metavar="ID")
@common_options
@json_option
def show(common: Common, row_id: str, as_json: bool) -> ExitCode:
    """Show the row ID of a dataset, and everything about the run or the two runs that it comes from.

    If the row was withdrawn, only its runs are shown. Exits with 1 if no dataset ever had the id. Changes nothing.
    """
    from distilld.cli.explain import print_text
    from distilld.cli.output import print_json
    from distilld.cli.settings import load_settings
    from distilld.inspection.row_history import find_row
    from distilld.inspection.story_text import text_of_row

    found = find_row(load_settings(common), row_id)
    if as_json:
        print_json({"id": found.id, "row": found.row, "runs": found.runs})
    else:
        print_text(text_of_row(found))
    return ExitCode.DONE
