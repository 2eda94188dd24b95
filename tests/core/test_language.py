"""The documents keep to the words that docs/design.md defines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DESIGN = (REPOSITORY / "docs" / "design.md").read_text()
WORDS = re.findall(
    r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]*?) ?\|$", DESIGN.partition("## Words")[2].partition("\n## ")[0], re.M
)
RETIRED = [word for _, _, retired in WORDS[1:] for word in retired.split(", ") if word]
DIALECT = ["be it that", "by way of exception", "in the place of", "is told", "whoever keeps"]
"""Turns of phrase that readers stumbled over."""
FORMS = {
    "ship": r"ships?|shipped|shipping",
    "hold back": r"h(?:o|e)ld back",
    "frozen": r"frozen|fr(?:ee|o)zes?|thaw\w*",
}
"""Of a retired word, what else it appears as."""
PAGES = sorted(
    str(page.relative_to(REPOSITORY)) for pattern in ("*.md", "docs/**/*.md") for page in REPOSITORY.glob(pattern)
)


def prose(page: str) -> list[str]:
    """The lines of a page without code: what stands in fences and backticks are names, and quoted texts."""
    text = re.sub(r"^```.*?^```$", "", (REPOSITORY / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text.replace("\\|", "")).splitlines()


def test_words_are_few() -> None:
    """A glossary that nobody can remember defines nothing: at most twenty words, each once."""
    assert 10 < len(WORDS[2:]) <= 20
    assert len({word for word, _, _ in WORDS}) == len(WORDS)
    assert RETIRED


@pytest.mark.parametrize("page", PAGES)
def test_page_uses_no_retired_word(page: str) -> None:
    """A word that the glossary retires is in no document, but in the glossary itself."""
    words = "|".join([FORMS.get(word, re.escape(word)) for word in RETIRED] + DIALECT)
    glossary = {f"| {word} | {meaning} | {retired} |" for word, meaning, retired in WORDS}
    found = [
        line for line in prose(page) if line not in glossary and re.search(rf"\b(?:{words})\b", line, re.IGNORECASE)
    ]
    assert not found


MODULES = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "distilld").rglob("*.py")
    if path.name not in ("schema.py", "migrations.py")
)
"""All but what says how older stores were made."""
CODE_MAY_SAY = re.compile(
    r"\bfrozenset\b|\bfrozen=True\b|\bshipped_batch\b|\"shipped\"|"
    # Errors in quarantine rows, whose bytes do not change.
    r"run revoked: the verdict in force is|its run's verdict in force\""
)


@pytest.mark.parametrize("module", MODULES)
def test_module_uses_no_retired_word(module: str) -> None:
    """Names, docstrings, comments and messages use the words of the documents."""
    words = "|".join([*(FORMS.get(word, re.escape(word)) for word in RETIRED), *DIALECT])
    text = CODE_MAY_SAY.sub("", (REPOSITORY / module).read_text())
    assert re.findall(rf"(?<![A-Za-z])(?:{words})(?![A-Za-z])", text, re.IGNORECASE) == []


def test_contributing_names_files_that_are_there() -> None:
    """Every file, folder and make target that CONTRIBUTING.md sends a newcomer to exists."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    paths = {path for path in re.findall(r"(?:distilld|docs|tests|config)/[\w./]*", text) if "NAME" not in path}
    assert len(paths) > 10
    assert [path for path in paths if not (REPOSITORY / path.rstrip(".")).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"lint", "test"} <= named <= targets
