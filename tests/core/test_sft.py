"""What an SFT row holds, template by template, and what single gates of SFT weigh."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from distilld.core import firewall
from distilld.core.datasets import sft
from distilld.core.model import Options
from tests.support.builders import ABSENT, AT, STAMP, Flaw, exported, held


def sample(options: Options | None = None, **changes: Any) -> dict[str, Any]:
    """The row of the usual case, with changes of its evidence."""
    return exported(sft.judge(Flaw(evidence=changes, around={"options": options}).case(), AT))


def test_the_whole_row() -> None:
    """Every key in its order, every value from its source, and both timestamps from the batch."""
    digits = hashlib.sha256(b"run-1|5f0c").hexdigest()[:16]
    row = sample(text=" an answer\n")
    assert list(row.items()) == [
        ("schema_version", 1),
        ("id", f"sft-{digits}"),
        (
            "instruction",
            (
                "Review the file 'src/lib.rs' against the PRD + change-proposal context. "
                "Produce a forensic audit with findings, severity, confidence, patches."
            ),
        ),
        ("context", "matrix=arch_v1,symbols_v1 · pathway_fingerprints=3 · model=qwen3:32b"),
        ("response", " an answer\n"),
        ("source_run_id", "run-1"),
        ("quality_score", "accepted"),
        ("created_at", STAMP),
        (
            "provenance",
            {
                "source_file": "data/_kb/scrum_reviews.jsonl",
                "line_offset": 41,
                "sig_hash": "5f0c",
                "recorded_at": STAMP,
            },
        ),
    ]
    assert list(row["provenance"]) == ["source_file", "line_offset", "sig_hash", "recorded_at"]


TEMPLATES = [
    (
        "data/_kb/scrum_reviews.jsonl",
        "t",
        (
            "Review the file 'src/lib.rs' against the PRD + change-proposal context. "
            "Produce a forensic audit with findings, severity, confidence, patches."
        ),
    ),
    (
        "data/_kb/mode_experiments.jsonl",
        "phase:t",
        "Run task_class='phase:t' for file 'src/lib.rs'. Produce the mode-runner's expected output shape.",
    ),
    (
        "data/_kb/auto_apply.jsonl",
        "t",
        "Auto-apply: emit a 6-line surgical patch for 'src/lib.rs' based on the latest scrum review findings.",
    ),
    ("data/_kb/audits.jsonl", "phase:12", "Audit phase '12' and report findings with severity."),
    ("data/_kb/audits.jsonl", "phase:phase:12", "Audit phase 'phase:12' and report findings with severity."),
    ("data/_kb/audits.jsonl", "x-phase:12", "Audit phase 'x-phase:12' and report findings with severity."),
    ("data/_kb/audits.jsonl", "", "Audit phase '' and report findings with severity."),
    (
        "data/_kb/observer_reviews.jsonl",
        "t",
        "Observer-review the latest attempt on 'src/lib.rs'. Verdict: accept | reject | cycle.",
    ),
    (
        "data/_kb/contract_analyses.jsonl",
        "permit:77",
        "Analyze contractor 'Acme' for permit '77'. Recommend with risk markers.",
    ),
    ("data/_kb/outcomes.jsonl", "t", "Run scenario; report per-event outcome with citations."),
    ("outcomes", "t", "Run scenario; report per-event outcome with citations."),
    ("outcomes.jsonl", "t", "Run scenario; report per-event outcome with citations."),
    (
        "data/_kb/other.jsonl",
        "t",
        "Source 'other' run; produce the appropriate output for this task type.",
    ),
    (
        "data/_kb/outcomes.jsonl.jsonl",
        "t",
        "Source 'outcomes.jsonl' run; produce the appropriate output for this task type.",
    ),
    (
        "data/_kb/data/_kb/outcomes",
        "t",
        "Source 'data/_kb/outcomes' run; produce the appropriate output for this task type.",
    ),
    (
        "/data/_kb/outcomes.jsonl",
        "t",
        "Source '/data/_kb/outcomes' run; produce the appropriate output for this task type.",
    ),
    (
        "data/_kb/outcomes.jsonl\n",
        "t",
        "Source 'outcomes.jsonl\n' run; produce the appropriate output for this task type.",
    ),
    ("", "t", "Source '' run; produce the appropriate output for this task type."),
]


@pytest.mark.parametrize(("source_file", "task_id", "instruction"), TEMPLATES)
def test_instruction(source_file: str, task_id: str, instruction: str) -> None:
    """The stem of the evidence's source picks the template, and the task id and the first file fill it in."""
    assert sample(provenance__source_file=source_file, task_id=task_id)["instruction"] == instruction


