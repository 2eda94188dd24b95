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


def cited(name: str) -> Iterator[str]:
    """The numbers that the sources cite behind a name."""
    for folder in ("distilld", "tests"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            yield from re.findall(rf"\b{name} ([0-9]+(?:\.[0-9]+)?)", path.read_text())


def test_what_is_cited_is_there() -> None:
    """Each section of the contract that code or tests cite exists; docs/design.md says what the other numbers are."""
    assert all(section(number) for number in set(cited("SPEC")))
    design = (REPOSITORY / "docs" / "design.md").read_text()
    assert all(f"`DESIGN {number}`" in design for number in set(cited("DESIGN")))


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


@pytest.mark.parametrize(("number", "words"), [("3.7", Reason), ("3.9", Cause)])
def test_closed_lists_are_whole(number: str, words: type[Reason] | type[Cause]) -> None:
    """Every reason and every cause is named, in order."""
    assert re.findall(r"`([a-z_]+)`", section(number)) == [word.value for word in words]
