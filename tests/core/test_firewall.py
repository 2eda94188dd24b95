"""Every gate of the firewall is needed, says what it should, and stands in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import combinations, product
from typing import Any, NamedTuple, cast

import pytest

from distilld.core import firewall
from distilld.core.datasets import preference, rag, rows, sft
from distilld.core.firewall import PREFERENCE_GATES, RAG_GATES, SFT_GATES, PairCase, PairGate, RowCase, RowGate
from distilld.core.json_text import Malformed, parse_object
from distilld.core.model import SFT_NEVER, Category, Dataset, OnDelete, Options, Reason
from distilld.core.outcome import NOT_UNICODE, Outcome, quarantine_malformed
from distilld.core.records import evidence_record, scored_run
from tests.support.builders import (
    ABSENT,
    AT,
    Flaw,
    all_missing,
    bytes_of,
    evidence,
    exported,
    gate_of,
    held,
    none_missing,
    pair_case,
    passing_case,
    row_case,
    scored,
)

SHIPS = None


class Expected(NamedTuple):
    """What a gate says of a row that only it holds, and what becomes of the row without it."""

    flaw: Flaw
    reason: Reason
    errors: list[str]
    without: Reason | None
    provenance: bool = True


RAG: dict[str, Expected] = {
    "provenance": Expected(
        Flaw(scored={"provenance__sig_hash": ABSENT}),
        Reason.MISSING_PROVENANCE,
        ["scored_run.provenance missing or incomplete"],
        without=Reason.SCHEMA_VIOLATION,
        provenance=False,
    ),
    "run_id": Expected(
        Flaw(scored={"evidence_run_id": ABSENT}),
        Reason.MISSING_SOURCE_RUN_ID,
        ["evidence_run_id missing"],
        without=Reason.SCHEMA_VIOLATION,
    ),
    "category": Expected(
        Flaw(scored={"category": "needs_human_review"}),
        Reason.CATEGORY_DISALLOWED,
        ["category=needs_human_review not in [accepted,partially_accepted]"],
        without=SHIPS,
    ),
    "revoked": Expected(
        Flaw(around={"verdict": Category.REJECTED}),
        Reason.UNSAFE_RAG_CATEGORY,
        ["run revoked: the verdict in force is rejected"],
        without=SHIPS,
    ),
    "over_limit": Expected(
        Flaw(around={"over_limit": True}),
        Reason.TOO_MANY_EXPORTS,
        ["more than 1000 exports of one run"],
        without=SHIPS,
    ),
    "evidence": Expected(
        Flaw(evidence=None),
        Reason.MISSING_SOURCE_RUN_ID,
        ["evidence_run_id=run-1 not found in matching evidence partition"],
        without=Reason.EMPTY_CONTENT,
    ),
    "content": Expected(
        Flaw(evidence={"text": " \t\n\ufeff"}),
        Reason.EMPTY_CONTENT,
        ["evidence.text is empty/missing — RAG needs content"],
        without=Reason.SCHEMA_VIOLATION,
    ),
    "duplicate": Expected(
        Flaw(around={"id_taken": True}),
        Reason.DUPLICATE_ID,
        ["id is already held by an earlier row"],
        without=SHIPS,
    ),
    "source_files": Expected(
        Flaw(around={"missing_files": all_missing}),
        Reason.HALLUCINATED_FILE_PATH,
        ["source file does not exist: src/lib.rs", "source file does not exist: src/main.rs"],
        without=SHIPS,
    ),
}

SFT: dict[str, Expected] = {
    "never": Expected(
        Flaw(scored={"category": "needs_human_review"}),
        Reason.UNSAFE_SFT_CATEGORY,
        ["category=needs_human_review forbidden in SFT (spec non-negotiable)"],
        without=Reason.CATEGORY_DISALLOWED,
    ),
    "category": Expected(
        Flaw(scored={"category": "partially_accepted"}),
        Reason.CATEGORY_DISALLOWED,
        ["category=partially_accepted not in [accepted] (--include-partial=false)"],
        without=SHIPS,
    ),
    "provenance": Expected(
        Flaw(scored={"provenance__sig_hash": ""}),
        Reason.MISSING_PROVENANCE,
        ["provenance missing"],
        without=Reason.SCHEMA_VIOLATION,
        provenance=False,
    ),
    "run_id": Expected(
        Flaw(scored={"evidence_run_id": ""}),
        Reason.MISSING_SOURCE_RUN_ID,
        ["evidence_run_id missing"],
        without=Reason.SCHEMA_VIOLATION,
    ),
    "revoked": Expected(
        Flaw(around={"verdict": Category.NEEDS_HUMAN_REVIEW}),
        Reason.UNSAFE_SFT_CATEGORY,
        ["run revoked: the verdict in force is needs_human_review"],
        without=SHIPS,
    ),
    "over_limit": Expected(
        Flaw(around={"over_limit": True}),
        Reason.TOO_MANY_EXPORTS,
        ["more than 1000 exports of one run"],
        without=SHIPS,
    ),
    "evidence": Expected(
        Flaw(evidence=None),
        Reason.MISSING_SOURCE_RUN_ID,
        ["evidence_run_id=run-1 not found"],
        # The same reason from the shape gate; its text and its short record differ.
        without=Reason.MISSING_SOURCE_RUN_ID,
    ),
    "duplicate": RAG["duplicate"],
    "shape": Expected(
        Flaw(evidence={"model_role": "extractor"}),
        Reason.MISSING_SOURCE_RUN_ID,
        ["evidence has no instruction→response shape (extraction-class or empty text)"],
        without=SHIPS,
    ),
    "source_files": RAG["source_files"],
}

ROW_GATES: list[tuple[Dataset, tuple[RowGate, ...], dict[str, Expected]]] = [
    (Dataset.RAG, RAG_GATES, RAG),
    (Dataset.SFT, SFT_GATES, SFT),
]
JUDGES: dict[Dataset, Callable[[RowCase], Outcome]] = {
    Dataset.RAG: lambda case: rag.judge(case, AT),
    Dataset.SFT: lambda case: sft.judge(case, AT),
}


class ExpectedPair(NamedTuple):
    """The same for a pair: changes of its chosen and its rejected side, and what holds around it."""

    chosen: dict[str, Any]
    rejected: dict[str, Any]
    around: dict[str, Any]
    reason: Reason
    errors: list[str]
    without: Reason | None

    def case(self, under: ExpectedPair | None = None) -> PairCase:
        """The pair, over the flaws of another one where it is given."""
        if under is None:
            return pair_case(self.chosen, self.rejected, **self.around)
        return pair_case(under.chosen | self.chosen, under.rejected | self.rejected, **(under.around | self.around))


PAIRS: dict[str, ExpectedPair] = {
    # A run that was scored twice in two partitions, and an exporter told to look at no later verdict.
    "same_run": ExpectedPair(
        {},
        {"evidence_run_id": "run-1"},
        {"options": Options(revoke=False)},
        Reason.INVALID_PREFERENCE_PAIRING,
        ["same run_id — self-pairing"],
        without=Reason.SCHEMA_VIOLATION,
    ),
    "over_limit": ExpectedPair(
        {"over_limit": True},
        {"over_limit": True},
        {"options": Options(max_exports_per_run=7)},
        Reason.TOO_MANY_EXPORTS,
        ["chosen: more than 7 exports of one run", "rejected: more than 7 exports of one run"],
        without=SHIPS,
    ),
    "no_text": ExpectedPair(
        {},
        {"e_text": "\u00a0\n"},
        {},
        Reason.INVALID_PREFERENCE_PAIRING,
        ["empty text in chosen or rejected"],
        without=Reason.SCHEMA_VIOLATION,
    ),
    "same_text": ExpectedPair(
        {"e_text": "one answer"},
        {"e_text": " one answer\r\n"},
        {},
        Reason.INVALID_PREFERENCE_PAIRING,
        ["chosen and rejected texts identical"],
        without=Reason.SCHEMA_VIOLATION,
    ),
    "overruled": ExpectedPair(
        {"verdict": Category.REJECTED},
        {},
        {},
        Reason.INVALID_PREFERENCE_PAIRING,
        ["chosen: category accepted is not that of its run's verdict in force"],
        without=SHIPS,
    ),
    "provenance": ExpectedPair(
        {"provenance__sig_hash": 7},
        {},
        {},
        Reason.MISSING_PROVENANCE,
        ["provenance missing"],
        without=SHIPS,
    ),
    "source_files": ExpectedPair(
        {"e_source_files": ["a.rs"]},
        {"e_source_files": ["b.rs"]},
        {"missing_files": all_missing},
        Reason.HALLUCINATED_FILE_PATH,
        ["source file does not exist: a.rs", "source file does not exist: b.rs"],
        without=SHIPS,
    ),
    "duplicate": ExpectedPair(
        {},
        {},
        {"id_taken": True},
        Reason.DUPLICATE_ID,
        ["id is already held by an earlier pair"],
        without=SHIPS,
    ),
}


def each_row_gate() -> list[Any]:
    """A parameter for every gate in the tables of RAG and SFT; one without a case fails in the test that uses it."""
    return [
        pytest.param(dataset, gates, cases, gate, id=f"{dataset}-{gate.name}")
        for dataset, gates, cases in ROW_GATES
        for gate in gates
    ]


def each_pair_of_gates() -> list[Any]:
    """A parameter for every two gates of one table, the earlier one first, but for the two that no row can offend."""
    no_evidence_no_files = ("evidence", "source_files")
    return [
        pytest.param(dataset, cases, one, other, id=f"{dataset}-{one.name}-{other.name}")
        for dataset, gates, cases in ROW_GATES
        for one, other in combinations(gates, 2)
        if (one.name, other.name) != no_evidence_no_files
    ]


def assert_outcome(outcome: Outcome, reason: Reason | None) -> None:
    """The outcome ships where ``reason`` is None, else it is held for that reason."""
    if reason is None:
        exported(outcome)
    else:
        assert held(outcome)["reason"] == reason


def test_the_tables_are_those_of_the_contract() -> None:
    """Names, order and reasons of all gates, which ones quote the provenance, and nothing besides."""
    assert [(gate.name, gate.reason.value) for gate in RAG_GATES] == [
        ("provenance", "missing_provenance"),
        ("run_id", "missing_source_run_id"),
        ("category", "category_disallowed"),
        ("revoked", "unsafe_rag_category"),
        ("over_limit", "too_many_exports"),
        ("evidence", "missing_source_run_id"),
        ("content", "empty_content"),
        ("duplicate", "duplicate_id"),
        ("source_files", "hallucinated_file_path"),
    ]
    assert [(gate.name, gate.reason.value) for gate in SFT_GATES] == [
        ("never", "unsafe_sft_category"),
        ("category", "category_disallowed"),
        ("provenance", "missing_provenance"),
        ("run_id", "missing_source_run_id"),
        ("revoked", "unsafe_sft_category"),
        ("over_limit", "too_many_exports"),
        ("evidence", "missing_source_run_id"),
        ("duplicate", "duplicate_id"),
        ("shape", "missing_source_run_id"),
        ("source_files", "hallucinated_file_path"),
    ]
    assert [(gate.name, gate.reason.value) for gate in PREFERENCE_GATES] == [
        ("same_run", "invalid_preference_pairing"),
        ("over_limit", "too_many_exports"),
        ("no_text", "invalid_preference_pairing"),
        ("same_text", "invalid_preference_pairing"),
        ("overruled", "invalid_preference_pairing"),
        ("provenance", "missing_provenance"),
        ("source_files", "hallucinated_file_path"),
        ("duplicate", "duplicate_id"),
    ]
    assert [gate.name for gate in (*RAG_GATES, *SFT_GATES) if not gate.with_provenance] == ["provenance"] * 2


def test_every_gate_has_a_case() -> None:
    """A gate that is added without a row that only it holds is noticed here."""
    assert [*RAG] == [gate.name for gate in RAG_GATES]
    assert [*SFT] == [gate.name for gate in SFT_GATES]
    assert [*PAIRS] == [gate.name for gate in PREFERENCE_GATES]


def test_what_no_gate_holds_ships() -> None:
    """The row and the pair that all cases start from pass every gate."""
    assert exported(rag.judge(passing_case(), AT))["success_score"] == "accepted"
    assert exported(sft.judge(passing_case(), AT))["quality_score"] == "accepted"
    assert exported(preference.judge(pair_case(), AT))["chosen_run_id"] == "run-1"


@pytest.mark.parametrize(("dataset", "gates", "cases", "gate"), each_row_gate())
def test_a_row_gate_holds_its_row(
    dataset: Dataset, gates: tuple[RowGate, ...], cases: dict[str, Expected], gate: RowGate
) -> None:
    """The gate holds its row, and is the first to, with its reason, its text and, where it should, the provenance."""
    case = cases[gate.name].flaw.case()
    first = next(one for one in gates if one.check(case))
    assert first is gate
    outcome = JUDGES[dataset](case)
    assert gate_of(outcome) == gate.name
    row = held(outcome)
    assert (row["exporter"], row["reason"]) == (dataset, cases[gate.name].reason)
    assert row["errors"] == cases[gate.name].errors
    assert row["location"] == {"partition": AT.partition, "line_offset": AT.line}
    if cases[gate.name].provenance:
        assert row["source_provenance"] == case.scored.value["provenance"]
    else:
        assert "source_provenance" not in row
    if (dataset, gate.name) != (Dataset.SFT, "shape"):
        assert row["source_record"] == case.scored.value


@pytest.mark.parametrize(("dataset", "gates", "cases", "gate"), each_row_gate())
def test_without_a_row_gate_its_row_comes_to_something_else(
    dataset: Dataset,
    gates: tuple[RowGate, ...],
    cases: dict[str, Expected],
    gate: RowGate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the gate switched off its row ships, or a later wall holds it and says something else."""
    case = cases[gate.name].flaw.case()
    guarded = bytes_of(JUDGES[dataset](case))
    module = rag if dataset is Dataset.RAG else sft
    monkeypatch.setattr(module, f"{dataset.name}_GATES", tuple(one for one in gates if one is not gate))
    outcome = JUDGES[dataset](case)
    assert_outcome(outcome, cases[gate.name].without)
    assert bytes_of(outcome) != guarded


