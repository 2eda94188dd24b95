"""What a preference row holds, how a task's rows are paired, and what single gates of pairs weigh."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from distilld.core.datasets import preference
from distilld.core.model import Category, Options
from tests.support.builders import ABSENT, AT, STAMP, all_missing, exported, held, pair_case


def test_the_whole_row() -> None:
    """Every key in its order, every value from its source, texts trimmed, and both timestamps from the batch."""
    chosen = {"e_text": "\ufeff good \n"}
    rejected = {"e_text": "\tbad\u00a0", "category": "rejected", "reasons": ["late", "unused"]}
    row = exported(preference.judge(pair_case(chosen, rejected), AT))
    digits = hashlib.sha256(b"run-1|run-2|scrum_review:src/lib.rs").hexdigest()[:16]
    assert list(row.items()) == [
        ("schema_version", 1),
        ("id", f"pref-{digits}"),
        ("prompt", "Task: scrum_review:src/lib.rs · file=src/lib.rs"),
        ("chosen", "good"),
        ("rejected", "bad"),
        (
            "reason",
            (
                "chosen scored 'accepted' | rejected scored 'rejected' | "
                "chosen-rationale: observer verdict accept | rejected-rationale: late"
            ),
        ),
        ("chosen_run_id", "run-1"),
        ("rejected_run_id", "run-2"),
        ("created_at", STAMP),
        (
            "provenance",
            {
                "source_file": "data/_kb/scrum_reviews.jsonl",
                "line_offset": 41,
                "sig_hash": hashlib.sha256(b"run-1|run-2").hexdigest(),
                "recorded_at": STAMP,
            },
        ),
    ]
    assert list(row["provenance"]) == ["source_file", "line_offset", "sig_hash", "recorded_at"]


def test_the_outcome_has_the_id_of_its_row() -> None:
    """The id of an exported pair ends in digits that follow from its runs and its task."""
    outcome = preference.judge(pair_case(), AT)
    digits = preference.id_digits("run-1", "run-2", "scrum_review:src/lib.rs")
    assert outcome.id == exported(outcome)["id"] == f"pref-{digits}"


def test_the_signature_does_not_depend_on_which_side_is_better() -> None:
    """The signature sorts the two runs by UTF-16 units, so U+FFFF stands after a surrogate pair."""
    astral, bmp = "run-😀", "run-\uffff"
    expected = hashlib.sha256(f"{astral}|{bmp}".encode()).hexdigest()
    for one, other in ((astral, bmp), (bmp, astral)):
        row = exported(preference.judge(pair_case({"evidence_run_id": one}, {"evidence_run_id": other}), AT))
        assert row["provenance"]["sig_hash"] == expected
        assert (row["chosen_run_id"], row["rejected_run_id"]) == (one, other)


@pytest.mark.parametrize("source_files", [ABSENT, [], [""], [None], "a.rs"], ids=repr)
def test_a_prompt_without_a_file(source_files: object) -> None:
    """Where the chosen row's source_files does not count, the prompt is the task alone."""
    row = exported(preference.judge(pair_case({"e_source_files": source_files}), AT))
    assert row["prompt"] == "Task: scrum_review:src/lib.rs"


REASONS: list[tuple[Any, str]] = [
    (ABSENT, ""),
    ([], ""),
    ([""], ""),
    ([5, "x"], ""),
    ("x", ""),
    ([" "], " | chosen-rationale:  "),
    (["a\nb"], " | chosen-rationale: a\nb"),
    (["x" * 81], " | chosen-rationale: " + "x" * 80),
    (["x" * 79 + "😀"], " | chosen-rationale: " + "x" * 79),
    (["x" * 78 + "😀"], " | chosen-rationale: " + "x" * 78 + "😀"),
]


@pytest.mark.parametrize(("reasons", "rationale"), REASONS, ids=[repr(rest)[:20] for _, rest in REASONS])
def test_reason(reasons: object, rationale: str) -> None:
    """The reason cites both categories, and the first entry of reasons, a non-empty string, cut to 80 units."""
    row = exported(preference.judge(pair_case({"reasons": reasons}), AT))
    assert row["reason"] == f"chosen scored 'accepted' | rejected scored 'rejected'{rationale}"


