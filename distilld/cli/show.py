"""``distilld show``: one row of a dataset, and the history of its run."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode
from distilld.core.model import OperatorError, UsageError

if TYPE_CHECKING:
    from distilld.publish.committed import CommittedBatch

_DIGITS: Final = re.compile("[0-9a-f]{16}")


@click.command(short_help="Show one row of a dataset, and the history of its run.")
@click.argument("row_id", metavar="ID")
@common_options
@json_option
def show(common: Common, row_id: str, as_json: bool) -> ExitCode:
    """Show the row ID of a dataset, and everything about the run or the two runs that it comes from.

    Of a row that was withdrawn, the runs are shown. Exits with 1 if no dataset ever had the id. Changes nothing.
    """
    from distilld.cli.explain import print_story
    from distilld.cli.output import print_json, say
    from distilld.cli.settings import load_settings
    from distilld.core.decisions import ID_PREFIX
    from distilld.inspection.explain import UnknownRunError, explain
    from distilld.publish.committed import at_one_batch
    from distilld.store.queries import Views

    dataset = next((each for each, prefix in ID_PREFIX.items() if row_id.startswith(prefix)), None)
    if dataset is None or not _DIGITS.fullmatch(row_id.removeprefix(ID_PREFIX[dataset])):
        raise UsageError(f"ID = {row_id!r}; allowed: an id of a dataset's row, such as rag-0123456789abcdef")
    settings = load_settings(common)
    start = f'{{"schema_version":1,"id":"{row_id}"'.encode()

    def look(batch: CommittedBatch) -> tuple[bytes | None, list[str]]:
        # To the end: what was read counts only if all of it is as it was committed.
        found = [line for line in batch.exports[dataset.value].lines() if line.startswith(start)]
        return (found[0] if found else None), Views(batch.store).runs_of(row_id)

    line, runs = at_one_batch(settings.root, settings.state, look, names=(dataset.value,))
    row = json.loads(line) if line is not None else None
    if row is not None:
        named = [row.get(key) for key in ("source_run_id", "chosen_run_id", "rejected_run_id")]
        runs = [run_id for run_id in named if run_id]
    if not runs:
        raise OperatorError(f"no row of {dataset} ever had the id {row_id}")
    stories = []
    for run_id in runs:
        try:
            stories.append(explain(settings, run_id))
        except UnknownRunError:
            continue
    if as_json:
        print_json({"id": row_id, "row": row, "runs": stories})
        return ExitCode.DONE
    say(f"row {row_id} of {dataset}" if row is not None else f"row {row_id} is no longer in {dataset}")
    for key, value in (row or {}).items():
        say(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    for story in stories:
        say()
        print_story(story)
    return ExitCode.DONE
