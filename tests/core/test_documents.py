"""The models of inputs, withdrawals and receipts say what the program does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from distilld.core.documents import DOCUMENTS, Evidence, Receipt, ScoredRun, WithdrawalRow
from distilld.core.model import Dataset
from tests.support.builders import ABSENT, evidence, export, lake_of, scored
from tests.support.command import distilld
from tests.support.history_lake import A, B, history_lake, run
from tests.support.lake_by_formula import write_bench_lake


def test_rows_of_producers_meet_the_models(tmp_path: Path) -> None:
    """A row as a producer writes it, and one that ships everywhere, meet the models."""
    ScoredRun.model_validate_json(json.dumps(scored()))
    Evidence.model_validate_json(json.dumps(evidence()))
    write_bench_lake(tmp_path, rows=210, partitions=3)
    for tree, model in (("scored-runs", ScoredRun), ("evidence", Evidence)):
        lines = [
            line for path in (tmp_path / "data" / tree).rglob("*.jsonl") for line in path.read_bytes().splitlines()
        ]
        assert len([model.model_validate_json(line) for line in lines]) == 210


@pytest.mark.parametrize("field", ["category", "provenance", "provenance.sig_hash", "provenance.source_file"])
def test_scored_row_without_what_the_model_requires_does_not_ship(field: str) -> None:
    """What the model of a scored row requires is what a row needs to ship to RAG."""
    row = scored(**{field.replace(".", "__"): ABSENT})
    refuses(ScoredRun, row)
    assert export(lake_of([row], [evidence()])).outcomes[Dataset.RAG][0].gate is not None


@pytest.mark.parametrize("field", ["task_id", "text", "provenance.source_file"])
def test_evidence_without_what_the_model_requires_does_not_ship_everywhere(field: str) -> None:
    """What the model of evidence requires is what a run needs to ship to RAG and to SFT."""
    row = evidence(**{field.replace(".", "__"): ABSENT})
    refuses(Evidence, row)
    outcomes = export(lake_of([scored()], [row])).outcomes
    assert not all(outcomes[dataset][0].gate is None for dataset in (Dataset.RAG, Dataset.SFT))


def refuses(model: type[BaseModel], row: dict[str, Any]) -> None:
    """The row does not meet the model."""
    with pytest.raises(ValidationError):
        model.model_validate_json(json.dumps(row))


def test_receipts_and_withdrawals_meet_the_models(tmp_path: Path) -> None:
    """Every receipt, and every line of the withdrawals, has exactly the keys and types that its model names."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a1", task_id="t"), run("a2", "rejected", "t"), {"evidence_run_id": "torn"})
        lake.scored(B, b'{"torn')
        lake.go()
        lake.both(A, run("a1", "rejected"))
        lake.go()
        receipts = list((lake.root / "reports").rglob("receipt.json"))
        assert len(receipts) == 2
        for path in receipts:
            Receipt.model_validate_json(path.read_bytes())
            assert list(json.loads(path.read_bytes())) == list(Receipt.model_fields)
        for dataset in Dataset:
            rows = lake.withdrawn(dataset)
            assert rows
            for row in rows:
                assert list(row) == list(WithdrawalRow.model_fields)
                WithdrawalRow.model_validate_json(json.dumps(row))


@pytest.mark.parametrize("name", ["rag", "quarantine", *DOCUMENTS])
def test_schema_prints_json_schema(tmp_path: Path, name: str) -> None:
    """Each name that 'distilld schema' knows has a JSON Schema."""
    told = distilld("schema", name, cwd=tmp_path).json
    assert told["type"] == "object"
    assert told["$schema"].startswith("https://json-schema.org/")


@pytest.mark.parametrize(
    ("words", "says"),
    [(("receipt", "--format", "hf"), "JSON Schema alone"), (("quarantine", "--format", "polars"), "no type for")],
)
def test_schema_refuses_a_form_that_does_not_exist(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    """What a loader has no types for is wrong usage, and the message says why."""
    ran = distilld("schema", *words, cwd=tmp_path)
    assert ran.code == 2
    assert says in ran.err
