"""Modules and classes stay small enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

MODULES = sorted((Path(__file__).parents[2] / "distilld").rglob("*.py"))
MOST_LINES_OF_A_MODULE = 450
MOST_LINES_OF_A_CLASS = 250


def test_modules_are_short() -> None:
    """A module that does several jobs grows until nobody reads it as a whole: it is split before that."""
    lines = {module.name: module.read_text().count("\n") for module in MODULES}
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_MODULE} == {}


def test_classes_are_short() -> None:
    """The same for classes, whose attributes every method can change."""
    lines = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert len(lines) > 200
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_CLASS} == {}
