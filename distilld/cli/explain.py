"""``distilld explain``: show everything that is known about one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from distilld.inspection.story_text import Text


@click.command(short_help="Show everything about one run.")
@click.argument("run_id")
@common_options
@json_option
def explain(common: Common, run_id: str, as_json: bool) -> ExitCode:
    """Show everything about the run RUN_ID.

    Every scored row that names it, its current verdict, its evidence, where it is exported or why not and in which
    batch, the pairs that it is in, and what was withdrawn. Exits with 1 if nothing names the run. Changes nothing.
    """
    from distilld.cli.output import print_json
    from distilld.cli.progress import progress_bar
    from distilld.cli.settings import load_settings
    from distilld.inspection.explain import explain as tell
    from distilld.inspection.story_text import text_of_run

    # The inputs were read in the same way: bytes that are not UTF-8 became U+FFFD.
    run_id = run_id.encode(errors="surrogateescape").decode(errors="replace")
    with progress_bar() as progress:
        story = tell(load_settings(common), run_id, progress)
    if as_json:
        print_json(story)
    else:
        print_text(text_of_run(story))
    return ExitCode.DONE


def print_text(text: Text) -> None:
    """Print the history of a run or a row."""
    from distilld.cli.output import say, say_block

    for each in text:
        if isinstance(each, str):
            say(each)
        else:
            say_block(*each)
