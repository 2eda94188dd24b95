"""What commands print: safe for a terminal, and the same values as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distilld.cli import output
from distilld.cli.output import plain, print_json, say, say_block, say_coloured, show
from distilld.core.model import Dataset, RowRef
from distilld.service.lock import Holder
from distilld.tables import Table


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that does not print is escaped, line ends too: what is quoted forges no line."""
    say("a\x1b[2J\tb\nc\u2028\u202e\x7f")
    assert capsys.readouterr().out == "a\\x1b[2J\\tb\\nc\\u2028\\u202e\\x7f\n"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch, no_color: str) -> None:
    """NO_COLOR keeps a line plain, also on a terminal; what is said is made safe either way."""
    said: list[str] = []
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr("click.echo", said.append)
    say_coloured("healthy\x07", "green")
    assert said == ["healthy\\x07" if no_color else "\x1b[32m\x1b[1mhealthy\\x07\x1b[0m"]


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


@pytest.mark.parametrize("width", [None, 80, 40])
def test_wide_table_becomes_blocks_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    """No line of a table is longer than the terminal; off a terminal a table keeps one line a row."""
    monkeypatch.setattr(output, "_width", lambda: width)
    run = "run-" + "x y " * 22
    show(Table("T", ("run", "category", "batch"), [(run, "accepted", 1_000), ("b", None, 2)]))
    lines = capsys.readouterr().out.splitlines()
    if width is None:
        assert (len(lines), lines[2].split()[-1]) == (5, "1,000")
    else:
        assert max(map(len, lines)) <= width
        assert "  category  accepted" in lines
        assert "".join(run.split()) in "".join("".join(lines).split())


def test_block_is_wrapped_below_its_label(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text goes on below where it began; what does not print is escaped."""
    monkeypatch.setattr(output, "_width", lambda: 30)
    say_block("row\x1b", [("rag", "quarantined because of its category"), ("sft", "exported")])
    assert capsys.readouterr().out == (
        "row\\x1b\n  rag  quarantined because of\n       its category\n  sft  exported\n"
    )
