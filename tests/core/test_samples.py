"""What goes out: the strict rows, their schemas, and their exact bytes."""

from __future__ import annotations

import copy
import json
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from distilld.core.datasets import preference, rag, sft
from distilld.core.json_text import WHITESPACE
from distilld.core.model import SFT_NEVER, Category, Dataset, Reason, RowRef
from distilld.core.outcome import Outcome
from distilld.core.samples import (
    SAMPLES,
    Location,
    PreferenceSample,
    Provenance,
    QuarantineRow,
    RagCategory,
    RagSample,
    SftCategory,
    SftSample,
    faults_of,
    quarantine_parts,
)
from tests.support.builders import ABSENT, AT, STAMP, Flaw, bytes_of, changed, exported, held, pair_case, passing_case

ROWS: dict[Dataset, dict[str, Any]] = {
    Dataset.RAG: exported(rag.judge(passing_case(), AT)),
    Dataset.SFT: exported(sft.judge(passing_case(), AT)),
    Dataset.PREFERENCE: exported(preference.judge(pair_case(), AT)),
}
KEYS = {
    Dataset.RAG: [
        "schema_version",
        "id",
        "title",
        "content",
        "tags",
        "source_run_id",
        "success_score",
        "source_category",
        "embedding_text",
        "created_at",
        "provenance",
    ],
    Dataset.SFT: [
        "schema_version",
        "id",
        "instruction",
        "context",
        "response",
        "source_run_id",
        "quality_score",
        "created_at",
        "provenance",
    ],
    Dataset.PREFERENCE: [
        "schema_version",
        "id",
        "prompt",
        "chosen",
        "rejected",
        "reason",
        "chosen_run_id",
        "rejected_run_id",
        "created_at",
        "provenance",
    ],
}
NOT_BLANK = {
    Dataset.RAG: ["id", "title", "content", "source_run_id", "embedding_text"],
    Dataset.SFT: ["id", "instruction", "response", "source_run_id"],
    Dataset.PREFERENCE: ["id", "prompt", "chosen", "rejected", "reason", "chosen_run_id", "rejected_run_id"],
}
PROVENANCE = ["source_file", "line_offset", "sig_hash", "recorded_at"]
QUARANTINE = ["exporter", "reason", "source_record", "errors", "recorded_at", "source_provenance", "location"]
EACH = pytest.mark.parametrize("dataset", Dataset)
ANOTHER_TYPE = [None, True, 0, 1.5, [], ["x"], {}, {"x": 1}]


@EACH
def test_a_good_row_has_no_faults(dataset: Dataset) -> None:
    """The row that the builders ship passes its schema, with its keys in the order of the contract."""
    assert faults_of(dataset, ROWS[dataset]) == ()
    assert list(ROWS[dataset]) == KEYS[dataset]
    assert list(ROWS[dataset]["provenance"]) == PROVENANCE


@EACH
def test_every_key_is_needed(dataset: Dataset) -> None:
    """A row that lacks a key, in its provenance too, has that one fault."""
    for key in [*KEYS[dataset], *(f"provenance.{key}" for key in PROVENANCE)]:
        assert faults_of(dataset, changed(ROWS[dataset], {key: ABSENT})) == (f"{key}: is missing",)


@EACH
def test_no_other_key_is_allowed(dataset: Dataset) -> None:
    """A row with a key of its own, in its provenance too, has that one fault."""
    for key in ("extra", "provenance.extra"):
        faulty = changed(ROWS[dataset], {key: 1})
        assert faults_of(dataset, faulty) == (f"{key}: is not a key of this dataset",)


@EACH
def test_what_must_not_be_blank(dataset: Dataset) -> None:
    """These strings, and only these, hold something that JavaScript does not call white space."""
    texts = [key for key, value in ROWS[dataset].items() if isinstance(value, str)]
    for key in texts:
        for blank in (" ", WHITESPACE):
            faults = faults_of(dataset, changed(ROWS[dataset], {key: blank}))
            wanted = (f"{key}: must not be blank",) if key in NOT_BLANK[dataset] else ()
            if key not in {"success_score", "source_category", "quality_score"}:
                assert faults == wanted
    for key in NOT_BLANK[dataset]:
        assert faults_of(dataset, changed(ROWS[dataset], {key: ""})) == (f"{key}: must not be blank",)
        assert faults_of(dataset, changed(ROWS[dataset], {key: f"\n{WHITESPACE}\u0085"})) == ()


