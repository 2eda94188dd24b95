"""The code that RAG and SFT share: one scored row passes a table of gates, then its sample the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from distilld.core.firewall import RowCase, RowGate
from distilld.core.json_text import stringify
from distilld.core.model import Dataset, Reason, RowRef
from distilld.core.outcome import NOT_UNICODE, UNSTAMPED, Exported, Outcome, Quarantined, no_provenance
from distilld.core.records import id_digits
from distilld.core.samples import faults_of

_make: Final = tuple.__new__
"""The same as a NamedTuple's constructor, but faster, for code that runs for each row."""
Build = Callable[[RowCase, str], dict[str, Any] | str]
"""Returns the sample for an id, or the name of an evidence field that is missing."""


def judge_row(dataset: Dataset, gates: tuple[RowGate, ...], build: Build, case: RowCase, at: RowRef) -> Outcome:
    """Judge one scored row for ``dataset``."""
    for gate in gates:
        errors = gate.check(case)
        if errors:
            record = _short_record(case) if dataset is Dataset.SFT and gate.name == "shape" else None
            return _quarantine(dataset, gate.name, gate.reason, errors, case, at, record, gate.with_provenance)
    scored, evidence = case.scored, case.evidence
    digits = id_digits(scored.run_id or "", scored.sig_hash or "")
    sample = build(case, digits)
    if isinstance(sample, str):
        errors = (f"evidence.{sample}: must be a string",)
    elif scored.marked or (evidence is not None and evidence.marked):
        errors = (NOT_UNICODE,)
    else:
        errors = faults_of(dataset, sample)
        if not errors:
            return _make(Exported, (digits, sample))
    return _quarantine(dataset, "schema", Reason.SCHEMA_VIOLATION, errors, case, at)


def _quarantine(
    dataset: Dataset,
    gate: str,
    reason: Reason,
    errors: tuple[str, ...],
    case: RowCase,
    at: RowRef,
    record: dict[str, Any] | None = None,
    with_provenance: bool = True,
) -> Quarantined:
    row = case.scored.json
    return _make(
        Quarantined,
        (
            gate,
            dataset,
            reason,
            errors,
            at,
            row.record if record is None else (lambda: stringify(record)),
            row.provenance if with_provenance else no_provenance,
        ),
    )


def _short_record(case: RowCase) -> dict[str, Any]:
    evidence = case.evidence
    record: dict[str, Any] = {"run_id": case.scored.run_id}
    if evidence and evidence.model_role:
        record["model_role"] = evidence.model_role
    record["has_text"] = bool(evidence and evidence.text)
    return record


def provenance_of(case: RowCase) -> dict[str, Any]:
    """Return the provenance of a sample: that of the scored row; its batch sets the time later."""
    scored = case.scored
    return {
        "source_file": scored.source_file,
        "line_offset": scored.line_offset,
        "sig_hash": scored.sig_hash,
        "recorded_at": UNSTAMPED,
    }