def test_a_partially_accepted_row_can_be_the_worse_one() -> None:
    """The reason names the category that the worse row has."""
    row = exported(preference.judge(pair_case({"reasons": []}, {"category": "partially_accepted"}), AT))
    assert row["reason"] == "chosen scored 'accepted' | rejected scored 'partially_accepted'"


PAIRINGS: list[tuple[str, str, str, list[str]]] = [
    ("", "", "", []),
    ("ab", "", "", []),
    ("", "rs", "pq", []),
    ("a", "r", "", ["ar"]),
    ("a", "r", "p", ["ar"]),
    ("a", "", "p", ["ap"]),
    ("ab", "rst", "", ["ar", "as", "at", "br", "bs"]),
    ("ab", "rstuvw", "", ["ar", "as", "at", "au", "av"]),
    ("abcdefg", "r", "p", ["ar", "br", "cr", "dr", "er"]),
    ("ab", "", "pqr", ["ap", "aq", "ar", "bp", "bq"]),
]


@pytest.mark.parametrize(("accepted", "rejected", "partial", "pairs"), PAIRINGS)
def test_pairing(accepted: str, rejected: str, partial: str, pairs: list[str]) -> None:
    """Accepted with rejected in order, the first five; with partially accepted only where that product is empty."""
    assert ["".join(pair) for pair in preference.pair_up(accepted, rejected, partial)] == pairs


def test_five_rows_of_each_kind_suffice() -> None:
    """The pairs of a task are those of its first five rows of each category."""
    rows = [f"{number}" for number in range(40)]
    for accepted in range(8):
        for rejected in range(8):
            for partial in range(8):
                whole = preference.pair_up(rows[:accepted], rows[:rejected], rows[:partial])
                short = preference.pair_up(rows[:accepted][:5], rows[:rejected][:5], rows[:partial][:5])
                assert whole == short


def test_the_short_record_keeps_its_keys_in_order() -> None:
    """A held pair's record is task, chosen run, rejected run; a chosen row without provenance gives none to quote."""
    row = held(preference.judge(pair_case({"provenance": ABSENT}), AT))
    assert list(row) == ["exporter", "reason", "source_record", "errors", "recorded_at", "location"]
    assert list(row["source_record"].items()) == [
        ("task_id", "scrum_review:src/lib.rs"),
        ("chosen_run_id", "run-1"),
        ("rejected_run_id", "run-2"),
    ]


@pytest.mark.parametrize("which", ["chosen", "rejected"])
def test_a_pair_needs_text_and_files_on_both_sides(which: str) -> None:
    """Blank text, a missing file or an overruled category on either side alone holds the pair."""
    faults: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"e_text": ABSENT}, {}, "invalid_preference_pairing"),
        ({"e_text": ["x"]}, {}, "invalid_preference_pairing"),
        ({"verdict": Category.PARTIALLY_ACCEPTED}, {}, "invalid_preference_pairing"),
        ({"verdict": None}, {}, "invalid_preference_pairing"),
        ({}, {"missing_files": all_missing}, "hallucinated_file_path"),
    ]
    for changes, around, reason in faults:
        other = "rejected" if which == "chosen" else "chosen"
        sides: dict[str, dict[str, Any]] = {which: changes, other: {"e_source_files": ABSENT}}
        row = held(preference.judge(pair_case(sides["chosen"], sides["rejected"], **around), AT))
        assert row["reason"] == reason


def test_a_pair_with_both_sides_overruled_names_both() -> None:
    """The overruled gate names each side with the category of its row; without revocation it holds nothing."""
    sides: list[dict[str, Any]] = [{"verdict": Category.REJECTED}, {"verdict": Category.ACCEPTED}]
    assert held(preference.judge(pair_case(*sides), AT))["errors"] == [
        "chosen: category accepted is not that of its run's verdict in force",
        "rejected: category rejected is not that of its run's verdict in force",
    ]
    exported(preference.judge(pair_case(*sides, options=Options(revoke=False)), AT))
