"""The contamination firewall, case by case: what the older exporters' report and commit name as what must not happen.

Each test sends a small lake through one naive pass of the core.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import permutations, product
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilld.core.model import SFT_NEVER, Category, Dataset, Options, Reason
from distilld.inspection import oracle
from tests.support.builders import ABSENT, PROPERTY, all_missing, evidence, export, jsonl, lake_of, scored
from tests.support.history_lake import history_lake
from tests.support.target_state import Exports, equal_the_full_pass, read_lake

RAG, SFT, PREFERENCE = Dataset
ALL_OPTIONS = [
    Options(include_partial=partial, include_review=review, revoke=revoke)
    for partial, review, revoke in product([False, True], repeat=3)
]
CATEGORIES = [category.value for category in Category]

Lines = list[dict[str, Any] | bytes]


def run_of(number: int, category: object = "accepted", **changes: Any) -> dict[str, Any]:
    """A scored row of a run, a task and a signature of its own."""
    own = {
        "evidence_run_id": f"run-{number}",
        "evidence_task_id": f"task:{number}",
        "provenance__sig_hash": f"{number}",
    }
    return scored(**{**own, "category": category, **changes})


def evidence_of(number: int, **changes: Any) -> dict[str, Any]:
    """The evidence of that run, with a text of its own."""
    return evidence(**{"run_id": f"run-{number}", "task_id": f"task:{number}", "text": f"answer {number}", **changes})


def runs(categories: Iterable[object], **changes: Any) -> tuple[Lines, Lines]:
    """One run of each category, with its evidence."""
    named = list(enumerate(categories, 1))
    return [run_of(number, name, **changes) for number, name in named], [evidence_of(number) for number, _ in named]


def reasons(rows: list[dict[str, Any]]) -> Counter[str]:
    """How many rows are held for what."""
    return Counter(row["reason"] for row in rows)


def ids(rows: list[dict[str, Any]]) -> list[str]:
    """The runs that rows come from."""
    return [row["source_run_id"] for row in rows]


# SFT


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=repr)
def test_no_leak_into_sft(options: Options) -> None:
    """By no combination of options does a rejected or an unreviewed row reach SFT; each is held as unsafe."""
    result = export(lake_of(*runs(CATEGORIES * 3)), options)
    scores = Counter(row["quality_score"] for row in result.exported(SFT))
    assert not set(scores) & {category.value for category in SFT_NEVER}
    assert scores["accepted"] == 3
    assert reasons(result.quarantined(SFT))["unsafe_sft_category"] == 6


def test_rejected_never_enters_sft() -> None:
    """A rejected row is held as unsafe, with the row itself in quarantine."""
    result = export(lake_of(*runs(["rejected"])), Options(include_partial=True, include_review=True))
    assert result.exported(SFT) == []
    (row,) = result.quarantined(SFT)
    assert row["reason"] == "unsafe_sft_category"
    assert row["source_record"] == run_of(1, "rejected")


def test_needs_human_review_never_enters_sft() -> None:
    """The flag that opens RAG to unreviewed rows opens SFT to none of them."""
    result = export(lake_of(*runs(["needs_human_review"])), Options(include_partial=True, include_review=True))
    assert result.exported(SFT) == []
    assert ids(result.exported(RAG)) == ["run-1"]


def test_partial_enters_sft_only_by_flag() -> None:
    """Partially accepted rows are held by default and ship with the flag, under their own name."""
    lake = lake_of(*runs(["partially_accepted", "accepted"]))
    assert ids(export(lake).exported(SFT)) == ["run-2"]
    opened = export(lake, Options(include_partial=True)).exported(SFT)
    assert [row["quality_score"] for row in opened] == ["partially_accepted", "accepted"]


def test_include_review_does_not_touch_sft() -> None:
    """The SFT files are the same with and without include_review."""
    lake = lake_of(*runs(CATEGORIES))
    one, other = export(lake).files(), export(lake, Options(include_review=True)).files()
    assert (one["sft"], one["-sft"]) == (other["sft"], other["-sft"])


def test_include_partial_does_not_touch_rag() -> None:
    """The RAG files are the same with and without include_partial."""
    lake = lake_of(*runs(CATEGORIES))
    one, other = export(lake).files(), export(lake, Options(include_partial=True)).files()
    assert (one["rag"], one["-rag"]) == (other["rag"], other["-rag"])


@pytest.mark.parametrize("role", ["extractor", "observer", "judge", "", ABSENT])
def test_extraction_class_rows_stay_out_of_sft(role: object) -> None:
    """A row whose role only extracts has no instruction it answers: it is a playbook, and no SFT row."""
    result = export(lake_of([run_of(1)], [evidence_of(1, model_role=role)]))
    assert ids(result.exported(RAG)) == ["run-1"]
    assert result.exported(SFT) == []
    assert reasons(result.quarantined(SFT)) == {"missing_source_run_id": 1}


@pytest.mark.parametrize("category", [None, "", "ACCEPTED", "accepted ", ["accepted"], 1, {}, ABSENT], ids=repr)
def test_what_only_looks_like_a_category_ships_nowhere(category: object) -> None:
    """A category that is not exactly one of the four is disallowed everywhere."""
    result = export(
        lake_of([run_of(1, category=category)], [evidence_of(1)]), Options(include_partial=True, include_review=True)
    )
    for dataset in (RAG, SFT):
        assert result.exported(dataset) == []
        assert reasons(result.quarantined(dataset)) == {"category_disallowed": 1}


# RAG


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=repr)
def test_rag_never_takes_rejected(options: Options) -> None:
    """Rejected rows stay out of RAG by every combination of options."""
    result = export(lake_of(*runs(["rejected", "accepted", "rejected"])), options)
    assert ids(result.exported(RAG)) == ["run-2"]
    assert reasons(result.quarantined(RAG)) == {"category_disallowed": 2}


def test_rag_takes_needs_human_review_only_by_opt_in() -> None:
    """Unreviewed rows are held by default, and with include_review ship as what they are."""
    lake = lake_of(*runs(CATEGORIES))
    assert [row["success_score"] for row in export(lake).exported(RAG)] == ["accepted", "partially_accepted"]
    opened = export(lake, Options(include_review=True)).exported(RAG)
    assert [row["success_score"] for row in opened] == ["accepted", "partially_accepted", "needs_human_review"]
    assert opened[2]["source_category"] == "needs_human_review"
    assert "category:needs_human_review" in opened[2]["tags"]


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\u00a0\ufeff\u2028", None, 5, ["text"], ABSENT], ids=repr)
def test_empty_content_ships_nowhere(text: object) -> None:
    """A text that is missing, of another type, or only white space is neither a passage, a response nor a side."""
    rows = [run_of(1, evidence_task_id="t"), run_of(2, "rejected", evidence_task_id="t")]
    result = export(lake_of(rows, [evidence_of(1, text=text), evidence_of(2)]))
    assert [result.exported(dataset) for dataset in Dataset] == [[], [], []]
    assert reasons(result.quarantined(RAG))["empty_content"] == 1
    assert reasons(result.quarantined(SFT))["missing_source_run_id"] == 1
    assert result.quarantined(PREFERENCE)[0]["errors"] == ["empty text in chosen or rejected"]


# Provenance


@pytest.mark.parametrize("provenance", [ABSENT, None, "x", [], {}, {"source_file": "a"}, {"sig_hash": ""}], ids=repr)
def test_without_a_signature_nothing_ships(provenance: object) -> None:
    """A provenance-free row reaches no dataset: as passage, as answer, as the better side of a pair."""
    rows = [
        run_of(1, evidence_task_id="t", provenance=provenance),
        run_of(2, "rejected", evidence_task_id="t"),
    ]
    result = export(lake_of(rows, [evidence_of(1), evidence_of(2)]))
    assert [result.exported(dataset) for dataset in Dataset] == [[], [], []]
    assert result.quarantined(RAG)[0]["reason"] == "missing_provenance"
    assert result.quarantined(SFT)[0]["reason"] == "missing_provenance"
    assert reasons(result.quarantined(PREFERENCE)) == {"missing_provenance": 1}


def test_without_a_source_file_nothing_ships() -> None:
    """A signature without the file that it signs is no provenance either."""
    rows = [
        run_of(1, evidence_task_id="t", provenance__source_file=ABSENT),
        run_of(2, "rejected", evidence_task_id="t"),
    ]
    result = export(lake_of(rows, [evidence_of(1), evidence_of(2)]))
    assert [result.exported(dataset) for dataset in Dataset] == [[], [], []]
    assert result.quarantined(RAG)[0]["reason"] == "missing_provenance"
    assert result.quarantined(SFT)[0]["reason"] == "schema_violation"
    assert reasons(result.quarantined(PREFERENCE)) == {"schema_violation": 1}


def test_provenance_on_every_row() -> None:
    """Every row of every dataset says where it came from, which line, with which signature, and when it was written."""
    rows, given = runs(["accepted", "rejected", "partially_accepted"], evidence_task_id="t")
    result = export(lake_of(rows, given), Options(include_partial=True))
    exported = [row for dataset in Dataset for row in result.exported(dataset)]
    assert [len(result.exported(dataset)) for dataset in Dataset] == [2, 2, 1]
    for row in exported:
        assert list(row["provenance"]) == ["source_file", "line_offset", "sig_hash", "recorded_at"]
        assert all(row["provenance"][key] for key in ("source_file", "sig_hash", "recorded_at"))


def test_a_row_without_a_run_ships_nowhere() -> None:
    """A row that names no run cannot be traced, and is held."""
    result = export(lake_of([run_of(1, evidence_run_id=ABSENT)], [evidence_of(1), evidence_of(2, run_id=ABSENT)]))
    assert [result.exported(dataset) for dataset in Dataset] == [[], [], []]
    assert reasons(result.quarantined(RAG)) == reasons(result.quarantined(SFT)) == {"missing_source_run_id": 1}


def test_a_row_without_evidence_ships_nowhere() -> None:
    """A row whose run left no evidence has nothing to teach."""
    result = export(lake_of([run_of(1)], [evidence_of(2)]))
    assert [result.exported(dataset) for dataset in Dataset] == [[], [], []]
    assert result.quarantined(RAG)[0]["errors"] == ["evidence_run_id=run-1 not found in matching evidence partition"]
    assert result.quarantined(SFT)[0]["errors"] == ["evidence_run_id=run-1 not found"]


def test_evidence_of_another_partition_does_not_count() -> None:
    """Only the mirrored partition gives a run its text: the same run elsewhere may have been another attempt."""
    lake = {
        "2026/04/27/a.jsonl": (jsonl([run_of(1)]), b""),
        "2026/04/27/b.jsonl": (b"", jsonl([evidence_of(1)])),
    }
    assert export(lake).exported(RAG) == []


def test_of_several_evidence_rows_the_last_counts() -> None:
    """What was said last of a run is its evidence, and a malformed line between holds no run."""
    given: Lines = [
        evidence_of(1, text="first"),
        b'{"run_id":"run-1",',
        evidence_of(1, text="last"),
    ]
    (row,) = export(lake_of([run_of(1)], given)).exported(RAG)
    assert row["content"] == "last"


def test_hallucinated_files_ship_nowhere() -> None:
    """With the path check on, a row whose evidence names a file that does not exist reaches no dataset."""
    rows, given = runs(["accepted", "rejected"], evidence_task_id="t")
    result = export(lake_of(rows, given), Options(check_source_files=True), all_missing)
    assert [result.exported(dataset) for dataset in Dataset] == [[], [], []]
    for dataset in Dataset:
        assert reasons(result.quarantined(dataset))["hallucinated_file_path"] == 1


# Pairs


def pairs_of(result_rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The two runs of each pair."""
    return [(row["chosen_run_id"], row["rejected_run_id"]) for row in result_rows]