def test_blank_is_what_javascript_trims() -> None:
    """A string of one character is blank where the character is JavaScript's white space, and good text otherwise."""
    for character in [chr(code) for code in (*range(0x2100), 0x3000, 0x3001, 0xFEFF, 0xFFFD, 0x1F600)]:
        faults = faults_of(Dataset.RAG, ROWS[Dataset.RAG] | {"title": character})
        assert faults == (("title: must not be blank",) if character in WHITESPACE else ())


def test_the_context_may_be_empty() -> None:
    """An SFT row without any context is a good row."""
    assert faults_of(Dataset.SFT, changed(ROWS[Dataset.SFT], {"context": ""})) == ()


@EACH
def test_no_value_is_turned_into_another_type(dataset: Dataset) -> None:
    """A value of another type is a fault, never coerced, and no fault tells what the value was."""
    for key, value in ROWS[dataset].items():
        for other in ANOTHER_TYPE:
            if isinstance(value, list) and isinstance(other, list):
                continue
            faults = faults_of(dataset, changed(ROWS[dataset], {key: other}))
            if key == "schema_version" and other is True:
                continue
            assert faults
            assert all(fault.startswith(key) for fault in faults)
            assert "secret" not in str(faults_of(dataset, changed(ROWS[dataset], {key: {"k": "secret"}})))
    assert faults_of(Dataset.RAG, changed(ROWS[Dataset.RAG], {"tags": [1]})) == ("tags.0: must be a string",)


@EACH
def test_the_provenance(dataset: Dataset) -> None:
    """Source file, signature and time are non-empty strings, and the line offset is a 64-bit integer or null."""
    row = ROWS[dataset]
    for key in ("source_file", "sig_hash", "recorded_at"):
        assert faults_of(dataset, changed(row, {f"provenance.{key}": ""})) == (f"provenance.{key}: must not be empty",)
        assert faults_of(dataset, changed(row, {f"provenance.{key}": None})) == (f"provenance.{key}: must be a string",)
    for good in (None, 0, -1, 2**63 - 1, -(2**63)):
        assert faults_of(dataset, changed(row, {"provenance.line_offset": good})) == ()
    for bad in (True, 1.0, "1", 2**63, -(2**63) - 1):
        assert faults_of(dataset, changed(row, {"provenance.line_offset": bad})) != ()


@EACH
def test_the_version(dataset: Dataset) -> None:
    """The schema version is 1, and nothing else."""
    for other in (0, 2, "1", None):
        faulty = changed(ROWS[dataset], {"schema_version": other})
        assert faults_of(dataset, faulty) == ("schema_version: is not one of the allowed values",)


def test_the_categories_that_a_row_may_name() -> None:
    """RAG knows all but rejected, SFT only the two accepted ones; the type itself refuses SFT_NEVER."""
    assert set(get_args(RagCategory)) == {"accepted", "partially_accepted", "needs_human_review"}
    assert set(get_args(SftCategory)) == {"accepted", "partially_accepted"}
    assert not set(get_args(SftCategory)) & {category.value for category in SFT_NEVER}
    for category in Category:
        row = ROWS[Dataset.SFT] | {"quality_score": category.value}
        if category in SFT_NEVER:
            assert faults_of(Dataset.SFT, row) == ("quality_score: is not one of the allowed values",)
            with pytest.raises(ValidationError):
                SftSample.model_validate(row)
        else:
            assert faults_of(Dataset.SFT, row) == ()
        for key in ("success_score", "source_category"):
            faults = faults_of(Dataset.RAG, ROWS[Dataset.RAG] | {key: category.value})
            refused = (f"{key}: is not one of the allowed values",)
            assert faults == (refused if category is Category.REJECTED else ())


def test_the_sides_of_a_pair_differ() -> None:
    """A pair of one run, or of one text, is a fault of the schema too."""
    row = ROWS[Dataset.PREFERENCE]
    assert faults_of(Dataset.PREFERENCE, row | {"rejected_run_id": "run-1"}) == (
        "chosen_run_id: must differ from rejected_run_id",
    )
    assert faults_of(Dataset.PREFERENCE, row | {"chosen": "x", "rejected": "x"}) == (
        "chosen: must differ from rejected",
    )
    assert len(faults_of(Dataset.PREFERENCE, row | {"rejected": row["chosen"], "rejected_run_id": "run-1"})) == 2


