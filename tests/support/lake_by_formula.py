"""A lake of any size whose every byte follows from the numbers of its rows and partitions.

No random state, no clock: run ``i`` has the same ids, category and text wherever it is written. In every 21 rows the
last two are an accepted and a rejected run of one task; all other tasks have one run. Of 105 rows 44 are accepted, 14
partially accepted, 5 rejected, and 42 need a human review.

A pair-rich lake has tasks of four runs: of every eight rows the last four share one, two accepted, one rejected, one
partially accepted, so that two pairs are tried; the other four have the categories of the lake above.
"""

from __future__ import annotations

import hashlib
import json
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Final

from distilld.core.model import Category

SOURCES: Final = (
    ("scrum_reviews", "executor"),
    ("mode_experiments", "executor"),
    ("auto_apply", "applier"),
    ("audits", "reviewer"),
    ("observer_reviews", "reviewer"),
    ("contract_analyses", "executor"),
    ("outcomes", "executor"),
    ("distilled_facts", "extractor"),
    ("audit_facts", "extractor"),
)
FIRST_DAY: Final = date(2020, 1, 1)
EPOCH: Final = datetime(2020, 1, 1)  # noqa: DTZ001 - a naive one prints without +00:00, and quicker

GROUP: Final = 21
"""Rows of which the last two share a task: 20 tasks in 21 rows."""
CYCLE: Final = 5 * GROUP
RICH_GROUP: Final = 8
"""Rows of a pair-rich lake of which the last four share a task."""
RICH_ALONE: Final = 4
RICH_TASK: Final = (Category.ACCEPTED, Category.ACCEPTED, Category.REJECTED, Category.PARTIALLY_ACCEPTED)
ROWS_A_WRITE: Final = 500
BODIES: Final = 97
"""How many texts there are, apart from the row number that each begins with; a prime, so that no cycle meets it."""
NUMBER_DIGITS: Final = 12
MIN_TEXT_BYTES: Final = 32

_PHRASES: Final = (
    "the parquet scan keeps its lock for too long",
    "a manifest without a version is read as version one",
    "naïve retry → the queue grows until the disk is full",
    "no finding in this part of the crate",
    "Bâtiment Exemple · permit closed without a violation",
    "rows are sorted by path, then by line",
    "the fallback ladder ends at the third model 🚀",
    "confidence 92 %, traced to a line",
)


