"""What a malformed scored line still says (SPEC 2)."""

from __future__ import annotations

import codecs
import json
import re
import tracemalloc
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distilld.core.line_facts import LIKE_REJECTED, UNREVIEWED, VERDICTS
from distilld.core.model import Category
from distilld.core.unreadable_verdict import WINDOW_BYTES, UnreadableVerdict, VerdictSearch, unreadable_verdict
from distilld.inspection.oracle_verdicts import verdicts_of
from tests.support.builders import PROPERTY

REJECTED = '{"evidence_run_id":"r1","category":"rejected"'
LINES = {
    "torn": REJECTED.encode(),
    "mark": codecs.BOM_UTF8 + REJECTED.encode(),
    "utf16": REJECTED.encode("utf-16"),
    "utf16 big": codecs.BOM_UTF16_BE + REJECTED.encode("utf-16-be"),
    "utf16 without mark": REJECTED.encode("utf-16-le"),
    "wrong mark": codecs.BOM_UTF16_LE * 300 + REJECTED.encode(),
    "odd behind a wrong mark": codecs.BOM_UTF16_LE + b"x" + REJECTED.encode(),
    "mark in a name": b'{"evidence_run_id":"r' + codecs.BOM_UTF8 + b'1","category":"rejected"',
    "white space": b'{"category" \t: " rejected ","evidence_run_id" : \r"r1"',
    "NULs": bytes(5000) + REJECTED.encode(),
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("block", [1, 2, 7, 1 << 17])
def test_verdict_is_found_whatever_the_blocks_are(line: bytes, block: int) -> None:
    """A random history: a line behind a mark of UTF-16 forbade its run if it was too long to be read, and else not."""
    search = VerdictSearch()
    for start in range(0, len(line), block):
        search.add(line[start : start + block])
    assert search.found() == unreadable_verdict(line) == UnreadableVerdict(LIKE_REJECTED, ("r1",))


def test_utf16_names_runs_beyond_ascii() -> None:
    """Without its NULs such a name would be another one; both count."""
    found = unreadable_verdict('{"evidence_run_id":"läuft","category":"needs_human_review"'.encode("utf-16"))
    assert found is not None
    assert found.category == UNREVIEWED
    assert "läuft" in found.run_ids


@pytest.mark.parametrize(
    "line",
    ['{"evidence_run_id":"r1","category":"accepted"', '{"category":"rejected"', r'"{\"category\":\"rejected\"'],
    ids=str,
)
def test_line_that_rejects_no_run_forbids_none(line: str) -> None:
    """Neither a run nor a rejection alone forbids, nor what is quoted inside a string."""
    assert unreadable_verdict(line.encode()) is None


def test_verdict_is_found_across_blocks_within_its_window() -> None:
    """What lies between a run and its category may be longer than any block."""
    search = VerdictSearch()
    for block in (b'{"evidence_run_id":"r1","category":"rej', b'ected"', b" " * (2 * WINDOW_BYTES)):
        search.add(block)
    assert search.found() == UnreadableVerdict(LIKE_REJECTED, ("r1",))


@pytest.mark.parametrize(
    "where", [b'"evidence_run_id"', b'"evidence_run_id":', b'"category"', b'"category":', b'"category":"', b"rejected"]
)
def test_white_space_of_any_length_hides_no_verdict(where: bytes) -> None:
    """It may be longer than anything that is remembered, and end anywhere in a block."""
    before, behind = b'{"category":"rejected","evidence_run_id":"r1"'.split(where)
    line = before + where + b" " * (WINDOW_BYTES + 70_000) + behind
    search = VerdictSearch()
    for start in range(0, len(line), 1 << 17):
        search.add(line[start : start + (1 << 17)])
    assert search.found() == unreadable_verdict(line) == UnreadableVerdict(LIKE_REJECTED, ("r1",))


def test_key_is_read_to_the_letter_and_its_word_in_any_case() -> None:
    """As in a row that can be read: a key of another case is another key."""
    assert unreadable_verdict(b'{"CATEGORY":"rejected","evidence_run_id":"a"') is None
    assert unreadable_verdict(b'{"category":"REJECTED","evidence_run_id":"a"') is not None


def test_escapes_of_a_run_id_are_read_beside_control_characters() -> None:
    """A tab that no JSON has must not keep the escapes behind it from being read."""
    found = unreadable_verdict(b'{"category":"rejected","evidence_run_id":"a\t\\u00e9"')
    assert found == UnreadableVerdict(LIKE_REJECTED, ("a\t\u00e9",))


@pytest.mark.parametrize("block", [1, 30, 1 << 17])
@pytest.mark.parametrize("torn", ['{"evidence_run_id":"r', '{"evidence_run_id":', '{"evidence_run_id":"r\\'], ids=str)
def test_row_that_is_torn_in_its_run_id_hides_no_rejection_behind_it(torn: str, block: int) -> None:
    """A writer died within a run id, and its next row follows in the same line: its opening quote closed the torn id."""
    line = f'{torn}{{"evidence_run_id":"r1","category":"rejected"}}'.encode()
    search = VerdictSearch()
    for start in range(0, len(line), block):
        search.add(line[start : start + block])
    for found in (search.found(), unreadable_verdict(line)):
        assert found is not None
        assert "r1" in found.run_ids
    assert "r1" in dict(verdicts_of(line, None))


def test_torn_word_hides_no_word_behind_it() -> None:
    """A quote that closes one word may open the next key."""
    for word in ("needs_human_review", "accepted"):
        line = f'{{"evidence_run_id":"r1","category":"{word}"category":"rejected"}}'.encode()
        assert unreadable_verdict(line) == UnreadableVerdict(LIKE_REJECTED, ("r1",))
        assert verdicts_of(line, None) == [("r1", Category.REJECTED)]


NAMED = rb'"evidence_run_id"[ \t\n\r]*:[ \t\n\r]*(?="((?:[^"\\]|\\.)+)")'
"""A run id, spelt so that every part of it can be tried again."""


@PROPERTY
@given(
    st.lists(
        st.sampled_from(['"evidence_run_id"', ":", " ", '"', "\\", "a", "\n", '"evidence_run_id":"', '\\"', "é"]),
        max_size=30,
    ).map("".join)
)
def test_run_ids_are_those_of_the_plain_expression(text: str) -> None:
    """The search never goes back within a run id, and finds what one that could go back would find."""
    raw = f'"category":"rejected",{text}'.encode()
    plain = [each.decode() for each in re.findall(NAMED, raw, re.DOTALL)]
    found = unreadable_verdict(raw)
    assert [run_id for run_id, _ in verdicts_of(raw, None)] == [text_of(each) for each in plain]
    assert list(found.run_ids if found else ()) == list(dict.fromkeys(map(text_of, plain)))


PIECES = [
    '"evidence_run_id":"',
    '"category":"',
    "rejected",
    "needs_human_review",
    "accepted",
    '"',
    '\\"',
    "Ã©",
    "\0",
    "\ufeff",
    " ",
]


@PROPERTY
@given(
    st.lists(st.sampled_from(PIECES), max_size=20),
    st.sampled_from(["utf-8", "utf-16", "utf-16-le"]),
    st.integers(1, 40),
)
@example(['"category":"', "accepted", '"category":"', "rejected", '"'], "utf-8", 40)
@example(['"category":"', "needs_human_review", '"category":"', "rejected", '"'], "utf-8", 40)
@example(['"evidence_run_id":"', "Ã©", '"'], "utf-16-le", 40)
def test_search_agrees_with_the_oracle(pieces: list[str], encoding: str, size: int) -> None:
    """NULs go before the bytes are read, and no word hides the next one, whatever the blocks are."""
    raw = "".join(['"category":"needs_human_review"', *pieces, '"evidence_run_id":"é"']).encode(encoding)
    search = VerdictSearch()
    for start in range(0, len(raw), size):
        search.add(raw[start : start + size])
    found = search.found()
    assert found is not None
    assert {(run_id, VERDICTS[found.category]) for run_id in found.run_ids} == set(verdicts_of(raw, None))


def text_of(spelt: str) -> str:
    """The text of a run id as it is spelt in a line."""
    try:
        return str(json.loads(f'"{spelt}"', strict=False))
    except ValueError:
        return spelt


@pytest.mark.parametrize("end", ["", '"'], ids=["torn", "closed"])
@pytest.mark.parametrize("text", ["a", "\\n", "a\\n"], ids=["plain", "escapes", "both"])
def test_long_run_id_takes_little_memory(text: str, end: str) -> None:
    """The story: a malformed line of 8 MiB took 1.1 GiB, and the process was killed at each start."""
    raw = b'{"category":"rejected","evidence_run_id":"' + text.encode() * (1 << 20) + end.encode()
    for search in (partial(unreadable_verdict, raw), partial(verdicts_of, raw, None)):
        tracemalloc.start()
        found = search()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert bool(found) == bool(end)
        assert peak < 10 * len(raw)
