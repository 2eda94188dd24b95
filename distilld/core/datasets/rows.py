"""The code that RAG and SFT share: one scored row passes a table of gates, then its sample the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from distilld.core.firewall import RowCase, RowGate
from distilld.core.json_text import stringify
from distilld.core.model import Dataset, Reason, RowRef
from distilld.core.outcome import NOT_UNICODE, Outcome
from distilld.core.records import id_digits
from distilld.core.samples import UNSTAMPED, faults_of, quarantine_parts, sample_parts

_make: Final = tuple.__new__
"""The same as a NamedTuple's constructor, but faster, for code that runs for each row."""
Build = Callable[[RowCase, str], dict[str, Any] | str]
"""Returns the sample for an id, or the name of an evidence field that is missing."""


def judge_row(dataset: Dataset, gates: tuple[RowGate, ...], build: Build, case: RowCase, at: RowRef) -> Outcome:
    """Judge one scored row for ``dataset``."""
    scored, evidence = case.scored, case.evidence
    for gate in gates:
        errors = gate.check(case)
        if errors:
            return _quarantine(dataset, gate.name, gate.reason, errors, case, at, gate.with_provenance)
    sample = build(case, id_digits(scored.run_id or "", scored.sig_hash or ""))
    if isinstance(sample, str):
        errors = (f"evidence.{sample}: must be a string",)
    elif scored.marked or (evidence is not None and evidence.marked):
        errors = (NOT_UNICODE,)
    else:
        errors = faults_of(dataset, sample)
        if not errors:
            return _make(Outcome, (None, None, sample_parts(sample), sample["id"]))
    return _quarantine(dataset, "schema", Reason.SCHEMA_VIOLATION, errors, case, at)


def _quarantine(
    dataset: Dataset,
    gate: str,
    reason: Reason,
    errors: tuple[str, ...],
    case: RowCase,
    at: RowRef,
    with_provenance: bool = True,
) -> Outcome:
    record, provenance = case.scored.json.texts()
    if gate == "shape":
        record = stringify(_short_record(case))
    parts = quarantine_parts(dataset, reason, record, errors, provenance if with_provenance else None, at)
    return _make(Outcome, (gate, reason, parts, None))


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
