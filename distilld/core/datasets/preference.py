"""The preference dataset: two answers to one task, the better one chosen (SPEC 3.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice, product
from typing import Any, Final, TypeVar

from distilld.core.firewall import PREFERENCE_GATES, PairCase
from distilld.core.json_text import cut, stringify, trim, utf16_order
from distilld.core.model import Dataset, Reason, RowRef
from distilld.core.outcome import NOT_UNICODE, Outcome
from distilld.core.samples import SCHEMA_VERSION, UNSTAMPED, faults_of, quarantine_parts, sample_parts

PAIRS_PER_TASK: Final = 5
REASON_UNITS: Final = 80

Row = TypeVar("Row")


def pair_up(accepted: Sequence[Row], rejected: Sequence[Row], partial: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the pairs of one task, chosen first: accepted with rejected, or if there is none, with partially accepted.

    Each sequence is in walk order; its first five rows are enough, because at most five pairs are made.
    """
    return list(islice(product(accepted, rejected or partial), PAIRS_PER_TASK))


def id_digits(chosen_run_id: str, rejected_run_id: str, task_id: str) -> str:
    """Return the 16 hex digits of a pair's id."""
    return hashlib.sha256(f"{chosen_run_id}|{rejected_run_id}|{task_id}".encode()).hexdigest()[:16]


def judge(case: PairCase, at: RowRef) -> Outcome:
    """Judge one pair; ``at`` is the place of its chosen row."""
    for gate in PREFERENCE_GATES:
        errors = gate.check(case)
        if errors:
            return _quarantine(gate.name, gate.reason, errors, case, at)
    chosen, rejected = case.chosen, case.rejected
    digits = id_digits(chosen.scored.run_id or "", rejected.scored.run_id or "", chosen.scored.task_id or "")
    if any(side.scored.marked or side.evidence.marked for side in (chosen, rejected)):
        return _quarantine("schema", Reason.SCHEMA_VIOLATION, (NOT_UNICODE,), case, at)
    sample = _sample(case, digits)
    errors = faults_of(Dataset.PREFERENCE, sample)
    if errors:
        return _quarantine("schema", Reason.SCHEMA_VIOLATION, errors, case, at)
    return Outcome(None, None, sample_parts(sample), sample["id"])


def _sample(case: PairCase, digits: str) -> dict[str, Any]:
    chosen, rejected = case.chosen, case.rejected
    prompt = f"Task: {chosen.scored.task_id}"
    if chosen.evidence.source_files:
        prompt += f" · file={chosen.evidence.first_source_file}"
    return {
        "schema_version": SCHEMA_VERSION,
        "id": f"pref-{digits}",
        "prompt": prompt,
        "chosen": trim(chosen.evidence.text or ""),
        "rejected": trim(rejected.evidence.text or ""),
        "reason": _reason(case),
        "chosen_run_id": chosen.scored.run_id,
        "rejected_run_id": rejected.scored.run_id,
        "created_at": UNSTAMPED,
        "provenance": {
            "source_file": chosen.scored.source_file,
            "line_offset": chosen.scored.line_offset,
            "sig_hash": _pair_signature(chosen.scored.run_id or "", rejected.scored.run_id or ""),
            "recorded_at": UNSTAMPED,
        },
    }


def _reason(case: PairCase) -> str:
    sides = (("chosen", case.chosen.scored), ("rejected", case.rejected.scored))
    parts = [f"{name} scored '{scored.category}'" for name, scored in sides]
    parts += [
        f"{name}-rationale: {cut(scored.first_reason, REASON_UNITS)}" for name, scored in sides if scored.first_reason
    ]
    return " | ".join(parts)


def _pair_signature(one_run_id: str, other_run_id: str) -> str:
    pair = "|".join(sorted((one_run_id, other_run_id), key=utf16_order))
    return hashlib.sha256(pair.encode()).hexdigest()


def _quarantine(gate: str, reason: Reason, errors: tuple[str, ...], case: PairCase, at: RowRef) -> Outcome:
    chosen, rejected = case.chosen.scored, case.rejected.scored
    record = stringify({"task_id": chosen.task_id, "chosen_run_id": chosen.run_id, "rejected_run_id": rejected.run_id})
    _, provenance = chosen.json.texts()
    return Outcome(gate, reason, quarantine_parts(Dataset.PREFERENCE, reason, record, errors, provenance, at))
