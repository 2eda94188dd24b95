"""Compare the answers of another executor with the jobs and the store before they are committed (SPEC 8).

A worker decides the outcome of a row's text. It does not decide which row a line belongs to, nor its run's verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final

from distilld.core.line_facts import CATEGORIES, EXPORTED, VERDICTS, id_of
from distilld.core.model import Dataset, OperatorError, Options
from distilld.core.samples import sample_signs
from distilld.engine.jobs import Result, TaskJob
from distilld.engine.judge_task import PlainTasks, TaskDone, TaskOrder
from distilld.engine.pair_jobs import formed_pairs
from distilld.engine.spans import Part, Span, SpanDone
from distilld.lake.lines import digest_of
from distilld.store.decisions import Decisions, PairRow
from distilld.store.work import Work

_OUTCOME: Final = PairRow._fields.index("outcome")
_NOT_RECORDED: Final = b"", b""


class WrongAnswer(OperatorError):
    """A worker's answer does not match its job or the store."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"a worker gave a wrong answer: {why}",
            hint="look for a worker with faulty memory or other code; nothing of the batch was committed",
        )


def check_rows(span: Span, done: SpanDone) -> None:
    """Compare the returned rows with those of the span: each occurs once, and no contested row is returned as plain."""
    new, base = span.new, span.base
    asked = [row.walk for row in span.rows] if new is None else list(range(base, base + new.scored.lines))
    contested = {row.walk for row in span.rows if row.verdicts} if new is None else {base + at for at in new.contested}
    plain = [*(row[-1] for row in done.fresh), *done.same]
    judged = [item.walk for item in done.items if not isinstance(item, Part)]
    if sorted(plain + judged) != asked or not contested.isdisjoint(plain):
        raise WrongAnswer(f"rows of {span.path} are missing, or come twice")


def check_pairs(job: TaskJob, result: Result, options: Options) -> None:
    """Compare the returned pairs with those that the tasks' rows form, and with the verdicts about these rows."""
    coming = iter(job.tasks)
    for done in result if isinstance(result, list) else ():
        assert isinstance(done, PlainTasks | TaskDone)  # noqa: S101  a TaskJob returns these
        orders = list(islice(coming, done.tasks if isinstance(done, PlainTasks) else 1))
        asked = [pair for order in orders for pair in _pairs_of(order, options)]
        if isinstance(done, PlainTasks):
            told = [(*pair[:_OUTCOME], pair[_OUTCOME] == EXPORTED) for pair in done.pairs]
        elif done.failure is None:
            told = [(*facts, pair.free.gate is None) for (*facts, _), pair in zip(asked, done.pairs, strict=False)]
        else:
            continue
        fits = [one[:-1] == other[:-1] and one[-1] <= other[-1] for one, other in zip(told, asked, strict=False)]
        if not (all(fits) and len(done.pairs) == len(asked)):
            raise WrongAnswer("pairs are missing, or must not be exported")
    if next(coming, None) is not None:
        raise WrongAnswer("tasks are missing")


def _pairs_of(order: TaskOrder, options: Options) -> Iterator[tuple[Any, ...]]:
    """Yield a task's pairs as they are recorded, up to their outcomes, and whether verdicts allow their export."""
    for slot, (chosen, other, key) in enumerate(formed_pairs(order.task_id, order.rows)):
        partitions = chosen.partition_id, other.partition_id
        agreed = all(VERDICTS.get(row.verdict or 0) is CATEGORIES[row.category] for row in (chosen, other))
        facts = order.task_id, slot, chosen.run_id, other.run_id, other.category, *partitions, key
        yield *facts, agreed or not options.revoke


def check_lines(decisions: Decisions, work: Work, options: Options) -> None:
    """Compare the lines that a batch exports with their digests, and with what the store knows about their rows."""
    for dataset, change in decisions.changes.items():
        signs = dict(
            _of_pairs(decisions) if dataset is Dataset.PREFERENCE else _of_rows(decisions, dataset, work, options)
        )
        others = 0
        for block in change.exported.lines.blocks():
            end, view = 0, memoryview(block)
            while (start := end) < len(block):
                end = block.find(b"\n", start) + 1 or len(block)
                begins, holds = signs.pop(digest_of(view[start:end]), _NOT_RECORDED)
                others += not begins
                if not (block.startswith(begins, start) and block.find(holds, start, end) >= 0):
                    raise WrongAnswer(f"a line of {dataset} is not that of its row")
        # Lines that a damaged export lost are written again as they were recorded.
        if signs or others > change.exported.restored:
            raise WrongAnswer(f"lines of {dataset} do not have the digests that are recorded of them")


def _of_rows(
    decisions: Decisions, dataset: Dataset, work: Work, options: Options
) -> Iterator[tuple[bytes, tuple[bytes, bytes]]]:
    """Yield each exported line's digest and the bytes it must hold; a category that is not allowed matches no line."""
    at, allowed = (0, options.rag_allowed) if dataset is Dataset.RAG else (1, options.sft_allowed)
    fresh: Iterable[tuple[Any, ...]] = chain(decisions.fresh, decisions.fresh_found)
    exported = {row[-1]: row[2 * at + 1] for row in fresh if row[2 * at] == EXPORTED}
    for row in decisions.rows:
        code, digest, batch = row[3 * at : 3 * at + 3]
        if (code, batch) == (EXPORTED, decisions.sequence):
            exported[row.walk] = digest
    for walk, run_id, code, key in work.known(exported):
        category = CATEGORIES.get(code or 0)
        named = category if category in allowed else None
        yield exported[walk], sample_signs(dataset, id_of(dataset, key or 0), run_id, named)


def _of_pairs(decisions: Decisions) -> Iterator[tuple[bytes, tuple[bytes, bytes]]]:
    """Yield the same for pairs."""
    for pair in map(PairRow._make, decisions.pairs):
        if (pair.outcome, pair.batch) == (EXPORTED, decisions.sequence):
            row_id = id_of(Dataset.PREFERENCE, pair.sample_key)
            yield pair.line, sample_signs(Dataset.PREFERENCE, row_id, pair.chosen_run_id, pair.rejected_run_id)