@pytest.mark.parametrize("gate", PREFERENCE_GATES, ids=lambda gate: gate.name)
def test_a_pair_gate_holds_its_pair(gate: PairGate) -> None:
    """The gate, and no other, holds its pair, with its reason, its text, the short record and the chosen provenance."""
    expected = PAIRS[gate.name]
    case = expected.case()
    assert [one for one in PREFERENCE_GATES if one.check(case)] == [gate]
    outcome = preference.judge(case, AT)
    assert gate_of(outcome) == gate.name
    row = held(outcome)
    assert (row["exporter"], row["reason"], row["errors"]) == ("preference", expected.reason, expected.errors)
    assert row["source_record"] == {
        "task_id": "scrum_review:src/lib.rs",
        "chosen_run_id": case.chosen.scored.run_id,
        "rejected_run_id": case.rejected.scored.run_id,
    }
    assert row["source_provenance"] == case.chosen.scored.value["provenance"]
    assert row["location"] == {"partition": AT.partition, "line_offset": AT.line}


@pytest.mark.parametrize("gate", PREFERENCE_GATES, ids=lambda gate: gate.name)
def test_without_a_pair_gate_its_pair_comes_to_something_else(gate: PairGate, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gate switched off its pair ships, or the schema holds it."""
    case = PAIRS[gate.name].case()
    guarded = bytes_of(preference.judge(case, AT))
    monkeypatch.setattr(preference, "PREFERENCE_GATES", tuple(one for one in PREFERENCE_GATES if one is not gate))
    outcome = preference.judge(case, AT)
    assert_outcome(outcome, PAIRS[gate.name].without)
    assert bytes_of(outcome) != guarded


@pytest.mark.parametrize(("dataset", "cases", "one", "other"), each_pair_of_gates())
def test_of_two_row_gates_the_earlier_one_speaks(
    dataset: Dataset, cases: dict[str, Expected], one: RowGate, other: RowGate
) -> None:
    """A row with two flaws gets the reason and the text of the earlier gate, though the later one would hold it too."""
    case = cases[one.name].flaw.over(cases[other.name].flaw).case()
    assert one.check(case)
    assert other.check(case)
    row = held(JUDGES[dataset](case))
    assert (row["reason"], row["errors"]) == (cases[one.name].reason, cases[one.name].errors)


@pytest.mark.parametrize(
    ("one", "other"),
    [pytest.param(one, other, id=f"{one.name}-{other.name}") for one, other in combinations(PREFERENCE_GATES, 2)],
)
def test_of_two_pair_gates_the_earlier_one_speaks(one: PairGate, other: PairGate) -> None:
    """A pair with two flaws gets the reason and the text of the earlier gate, though the later one would hold it."""
    earlier, later = PAIRS[one.name], PAIRS[other.name]
    if (one.name, other.name) == ("no_text", "same_text"):
        earlier = earlier._replace(chosen={"e_text": ""})
    if (one.name, other.name) == ("same_run", "overruled"):
        earlier = earlier._replace(around={})
    case = earlier.case(under=later)
    assert one.check(case)
    assert other.check(case)
    row = held(preference.judge(case, AT))
    assert (row["reason"], row["errors"]) == (earlier.reason, earlier.errors)


# The gates before the first and after the last of a table

MALFORMED = {
    b"{": "not JSON",
    b" ": "not JSON",
    b"[1]": "not a JSON object",
    b"null": "not a JSON object",
    b'{"a":' * 201 + b"1" + b"}" * 201: "nested deeper than 200",
    b'{"a":1e309}': "number out of range",
}


@pytest.mark.parametrize("dataset", [Dataset.RAG, Dataset.SFT])
@pytest.mark.parametrize(("raw", "error"), MALFORMED.items(), ids=[f"{raw[:12]!r}" for raw in MALFORMED])
def test_a_malformed_line_is_held(dataset: Dataset, raw: bytes, error: str) -> None:
    """A malformed line is a schema violation that quotes its head, names its file and line, and says why."""
    malformed = parse_object(raw).malformed
    assert malformed is not None
    outcome = quarantine_malformed(
        dataset, raw.decode(), malformed, AT, source_file=f"data/scored-runs/{AT.partition}", max_line_bytes=1000
    )
    assert gate_of(outcome) == "malformed"
    row = held(outcome)
    assert (row["exporter"], row["reason"], row["errors"]) == (dataset, "schema_violation", [error])
    assert row["source_record"] == {"_raw": raw.decode()[:200]}
    assert row["source_provenance"] == {"source_file": f"data/scored-runs/{AT.partition}", "line_offset": AT.line}
    assert row["location"] == {"partition": AT.partition, "line_offset": AT.line}
    # Without this gate the line would be an empty row, and told that it lacks something.
    unguarded = JUDGES[dataset](row_case(scored_run({})))
    assert held(unguarded)["reason"] != row["reason"]


def test_a_line_that_is_too_long_names_the_limit() -> None:
    """A line beyond the limit is held with the limit in its text and its first 200 units, which split no pair."""
    outcome = quarantine_malformed(
        Dataset.RAG, "x" * 199 + "😀" + "y", Malformed.TOO_LONG, AT, source_file="data/x", max_line_bytes=4096
    )
    row = held(outcome)
    assert row["errors"] == ["longer than 4096 bytes"]
    assert row["source_record"] == {"_raw": "x" * 199}


SCHEMA: list[tuple[str, Dataset, Flaw, list[str]]] = [
    ("title", Dataset.RAG, Flaw(evidence={"text": " " * 120 + "late"}), ["title: must not be blank"]),
    (
        "embedding_text",
        Dataset.RAG,
        Flaw(evidence={"text": "\n" * 2000 + "late"}),
        ["embedding_text: must not be blank"],
    ),
    (
        "blank run id",
        Dataset.RAG,
        Flaw(scored={"evidence_run_id": " "}),
        ["source_run_id: must not be blank"],
    ),
    ("task_id", Dataset.RAG, Flaw(evidence={"task_id": 5}), ["evidence.task_id: must be a string"]),
    ("scored text", Dataset.RAG, Flaw(scored={"note": "\ud800"}), [NOT_UNICODE]),
    ("evidence text", Dataset.RAG, Flaw(evidence={"text": "\udfff"}), [NOT_UNICODE]),
    (
        "source_file",
        Dataset.SFT,
        Flaw(scored={"provenance__source_file": ABSENT}),
        ["provenance.source_file: must be a string"],
    ),
    (
        "blank run id",
        Dataset.SFT,
        Flaw(scored={"evidence_run_id": "\t"}),
        ["source_run_id: must not be blank"],
    ),
    (
        "evidence source_file",
        Dataset.SFT,
        Flaw(evidence={"provenance__source_file": None}),
        ["evidence.provenance.source_file: must be a string"],
    ),
    (
        "evidence task_id",
        Dataset.SFT,
        Flaw(evidence={"provenance__source_file": "data/_kb/audits.jsonl", "task_id": ABSENT}),
        ["evidence.task_id: must be a string"],
    ),
    ("scored text", Dataset.SFT, Flaw(scored={"note": "\ud800"}), [NOT_UNICODE]),
    ("evidence text", Dataset.SFT, Flaw(evidence={"text": "\udfff"}), [NOT_UNICODE]),
]


def marked_case(flaw: Flaw) -> RowCase:
    """The case of a flaw whose rows were read from bytes, so that bad text is repaired and marked."""
    run = parse_object(json.dumps(scored(**flaw.scored)).encode())
    given = parse_object(json.dumps(evidence(**(flaw.evidence or {}))).encode())
    assert run.value is not None
    assert given.value is not None
    return row_case(
        scored_run(run.value, marked=run.marked), evidence_record(given.value, marked=given.marked), **flaw.around
    )


@pytest.mark.parametrize(
    ("dataset", "flaw", "errors"), [pytest.param(*rest, id=f"{rest[0]}-{name}") for name, *rest in SCHEMA]
)
def test_the_schema_gate_holds_what_all_gates_let_pass(dataset: Dataset, flaw: Flaw, errors: list[str]) -> None:
    """A finished row that fails its schema is held, with the field named, the row itself and its provenance."""
    case = marked_case(flaw)
    assert not any(gate.check(case) for gate in (RAG_GATES if dataset is Dataset.RAG else SFT_GATES))
    outcome = JUDGES[dataset](case)
    assert gate_of(outcome) == "schema"
    row = held(outcome)
    assert (row["reason"], row["errors"]) == ("schema_violation", errors)
    assert row["source_record"] == case.scored.value
    assert row["source_provenance"] == case.scored.value["provenance"]


@pytest.mark.parametrize(
    ("dataset", "flaw"), [(dataset, flaw) for name, dataset, flaw, _ in SCHEMA if name in {"title", "source_file"}]
)
def test_without_the_schema_gate_its_row_ships(dataset: Dataset, flaw: Flaw, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the schema gate switched off a row without a title, or without a source file, ships."""
    monkeypatch.setattr(rows, "faults_of", lambda *_: ())
    assert JUDGES[dataset](marked_case(flaw)).gate is None


@pytest.mark.parametrize("dataset", [Dataset.RAG, Dataset.SFT])
def test_the_last_gate_speaks_before_the_schema(dataset: Dataset) -> None:
    """A row whose file is missing and whose finished form fails the schema is told of the file."""
    flaw = Flaw(scored={"evidence_run_id": " "}, around={"missing_files": all_missing})
    assert held(JUDGES[dataset](flaw.case()))["reason"] == "hallucinated_file_path"
    assert held(JUDGES[dataset](replace(flaw, around={}).case()))["reason"] == "schema_violation"


def test_a_pair_that_fails_the_schema_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair without a source file is held by the schema, after the duplicate gate; with the schema off it ships."""
    flaw = {"provenance__source_file": ABSENT}
    assert gate_of(preference.judge(pair_case(flaw), AT)) == "schema"
    row = held(preference.judge(pair_case(flaw), AT))
    assert (row["reason"], row["errors"]) == ("schema_violation", ["provenance.source_file: must be a string"])
    assert held(preference.judge(pair_case(flaw, id_taken=True), AT))["reason"] == "duplicate_id"
    monkeypatch.setattr(preference, "faults_of", lambda *_: ())
    assert preference.judge(pair_case(flaw), AT).gate is None


@pytest.mark.parametrize("where", ["chosen.scored", "chosen.evidence", "rejected.scored", "rejected.evidence"])
def test_a_pair_with_bad_text_is_held(where: str) -> None:
    """A mark on either side's row or evidence fails the schema gate, after all other gates."""
    name, part = where.split(".")
    case = pair_case()
    one = getattr(case, name)
    marked = case._replace(**{name: one._replace(**{part: getattr(one, part)._replace(marked=True)})})
    assert gate_of(preference.judge(marked, AT)) == "schema"
    row = held(preference.judge(marked, AT))
    assert (row["reason"], row["errors"]) == ("schema_violation", [NOT_UNICODE])
    assert held(preference.judge(marked._replace(id_taken=True), AT))["reason"] == "duplicate_id"


# What single gates weigh


CATEGORY_TEXTS: list[tuple[Any, str]] = [
    (ABSENT, "undefined"),
    (None, "null"),
    (True, "true"),
    (0, "0"),
    (1e21, "1e+21"),
    ("", ""),
    ("Accepted", "Accepted"),
    ([], ""),
    (["accepted"], "accepted"),
    (["a", None, ["b", {}]], "a,,b,[object Object]"),
    ({}, "[object Object]"),
]


@pytest.mark.parametrize(("value", "text"), CATEGORY_TEXTS, ids=[repr(text) for _, text in CATEGORY_TEXTS])
def test_an_unknown_category_is_shown_as_javascript_shows_it(value: object, text: str) -> None:
    """What is none of the four categories is disallowed in RAG and SFT, and named as a template literal would."""
    case = Flaw(scored={"category": value}).case()
    assert held(rag.judge(case, AT))["errors"] == [f"category={text} not in [accepted,partially_accepted]"]
    row = held(sft.judge(case._replace(options=Options(include_partial=True)), AT))
    assert row["reason"] == "category_disallowed"
    assert row["errors"] == [f"category={text} not in [accepted,partially_accepted] (--include-partial=true)"]


@pytest.mark.parametrize("text", ["\u001c", "\u0085", "\u200b", "\u180e", "."], ids=ascii)
def test_what_javascript_does_not_trim_is_content(text: str) -> None:
    """A text of characters that only Python takes for white space is no blank text."""
    exported(rag.judge(Flaw(evidence={"text": text}).case(), AT))
    exported(sft.judge(Flaw(evidence={"text": text}).case(), AT))


def test_the_path_check_passes_where_it_has_nothing_to_check() -> None:
    """Off, or where all files exist, or where source_files does not count, the path check holds nothing."""
    passing: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"missing_files": none_missing}, {}),
        ({"missing_files": all_missing}, {"source_files": ABSENT}),
        ({"missing_files": all_missing}, {"source_files": []}),
        ({"missing_files": all_missing}, {"source_files": ["", "a.rs"]}),
        ({"missing_files": all_missing}, {"source_files": [5, "a.rs"]}),
        ({"missing_files": all_missing}, {"source_files": "a.rs"}),
    ]
    for around, changes in passing:
        case = Flaw(evidence=changes, around=around).case()
        exported(rag.judge(case, AT))
        exported(sft.judge(case, AT))


