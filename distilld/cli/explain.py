"""``distilld explain``: everything that is known of one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from distilld.cli.commands import Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from distilld.inspection.explain import Fate, RunStory

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
    from distilld.cli.progress import progress_bar
    from distilld.cli.settings import load_settings
    from distilld.inspection.explain import explain as tell

    # Bytes that are not UTF-8 were read as U+FFFD from the inputs too.
    run_id = run_id.encode(errors="surrogateescape").decode(errors="replace")
    with progress_bar() as progress:
        story = tell(load_settings(common), run_id, progress)
    if as_json:
        print_json(story)
    else:
        print_story(story)
    return ExitCode.DONE


def print_story(story: RunStory) -> None:
    """Print everything about a run."""
    from distilld.cli.output import say, say_block
    from distilld.inspection.explain import place_of

    say(f"run {story.run_id}")
    for line in _verdicts(story):
        say(line)
    for each in story.evidence:
        say(f"evidence: {place_of(each.partition, each.line)}{'' if each.present else ', its file is absent'}")
    if not story.evidence:
        say("evidence: none")
    for one, other in story.look_alikes:
        say(f"note: {one} and {other} look alike, but differ in their Unicode normal form:")
        say(f"  {one!a}")
        say(f"  {other!a}")
    for dataset, cause in story.leaving:
        say(f"about to leave {dataset}: {cause}")
    say()
    if story.rows:
        say("Scored rows")
        for row in story.rows[:SHOWN]:
            place = place_of(row.partition, row.line) or "place unknown"
            head = [place, row.category or "no category", f"evidence {row.evidence}"]
            head += [row.state] if row.state != "present" else []
            head += ["waits to be judged again"] if row.waits else []
            say_block(f"  {', '.join(head)}", [(f"  {fate.dataset}", _fate(fate)) for fate in row.fates])
        _say_more(len(story.rows))
    else:
        say("no scored row names it")
    say()
    if story.pairs:
        say("Pairs")
        for pair in story.pairs[:SHOWN]:
            task = f"task {pair.task_id}" if pair.state == "present" else f"task {pair.task_id}, {pair.state}"
            sides = [("  chosen", pair.chosen_run_id), ("  rejected", pair.rejected_run_id)]
            say_block(f"  {task}", [*sides, ("  outcome", _fate(pair.fate))])
        _say_more(len(story.pairs))
        say()
    elif story.rows:
        say("it is in no pair")
        say()
    if story.withdrawals:
        say("Withdrawn")
        for gone in story.withdrawals[-SHOWN:]:
            cause = f"{gone.cause}, replaced" if gone.replaced else gone.cause
            by = [("  verdict", _verdict(gone.verdict))] if gone.verdict else []
            batches = f"from batch {gone.shipped_batch or 'unknown'} to batch {gone.withdrawn_batch}"
            say_block(f"  {gone.dataset} {gone.id}: {cause}", [*by, ("  shipped", batches)])
        _say_more(len(story.withdrawals))


def _say_more(found: int) -> None:
    from distilld.cli.output import say

    if found > SHOWN:
        say(f"  ... and {found - SHOWN:,} more; --json lists all")


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


def _fate(fate: Fate) -> str:
    why = "; ".join(filter(None, (fate.reason, *fate.errors, fate.note)))
    text = " ".join(filter(None, (fate.outcome, fate.id)))
    batch = f" (batch {fate.batch_id})" if fate.batch_id else ""
    return f"{text}: {why}{batch}" if why else f"{text}{batch}"


def _verdict(verdict: dict[str, object]) -> str:
    at = verdict["location"]
    place = f"{at['partition']}:{at['line_offset']}" if isinstance(at, dict) else ""
    return f"{verdict['category']} at {place}"
