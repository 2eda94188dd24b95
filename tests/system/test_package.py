"""What is built: the source distribution holds what a contributor needs, the wheel what its commands need."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from distilld.demo.sample_lake import SampleLake
from tests.support.command import REPOSITORY, once
from tests.support.inspecting import fetched, inspecting, needs_datasette

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what its tools made."""
    made = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo-lake", "*.db*")
    return Path(shutil.copytree(REPOSITORY, tmp_path_factory.mktemp("checkout") / "distilld", ignore=made))


def built(checkout: Path, what: str) -> Path:
    """Build a distribution as pip does, with the setuptools that is installed."""
    made = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(checkout / "dist")],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    return checkout / "dist" / made.stdout.splitlines()[-1]


def test_source_distribution_is_complete(checkout: Path) -> None:
    """Whoever unpacks the source distribution can run make: documents, tests, config, units and the viewer's files are there."""
    with tarfile.open(built(checkout, "build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("docs", "tests", "config", "systemd", "distilld"):
        files = {path.relative_to(checkout).as_posix() for path in (checkout / folder).rglob("*") if path.is_file()}
        assert files - names == set(), folder
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "pyproject.toml"} <= names


@pytest.fixture(scope="module")
def wheel_file(checkout: Path) -> Path:
    """The wheel."""
    return built(checkout, "build_wheel")


@needs_datasette
def test_inspect_works_from_a_wheel(wheel_file: Path, sample: SampleLake, tmp_path: Path) -> None:
    """The views for Datasette were in the checkout alone; the command of a wheel shows its pages without one."""
    assert once(sample.root).code == 0
    with zipfile.ZipFile(wheel_file) as wheel:
        wheel.extractall(tmp_path / "installed")
    code = "from distilld.cli.main import main; main()"
    words = [sys.executable, "-c", code, "inspect", "--root", str(sample.root), "--port", "0"]
    with inspecting(sample.root / "state/distilld.db", start=words, package=tmp_path / "installed") as address:
        assert "<h1>Dashboard</h1>" in fetched(address, "")
        assert "no scored row" in fetched(address, "-/history?of=nobody")
        assert "What became of a run?" in fetched(address, "distilld")


def test_wheel_holds_what_its_commands_need(checkout: Path, wheel_file: Path) -> None:
    """A wheel has every file of the package, data included, and nothing beside it."""
    with zipfile.ZipFile(wheel_file) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    package = {path.relative_to(checkout).as_posix() for path in (checkout / "distilld").rglob("*") if path.is_file()}
    assert names == package
    assert "distilld/inspection/datasette/metadata.yaml" in names
    assert "# distilld" in metadata
