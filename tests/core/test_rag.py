"""What a RAG row holds, value by value, and what single gates of RAG weigh."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilld.core.datasets import rag
from distilld.core.json_text import WHITESPACE
from distilld.core.model import Options
from tests.support.builders import ABSENT, AT, PROPERTY, STAMP, Flaw, exported, held, passing_case


def sample(**changes: Any) -> dict[str, Any]:
    """The row of the usual case, with changes of its evidence."""
    return exported(rag.judge(Flaw(evidence=changes).case(), AT))


def test_the_whole_row() -> None:
    """Every key in its order, every value from its source, and both timestamps from the batch."""
    row = sample()
    digits = hashlib.sha256(b"run-1|5f0c").hexdigest()[:16]
    assert list(row.items()) == [
        ("schema_version", 1),
        ("id", f"rag-{digits}"),
        ("title", "# Review"),
        ("content", "# Review\n\nOne finding, high severity."),
        (
            "tags",
            ["task:scrum_review", "category:accepted", "role:executor", "model:qwen3:32b", "file:src/lib.rs"],
        ),
        ("source_run_id", "run-1"),
        ("success_score", "accepted"),
        ("source_category", "accepted"),
        ("embedding_text", "# Review\n\nOne finding, high severity."),
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


def test_the_id_is_pinned() -> None:
    """The id of a run and its signature never changes; the outcome has it, too."""
    outcome = rag.judge(passing_case(), AT)
    assert outcome.id == exported(outcome)["id"] == "rag-990d7fdf507d7f40"


TAGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"task_id": "a:b:c"}, ["task:a", "category:accepted"]),
    ({"task_id": "plain"}, ["task:plain", "category:accepted"]),
    ({"task_id": ""}, ["task:", "category:accepted"]),
    ({"task_id": ":x"}, ["task:", "category:accepted"]),
    ({"model_role": "applier"}, ["task:scrum_review", "category:accepted", "role:applier"]),
    ({"model_name": "m"}, ["task:scrum_review", "category:accepted", "model:m"]),
    ({"source_files": ["a", "b"]}, ["task:scrum_review", "category:accepted", "file:a"]),
    ({"source_files": ["", "b"]}, ["task:scrum_review", "category:accepted"]),
    ({"source_files": []}, ["task:scrum_review", "category:accepted"]),
    ({"source_files": [["a"]]}, ["task:scrum_review", "category:accepted"]),
]


@pytest.mark.parametrize(("changes", "tags"), TAGS, ids=[json.dumps(changes) for changes, _ in TAGS])
def test_tags(changes: dict[str, Any], tags: list[str]) -> None:
    """Task and category always, role, model and first file where the evidence has them."""
    bare = {"model_role": ABSENT, "model_name": ABSENT, "source_files": ABSENT}
    assert sample(**{**bare, **changes})["tags"] == tags


@pytest.mark.parametrize("category", ["accepted", "partially_accepted", "needs_human_review"])
def test_the_category_stands_in_three_places(category: str) -> None:
    """The row's category is its success_score, its source_category and a tag."""
    case = Flaw(scored={"category": category}, around={"options": Options(include_review=True)}).case()
    row = exported(rag.judge(case, AT))
    assert (row["success_score"], row["source_category"], row["tags"][1]) == (
        category,
        category,
        f"category:{category}",
    )


TITLES = [
    ("one", "one"),
    ("one\ntwo", "one"),
    ("\n \t\n\u00a0\n  two \nthree", "  two "),
    ("one\r\ntwo", "one\r"),
    ("one\u2028two", "one\u2028two"),
    ("\u001c\ntwo", "\u001c"),
    ("x" * 130, "x" * 120),
    ("x" * 119 + "😀y", "x" * 119),
    ("x" * 118 + "😀y", "x" * 118 + "😀"),
    ("é" * 130, "é" * 120),
    ("😀" * 70, "😀" * 60),
]