def test_a_pair_is_an_accepted_and_a_rejected_answer_to_one_task() -> None:
    """The better answer is chosen, whichever came first."""
    for order in ([1, 2], [2, 1]):
        rows = [run_of(n, "accepted" if n == 1 else "rejected", evidence_task_id="t") for n in order]
        result = export(lake_of(rows, [evidence_of(1), evidence_of(2)]))
        assert pairs_of(result.exported(PREFERENCE)) == [("run-1", "run-2")]


def test_no_fabricated_pairs_across_tasks() -> None:
    """An accepted and a rejected answer to two tasks are no pair, however alike the tasks are named."""
    for one, other in permutations(["t", "T", "t ", "t:1", "t\u0000", "é", "e\u0301"], 2):
        rows = [run_of(1, evidence_task_id=one), run_of(2, "rejected", evidence_task_id=other)]
        result = export(lake_of(rows, [evidence_of(1, task_id="t"), evidence_of(2, task_id="t")]))
        assert result.outcomes[PREFERENCE] == []


@pytest.mark.parametrize("task_id", [ABSENT, "", None, 5, ["t"]], ids=repr)
def test_no_pairs_of_rows_without_a_task(task_id: object) -> None:
    """Rows whose task is no non-empty string share none."""
    rows = [run_of(1, evidence_task_id=task_id), run_of(2, "rejected", evidence_task_id=task_id)]
    assert export(lake_of(rows, [evidence_of(1), evidence_of(2)])).outcomes[PREFERENCE] == []


