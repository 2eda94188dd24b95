"""What is built: the source distribution holds what a contributor needs, the wheel what its commands need."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.command import REPOSITORY, once
from tests.support.inspecting import fetched, inspecting, needs_datasette
from tests.support.sample import SampleLake

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
BUILD = (
    "import importlib, sys; backend = importlib.import_module(sys.argv[1]);"
    "print(getattr(backend, sys.argv[2])(sys.argv[3]))"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what its tools made."""
    made = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo-lake", "*.db*")
    return Path(shutil.copytree(REPOSITORY, tmp_path_factory.mktemp("checkout") / "distilld", ignore=made))


def built(checkout: Path, what: str) -> Path:
    """Build a distribution as pip does, with the build backend that is installed."""
    (checkout / "dist").mkdir(exist_ok=True)
    made = subprocess.run(
        [sys.executable, "-c", BUILD, PYPROJECT["build-system"]["build-backend"], what, str(checkout / "dist")],
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
    pages = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert pages | {"Makefile", "constraints.txt", "requirements.txt", "pyproject.toml"} <= names


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
    code = f"import distilld.__main__ as it; assert it.__file__.startswith({str(tmp_path)!r}); it.main()"
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


def test_wheel_holds_nothing_of_an_earlier_build(checkout: Path) -> None:
    """What lay in the build folder of the checkout was installed with the program, and ran as the service."""
    planted = checkout / "build/lib/distilld/left_over.py"
    planted.parent.mkdir(parents=True)
    planted.touch()
    with zipfile.ZipFile(built(checkout, "build_wheel")) as wheel:
        assert [name for name in wheel.namelist() if "left_over" in name] == []


def locked() -> dict[str, tuple[str, int]]:
    """The version of each package of the lock file, and how many files of it have a hash there."""
    entries = re.split(r"^(?=[a-z])", (REPOSITORY / "requirements.txt").read_text(), flags=re.MULTILINE)[1:]
    pinned = [re.match(r"([a-z0-9-]+)==(\S+) \\\n", entry) for entry in entries]
    return {
        found[1]: (found[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", found.string)))
        for found in pinned
        if found is not None
    }


def required(names: set[str]) -> set[str]:
    """Packages, and what they require here, to the last."""
    below = {
        canonicalize_name(needed.name)
        for name in names
        for needed in map(Requirement, requires(name) or ())
        if needed.marker is None or needed.marker.evaluate({"extra": ""})
    }
    return names if below <= names else required(names | below)


def test_lock_file_has_a_hash_of_all_that_is_installed() -> None:
    """A package that is fetched while root installs, to run or to build distilld, is one that was seen before."""
    builds = {canonicalize_name(Requirement(text).name) for text in PYPROJECT["build-system"]["requires"]}
    assert required({"distilld"} | builds) - {"distilld"} <= set(locked())
    assert {name for name, (_, hashes) in locked().items() if not hashes} == set()
    # A source distribution would fetch what builds it, whatever its own hash.
    assert "\n--only-binary :all:\n" in (REPOSITORY / "requirements.txt").read_text()


def test_lock_file_and_constraints_name_the_same_versions() -> None:
    """What is installed is what the tests ran with."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    constraints: dict[str, str] = {
        canonicalize_name(name): pinned for name, _, pinned in (line.partition("==") for line in lines)
    }
    assert {name: pinned for name, (pinned, _) in locked().items()} == {name: constraints[name] for name in locked()}
    assert version("flit-core") == locked()["flit-core"][0]