@pytest.mark.parametrize(("text", "title"), TITLES, ids=[ascii(text[:20]) for text, _ in TITLES])
def test_title(text: str, title: str) -> None:
    """The title is the first line that is not blank, untrimmed, cut to 120 UTF-16 units that split no pair."""
    assert sample(text=text)["title"] == title


@PROPERTY
@given(st.text(st.sampled_from(["\n", " ", "\u00a0", "\r", "\u001c", "a", "é", "😀"]), min_size=1, max_size=12))
def test_title_is_what_javascript_finds(text: str) -> None:
    """The title is the first of the lines, split at line feeds, whose trimmed form is not empty."""
    lines = [line for line in text.split("\n") if line.strip(WHITESPACE)]
    outcome = rag.judge(Flaw(evidence={"text": text}).case(), AT)
    if lines:
        assert exported(outcome)["title"] == lines[0]
    else:
        assert held(outcome)["reason"] == "empty_content"


def test_the_title_of_a_text_that_begins_with_a_million_blank_lines() -> None:
    """Blank lines are passed in one go: they were once copied line by line, and one such row stopped the box."""
    case = Flaw(evidence={"text": "\n" * 1_000_000 + "late"}).case()
    started = time.process_time()
    row = held(rag.judge(case, AT))
    assert time.process_time() - started < 5
    assert row["errors"] == ["embedding_text: must not be blank"]


def test_the_embedding_text_is_cut_and_the_content_is_not() -> None:
    """embedding_text is the text cut to 2000 UTF-16 units, splitting no pair; content is the whole text, untrimmed."""
    text = " " + "x" * 1998 + "😀" + "tail\n"
    row = sample(text=text)
    assert row["content"] == text
    assert row["embedding_text"] == " " + "x" * 1998
    assert sample(text="é" * 2001)["embedding_text"] == "é" * 2000


def test_a_long_blank_first_line_leaves_no_title() -> None:
    """A first line that is blank within the cut is a blank title, which the schema refuses."""
    assert held(rag.judge(Flaw(evidence={"text": "\u3000" * 120 + "x"}).case(), AT))["errors"] == [
        "title: must not be blank"
    ]


@pytest.mark.parametrize("missing", ["sig_hash", "source_file"])
@pytest.mark.parametrize("value", [ABSENT, "", None, 5, ["x"]], ids=["absent", "empty", "null", "number", "list"])
def test_rag_needs_both_halves_of_the_provenance(missing: str, value: object) -> None:
    """RAG holds a row whose sig_hash or source_file is no non-empty string, as if there were no provenance."""
    case = Flaw(scored={f"provenance__{missing}": value}).case()
    assert held(rag.judge(case, AT))["reason"] == "missing_provenance"


@pytest.mark.parametrize("options", [Options(), Options(include_review=True)], ids=["default", "review"])
def test_rag_never_takes_rejected(options: Options) -> None:
    """A rejected row is disallowed in RAG by every option, and the text names the categories that are allowed."""
    case = Flaw(scored={"category": "rejected"}, around={"options": options}).case()
    allowed = "accepted,partially_accepted" + (",needs_human_review" if options.include_review else "")
    assert held(rag.judge(case, AT))["errors"] == [f"category=rejected not in [{allowed}]"]


def test_rejected_is_refused_by_the_rag_schema_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all gates of RAG off a rejected row is still no RAG row."""
    monkeypatch.setattr(rag, "RAG_GATES", ())
    row = held(rag.judge(Flaw(scored={"category": "rejected"}).case(), AT))
    assert row["errors"] == [f"{key}: is not one of the allowed values" for key in ("success_score", "source_category")]


def test_a_row_without_a_task_id_keeps_no_title(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the content gate off a blank text falls back to the task id as its title, and is refused all the same."""
    monkeypatch.setattr(rag, "RAG_GATES", ())
    row = held(rag.judge(Flaw(evidence={"text": " "}).case(), AT))
    assert row["errors"] == ["content: must not be blank", "embedding_text: must not be blank"]