@pytest.mark.parametrize(
    "categories",
    [
        ["accepted"],
        ["accepted"] * 3,
        ["rejected"] * 2,
        ["partially_accepted", "rejected"],
        ["accepted", "needs_human_review"],
        ["accepted", None],
        ["needs_human_review", "rejected"],
    ],
    ids=str,
)
def test_no_pair_without_a_category_gap(categories: list[str]) -> None:
    """Pairs are accepted over rejected, or over partially accepted, and never padded with anything else."""
    rows, given = runs(categories, evidence_task_id="t")
    assert export(lake_of(rows, given)).outcomes[PREFERENCE] == []


def test_partial_is_the_weaker_signal() -> None:
    """Partially accepted answers are paired only where the task has no rejected one."""
    rows, given = runs(["accepted", "partially_accepted"], evidence_task_id="t")
    assert pairs_of(export(lake_of(rows, given)).exported(PREFERENCE)) == [("run-1", "run-2")]
    rows, given = runs(["accepted", "partially_accepted", "rejected"], evidence_task_id="t")
    assert pairs_of(export(lake_of(rows, given)).exported(PREFERENCE)) == [("run-1", "run-3")]


def test_a_rejected_answer_without_evidence_leaves_room_for_the_weaker_signal() -> None:
    """A row whose evidence is missing takes no part, so the product with the rejected ones is empty."""
    rows, _ = runs(["accepted", "partially_accepted", "rejected"], evidence_task_id="t")
    result = export(lake_of(rows, [evidence_of(1), evidence_of(2)]))
    assert pairs_of(result.exported(PREFERENCE)) == [("run-1", "run-2")]