def category_of(row: int) -> Category:
    """The category of a row."""
    place = row % CYCLE
    if place % GROUP == GROUP - 1:
        return Category.REJECTED
    if place % GROUP == GROUP - 2:
        return Category.ACCEPTED
    # 95 places are left in a cycle; 37 is prime to 95, so the categories come mixed.
    rank = (place // GROUP * (GROUP - 2) + place % GROUP) * 37 % 95
    if rank < 39:
        return Category.ACCEPTED
    return Category.PARTIALLY_ACCEPTED if rank < 53 else Category.NEEDS_HUMAN_REVIEW


def rich_category_of(row: int) -> Category:
    """The category of a row of a pair-rich lake."""
    place = row % RICH_GROUP - RICH_ALONE
    if place >= 0:
        return RICH_TASK[place]
    # One row in two stands alone; numbered through, they have the mix of the rows that stand alone elsewhere.
    rank = (row // RICH_GROUP * RICH_ALONE + row % RICH_GROUP) * 37 % 95
    if rank < 39:
        return Category.ACCEPTED
    return Category.PARTIALLY_ACCEPTED if rank < 53 else Category.NEEDS_HUMAN_REVIEW


def rich_task_of(row: int) -> str:
    """The task id of a row of a pair-rich lake."""
    place = row % RICH_GROUP - RICH_ALONE
    return f"bench_task:{row - place if place > 0 else row}"


def run_of(row: int) -> str:
    """The run id of a row."""
    return f"bench:{row}"


def task_of(row: int) -> str:
    """The task id of a row: a rejected row answers the task of the accepted row before it."""
    return f"bench_task:{row - 1 if row % GROUP == GROUP - 1 else row}"


def partition_of(index: int) -> str:
    """The path of a partition, in the order of numbers: nine sources a day."""
    day = FIRST_DAY + timedelta(days=index // len(SOURCES))
    return f"{day:%Y/%m/%d}/{SOURCES[index % len(SOURCES)][0]}.jsonl"


def write_bench_lake(
    root: Path, *, rows: int, partitions: int, text_bytes: int = 1500, first: int = 0, rich: bool = False
) -> int:
    """Write ``rows`` rows from number ``first`` on, in blocks of neighbours, to partitions 0 to ``partitions - 1``.

    What stood in these partitions is replaced. Every text takes ``text_bytes`` in UTF-8. Returns the bytes written,
    both trees together. With ``rich`` it is a pair-rich lake.
    """
    bodies = _bodies(text_bytes)
    written = 0
    for index in range(partitions):
        for path in _paths(root, index):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        numbers = range(first + index * rows // partitions, first + (index + 1) * rows // partitions)
        written += _append(root, index, numbers, bodies, rich=rich)
    return written


def append_bench_rows(root: Path, *, partition_index: int, first_row: int, rows: int, text_bytes: int = 1500) -> int:
    """Append ``rows`` rows from number ``first_row`` on to a partition, evidence first; the bytes written."""
    for path in _paths(root, partition_index):
        path.parent.mkdir(parents=True, exist_ok=True)
    return _append(root, partition_index, range(first_row, first_row + rows), _bodies(text_bytes))


def _paths(root: Path, index: int) -> tuple[Path, Path]:
    """The evidence file and the scored file of a partition."""
    partition = partition_of(index)
    return root / "data" / "evidence" / partition, root / "data" / "scored-runs" / partition


def _append(root: Path, index: int, numbers: range, bodies: tuple[bytes, ...], *, rich: bool = False) -> int:
    """Write a few hundred rows at a time, so that memory does not grow with the lake."""
    stem, role = SOURCES[index % len(SOURCES)]
    task_at, category_at = (rich_task_of, rich_category_of) if rich else (task_of, category_of)
    evidence_path, scored_path = _paths(root, index)
    written = 0
    with evidence_path.open("ab") as evidence, scored_path.open("ab") as scored:
        for start in range(0, len(numbers), ROWS_A_WRITE):
            pairs = [
                _lines(row, stem, role, bodies, task_at(row), category_at(row))
                for row in numbers[start : start + ROWS_A_WRITE]
            ]
            written += evidence.write(b"".join([line for line, _ in pairs]))
            written += scored.write(b"".join([line for _, line in pairs]))
    return written


def _lines(
    row: int, stem: str, role: str, bodies: tuple[bytes, ...], task: str, category: Category
) -> tuple[bytes, bytes]:
    """The evidence and the scored line of a row; joined by hand, since json.dumps would set the pace."""
    run, stamp = run_of(row), _stamp(row)
    provenance = (
        f'{{"source_file":"data/_kb/{stem}.jsonl","line_offset":{row},'
        f'"sig_hash":"{hashlib.sha256(b"%d" % row).hexdigest()}","recorded_at":"{stamp}"}}}}\n'
    )
    head = (
        f'{{"schema_version":1,"run_id":"{run}","task_id":"{task}","timestamp":"{stamp}",'
        f'"model_name":"bench-model-{row % 5}","model_role":"{role}","text":"{row:0{NUMBER_DIGITS}d}: '
    )
    tail = (
        f'","source_files":["crates/bench/src/file_{row % 500}.rs"],'
        f'"retrieved_context":{{"matrix_corpora":["bench_corpus_v1"],"pathway_fingerprints_seen":{row % 7}}},'
        f'"provenance":{provenance}'
    )
    scored = (
        f'{{"schema_version":1,"evidence_run_id":"{run}","evidence_task_id":"{task}",'
        f'"category":"{category.value}","reasons":["row {row} of the formula"],'
        f'"scored_at":"{stamp}","scorer_version":"v1.0.0","provenance":{provenance}'
    )
    return b"".join((head.encode(), bodies[row % BODIES], tail.encode())), scored.encode()


def _stamp(row: int) -> str:
    """A second a row, from the start of 2020."""
    return f"{(EPOCH + timedelta(seconds=row)).isoformat()}.000Z"


def _bodies(text_bytes: int) -> tuple[bytes, ...]:
    """What follows the row number in a text, as it stands in JSON."""
    if text_bytes < MIN_TEXT_BYTES:
        raise ValueError(f"text_bytes must be {MIN_TEXT_BYTES} or more, not {text_bytes}")
    size = text_bytes - NUMBER_DIGITS - len(": ")
    prose = "\n".join(_PHRASES) + "\n"
    bodies = []
    for number in range(BODIES):
        turned = prose[number:] + prose[:number]
        cut = (turned * (size // len(turned) + 1)).encode()[:size].decode(errors="ignore")
        padded = cut + "." * (size - len(cut.encode()))
        bodies.append(json.dumps(padded, ensure_ascii=False)[1:-1].encode())
    return tuple(bodies)