def test_every_fault_is_told() -> None:
    """A row with several faults gets a text for each, in the order of its keys."""
    row = changed(ROWS[Dataset.RAG], {"id": "", "title": 5, "extra": 1, "provenance.sig_hash": None})
    assert faults_of(Dataset.RAG, row) == (
        "id: must not be blank",
        "title: must be a string",
        "provenance.sig_hash: must be a string",
        "extra: is not a key of this dataset",
    )


# JSON Schema

MODELS: list[type[BaseModel]] = [*SAMPLES.values(), QuarantineRow, Provenance, Location]
KEYWORDS = {
    "$defs",
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "default",
    "description",
    "enum",
    "exclusiveMaximum",
    "items",
    "maximum",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
}


def parts_of(schema: Any) -> list[dict[str, Any]]:
    """A schema and all that stand in it."""
    found = [schema]
    for key in ("$defs", "properties"):
        for part in schema.get(key, {}).values():
            found += parts_of(part)
    for part in [*schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]:
        found += parts_of(part)
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_json_schema(model: type[BaseModel]) -> None:
    """The published schema uses plain keywords, its references lead somewhere, and no object takes other keys."""
    schema = model.model_json_schema()
    json.loads(json.dumps(schema))
    names = {f"#/$defs/{name}" for name in schema.get("$defs", {})}
    for part in parts_of(schema):
        assert set(part) <= KEYWORDS
        assert part.get("$ref", next(iter(names), None)) in names | {None}
        if "properties" in part:
            assert part["type"] == "object"
            assert part["additionalProperties"] is False
            optional = {name for name, inner in part["properties"].items() if "default" in inner}
            assert set(part["required"]) == set(part["properties"]) - optional
            assert optional <= {"source_provenance"}


@EACH
def test_the_schemas_list_the_keys_in_order(dataset: Dataset) -> None:
    """The published schema names the keys of a row in the order in which they are written."""
    schema = SAMPLES[dataset].model_json_schema()
    assert list(schema["properties"]) == KEYS[dataset]
    assert list(schema["$defs"]["Provenance"]["properties"]) == PROVENANCE
    assert list(QuarantineRow.model_json_schema()["properties"]) == QUARANTINE


def test_the_schemas_are_those_of_the_datasets() -> None:
    """Each dataset has its schema."""
    assert {Dataset.RAG: RagSample, Dataset.SFT: SftSample, Dataset.PREFERENCE: PreferenceSample} == SAMPLES


# Bytes


def test_the_bytes_of_a_rag_row() -> None:
    """A RAG row's line is these bytes: keys in order, no spaces, nothing escaped that need not be."""
    flaw = Flaw(
        scored={"provenance__line_offset": 5.0, "evidence_run_id": "lauf-ü"},
        evidence={"text": 'Zeile "1"\u2028\n\t\x7f\x1f😀/', "source_files": ["a/b.rs"], "model_name": ABSENT},
    )
    assert (
        bytes_of(rag.judge(flaw.case(), AT))
        == (
            '{"schema_version":1,"id":"rag-c35c846d7c1e6669","title":"Zeile \\"1\\"\u2028",'
            '"content":"Zeile \\"1\\"\u2028\\n\\t\x7f\\u001f😀/",'
            '"tags":["task:scrum_review","category:accepted","role:executor","file:a/b.rs"],'
            '"source_run_id":"lauf-ü","success_score":"accepted","source_category":"accepted",'
            '"embedding_text":"Zeile \\"1\\"\u2028\\n\\t\x7f\\u001f😀/","created_at":"2026-04-27T03:57:40.123Z",'
            '"provenance":{"source_file":"data/_kb/scrum_reviews.jsonl","line_offset":5,"sig_hash":"5f0c",'
            '"recorded_at":"2026-04-27T03:57:40.123Z"}}\n'
        ).encode()
    )