def test_no_self_pairs() -> None:
    """A run that was scored twice is no pair with itself, even where later verdicts are not looked at."""
    rows = [run_of(1, evidence_task_id="t"), run_of(1, "rejected", evidence_task_id="t", provenance__sig_hash="2")]
    lake = {
        "2026/04/27/a.jsonl": (jsonl(rows[:1]), jsonl([evidence_of(1, text="one")])),
        "2026/04/28/a.jsonl": (jsonl(rows[1:]), jsonl([evidence_of(1, text="two")])),
    }
    for revoke in (False, True):
        result = export(lake, Options(revoke=revoke))
        assert result.exported(PREFERENCE) == []
        (row,) = result.quarantined(PREFERENCE)
        assert (row["reason"], row["errors"]) == ("invalid_preference_pairing", ["same run_id — self-pairing"])


@pytest.mark.parametrize("text", ["answer 1", " answer 1\n", "\ufeffanswer 1\u00a0"], ids=ascii)
def test_identical_texts_are_no_pair(text: str) -> None:
    """Two answers that differ in white space around them only are the same answer."""
    rows, _ = runs(["accepted", "rejected"], evidence_task_id="t")
    result = export(lake_of(rows, [evidence_of(1), evidence_of(2, text=text)]))
    assert result.exported(PREFERENCE) == []
    assert [row["errors"] for row in result.quarantined(PREFERENCE)] == [["chosen and rejected texts identical"]]


