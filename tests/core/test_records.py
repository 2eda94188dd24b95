"""What comes in is read tolerantly: a field of the wrong type is an absent field, and nothing raises."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from distilld.core.model import Category
from distilld.core.records import EvidenceRecord, ScoredRun, category_of, evidence_record, id_digits, scored_run
from tests.support.builders import ABSENT, evidence, scored

OTHER_TYPES: dict[str, Any] = {
    "absent": ABSENT,
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "number": 1.5,
    "list": [],
    "list of a string": ["x"],
    "object": {},
    "nested": {"x": [{"y": None}]},
}
NO_STRING = pytest.mark.parametrize("value", OTHER_TYPES.values(), ids=OTHER_TYPES)
NO_TEXT = pytest.mark.parametrize("value", ["", *OTHER_TYPES.values()], ids=["empty", *OTHER_TYPES])


def facts(run: ScoredRun) -> dict[str, Any]:
    """What was read of a scored row's fields."""
    return {name: value for name, value in run._asdict().items() if name not in {"value", "json"}}


def test_a_scored_row() -> None:
    """Every field that the contract knows is read from its place, and the whole row is kept."""
    value = scored()
    run = scored_run(value)
    assert facts(run) == {
        "run_id": "run-1",
        "task_id": "scrum_review:src/lib.rs",
        "category": Category.ACCEPTED,
        "sig_hash": "5f0c",
        "source_file": "data/_kb/scrum_reviews.jsonl",
        "line_offset": 41,
        "first_reason": "observer verdict accept",
        "marked": False,
    }
    assert run.value == value
    assert scored_run(value, marked=True).marked


def test_the_json_of_a_scored_row() -> None:
    """A row can be quoted again and again as JavaScript would write it, with its provenance where it has one."""
    run = scored_run({"b": 1.0, "1": [], "provenance": {"line_offset": 5.0}})
    for _ in range(2):
        assert run.json.texts() == (b'{"1":[],"b":1,"provenance":{"line_offset":5}}', b'{"line_offset":5}')
    assert scored_run({"provenance": None}).json.texts()[1] == b"null"
    assert scored_run({}).json.texts()[1] is None
    assert scored_run({}).json.texts()[0] == b"{}"


def test_an_evidence_row() -> None:
    """Every field that the contract knows is read from its place."""
    assert evidence_record(evidence()) == EvidenceRecord(
        run_id="run-1",
        task_id="scrum_review:src/lib.rs",
        model_role="executor",
        model_name="qwen3:32b",
        text="# Review\n\nOne finding, high severity.",
        source_files=("src/lib.rs", "src/main.rs"),
        matrix_corpora="arch_v1,symbols_v1",
        pathway_fingerprints="3",
        contractor="Acme",
        source_file="data/_kb/scrum_reviews.jsonl",
        marked=False,
    )
    assert evidence_record(evidence(), marked=True).marked


def test_empty_objects_have_no_fields() -> None:
    """An object without any field is a row and an evidence row of which nothing is known."""
    assert set(facts(scored_run({})).values()) == {None, False}
    assert set(evidence_record({})[:-1]) == {None}


def test_fields_that_nobody_knows_change_nothing() -> None:
    """Fields that the contract does not name are ignored, whatever they hold."""
    strange = {"run_id": 5, "text": {}, "": None, "extra": [[]]}
    assert facts(scored_run({**scored(), **strange})) == facts(scored_run(scored()))
    assert evidence_record({**evidence(), "category": [], "evidence_run_id": 1}) == evidence_record(evidence())


@pytest.mark.parametrize("category", Category)
def test_the_four_categories(category: Category) -> None:
    """The four names are categories."""
    assert category_of(category.value) is category
    assert scored_run(scored(category=category.value)).category is category


@pytest.mark.parametrize("value", ["", "Accepted", "accepted ", "acc\u0435pted", "REJECTED", "unknown"])
def test_no_other_name_is_a_category(value: str) -> None:
    """Nothing but the exact names is a category."""
    assert category_of(value) is None