def test_the_bytes_of_an_sft_row() -> None:
    """An SFT row's line is these bytes."""
    flaw = Flaw(
        scored={"provenance__line_offset": "3"},
        evidence={"text": " ja ", "retrieved_context": ABSENT, "provenance__source_file": "data/_kb/audits.jsonl"},
    )
    assert bytes_of(sft.judge(flaw.case(), AT)) == (
        b'{"schema_version":1,"id":"sft-990d7fdf507d7f40",'
        b'"instruction":"Audit phase \'scrum_review:src/lib.rs\' and report findings with severity.",'
        b'"context":"model=qwen3:32b","response":" ja ","source_run_id":"run-1","quality_score":"accepted",'
        b'"created_at":"2026-04-27T03:57:40.123Z","provenance":{"source_file":"data/_kb/scrum_reviews.jsonl",'
        b'"line_offset":null,"sig_hash":"5f0c","recorded_at":"2026-04-27T03:57:40.123Z"}}\n'
    )


def test_the_bytes_of_a_pair() -> None:
    """A preference row's line is these bytes."""
    case = pair_case({"e_text": "gut", "reasons": []}, {"e_text": "schlecht"})
    assert (
        bytes_of(preference.judge(case, AT))
        == (
            '{"schema_version":1,"id":"pref-c91d8c6e63262931",'
            '"prompt":"Task: scrum_review:src/lib.rs · file=src/lib.rs","chosen":"gut","rejected":"schlecht",'
            "\"reason\":\"chosen scored 'accepted' | rejected scored 'rejected'\","
            '"chosen_run_id":"run-1","rejected_run_id":"run-2","created_at":"2026-04-27T03:57:40.123Z",'
            '"provenance":{"source_file":"data/_kb/scrum_reviews.jsonl","line_offset":41,'
            '"sig_hash":"2bd392348dfa8601bca688efdbb0b07f1630737ec1ec148a90f822205aea4253",'
            '"recorded_at":"2026-04-27T03:57:40.123Z"}}\n'
        ).encode()
    )


OFFSETS: list[tuple[Any, str]] = [
    (5.0, "5"),
    (-0.0, "0"),
    (2**53 + 1, "9007199254740992"),
    (1e18, "1000000000000000000"),
    (1.5, "null"),
    (True, "null"),
    ("5", "null"),
    (None, "null"),
    (ABSENT, "null"),
    (1e21, "null"),
]


@pytest.mark.parametrize(("value", "text"), OFFSETS, ids=[repr(value) for value, _ in OFFSETS])
def test_a_line_offset_is_an_integer_or_null(value: Any, text: str) -> None:
    """In all three datasets the offset prints as an integer, 5.0 as 5, and as null where the row had none."""
    case = Flaw(scored={"provenance__line_offset": value}).case()
    pair = pair_case({"provenance__line_offset": value})
    for outcome in (rag.judge(case, AT), sft.judge(case, AT), preference.judge(pair, AT)):
        assert f',"line_offset":{text},"sig_hash"'.encode() in bytes_of(outcome)


def test_an_adopted_row_keeps_its_two_times() -> None:
    """A row is stamped with one time, or with the two that it already had; nothing else of it changes."""
    outcome = rag.judge(passing_case(), AT)
    line = json.loads(outcome.line("2026-01-01T00:00:00.000Z", 'a "time"'))
    assert line.pop("created_at") == "2026-01-01T00:00:00.000Z"
    assert line["provenance"].pop("recorded_at") == 'a "time"'
    row = copy.deepcopy(ROWS[Dataset.RAG])
    del row["created_at"], row["provenance"]["recorded_at"]
    assert line == row


def test_no_text_is_taken_for_the_place_of_a_time() -> None:
    """The story that never happened: a text that looks like the keys around the times moves them."""
    text = 'x-","provenance":{"recorded_at":"-"}}\n'
    scored = {"evidence_run_id": text, "evidence_task_id": text, "provenance__source_file": text}
    flaw = Flaw(scored=scored, evidence={"run_id": text, "task_id": text, "text": text, "source_files": [text]})
    for judge in (rag.judge, sft.judge):
        row = exported(judge(flaw.case(), AT))
        assert (row["created_at"], row["provenance"]["recorded_at"]) == (STAMP, STAMP)
        assert row["source_run_id"] == row["provenance"]["source_file"] == text
    pair = exported(preference.judge(pair_case({"e_text": text, "reasons": [text]}, {"e_text": text * 2}), AT))
    assert (pair["created_at"], pair["provenance"]["recorded_at"], pair["chosen"]) == (STAMP, STAMP, text.strip())