def test_no_hot_task_dominates() -> None:
    """A task gives at most five pairs, whichever number of answers it has, and a held pair uses its slot."""
    rows, given = runs(["accepted"] * 3 + ["rejected"] * 4, evidence_task_id="t")
    result = export(lake_of(rows, given))
    assert pairs_of(result.exported(PREFERENCE)) == [
        ("run-1", "run-4"),
        ("run-1", "run-5"),
        ("run-1", "run-6"),
        ("run-1", "run-7"),
        ("run-2", "run-4"),
    ]
    given[3] = evidence_of(4, text=" ")
    result = export(lake_of(rows, given))
    assert pairs_of(result.exported(PREFERENCE)) == [("run-1", "run-5"), ("run-1", "run-6"), ("run-1", "run-7")]
    assert reasons(result.quarantined(PREFERENCE)) == {"invalid_preference_pairing": 2}


def test_one_row_twice_gives_one_pair() -> None:
    """A pair that comes up again is held as a duplicate, in its slot."""
    rows = [
        run_of(1, evidence_task_id="t"),
        run_of(1, evidence_task_id="t"),
        run_of(2, "rejected", evidence_task_id="t"),
    ]
    result = export(lake_of(rows, [evidence_of(1), evidence_of(2)]))
    assert pairs_of(result.exported(PREFERENCE)) == [("run-1", "run-2")]
    assert reasons(result.quarantined(PREFERENCE)) == {"duplicate_id": 1}


# A later verdict

LATER = "2026/04/28/scrum_reviews.jsonl"


def rescored(first: str, second: str, options: Options) -> tuple[list[str], list[str]]:
    """The categories that ship, in RAG and in SFT, of a run scored in two partitions."""
    lake = lake_of([run_of(1, first)], [evidence_of(1)])
    again = run_of(1, second, provenance__sig_hash="again")
    result = export({**lake, LATER: (jsonl([again]), jsonl([evidence_of(1)]))}, options)
    return (
        [row["success_score"] for row in result.exported(RAG)],
        [row["quality_score"] for row in result.exported(SFT)],
    )


def test_a_run_rejected_later_leaves_every_dataset() -> None:
    """The last verdict of a run counts, over all partitions: what it rejects ships nowhere."""
    for first, options in product(CATEGORIES, [one for one in ALL_OPTIONS if one.revoke]):
        assert rescored(first, "rejected", options) == ([], [])


def test_a_run_sent_to_review_later_leaves_sft() -> None:
    """A later need of review takes a run out of SFT always, and out of RAG unless review rows are let in."""
    assert rescored("accepted", "needs_human_review", Options()) == ([], [])
    opened = rescored("accepted", "needs_human_review", Options(include_review=True))
    assert opened == (["accepted", "needs_human_review"], [])


def test_a_run_reviewed_and_accepted_later_ships() -> None:
    """A review that ends well ships the accepted row, and not the one before it."""
    assert rescored("needs_human_review", "accepted", Options()) == (["accepted"], ["accepted"])
    assert rescored("rejected", "accepted", Options()) == (["accepted"], ["accepted"])