@NO_TEXT
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("evidence_run_id", "run_id"),
        ("evidence_task_id", "task_id"),
        ("category", "category"),
        ("provenance__sig_hash", "sig_hash"),
        ("provenance__source_file", "source_file"),
    ],
)
def test_a_string_of_a_scored_row_is_missing(path: str, field: str, value: Any) -> None:
    """Ids, signature, source file and category that are no non-empty string count as missing; the rest is untouched."""
    run = scored_run(scored(**{path: value}))
    assert getattr(run, field) is None
    assert facts(run) == facts(scored_run(scored())) | {field: None}


@NO_STRING
def test_a_provenance_that_is_no_object(value: Any) -> None:
    """Without an object for provenance there is no signature, no source file and no line offset."""
    if isinstance(value, dict):
        value = list(value)
    run = scored_run(scored(provenance=value))
    assert (run.sig_hash, run.source_file, run.line_offset) == (None, None, None)
    given = evidence_record(evidence(provenance=value))
    assert given.source_file is None


OFFSETS: list[tuple[Any, int | None]] = [
    (0, 0),
    (-0.0, 0),
    (7, 7),
    (-7, -7),
    (5.0, 5),
    (1e3, 1000),
    (2**53, 2**53),
    (2**53 + 1, 2**53),
    (-(2**53) - 1, -(2**53)),
    (1e18, 10**18),
    (9223372036854774784, 9223372036854775000),
    # JavaScript would print 9223372036854776000, which no 64-bit column holds.
    (2**63 - 1, None),
    (2**64 - 1, None),
    (1e19, None),
    (1e21, None),
    (1e300, None),
    (-1e300, None),
    (1.5, None),
    (5e-324, None),
    (True, None),
    (False, None),
    (None, None),
    ("5", None),
    ([], None),
    ([5], None),
    ({}, None),
    (ABSENT, None),
]


@pytest.mark.parametrize(("value", "offset"), OFFSETS, ids=[repr(value) for value, _ in OFFSETS])
def test_line_offset(value: Any, offset: int | None) -> None:
    """An integer is copied, with or without a decimal point, as JavaScript prints it; anything else is null."""
    found = scored_run(scored(provenance__line_offset=value)).line_offset
    assert found == offset
    assert found is None or type(found) is int


REASONS: list[tuple[Any, str | None]] = [
    (["a", "b"], "a"),
    ([" "], " "),
    (["a", 5, None], "a"),
    ([], None),
    ([""], None),
    (["", "b"], None),
    ([None, "b"], None),
    ([5, "b"], None),
    ([["a"]], None),
    ("abc", None),
    ({"0": "a"}, None),
    (5, None),
    (True, None),
    (None, None),
    (ABSENT, None),
]


@pytest.mark.parametrize(("value", "first"), REASONS, ids=[repr(value) for value, _ in REASONS])
def test_of_reasons_only_the_first_counts(value: Any, first: str | None) -> None:
    """The first entry of a list of reasons is used when it is a non-empty string; no other is looked at."""
    assert scored_run(scored(reasons=value)).first_reason == first


@NO_TEXT
@pytest.mark.parametrize("field", ["run_id", "model_role", "model_name"])
def test_a_string_of_an_evidence_row_is_absent(field: str, value: Any) -> None:
    """Run id, role and model name that are no non-empty string are absent; the rest is untouched."""
    missing: dict[str, Any] = {field: None}
    assert evidence_record(evidence(**{field: value})) == evidence_record(evidence())._replace(**missing)


@NO_STRING
@pytest.mark.parametrize("field", ["task_id", "text"])
def test_text_that_is_no_string_is_no_text(field: str, value: Any) -> None:
    """A text or task id of another type is none."""
    missing: dict[str, Any] = {field: None}
    assert evidence_record(evidence(**{field: value})) == evidence_record(evidence())._replace(**missing)


@pytest.mark.parametrize("field", ["task_id", "text", "provenance__source_file"])
def test_an_empty_text_is_a_text(field: str) -> None:
    """An empty text, task id or source of an evidence row is a string; what it is worth is for the gates to say."""
    name = field.removeprefix("provenance__")
    assert getattr(evidence_record(evidence(**{field: ""})), name) == ""


