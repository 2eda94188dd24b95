"""Identifies a batch, describes what it writes, and builds its receipt (SPEC 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from distilld.core.line_facts import digits_of
from distilld.core.model import EXPORT_PATHS, Category, Dataset, Options, Trigger
from distilld.files.git import GitState
from distilld.lake.scan import tree_path
from distilld.publish.new_file import Written
from distilld.publish.overwrite import Overwriting
from distilld.publish.reading import ROW_ID, lines_of
from distilld.store.decisions import Decisions, ExportChanges, Withdrawal
from distilld.store.export_records import ExportRecord
from distilld.store.ledger import Totals
from distilld.store.receipts import InputNote, Receipts

MS: Final = 1_000_000
"""Nanoseconds in a millisecond."""


@dataclass(frozen=True, slots=True)
class BatchIdentity:
    """A batch's number, its id, which sorts by time, and the time that its rows carry."""

    sequence: int
    batch_id: str
    recorded_at: str
    started_ns: int

    def duration_ms(self, ended_ns: int) -> int:
        """Return how long the batch took that ended then, in milliseconds."""
        return (ended_ns - self.started_ns) // MS


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What a receipt says in addition to the decisions of its batch."""

    trigger: Trigger
    options: Options
    git: GitState
    rows_indexed: int
    rows_judged: int
    """With those that were judged since the last receipt, in batches that changed nothing."""
    bytes_read: int
    """Of the inputs, to index and to judge."""
    warnings: tuple[str, ...]
    run: Mapping[str, Any] | None
    """The ``run`` entry of the receipt before, if that batch belongs to the same run."""


def iso_time(now_ns: int) -> str:
    """Return a time as UTC with milliseconds, as JavaScript's toISOString() prints it."""
    moment = datetime.fromtimestamp(now_ns // MS / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now_ns // MS % 1000:03d}Z"


def batch_id_of(recorded_at: str) -> str:
    """Return a batch's id: its time without hyphens and colons, which a folder name should not have."""
    return recorded_at.replace("-", "").replace(":", "")


@dataclass(frozen=True, slots=True)
class ExportWrite:
    """What one export gains and loses; ``temp`` is the temporary file, if the export is rewritten."""

    name: str
    change: ExportChanges
    temp: str | None
    planned: Overwriting | None = None

    def replaces(self) -> bool:
        """Return whether a new row has the id of a row that leaves."""
        if not self.change.leaving_keys:
            return False
        leaving = {digits_of(key).encode() for key in self.change.leaving_keys}
        found = map(ROW_ID.match, lines_of(self.change.lines.blocks()))
        return any(row is not None and row[2] in leaving for row in found)


def receipt_of(
    identity: BatchIdentity,
    ended_ns: int,
    decisions: Decisions,
    context: BatchContext,
    totals: Totals,
    checks: dict[str, bool],
    writes: list[ExportWrite],
    written: dict[str, Written],
    exports: dict[str, ExportRecord],
    receipts: Receipts,
) -> dict[str, Any]:
    """Return the receipt of a batch, its keys in the order of SPEC 4."""
    inputs, tails = receipts.unreported_inputs(), receipts.pending_tails()
    return {
        "stage": "distill",
        "batch_id": identity.batch_id,
        "sequence": identity.sequence,
        "trigger": context.trigger.value,
        "started_at": iso_time(identity.started_ns),
        "ended_at": iso_time(ended_ns),
        "duration_ms": identity.duration_ms(ended_ns),
        "recorded_at": identity.recorded_at,
        "options": context.options.as_json(),
        "options_sha256": context.options.sha256,
        "git": {"sha": context.git.sha, "branch": context.git.branch, "dirty": context.git.dirty},
        "inputs": [_input(each) for each in inputs],
        "outputs": _outputs(decisions, writes, written, exports, receipts.replaced_files()),
        "record_counts": _record_counts(decisions, totals),
        "run": _run(identity, decisions, context.run),
        "work": {
            "rows_indexed": context.rows_indexed,
            "rows_judged": context.rows_judged,
            "bytes_read": context.bytes_read,
            "lag_ms": _lag_ms(identity, inputs),
        },
        "pending_tails": [{"path": tree_path(kind, path), "bytes": size} for path, kind, size in tails],
        "validation_pass": all(checks.values()),
        "checks": checks,
        "warnings": list(context.warnings),
        "errors": [],
        "previous_receipt_sha256": receipts.last_receipt_sha256(),
        # Only receipts tell it to the next store, should this one be lost.
        "copies_begin_after": receipts.copies_begin_after() or {},
    }


def _lag_ms(identity: BatchIdentity, inputs: list[InputNote]) -> int | None:
    """Return how long the oldest changed input waited, in milliseconds, or None if none was read."""
    changed = [each.changed_ns for each in inputs if each.changed_ns is not None]
    return max(0, identity.started_ns - min(changed)) // MS if changed else None


def _input(note: InputNote) -> dict[str, Any]:
    return {
        "path": tree_path(note.kind, note.path),
        "kind": note.kind.value,
        "change": note.change,
        "sha256": note.sha256,
        "bytes": note.size,
        "from_offset": note.from_offset,
        "to_offset": note.to_offset,
        "lines": note.lines,
        "malformed_lines": note.malformed_lines,
    }


def _run(identity: BatchIdentity, decisions: Decisions, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the run (one scan and all that follows) did up to this batch; its id is its first batch's."""
    left = Counter((each.dataset, each.cause) for each in decisions.withdrawals if not each.replaced)
    datasets = {}
    for dataset in Dataset:
        past: Mapping[str, Any] = before["datasets"][dataset.value] if before else {"appended": 0, "by_cause": {}}
        causes: Counter[str] = Counter(past["by_cause"])
        causes.update({cause.value: rows for (of, cause), rows in left.items() if of is dataset})
        datasets[dataset.value] = {
            "appended": past["appended"] + decisions.changes[dataset].exported.lines.rows,
            "withdrawn": causes.total(),
            "by_cause": dict(sorted(causes.items())),
        }
    named = list(before["withdrawn_runs"]) if before else []
    named += [run_id for each in decisions.withdrawals if not each.replaced for run_id in _runs_of(each)]
    return {
        "run_id": before["run_id"] if before else identity.batch_id,
        "batches": (before["batches"] if before else 0) + 1,
        "started_at": before["started_at"] if before else iso_time(identity.started_ns),
        "datasets": datasets,
        "withdrawn_runs": list(dict.fromkeys(named))[:_RUNS_NAMED],
    }


_RUNS_NAMED: Final = 10
_RUN_ID_SHOWN: Final = 200


def _runs_of(each: Withdrawal) -> Iterator[str]:
    """Return the run of a row that left, or the chosen run of a pair."""
    if run_id := each.source_run_id or each.chosen_run_id:
        yield run_id if len(run_id) <= _RUN_ID_SHOWN else f"{run_id[:_RUN_ID_SHOWN]}..."


def _record_counts(decisions: Decisions, totals: Totals) -> dict[str, Any]:
    gone = {dataset: [each for each in decisions.withdrawals if each.dataset is dataset] for dataset in Dataset}
    return {
        "in": decisions.rows_judged,
        "out": decisions.rows_exported,
        "quarantined": decisions.rows_quarantined,
        "withdrawn": len(decisions.withdrawals),
        "by_category": {category.value: decisions.by_category[category] for category in Category},
        "by_reason": _by_reason(totals),
        "per_exporter": {
            dataset.value: {
                "rows": totals.exported(dataset),
                "quarantine_rows": totals.quarantined(dataset),
                "retained_rows": totals.retained(dataset),
                "appended": decisions.changes[dataset].exported.lines.rows,
                "withdrawn": sum(not each.replaced for each in gone[dataset]),
                "replaced": sum(each.replaced for each in gone[dataset]),
                "quarantined": decisions.changes[dataset].quarantined.lines.rows,
                "by_reason": totals.by_reason(dataset),
            }
            for dataset in Dataset
        },
    }


def _by_reason(totals: Totals) -> dict[str, int]:
    found: Counter[str] = Counter()
    for dataset in Dataset:
        found.update(totals.by_reason(dataset))
    return found


def _outputs(
    decisions: Decisions,
    writes: list[ExportWrite],
    written: dict[str, Written],
    exports: dict[str, ExportRecord],
    replaced: list[str],
) -> list[dict[str, Any]]:
    changes = dict(decisions.files())
    rewritten = {*replaced, *(write.name for write in writes if write.change.leaving and write.temp)}
    return [
        {
            "path": path,
            "sha256": exports[name].committed.sha256,
            "segment_bytes": exports[name].committed.segment_bytes,
            "bytes": exports[name].committed.size,
            "rows": exports[name].committed.rows,
            "appended": changes[name].lines.rows,
            "withdrawn": written[name].dropped if name in written else 0,
            "adopted": changes[name].adopted,
            "rewritten": name in rewritten,
        }
        for name, path in EXPORT_PATHS.items()
        if name in written or name in replaced
    ]
