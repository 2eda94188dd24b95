"""The history of a run, and of a row of a dataset, as text for the terminal and for the browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

from distilld.inspection.explain import Fate, RunStory, place_of
from distilld.inspection.row_history import RowHistory
from distilld.store.run_queries import LIVE

SHOWN: Final = 50
"""The maximum number of rows in each list."""


class Block(NamedTuple):
    """A line with labelled texts below it."""

    head: str
    parts: list[tuple[str, str]]


Text = Iterator[str | Block]


def text_of_row(history: RowHistory) -> Text:
    """Yield what is known about a row of a dataset, and about the runs that it comes from."""
    row = history.row
    yield f"row {history.id} of {history.dataset}" if row else f"row {history.id} is no longer in {history.dataset}"
    for key, value in (row or {}).items():
        yield f"  {key}: {value if isinstance(value, str) else json.dumps(value)}"
    for story in history.runs:
        yield ""
        yield from text_of_run(story)


def text_of_run(story: RunStory) -> Text:
    """Yield everything that is known about a run."""
    yield f"run {story.run_id}"
    yield from _verdicts(story)
    for each in story.evidence:
        yield f"evidence: {place_of(each.partition, each.line)}{'' if each.present else ', its file is absent'}"
    if not story.evidence:
        yield "evidence: none"
    for one, other in story.look_alikes:
        yield f"note: {one} and {other} look alike, but differ in their Unicode normal form:"
        yield f"  {one!a}"
        yield f"  {other!a}"
    for dataset, cause in story.leaving:
        yield f"about to leave {dataset}: {cause}"
    yield ""
    yield from _rows(story)
    yield ""
    yield from _pairs(story)
    if story.withdrawals:
        yield "Withdrawn"
        for gone in story.withdrawals[-SHOWN:]:
            cause = f"{gone.cause}, replaced" if gone.replaced else gone.cause
            by = [("  verdict", _verdict(gone.verdict))] if gone.verdict else []
            batches = f"from batch {gone.shipped_batch or 'unknown'} to batch {gone.withdrawn_batch}"
            yield Block(f"  {gone.dataset} {gone.id}: {cause}", [*by, ("  exported", batches)])
        yield from _more(len(story.withdrawals))


def _rows(story: RunStory) -> Text:
    if not story.rows:
        yield "no scored row names it"
        return
    yield "Scored rows"
    for row in story.rows[:SHOWN]:
        place = place_of(row.partition, row.line) or "place unknown"
        head = [place, row.category or "no category"]
        head += [row.unusual] if row.unusual else []
        # A rest of a file is no row yet, so nobody looks for its evidence.
        head += [f"evidence {row.evidence}"] if row.fates else []
        head += [row.state] if row.state != "present" else []
        head += ["waits to be judged again"] if row.waits else []
        yield Block(f"  {', '.join(head)}", [(f"  {fate.dataset}", _fate(fate)) for fate in row.fates])
    yield from _more(len(story.rows))


def _pairs(story: RunStory) -> Text:
    if story.pairs:
        yield "Pairs"
        for pair in story.pairs[:SHOWN]:
            task = f"task {pair.task_id}" if pair.state == LIVE else f"task {pair.task_id}, {pair.state}"
            sides = [("  chosen", pair.chosen_run_id), ("  rejected", pair.rejected_run_id)]
            yield Block(f"  {task}", [*sides, ("  outcome", _fate(pair.fate))])
        yield from _more(len(story.pairs))
        yield ""
    elif story.rows:
        yield "it is in no pair"
        yield ""


def _more(found: int) -> Iterator[str]:
    if found > SHOWN:
        yield f"  ... and {found - SHOWN:,} more; distilld explain --json lists all"


def _verdicts(story: RunStory) -> list[str]:
    lines = [
        f"current verdict: {each.category}, at {place_of(each.partition, each.line)}"
        + (", which is absent" if each.absent else "")
        for each in story.verdicts
    ]
    told = []
    for line in dict.fromkeys(lines):
        here = [each for each, text in zip(story.verdicts, lines, strict=True) if text == line]
        forbidden = [each.dataset for each in here if each.forbids]
        datasets = "" if len(here) == len(story.verdicts) else f" (for {here[0].dataset})"
        told.append(f"{line}{datasets}; forbids {' and '.join(forbidden)}" if forbidden else f"{line}{datasets}")
    return told or ["current verdict: none"]


def _fate(fate: Fate) -> str:
    why = "; ".join(filter(None, (fate.reason, *fate.errors, fate.note)))
    text = " ".join(filter(None, (fate.outcome, fate.id)))
    batch = f" (batch {fate.batch_id})" if fate.batch_id else ""
    return f"{text}: {why}{batch}" if why else f"{text}{batch}"


def _verdict(verdict: dict[str, object]) -> str:
    at = verdict["location"]
    place = place_of(at["partition"], at["line_offset"]) if isinstance(at, dict) else ""
    return f"{verdict['category']} at {place}"