def test_the_path_check_gets_every_entry() -> None:
    """The whole of source_files is checked, entries of other types too, and each missing one has its own text."""
    seen: list[tuple[Any, ...]] = []

    def check(names: Any) -> tuple[str, ...]:
        seen.append(tuple(names))
        return ("b.rs",)

    case = Flaw(evidence={"source_files": ["a.rs", 5, None, "b.rs"]}, around={"missing_files": check}).case()
    assert held(rag.judge(case, AT))["errors"] == ["source file does not exist: b.rs"]
    assert seen == [("a.rs", 5, None, "b.rs")]


FORBIDS = {
    (Dataset.RAG, Category.REJECTED, False),
    (Dataset.RAG, Category.REJECTED, True),
    (Dataset.RAG, Category.NEEDS_HUMAN_REVIEW, False),
    (Dataset.SFT, Category.REJECTED, False),
    (Dataset.SFT, Category.REJECTED, True),
    (Dataset.SFT, Category.NEEDS_HUMAN_REVIEW, False),
    (Dataset.SFT, Category.NEEDS_HUMAN_REVIEW, True),
}


@pytest.mark.parametrize(
    ("dataset", "category", "include_review"), [*product([Dataset.RAG, Dataset.SFT], Category, [False, True])]
)
def test_which_verdict_in_force_revokes(dataset: Dataset, category: Category, include_review: bool) -> None:
    """SFT is revoked by both of SFT_NEVER, RAG by rejected, and by needs_human_review unless that may ship itself."""
    options = Options(include_review=include_review)
    outcome = JUDGES[dataset](passing_case(verdict=category, options=options))
    if (dataset, category, include_review) in FORBIDS:
        assert held(outcome)["reason"] == f"unsafe_{dataset}_category"
        assert held(outcome)["errors"] == [f"run revoked: the verdict in force is {category}"]
    else:
        exported(outcome)
    exported(JUDGES[dataset](passing_case(verdict=category, options=replace(options, revoke=False))))
    assert firewall.revoking(dataset, category, options) is ((dataset, category, include_review) in FORBIDS)
    assert not firewall.revoking(dataset, category, replace(options, revoke=False))
    assert not firewall.revoking(dataset, None, options)


