"""The RAG dataset: a playbook passage for retrieval (SPEC 3.1)."""

from __future__ import annotations

from typing import Any

from distilld.core.datasets import rows
from distilld.core.firewall import RAG_GATES, RowCase
from distilld.core.json_text import WHITESPACE, cut
from distilld.core.model import Dataset, RowRef
from distilld.core.outcome import Outcome
from distilld.core.samples import SCHEMA_VERSION, UNSTAMPED

TITLE_UNITS = 120
EMBEDDING_UNITS = 2000


def judge(case: RowCase, at: RowRef) -> Outcome:
    """Judge one scored row for RAG: the gates in order, then the schema of its sample."""
    return rows.judge_row(Dataset.RAG, RAG_GATES, _sample, case, at)


def _sample(case: RowCase, digits: str) -> dict[str, Any] | str:
    scored, evidence = case.scored, case.evidence
    if evidence is None or evidence.task_id is None:
        return "task_id"
    text = evidence.text or ""
    category = scored.category and scored.category.text
    tags = [f"task:{evidence.task_id.partition(':')[0]}", f"category:{category}"]
    if evidence.model_role:
        tags.append(f"role:{evidence.model_role}")
    if evidence.model_name:
        tags.append(f"model:{evidence.model_name}")
    if evidence.source_files:
        tags.append(f"file:{evidence.first_source_file}")
    return {
        "schema_version": SCHEMA_VERSION,
        "id": f"rag-{digits}",
        "title": cut(_first_line(text) or evidence.task_id, TITLE_UNITS),
        "content": text,
        "tags": tags,
        "source_run_id": scored.run_id,
        "success_score": category,
        "source_category": category,
        "embedding_text": cut(text, EMBEDDING_UNITS),
        "created_at": UNSTAMPED,
        "provenance": rows.provenance_of(case),
    }


def _first_line(text: str) -> str:
    """Return the first line that is not blank, or an empty string; no blank line is read twice."""
    blank = len(text) - len(text.lstrip(WHITESPACE))
    if blank == len(text):
        return ""
    start = text.rfind("\n", 0, blank) + 1
    end = text.find("\n", start)
    return text[start:] if end < 0 else text[start:end]
