"""``distilld explain``: everything that is known of one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from distilld.inspection.explain import Fate, RunStory
    from distilld.tables import Cell

SHOWN: Final = 50
"""How many rows each table has at most."""


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
    from distilld.cli.settings import load_settings
    from distilld.inspection.explain import explain as tell

    # Bytes that are not UTF-8 were read as U+FFFD from the inputs too.
    story = tell(load_settings(common), run_id.encode(errors="surrogateescape").decode(errors="replace"))
    if as_json:
        print_json(story)
    else:
        _print(story)
    return ExitCode.DONE


def _print(story: RunStory) -> None:
    from distilld.cli.output import say, show
    from distilld.inspection.explain import place_of
    from distilld.tables import Table

    say(f"run {story.run_id}")
    for line in _verdicts(story):
        say(line)
    for each in story.evidence:
        say(f"evidence: {place_of(each.partition, each.line)}{'' if each.present else ', its file is absent'}")
    if not story.evidence:
        say("evidence: none")
    for dataset, cause in story.leaving:
        say(f"about to leave {dataset}: {cause}")
    say()
    if story.rows:
        rows: list[tuple[Cell, ...]] = [
            (
                place_of(row.partition, row.line), f"{row.state}, to be judged anew" if row.waits else row.state,
                row.category, row.evidence, *_cells(fate),
            )
            for row in story.rows[:SHOWN]
            for fate in row.fates
        ]  # fmt: skip
        columns = ("row", "state", "category", "evidence", "dataset", "outcome", "why, or its id", "batch")
        show(Table("Scored rows and what became of them", columns, rows))
        _say_more(len(story.rows))
    else:
        say("no scored row names it")
        say()
    if story.pairs:
        pairs: list[tuple[Cell, ...]] = [
            (each.task_id, each.chosen_run_id, each.rejected_run_id, each.state, *_cells(each.fate)[1:])
            for each in story.pairs[:SHOWN]
        ]
        show(Table("Pairs", ("task", "chosen", "rejected", "state", "outcome", "why, or its id", "batch"), pairs))
        _say_more(len(story.pairs))
    elif story.rows:
        say("it is in no pair")
        say()
    if story.withdrawals:
        gone: list[tuple[Cell, ...]] = [
            (
                each.dataset, each.id, f"{each.cause}, replaced" if each.replaced else each.cause,
                _verdict(each.verdict), each.shipped_batch, each.withdrawn_batch,
            )
            for each in story.withdrawals[-SHOWN:]
        ]  # fmt: skip
        show(Table("Withdrawn", ("dataset", "id", "cause", "verdict", "shipped in", "withdrawn in"), gone))
        _say_more(len(story.withdrawals))


def _say_more(found: int) -> None:
    from distilld.cli.output import say

    if found > SHOWN:
        say(f"... and {found - SHOWN:,} more; --json lists all")
        say()


def _verdicts(story: RunStory) -> list[str]:
    from distilld.inspection.explain import place_of

    lines = [
        f"verdict in force: {each.category}, at {place_of(each.partition, each.line)}"
        + (", which is absent" if each.absent else "")
        for each in story.verdicts
    ]
    told = []
    for line in dict.fromkeys(lines):
        here = [each for each, text in zip(story.verdicts, lines, strict=True) if text == line]
        forbidden = [each.dataset for each in here if each.forbids]
        datasets = "" if len(here) == len(story.verdicts) else f" (for {here[0].dataset})"
        told.append(f"{line}{datasets}; forbids {' and '.join(forbidden)}" if forbidden else f"{line}{datasets}")
    return told or ["verdict in force: none"]


def _cells(fate: Fate) -> tuple[Cell, ...]:
    why = "; ".join(filter(None, (fate.id, fate.reason, *fate.errors, fate.note)))
    return str(fate.dataset), fate.outcome, why or None, fate.batch_id


def _verdict(verdict: dict[str, object] | None) -> str | None:
    if verdict is None:
        return None
    at = verdict["location"]
    place = f"{at['partition']}:{at['line_offset']}" if isinstance(at, dict) else ""
    return f"{verdict['category']} at {place}"
