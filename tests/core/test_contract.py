"""The contract on paper: what code and tests cite is there, and its tables are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distilld.core.firewall import PREFERENCE_GATES, RAG_GATES, SFT_GATES
from distilld.core.model import Cause, Reason

REPOSITORY = Path(__file__).parents[2]
CONTRACT = (REPOSITORY / "docs" / "contract.md").read_text()
MALFORMED = UNFIT = Reason.SCHEMA_VIOLATION


def section(number: str) -> str:
    """The text of a section, without those below it."""
    (text,) = re.findall(rf"^##+ {re.escape(number)}\.? .*?(?=^##|\Z)", CONTRACT, flags=re.MULTILINE | re.DOTALL)
    return str(text)


def sources() -> Iterator[str]:
    """The text of every source file."""
    for folder in ("distilld", "tests"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            yield path.read_text()


def test_what_is_cited_is_there() -> None:
    """Each section of the contract, and each heading of docs/design.md, that code or tests cite exists."""
    texts = list(sources())
    assert all(section(number) for text in texts for number in re.findall(r"\bSPEC ([0-9]+(?:\.[0-9]+)?)", text))
    headings = set(re.findall(r"^## (.*)$", (REPOSITORY / "docs" / "design.md").read_text(), flags=re.MULTILINE))
    named = {name for text in texts for name in re.findall(r"docs/design\.md, '([A-Z][^']+)'", text)}
    assert named
    assert named <= headings


@pytest.mark.parametrize(
    ("number", "reasons"),
    [
        ("3.1", [MALFORMED, *(gate.reason for gate in RAG_GATES), UNFIT]),
        ("3.2", [MALFORMED, *(gate.reason for gate in SFT_GATES), UNFIT]),
        ("3.3", [*(gate.reason for gate in PREFERENCE_GATES), UNFIT]),
    ],
)
def test_tables_of_gates_are_the_firewalls(number: str, reasons: list[Reason]) -> None:
    """The reasons stand in the order in which the gates are asked."""
    assert re.findall(r"\| `([a-z_]+)` \|$", section(number), flags=re.MULTILINE) == reasons


def test_every_reason_is_named() -> None:
    """The first paragraph of section 3.7 names all reasons, in order."""
    _, paragraph, *_ = section("3.7").split("\n\n")
    assert re.findall(r"`([a-z_]+)`", paragraph) == [reason.value for reason in Reason]


def test_every_cause_is_named() -> None:
    """The table of section 3.9 has all causes, in order: the first that fits is published."""
    assert re.findall(r"^\| `([a-z_]+)` \|", section("3.9"), flags=re.MULTILINE) == [cause.value for cause in Cause]


def test_what_is_not_built_is_marked_in_one_way() -> None:
    """One search finds every rule that does not hold yet."""
    marks = re.findall(r"not\s+built\s+yet", CONTRACT)
    assert len(marks) == len(re.findall(r"\*\(not built yet\)\*|\*\(not built yet: [^()]+\)\*", CONTRACT))
