"""The layers: imports run downwards only, and the contract that says so does catch what runs upwards."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).parents[2]

LAYERS = "Imports run downwards only"
CORE = "The core's own order"
START = "The config is read before anything slow is imported"
PURE = "The pure core knows no file, clock, random number, log or database"


def broken_contracts(folder: Path) -> set[str]:
    """The names of the contracts that the package in ``folder`` breaks."""
    # -P keeps the working directory out of the path until lint-imports puts it there itself.
    run = subprocess.run(
        [sys.executable, "-P", "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    verdicts = [line.rstrip() for line in run.stdout.splitlines()]
    kept = {name for name in (LAYERS, CORE, START, PURE) for line in verdicts if line.startswith(f"{name} KEPT")}
    broken = {name for name in (LAYERS, CORE, START, PURE) for line in verdicts if line.startswith(f"{name} BROKEN")}
    assert kept | broken == {LAYERS, CORE, START, PURE}, run.stdout + run.stderr
    assert (run.returncode == 0) == (not broken)
    return broken


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package in a folder of its own, to be broken."""
    shutil.copytree(REPOSITORY / "distilld", tmp_path / "distilld", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_package_keeps_every_contract() -> None:
    """The package as it stands breaks no contract."""
    assert broken_contracts(REPOSITORY) == set()


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("files/durable", "import distilld.lake", LAYERS),
        ("lake/scan", "import distilld.store", LAYERS),
        ("store/inputs", "def later(): import distilld.engine", LAYERS),
        ("a_drawer_for_everything", "", LAYERS),
        ("core/json_text", "import distilld.core.firewall", CORE),
        ("config/settings", "import pydantic", START),
        ("core/columns", "import distilld.core.samples", CORE),
        ("core/model", "import os.path", PURE),
        ("core/datasets/rag", "def now(): import time", PURE),
    ],
)
def test_broken_layer_turns_red(package: Path, module: str, line: str, contract: str) -> None:
    """An import that runs upwards, sideways or out of the core, and a module without a place, are caught."""
    with (package / "distilld" / f"{module}.py").open("a") as file:
        file.write(f"\n{line}\n")
    assert contract in broken_contracts(package)


def test_picture_of_packages_is_the_code() -> None:
    """docs/design.md draws an arrow only where a package imports another, and each import follows arrows."""
    picture = (REPOSITORY / "docs" / "design.md").read_text().partition("```mermaid")[2].partition("```")[0]
    arrows = set(re.findall(r"(\w+) --> (\w+)", picture))
    graph = grimp.build_graph("distilld", cache_dir=None)
    parts = {module: module.split(".")[1] for module in graph.modules if "." in module}
    imports = {
        (importer, imported)
        for module, importer in parts.items()
        for each in graph.find_modules_directly_imported_by(module)
        if (imported := parts.get(each, importer)) != importer
    }
    assert arrows <= imports
    paths = set(arrows)
    while longer := {(one, last) for one, two in paths for two_too, last in arrows if two == two_too} - paths:
        paths |= longer
    assert imports <= paths
