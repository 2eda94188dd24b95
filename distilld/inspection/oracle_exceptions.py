"""What is retained, in the oracle's form: the rows from the store, their lines from the exports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Final

from distilld.core.line_facts import EXPORTED, REASONS, id_of
from distilld.core.model import Category, Dataset, RowRef
from distilld.inspection import oracle
from distilld.inspection.oracle_verdicts import AbsentVerdict
from distilld.inspection.unstamped import unstamped_quarantine, unstamped_sample
from distilld.lake.lines import digest_of
from distilld.store.queries import Exceptions

_LESS_THAN_ACCEPTED: Final = (Category.REJECTED, Category.PARTIALLY_ACCEPTED)


def retained_of(
    exceptions: Exceptions,
    lines: Callable[[str], Iterable[bytes]],
    *,
    keep: Callable[[oracle.Placed], oracle.Placed] = lambda placed: placed,
) -> oracle.Retained:
    """Return what may be retained. Its lines are found in the exports by their digests.

    Only the store knows these rows; the full pass decides which of them stay. ``lines`` returns the lines of an export
    by its name. ``keep`` is as for :func:`distilld.inspection.oracle.export`.
    """
    digests: dict[str, dict[bytes, bytes]] = {}

    def line_of(dataset: Dataset, digest: bytes, *, exported: bool) -> bytes | None:
        name = dataset.value if exported else f"quarantine_{dataset}"
        if name not in digests:
            unstamped = unstamped_sample if exported else unstamped_quarantine
            id_ = dataset.value if exported else None
            digests[name] = {digest_of(line): keep(oracle.Placed(id_, unstamped(line))).line for line in lines(name)}
        return digests[name].get(digest)

    def placed(dataset: Dataset, outcome: int, digest: bytes, key: int | None, at: RowRef | None) -> oracle.Placed:
        line = line_of(dataset, digest, exported=outcome == EXPORTED)
        if outcome == EXPORTED:
            return oracle.Placed(id_of(dataset, key or 0), line or b"lost")
        if line is None:
            place = {"partition": at.partition, "line_offset": at.line} if at else None
            line = json.dumps({"reason": REASONS[outcome], "location": place}).encode()
            return keep(oracle.Placed(None, line))
        return oracle.Placed(None, line)

    rows = tuple(
        oracle.RetainedRow(
            row.dataset,
            placed(row.dataset, row.outcome, row.line, row.sample_key, row.at),
            row.run_id,
            row.row,
            row.is_orphan,
            row.told,
        )
        for row in exceptions.rows()
    )
    kept = {
        (row.dataset, row.at): placed(row.dataset, row.outcome, row.line, row.sample_key, row.at)
        for row in exceptions.rows_without_evidence()
        if row.at is not None
    }
    pairs = tuple(
        oracle.RetainedPair(
            placed(Dataset.PREFERENCE, pair.outcome, pair.line, pair.sample_key, None),
            (
                (pair.chosen_run_id, (Category.ACCEPTED,)),
                # For a pair from an older exporter it is unknown which of the two the rejected side was.
                (pair.rejected_run_id, (pair.rejected,) if pair.rejected else _LESS_THAN_ACCEPTED),
            ),
            pair.is_orphan,
        )
        for pair in exceptions.pairs()
    )
    verdicts = tuple(AbsentVerdict(*verdict) for verdict in exceptions.verdicts())
    return oracle.Retained(verdicts, rows, pairs, kept)
