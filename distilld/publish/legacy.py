"""Parses rows of older exports for a takeover: of datasets, of withdrawal logs, and verdicts in quarantine rows."""

from __future__ import annotations

from typing import Any, Final

from distilld.core.json_text import QUOTED_DEPTH, parse_object
from distilld.core.line_facts import LINES_END, VERDICTS, category_code, dataset_of, key_of
from distilld.core.model import SFT_NEVER, Category, Dataset, Reason, RowRef
from distilld.core.samples import faults_of
from distilld.core.unreadable_verdict import unreadable_verdict
from distilld.lake.lines import digest_of
from distilld.lake.scan import is_partition
from distilld.store.decisions import PublishedWithdrawal
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
    """Return the verdict in a quarantine row if a run was rejected or never reviewed, else None.

    It is the one that the row's own line gives, but of a malformed line only the start is there.
    """
    row = parse_object(line.rstrip(b"\n"), max_depth=QUOTED_DEPTH).value or {}
    record, location = row.get("source_record"), row.get("location")
    reason = _REASONS.get(row["reason"]) if isinstance(row.get("reason"), str) else None
    if not isinstance(record, dict):
        return None
    is_malformed = record.keys() == {"_raw"} and reason is Reason.SCHEMA_VIOLATION
    said = _said_by_malformed(record["_raw"]) if is_malformed else _said(record)
    if said is None:
        return None
    at = None
    if isinstance(location, dict) and reason is not None:
        partition, number = location.get("partition"), location.get("line_offset")
        if isinstance(partition, str) and is_partition(partition) and type(number) is int and 0 <= number < LINES_END:
            at = RowRef(partition, number)
    return ToldVerdict(*said, at, reason, is_malformed)


def _said(record: dict[str, Any]) -> tuple[tuple[str, ...], Category] | None:
    """Return the run that a quarantined row forbids, and the category that does it."""
    run_id = record.get("evidence_run_id")
    code = category_code(record.get("category"))
    if not isinstance(run_id, str) or not run_id or VERDICTS[code] not in SFT_NEVER:
        return None
    return (run_id,), VERDICTS[code]


def _said_by_malformed(raw: object) -> tuple[tuple[str, ...], Category] | None:
    """Return the runs that the start of a malformed line forbids, and the category that does it."""
    found = unreadable_verdict(raw.encode()) if isinstance(raw, str) else None
    return (found.run_ids, VERDICTS[found.category]) if found is not None else None