def test_the_bytes_of_a_quarantine_row() -> None:
    """A quarantine row's line has its keys in order and the source record as JavaScript would write it anew."""
    flaw = Flaw(
        scored={"category": "rejected", "provenance": {"line_offset": 1.0, "2": "b", "1": "a"}, "reasons": ABSENT}
    )
    line = bytes_of(sft.judge(flaw.case(), AT))
    assert line == (
        b'{"exporter":"sft","reason":"unsafe_sft_category","source_record":{"schema_version":1,'
        b'"evidence_run_id":"run-1","evidence_task_id":"scrum_review:src/lib.rs","category":"rejected",'
        b'"scored_at":"2026-04-27T01:00:00.000Z","provenance":{"1":"a","2":"b","line_offset":1}},'
        b'"errors":["category=rejected forbidden in SFT (spec non-negotiable)"],'
        b'"recorded_at":"2026-04-27T03:57:40.123Z","source_provenance":{"1":"a","2":"b","line_offset":1},'
        b'"location":{"partition":"2026/04/27/scrum_reviews.jsonl","line_offset":7}}\n'
    )
    QuarantineRow.model_validate_json(line)


PROVENANCES: list[tuple[Any, str | None]] = [
    (ABSENT, None),
    (None, "null"),
    ("x", '"x"'),
    (1.0, "1"),
    (1e21, "1e+21"),
    (12345678901234567890, "12345678901234567000"),
    (True, "true"),
    ([1.0], "[1]"),
    ({}, "{}"),
]


@pytest.mark.parametrize(("value", "text"), PROVENANCES, ids=[repr(value) for value, _ in PROVENANCES])
def test_a_quoted_provenance_is_written_as_it_came(value: Any, text: str | None) -> None:
    """A provenance of any type is quoted as JavaScript would write it, and left out where the row has none."""
    line = bytes_of(sft.judge(Flaw(scored={"category": "rejected", "provenance": value}).case(), AT))
    if text is None:
        assert b"source_provenance" not in line
    else:
        assert f',"source_provenance":{text},"location":'.encode() in line
    QuarantineRow.model_validate_json(line)


def test_a_quarantine_row_quotes_what_it_is_given() -> None:
    """Record and provenance go in as finished JSON, texts are escaped, and every reason can be written."""
    for reason in Reason:
        parts = quarantine_parts(
            Dataset.PREFERENCE, reason, b'{"a":1e+21}', ('"é"',), b"[1]", RowRef("a/b/c/d.jsonl", 3)
        )
        line = Outcome("no_text", reason, parts).line(STAMP)
        assert (
            line
            == (
                f'{{"exporter":"preference","reason":"{reason}","source_record":{{"a":1e+21}},"errors":["\\"é\\""],'
                f'"recorded_at":"{STAMP}","source_provenance":[1],'
                '"location":{"partition":"a/b/c/d.jsonl","line_offset":3}}\n'
            ).encode()
        )
        QuarantineRow.model_validate_json(line)


def test_every_quarantine_row_has_its_keys_in_order() -> None:
    """With and without a provenance the keys of a quarantine row stand in the order of the contract."""
    assert list(held(sft.judge(Flaw(scored={"category": "rejected"}).case(), AT))) == QUARANTINE
    row = held(sft.judge(Flaw(scored={"provenance": ABSENT}).case(), AT))
    assert list(row) == [key for key in QUARANTINE if key != "source_provenance"]


def test_a_quarantine_row_is_checked_as_strictly() -> None:
    """A line before the first, an empty partition, another exporter or another key is no quarantine row."""
    row = held(sft.judge(Flaw(scored={"category": "rejected"}).case(), AT))
    for good in ({}, {"location": {"partition": "p", "line_offset": 0}}, {"source_provenance": None}):
        QuarantineRow.model_validate_json(json.dumps(row | good))
    for bad in (
        {"location": {"partition": "p", "line_offset": -1}},
        {"location": {"partition": "", "line_offset": 0}},
        {"exporter": "other"},
        {"reason": "other"},
        {"extra": 1},
    ):
        with pytest.raises(ValidationError):
            QuarantineRow.model_validate_json(json.dumps(row | bad))