FORBID_RUN_1: Final = (
    b'{"evidence_run_id":"run-1","category":"rejected"}',
    b'{"category":"rejected","evidence_run_id":"run-1","provenance":5,"note":"\xff"}',
    # no category to the letter: unreviewed, or meant as a rejection
    b'{"evidence_run_id":"run-1","category":"Rejected"}',
    b'{"evidence_run_id":"run-1","category":" rejected\\n"}',
    b'{"evidence_run_id":"run-1","category":["rejected"]}',
    b'{"evidence_run_id":"run-1","category":"fine"}',
    b'{"evidence_run_id":"run-1","category":7}',
    b'{"evidence_run_id":"run-1"}',
    # malformed, and still spelt out
    b'{"evidence_run_id":"run-1","category":"rejected"',
    b'[{"evidence_run_id":"run-1","category":"rejected"}]',
    b'\xef\xbb\xbf{"evidence_run_id":"run-1","category":"rejected"}',
    b'{"evidence_run_id":"run-1","category":"rejected","score":NaN}',
    b'{"evidence_run_id" : "run-1","category"\t:\r"needs_human_review","score":-Infinity}',
    b'{"evidence_run_id":"run-0","category":"acce{"evidence_run_id":"run-1","category":"rejected"}',
    b'{"evidence_run_id":"r\\u0075n-1","category":"rejected",}',
    '\ufeff{"evidence_run_id":"run-1","category":"rejected"}'.encode("utf-16-le"),
    '{"evidence_run_id":"run-1","category":"rejected"}'.encode("utf-16-be"),
)
SAY_NOTHING_OF_RUN_1: Final = (
    b'{"evidence_run_id":["run-1"],"category":"rejected"}',
    b'{"evidence_run_id":"run-2","category":"rejected"}',
    b'{"evidence_run_id":"run-1","category":"accepted"',
    b'{"evidence_run_id":"run-1","category":"fine",}',
    b'{"category":"rejected"',
    rb'{"evidence_run_id":"run-2","reasons":["\"evidence_run_id\":\"run-1\""],"category":"rejected",}',
    rb'{"evidence_run_id":"run-1","reasons":["\"category\":\"rejected\""],}',
)


@pytest.mark.parametrize("line", [*FORBID_RUN_1, *SAY_NOTHING_OF_RUN_1])
def test_a_verdict_needs_nothing_but_run_and_category(tmp_path: Path, line: bytes) -> None:
    """A rejection that is hard to read, or of no known category, still forbids; by the oracle and by the engine alike."""
    earlier = lake_of([run_of(1)], [evidence_of(1)])
    expected = [] if line in FORBID_RUN_1 else ["run-1"]
    assert ids(export({**earlier, LATER: (jsonl([line]), b"")}).exported(SFT)) == expected
    with history_lake(tmp_path) as lake:
        lake.scored("2026/01/01/a.jsonl", run_of(1))
        lake.evidence("2026/01/01/a.jsonl", evidence_of(1))
        lake.go()
        assert ids(lake.rows(SFT)) == ["run-1"]
        lake.scored(LATER, line)
        lake.go()
        assert ids(lake.rows(SFT)) == expected
        lake.scored(LATER, line, b'{"evidence_run_id":"run-1","category":"accepted"}')
        lake.go()
        assert ids(lake.rows(SFT)) == ["run-1"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"evidence_run_id":"run-1"}',
        b'{"evidence_run_id":"run-1","category":"fine"}',
        b'{"evidence_run_id":"run-1","category":"needs_human_review",}',
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["in one file", "in a later file"])
def test_an_unreviewed_verdict_clears_nothing(tmp_path: Path, line: bytes, together: bool) -> None:
    """With include_review it counts for nothing in RAG: a broken row lifts no rejection, and takes nothing out."""
    first, later, last = (f"2026/01/0{day}/a.jsonl" for day in (1, 2, 3))
    with history_lake(tmp_path, Options(include_review=True)) as lake:
        lake.scored(first, run_of(1), run_of(2))
        lake.evidence(first, evidence_of(1), evidence_of(2))
        lake.go()
        assert ids(lake.rows(RAG)) == ids(lake.rows(SFT)) == ["run-1", "run-2"]
        rejection = b'{"evidence_run_id":"run-1","category":"rejected"}'
        others = [line, line.replace(b"run-1", b"run-2")]
        if together:
            lake.scored(later, rejection, *others)
        else:
            lake.scored(later, rejection)
            lake.scored(last, *others)
        lake.go()
        assert (ids(lake.rows(RAG)), ids(lake.rows(SFT))) == (["run-2"], [])
        equal_the_full_pass(Exports.read(lake.root), oracle.export(read_lake(lake.root, lake.options), lake.options))
        lake.scored(later)
        lake.scored(last, *others)
        lake.go()
        assert (ids(lake.rows(RAG)), ids(lake.rows(SFT))) == (["run-2", "run-1"], [])
        equal_the_full_pass(Exports.read(lake.root), oracle.export(read_lake(lake.root, lake.options), lake.options))
        lake.scored(last, *others, run_of(1, "needs_human_review"))
        lake.scored(later, rejection)
        lake.go()
        assert "run-1" in ids(lake.rows(RAG))
        equal_the_full_pass(Exports.read(lake.root), oracle.export(read_lake(lake.root, lake.options), lake.options))