@NO_STRING
def test_an_evidence_source_that_is_no_string(value: Any) -> None:
    """The source of an evidence row is a string or none."""
    assert evidence_record(evidence(provenance__source_file=value)).source_file is None


FILES: list[tuple[Any, tuple[Any, ...] | None]] = [
    (["a"], ("a",)),
    (["a", 5, None, ""], ("a", 5, None, "")),
    ([" "], (" ",)),
    ([], None),
    ([""], None),
    (["", "a"], None),
    ([5, "a"], None),
    ([["a"]], None),
    ("a", None),
    ({"0": "a"}, None),
    (5, None),
    (None, None),
    (ABSENT, None),
]


@pytest.mark.parametrize(("value", "files"), FILES, ids=[repr(value) for value, _ in FILES])
def test_source_files_count_when_the_first_one_does(value: Any, files: tuple[Any, ...] | None) -> None:
    """source_files is an array whose first entry is a non-empty string, taken whole, or does not count at all."""
    given = evidence_record(evidence(source_files=value))
    assert given.source_files == files
    assert given.first_source_file == (files[0] if files else None)


CORPORA: list[tuple[Any, str | None]] = [
    (["a", "b"], "a,b"),
    (["a,b", ""], "a,b,"),
    ([""], ""),
    (["", ""], ","),
    ([1, 2.0, 1e21, -0.0, 0.1], "1,2,1e+21,0,0.1"),
    (["a", None, True, False, [], ["x"], {}, {"a": 1}, 5], "a,5"),
    ([], None),
    ([None], None),
    ([True, {}], None),
    ("abc", None),
    ({"0": "a"}, None),
    (5, None),
    (None, None),
    (ABSENT, None),
]


@pytest.mark.parametrize(("value", "joined"), CORPORA, ids=[repr(value) for value, _ in CORPORA])
def test_matrix_corpora(value: Any, joined: str | None) -> None:
    """The strings and numbers of an array are joined by commas; where nothing is left there is no such part."""
    assert evidence_record(evidence(retrieved_context__matrix_corpora=value)).matrix_corpora == joined


FINGERPRINTS: list[tuple[Any, str | None]] = [
    (0, "0"),
    (-0.0, "0"),
    (3, "3"),
    (3.0, "3"),
    (0.5, "0.5"),
    (-1, "-1"),
    (1e21, "1e+21"),
    (1e-7, "1e-7"),
    (2**53 + 1, "9007199254740992"),
    (True, None),
    (False, None),
    ("3", None),
    ([3], None),
    ({}, None),
    (None, None),
    (ABSENT, None),
]


@pytest.mark.parametrize(("value", "text"), FINGERPRINTS, ids=[repr(value) for value, _ in FINGERPRINTS])
def test_pathway_fingerprints(value: Any, text: str | None) -> None:
    """A number is present, 0 too, and prints as in JavaScript; anything else is absent."""
    given = evidence_record(evidence(retrieved_context__pathway_fingerprints_seen=value))
    assert given.pathway_fingerprints == text


@NO_TEXT
@pytest.mark.parametrize(
    ("field", "missing"),
    [("retrieved_context", ("matrix_corpora", "pathway_fingerprints")), ("metadata", ("contractor",))],
)
def test_a_group_of_another_type_holds_nothing(field: str, missing: tuple[str, ...], value: Any) -> None:
    """A retrieved context or metadata that is no object, or an empty one, has none of its fields."""
    nothing: dict[str, Any] = dict.fromkeys(missing)
    assert evidence_record(evidence(**{field: value})) == evidence_record(evidence())._replace(**nothing)


@NO_TEXT
def test_a_contractor_is_a_non_empty_string(value: Any) -> None:
    """A contractor of another type, or an empty one, is none."""
    assert evidence_record(evidence(metadata__contractor=value)).contractor is None


def test_id_digits() -> None:
    """The digits are the first 16 of the sha256 of run id and signature, joined by a bar, in UTF-8."""
    assert id_digits("run-é", "😀") == hashlib.sha256("run-é|😀".encode()).hexdigest()[:16]
    assert id_digits("run-1", "5f0c") == "990d7fdf507d7f40"