@pytest.mark.parametrize("stem", ["scrum_reviews", "auto_apply", "observer_reviews", "outcomes", "unknown"])
def test_most_templates_need_no_task_id(stem: str) -> None:
    """Where the template names no task, evidence whose task_id is no string ships all the same."""
    sample(provenance__source_file=f"data/_kb/{stem}.jsonl", task_id=ABSENT)


@pytest.mark.parametrize("stem", ["mode_experiments", "audits", "contract_analyses"])
@pytest.mark.parametrize("task_id", [ABSENT, None, 5, ["x"]], ids=["absent", "null", "number", "list"])
def test_three_templates_need_a_task_id(stem: str, task_id: object) -> None:
    """Where the template names the task, evidence whose task_id is no string is a schema violation that names it."""
    case = Flaw(evidence={"provenance__source_file": f"data/_kb/{stem}.jsonl", "task_id": task_id}).case()
    row = held(sft.judge(case, AT))
    assert (row["reason"], row["errors"]) == ("schema_violation", ["evidence.task_id: must be a string"])


@pytest.mark.parametrize("provenance", [ABSENT, None, "x", [], {}, {"source_file": 5}, {"source_file": None}], ids=str)
def test_evidence_without_a_source_is_a_schema_violation(provenance: object) -> None:
    """Evidence whose provenance.source_file is no string is held, and the field is named."""
    row = held(sft.judge(Flaw(evidence={"provenance": provenance}).case(), AT))
    assert (row["reason"], row["errors"]) == (
        "schema_violation",
        ["evidence.provenance.source_file: must be a string"],
    )


@pytest.mark.parametrize("contractor", [ABSENT, None, "", 5, ["Acme"], True], ids=repr)
def test_without_a_contractor_the_permit_stands_alone(contractor: object) -> None:
    """A contractor that is no non-empty string is none, and the template without one is used."""
    row = sample(
        provenance__source_file="data/_kb/contract_analyses.jsonl", task_id="permit:9", metadata__contractor=contractor
    )
    assert row["instruction"] == "Analyze permit '9'. Recommend with risk markers."


@pytest.mark.parametrize("metadata", [ABSENT, None, [], "Acme"], ids=repr)
def test_metadata_of_another_type_names_no_contractor(metadata: object) -> None:
    """Metadata that is no object holds no contractor."""
    row = sample(provenance__source_file="data/_kb/contract_analyses.jsonl", task_id="7", metadata=metadata)
    assert row["instruction"] == "Analyze permit '7'. Recommend with risk markers."


@pytest.mark.parametrize("source_files", [ABSENT, [], [""], [5, "a.rs"], "a.rs", None], ids=repr)
@pytest.mark.parametrize("filler", ["", "<no file>"])
def test_a_missing_first_file_is_filled_in(source_files: object, filler: str) -> None:
    """Where source_files does not count, the templates name the configured text, which is empty by default."""
    row = sample(
        Options(missing_source_file=filler),
        provenance__source_file="data/_kb/observer_reviews.jsonl",
        source_files=source_files,
    )
    assert row["instruction"] == (
        f"Observer-review the latest attempt on '{filler}'. Verdict: accept | reject | cycle."
    )


def test_the_filler_is_not_used_where_there_is_a_file() -> None:
    """The configured text never replaces a first source file."""
    assert "'src/lib.rs'" in sample(Options(missing_source_file="<no file>"))["instruction"]


