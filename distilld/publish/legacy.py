"""Parses rows of older exports for a takeover: of datasets, of withdrawal logs, and verdicts in quarantine rows."""

from __future__ import annotations

from typing import Any, Final

from distilld.core.decisions import PublishedWithdrawal, dataset_of
from distilld.core.json_text import QUOTED_DEPTH, parse_object
from distilld.core.line_facts import LINES_END, key_of
from distilld.core.model import SFT_NEVER, Dataset, Reason, RowRef
from distilld.core.records import category_of
from distilld.core.samples import faults_of
from distilld.lake.lines import digest_of
from distilld.lake.scan import is_partition
from distilld.store.orphans import Orphan, ToldVerdict

_REASONS: Final = {reason.value: reason for reason in Reason}


def orphan_of(dataset: Dataset, line: bytes) -> Orphan | None:
    """Return a row of an older export, or None if it is torn, unreadable, or not in this dataset's schema."""
    if not line.endswith(b"\n"):
        return None
    row, marked, _ = parse_object(line[:-1])
    if row is None or marked or faults_of(dataset, _with_line_offset(row)):
        return None
    starts = line.startswith(f'{{"schema_version":1,"id":"{row["id"]}",'.encode())
    if dataset_of(row["id"]) is not dataset or not starts:
        return None
    if dataset is Dataset.PREFERENCE:
        run_id, other_run_id = row["chosen_run_id"], row["rejected_run_id"]
        task = row["prompt"].removeprefix("Task: ").split(" · file=", 1)[0]
    else:
        run_id, other_run_id, task = row["source_run_id"], None, None
    return Orphan(
        key_of(row["id"].rpartition("-")[2]),
        digest_of(line),
        run_id,
        other_run_id,
        task,
        row["created_at"],
        row["provenance"]["recorded_at"],
    )


def _with_line_offset(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the key that older exporters omitted if the scored row had none."""
    provenance = row.get("provenance")
    return {**row, "provenance": {"line_offset": None, **provenance}} if isinstance(provenance, dict) else row


def withdrawal_of(dataset: Dataset, line: bytes) -> PublishedWithdrawal | None:
    """Return a line of an older log of withdrawals, or None if it is torn or no such line."""
    row = parse_object(line[:-1]).value if line.endswith(b"\n") else None
    if row is None or set(row) != {*PublishedWithdrawal._fields} - {"dataset"}:
        return None
    texts = ("id", "cause", "withdrawn_batch", "withdrawn_at")
    may_miss = ("source_run_id", "chosen_run_id", "rejected_run_id", "shipped_batch")
    whole = type(row["replaced"]) is bool and all(isinstance(row[name], str) for name in texts)
    if not whole or not all(row[name] is None or isinstance(row[name], str) for name in may_miss):
        return None
    found = PublishedWithdrawal(dataset, **row)
    return found if found.line() == line else None


def forbidding(line: bytes) -> ToldVerdict | None:
    """Return the verdict in a quarantine row if its run was rejected or never reviewed, else None."""
    row = parse_object(line.rstrip(b"\n"), max_depth=QUOTED_DEPTH).value or {}
    record, location = row.get("source_record"), row.get("location")
    if not isinstance(record, dict) or not isinstance(record.get("evidence_run_id"), str):
        return None
    category = category_of(record.get("category"))
    if category not in SFT_NEVER or not record["evidence_run_id"]:
        return None
    reason = _REASONS.get(row["reason"]) if isinstance(row.get("reason"), str) else None
    at = None
    if isinstance(location, dict) and reason is not None:
        partition, number = location.get("partition"), location.get("line_offset")
        if isinstance(partition, str) and is_partition(partition) and type(number) is int and 0 <= number < LINES_END:
            at = RowRef(partition, number)
    return ToldVerdict(record["evidence_run_id"], category, at, reason)
