"""What commands print: safe for a terminal, and the same values as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distilld.cli.output import plain, print_json, say, show
from distilld.core.model import Dataset, RowRef
from distilld.service.lock import Holder
from distilld.tables import Table


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that does not print is escaped, line ends too: what is quoted forges no line."""
    say("a\x1b[2J\tb\nc\u2028\u202e\x7f")
    assert capsys.readouterr().out == "a\\x1b[2J\\tb\\nc\\u2028\\u202e\\x7f\n"


def test_shown_table_ends_with_an_empty_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A table that is not on a terminal is plain text."""
    show(Table("T", ("a",), [(1,)]))
    assert capsys.readouterr().out == "T\n  a\n  1\n\n"


def test_values_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Dataclasses and named tuples become objects, enums and paths their text; the JSON is ASCII."""
    value = {
        Dataset.RAG: Holder(running=True, pid=7, state=Path("/ä")),
        "at": RowRef("a/b/c/d.jsonl", 5),
        "n": [None, 1.5],
    }
    shown = plain(value)
    assert (shown["rag"]["running"], shown["rag"]["pid"], shown["rag"]["state"]) == (True, 7, "/ä")
    assert (shown["at"], shown["n"]) == ({"partition": "a/b/c/d.jsonl", "line": 5}, [None, 1.5])
    print_json(value)
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == shown