def test_without_revoke_the_older_exporters_hole_is_open() -> None:
    """revoke = false judges each row by itself, for comparisons with the older exporters, pairs included."""
    assert rescored("accepted", "rejected", Options(revoke=False)) == (["accepted"], ["accepted"])


def test_an_overruled_row_is_no_side_of_a_pair() -> None:
    """A rejected answer that was accepted later is no bad example, and an accepted one rejected later no good one."""
    rows, given = runs(["accepted", "rejected"], evidence_task_id="t")
    for number, category, name in ((1, "rejected", "chosen"), (2, "accepted", "rejected")):
        again = run_of(number, category, provenance__sig_hash="again", evidence_task_id="other")
        lake = {**lake_of(rows, given), LATER: (jsonl([again]), b"")}
        (row,) = export(lake).quarantined(PREFERENCE)
        assert row["reason"] == "invalid_preference_pairing"
        assert [error.partition(":")[0] for error in row["errors"]] == [name]
        assert len(export(lake, Options(revoke=False)).exported(PREFERENCE)) == 1


# Ids, order and accounting


def test_ids_are_deterministic() -> None:
    """The same input gives the same bytes, and an id depends on run and signature alone."""
    lake = lake_of(*runs(CATEGORIES))
    assert export(lake).files() == export(lake).files()
    (one,) = export(lake_of([run_of(1)], [evidence_of(1)])).exported(RAG)
    (other,) = export(lake_of([run_of(1, reasons=[], note=1)], [evidence_of(1, text="new")], LATER)).exported(RAG)
    assert one["id"] == other["id"]
    (third,) = export(lake_of([run_of(1, provenance__sig_hash="2")], [evidence_of(1)])).exported(RAG)
    assert third["id"] != one["id"]


def test_rag_and_sft_share_their_digits() -> None:
    """The two rows of a run differ in the first letters of their ids only."""
    result = export(lake_of([run_of(1)], [evidence_of(1)]))
    (passage,), (answer,) = result.exported(RAG), result.exported(SFT)
    assert passage["id"].removeprefix("rag-") == answer["id"].removeprefix("sft-")


def test_a_row_that_comes_twice_ships_once() -> None:
    """The second row of one id is held as a duplicate, where the older exporters dropped it without a word."""
    result = export(lake_of([run_of(1), run_of(1), run_of(1, "partially_accepted")], [evidence_of(1)]))
    for dataset in (RAG, SFT):
        assert ids(result.exported(dataset)) == ["run-1"]
    assert reasons(result.quarantined(RAG)) == {"duplicate_id": 2}
    assert reasons(result.quarantined(SFT)) == {"duplicate_id": 1, "category_disallowed": 1}


def test_a_held_row_does_not_hold_its_id() -> None:
    """Only a row that ships takes the id: behind a held one of the same run and signature the next row ships."""
    result = export(lake_of([run_of(1, "needs_human_review"), run_of(1)], [evidence_of(1)]))
    assert ids(result.exported(RAG)) == ids(result.exported(SFT)) == ["run-1"]


def test_nothing_is_remembered_from_one_pass_to_the_next() -> None:
    """A second pass sees its own evidence: a cache that outlived its pass once hid rows from the older exporters."""
    assert export(lake_of([run_of(1)], [])).exported(RAG) == []
    assert ids(export(lake_of([run_of(1)], [evidence_of(1)])).exported(RAG)) == ["run-1"]
    assert export(lake_of([run_of(1)], [])).exported(RAG) == []


