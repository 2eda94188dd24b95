"""A field of the wrong type costs its row a reason: never an exception, and never the rows around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilld.core.model import Dataset, Options, Reason
from tests.support.builders import ABSENT, PROPERTY, Export, changed, evidence, export, lake_of, none_missing, scored

GARBAGE: dict[str, Any] = {
    "absent": ABSENT,
    "null": None,
    "true": True,
    "false": False,
    "0": 0,
    "-1": -1,
    "1.5": 1.5,
    "huge": 1e300,
    "wide": 2**64 - 1,
    "empty": "",
    "blank": " \ufeff",
    "x": "x",
    "control": "\x00\n\x1b[31m",
    "[]": [],
    "{}": {},
    "list": ["x", 1, None],
    "nested": {"x": [{"y": [[], {}, None, 1.0]}], "1": "z", "0": {}},
}


def paths(row: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all fields of a row, those of its objects too, and the first entries of its lists."""
    for key, value in row.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")


def near(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row beside the faulty one, and its evidence: another run, another task."""
    own = {"evidence_run_id": f"near-{number}", "evidence_task_id": f"near:{number // 2}", "provenance__sig_hash": "n"}
    row = scored(**own, category="accepted" if number % 2 else "rejected")
    return row, evidence(run_id=f"near-{number}", text=f"answer {number}")


NEAR = [near(number) for number in range(4)]
OPTIONS = Options(include_partial=True, include_review=True, check_source_files=True)


def around(row: Any, given: Any) -> Export:
    """A pass over a lake in which the faulty row and evidence stand between four good ones."""
    rows = [NEAR[0][0], NEAR[1][0], row, NEAR[2][0], NEAR[3][0]]
    evidences = [NEAR[0][1], NEAR[1][1], given, NEAR[2][1], NEAR[3][1]]
    return export(lake_of(rows, evidences), OPTIONS, none_missing)


def of_the_near(result: Export) -> dict[str, bytes]:
    """The lines that name a good row, by file."""
    return {
        name: b"".join(line for line in content.splitlines(keepends=True) if b'"near-' in line)
        for name, content in result.files().items()
    }


WITHOUT = of_the_near(around(scored(), evidence()))


def check(result: Export) -> None:
    """Nothing was lost, everything has a reason and can be read, and the good rows came through unharmed."""
    assert of_the_near(result) == WITHOUT
    assert result.lines == 5
    for dataset in (Dataset.RAG, Dataset.SFT):
        assert len(result.exported(dataset)) + len(result.quarantined(dataset)) == 5
    for dataset in Dataset:
        for row in result.quarantined(dataset):
            assert row["reason"] in {reason.value for reason in Reason}
            assert row["errors"]
    for content in result.files().values():
        for line in content.split(b"\n")[:-1]:
            json.loads(line.decode(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_good_rows_ship() -> None:
    """The rows that are compared below are there to be compared."""
    assert {name: content.count(b"\n") for name, content in WITHOUT.items()} == {
        "rag": 2,
        "-rag": 2,
        "sft": 2,
        "-sft": 2,
        "preference": 2,
        "-preference": 0,
    }


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("path", [*paths(scored())])
def test_each_field_of_a_scored_row(path: str, value: Any) -> None:
    """Any value in any field of a scored row costs that row alone, if it costs anything."""
    check(around(changed(scored(), {path: value}), evidence()))


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("path", [*paths(evidence())])
def test_each_field_of_an_evidence_row(path: str, value: Any) -> None:
    """Any value in any field of an evidence row costs the rows on it alone, if it costs anything."""
    for source in ("scrum_reviews", "audits", "mode_experiments", "contract_analyses"):
        given_row = evidence(provenance__source_file=f"data/_kb/{source}.jsonl")
        check(around(scored(), changed(given_row, {path: value})))


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("name", ["reasons", "source_files", "retrieved_context.matrix_corpora"])
def test_each_entry_of_a_list(name: str, value: Any) -> None:
    """Any value in a list, first or later, costs that row alone, if it costs anything."""
    for entries in ([value], [value, "x"], ["x", value]):
        kept = [entry for entry in entries if entry is not ABSENT]
        row = changed(scored(), {name: kept}) if name == "reasons" else scored()
        given_row = evidence() if name == "reasons" else changed(evidence(), {name: kept})
        check(around(row, given_row))


@pytest.mark.parametrize(("value", "other"), [*product(GARBAGE.values(), [None, 5, "", [], {}])])
def test_two_fields_at_once(value: Any, other: Any) -> None:
    """Faults in a scored row and in its evidence together cost that row alone."""
    for path, second in product(["evidence_run_id", "category", "provenance", "reasons"], ["text", "provenance"]):
        check(around(changed(scored(), {path: value}), changed(evidence(), {second: other})))


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["", "x", "run-1", "accepted", "rejected", "😀", "\u2028", "near"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "0", "10", "sig_hash"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@PROPERTY
@given(st.dictionaries(st.sampled_from([*paths(scored()), *paths(evidence())]), JSON, max_size=4))
def test_any_values_in_any_fields(values: dict[str, Any]) -> None:
    """Whatever JSON stands in whatever fields of a row and its evidence, that row alone is touched."""
    row, given_row = scored(), evidence()
    for target in (row, given_row):
        for path, value in values.items():
            *parents, last = path.split(".")
            place: Any = target
            for parent in parents:
                place = place.get(parent) if isinstance(place, dict) else None
            if isinstance(place, dict) and last in place:
                place[last] = value
    check(around(row, given_row))


@PROPERTY
@given(st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"") or b"x"))
def test_any_bytes_for_a_row(raw: bytes) -> None:
    """A line of any bytes, scored or evidence, harms no other line."""
    check(around(raw, evidence()))
    check(around(scored(), raw))