CONTEXTS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"retrieved_context": {"matrix_corpora": ["a"]}}, "matrix=a"),
    ({"retrieved_context": {"matrix_corpora": ["a", None, 5, True, [1], {}, 1.0, "b"]}}, "matrix=a,5,1,b"),
    ({"retrieved_context": {"matrix_corpora": ["", ""]}}, "matrix=,"),
    ({"retrieved_context": {"matrix_corpora": [""]}}, "matrix="),
    ({"retrieved_context": {"matrix_corpora": []}}, ""),
    ({"retrieved_context": {"matrix_corpora": [None, {}]}}, ""),
    ({"retrieved_context": {"matrix_corpora": "a"}}, ""),
    ({"retrieved_context": ["a"]}, ""),
    ({"retrieved_context": {"pathway_fingerprints_seen": 0}}, "pathway_fingerprints=0"),
    ({"retrieved_context": {"pathway_fingerprints_seen": -0.0}}, "pathway_fingerprints=0"),
    ({"retrieved_context": {"pathway_fingerprints_seen": 2.0}}, "pathway_fingerprints=2"),
    ({"retrieved_context": {"pathway_fingerprints_seen": 0.1}}, "pathway_fingerprints=0.1"),
    ({"retrieved_context": {"pathway_fingerprints_seen": 1e21}}, "pathway_fingerprints=1e+21"),
    ({"retrieved_context": {"pathway_fingerprints_seen": 2**53 + 1}}, "pathway_fingerprints=9007199254740992"),
    ({"retrieved_context": {"pathway_fingerprints_seen": "3"}}, ""),
    ({"retrieved_context": {"pathway_fingerprints_seen": True}}, ""),
    ({"retrieved_context": {"pathway_fingerprints_seen": None}}, ""),
    ({"model_name": "m"}, "model=m"),
    ({"model_name": ""}, ""),
    ({"model_name": ["m"]}, ""),
    (
        {"retrieved_context": {"pathway_fingerprints_seen": 1}, "model_name": "m"},
        "pathway_fingerprints=1 · model=m",
    ),
]


@pytest.mark.parametrize(("changes", "context"), CONTEXTS, ids=[json.dumps(changes) for changes, _ in CONTEXTS])
def test_context(changes: dict[str, Any], context: str) -> None:
    """The context joins what the evidence says of corpora, fingerprints and model, numbers as JavaScript does."""
    bare = {"retrieved_context": ABSENT, "model_name": ABSENT}
    assert sample(**{**bare, **changes})["context"] == context


@pytest.mark.parametrize("partial", [False, True])
def test_partial_ships_only_by_flag(partial: bool) -> None:
    """A partially accepted row ships with include_partial, under its own quality_score, and not without."""
    case = Flaw(scored={"category": "partially_accepted"}, around={"options": Options(include_partial=partial)}).case()
    outcome = sft.judge(case, AT)
    if partial:
        assert exported(outcome)["quality_score"] == "partially_accepted"
    else:
        assert held(outcome)["reason"] == "category_disallowed"


def test_sft_asks_for_the_signature_alone() -> None:
    """A row without a source file passes the provenance gate of SFT, and the schema names the field."""
    row = held(sft.judge(Flaw(scored={"provenance__source_file": ""}).case(), AT))
    assert (row["reason"], row["errors"]) == ("schema_violation", ["provenance.source_file: must be a string"])


@pytest.mark.parametrize("role", ["executor", "reviewer", "applier"])
def test_three_roles_answer(role: str) -> None:
    """Executor, reviewer and applier have the shape of an answer."""
    exported(sft.judge(Flaw(evidence={"model_role": role}).case(), AT))


SHAPELESS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model_role": "extractor"}, {"model_role": "extractor", "has_text": True}),
    ({"model_role": "Executor"}, {"model_role": "Executor", "has_text": True}),
    ({"model_role": ABSENT}, {"has_text": True}),
    ({"model_role": ""}, {"has_text": True}),
    ({"model_role": 5}, {"has_text": True}),
    ({"text": ABSENT}, {"model_role": "executor", "has_text": False}),
    ({"text": 5}, {"model_role": "executor", "has_text": False}),
    ({"text": ""}, {"model_role": "executor", "has_text": False}),
    ({"text": " \ufeff"}, {"model_role": "executor", "has_text": True}),
]


@pytest.mark.parametrize(("changes", "record"), SHAPELESS, ids=[str(changes) for changes, _ in SHAPELESS])
def test_what_has_no_shape_leaves_a_short_record(changes: dict[str, Any], record: dict[str, Any]) -> None:
    """A row of another role, or without text, is held in SFT with the seeds' short record, keys in their order."""
    row = held(sft.judge(Flaw(evidence=changes).case(), AT))
    assert (row["reason"], row["errors"]) == ("missing_source_run_id", [firewall.NO_SHAPE])
    assert list(row["source_record"].items()) == [("run_id", "run-1"), *record.items()]