MIXED: Lines = [
    *runs([*CATEGORIES, None, "new"])[0],
    run_of(7, evidence_run_id=ABSENT),
    run_of(8, provenance=ABSENT),
    run_of(9),
    run_of(1),
    b"{",
    b"[]",
    b" ",
    b'{"a":1e309}',
    b"\xff",
    {},
    {"category": "accepted"},
]


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=repr)
def test_no_silent_drops(options: Options) -> None:
    """For RAG and for SFT every non-empty line ships or is held, once, for one of the twelve reasons."""
    result = export(lake_of(MIXED, [evidence_of(number) for number in range(1, 8)]), options)
    assert result.lines == len(MIXED)
    for dataset in (RAG, SFT):
        exported, held = result.exported(dataset), result.quarantined(dataset)
        assert len(exported) + len(held) == len(MIXED)
        assert len({row["id"] for row in exported}) == len(exported)
        places = {(row["location"]["partition"], row["location"]["line_offset"]) for row in held}
        assert len(places) == len(held)
        assert set(reasons(held)) <= {reason.value for reason in Reason}
        assert all(row["errors"] and all(row["errors"]) for row in held)
        assert all(row["exporter"] == dataset for row in held)


def test_a_malformed_line_is_told_apart_by_its_place() -> None:
    """Malformed lines count among the non-empty ones, and each is quoted with the file it stands in."""
    result = export({LATER: (b'\n\n{"a":1}\n\n{\n\n \n', b"")})
    held = [row for row in result.quarantined(RAG) if row["reason"] == "schema_violation"]
    assert [row["source_record"] for row in held] == [{"_raw": "{"}, {"_raw": " "}]
    assert [row["location"]["line_offset"] for row in held] == [1, 2]
    assert [row["source_provenance"] for row in held] == [
        {"source_file": f"data/scored-runs/{LATER}", "line_offset": line} for line in (1, 2)
    ]


LINES = st.sampled_from(
    [
        *(run_of(number, category, evidence_task_id=task) for number, category, task in product(
            [1, 2, 3], CATEGORIES, ["t", "u"]
        )),
        run_of(1, provenance__sig_hash="other"),
        run_of(2, provenance=ABSENT),
        run_of(3, evidence_task_id=5),
        {"evidence_run_id": "run-1", "category": "rejected"},
        b"{",
        b'{"evidence_run_id":"run-2","category":"needs_human_review","x":"\xff"}',
    ]
)  # fmt: skip
GIVEN = st.sampled_from(
    [
        *(evidence_of(number) for number in (1, 2, 3)),
        evidence_of(1, text="answer 2"),
        evidence_of(2, text=" "),
        evidence_of(3, model_role="extractor"),
        b"[]",
    ]
)


@PROPERTY
@given(
    st.lists(st.tuples(st.lists(LINES, max_size=6), st.lists(GIVEN, max_size=5)), min_size=1, max_size=3),
    st.sampled_from(ALL_OPTIONS),
)
def test_whatever_the_lake_the_firewall_holds(parts: list[tuple[list[Any], list[Any]]], options: Options) -> None:
    """In any lake the accounts balance, ids are unique, and no forbidden category or verdict is among what ships."""
    lake = {f"2026/04/{day}/x.jsonl": (jsonl(rows), jsonl(given)) for day, (rows, given) in enumerate(parts, 10)}
    result = export(lake, options)
    last: dict[str, str] = {}
    for path in sorted(lake):
        for line in lake[path][0].split(b"\n"):
            text = line.decode(errors="replace")
            if text.startswith("{") and text.endswith("}"):
                row = json.loads(text)
                last[row["evidence_run_id"]] = row["category"]
    for dataset in (RAG, SFT):
        exported = result.exported(dataset)
        assert len(exported) + len(result.quarantined(dataset)) == result.lines
        assert len({row["id"] for row in exported}) == len(exported)
        for row in exported:
            own = row["success_score" if dataset is RAG else "quality_score"]
            for category in {own, last[row["source_run_id"]] if options.revoke else own}:
                assert category != "rejected"
                assert category != "needs_human_review" or (dataset is RAG and options.include_review)
            assert own != "partially_accepted" or dataset is RAG or options.include_partial
    pairs = result.exported(PREFERENCE)
    assert len({row["id"] for row in pairs}) == len(pairs)
    assert max(Counter(row["prompt"] for row in pairs).values(), default=0) <= 5
    for row in pairs:
        assert row["chosen_run_id"] != row["rejected_run_id"]
        assert row["chosen"] != row["rejected"]
        if options.revoke:
            assert last[row["chosen_run_id"]] == "accepted"
            assert last[row["rejected_run_id"]] in {"rejected", "partially_accepted"}
