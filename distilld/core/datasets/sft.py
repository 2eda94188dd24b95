"""The SFT dataset: an instruction, its context and the accepted response (SPEC 3.2)."""

from __future__ import annotations

from typing import Any

from distilld.core.datasets import rows
from distilld.core.firewall import SFT_GATES, RowCase
from distilld.core.model import Dataset, RowRef
from distilld.core.outcome import Outcome
from distilld.core.records import EvidenceRecord
from distilld.core.samples import SCHEMA_VERSION, UNSTAMPED


def judge(case: RowCase, at: RowRef) -> Outcome:
    """Judge one scored row for SFT: the gates in order, then the schema of its sample."""
    return rows.judge_row(Dataset.SFT, SFT_GATES, _sample, case, at)


def _sample(case: RowCase, digits: str) -> dict[str, Any] | str:
    scored, evidence = case.scored, case.evidence
    if evidence is None or evidence.source_file is None:
        return "provenance.source_file"
    instruction = _instruction(evidence.source_file, evidence, case.options.missing_source_file)
    if instruction is None:
        return "task_id"
    return {
        "schema_version": SCHEMA_VERSION,
        "id": f"sft-{digits}",
        "instruction": instruction,
        "context": _context(evidence),
        "response": evidence.text,
        "source_run_id": scored.run_id,
        "quality_score": scored.category and scored.category.text,
        "created_at": UNSTAMPED,
        "provenance": rows.provenance_of(case),
    }


def _instruction(source_file: str, evidence: EvidenceRecord, missing_source_file: str) -> str | None:
    """Fill in the template of the row's source; return None if the template needs a task id and there is none."""
    stem = source_file.removeprefix("data/_kb/").removesuffix(".jsonl")
    file = evidence.first_source_file or missing_source_file
    task = evidence.task_id
    match stem:
        case "scrum_reviews":
            return (
                f"Review the file '{file}' against the PRD + change-proposal context. "
                "Produce a forensic audit with findings, severity, confidence, patches."
            )
        case "auto_apply":
            return f"Auto-apply: emit a 6-line surgical patch for '{file}' based on the latest scrum review findings."
        case "observer_reviews":
            return f"Observer-review the latest attempt on '{file}'. Verdict: accept | reject | cycle."
        case "outcomes":
            return "Run scenario; report per-event outcome with citations."
        case "mode_experiments" | "audits" | "contract_analyses" if task is None:
            return None
        case "mode_experiments":
            return f"Run task_class='{task}' for file '{file}'. Produce the mode-runner's expected output shape."
        case "audits":
            return f"Audit phase '{(task or '').removeprefix('phase:')}' and report findings with severity."
        case "contract_analyses":
            permit = (task or "").removeprefix("permit:")
            if evidence.contractor:
                return f"Analyze contractor '{evidence.contractor}' for permit '{permit}'. Recommend with risk markers."
            return f"Analyze permit '{permit}'. Recommend with risk markers."
        case _:
            return f"Source '{stem}' run; produce the appropriate output for this task type."


def _context(evidence: EvidenceRecord) -> str:
    parts = []
    if evidence.matrix_corpora is not None:
        parts.append(f"matrix={evidence.matrix_corpora}")
    if evidence.pathway_fingerprints is not None:
        parts.append(f"pathway_fingerprints={evidence.pathway_fingerprints}")
    if evidence.model_name:
        parts.append(f"model={evidence.model_name}")
    return " · ".join(parts)