# The wall that no option opens


def test_sft_never_is_exactly_two_categories() -> None:
    """SFT_NEVER is a retained set of rejected and needs_human_review, no more and no less."""
    assert isinstance(SFT_NEVER, frozenset)
    assert {category.value for category in SFT_NEVER} == {"rejected", "needs_human_review"}


# Read off the class: a flag that is added later is tried as well.
_FLAGS = [one.name for one in fields(Options) if isinstance(one.default, bool)]
FLAGS = [
    Options(on_delete=on_delete, **cast("dict[str, Any]", dict(zip(_FLAGS, values, strict=True))))
    for on_delete in OnDelete
    for values in product([False, True], repeat=len(_FLAGS))
]


@pytest.mark.parametrize("category", sorted(SFT_NEVER))
def test_no_option_lets_sft_never_ship(category: Category, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every combination of options, and for every verdict in force, SFT holds the row; with all gates off too."""
    for options, verdict in product(FLAGS, [None, *Category]):
        flaw = Flaw(scored={"category": category.value}, around={"options": options, "verdict": verdict})
        case = flaw.case()
        assert category not in options.sft_allowed
        row = held(sft.judge(case, AT))
        assert (row["reason"], row["errors"]) == (
            "unsafe_sft_category",
            [f"category={category} forbidden in SFT (spec non-negotiable)"],
        )
    monkeypatch.setattr(sft, "SFT_GATES", ())
    for options in FLAGS:
        case = Flaw(scored={"category": category.value}, around={"options": options}).case()
        row = held(sft.judge(case, AT))
        assert (row["reason"], row["errors"]) == (
            "schema_violation",
            ["quality_score: is not one of the allowed values"],
        )
