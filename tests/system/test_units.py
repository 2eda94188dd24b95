"""The service's files: what systemd thinks of them, and that 'make install' puts this machine's paths into them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.command import REPOSITORY, environment

SYSTEMD = REPOSITORY / "systemd"
EXPOSURE_MOST = 0.4


STUB = """#!/bin/sh
[ "$1" != -I ] || shift
case "$2" in
    venv) mkdir -p "$4/bin" "$4/lib" && cp "$0" "$4/bin/python" && echo "home = $4" >"$4/pyvenv.cfg" ;;
    pip) echo "$*" >>"${0%/bin/python}/lib/installed" ;;
    distilld) echo config >"$4" ;;
esac
"""


def make(target: str, folder: Path, *, umask: int = -1, **variables: str) -> None:
    """Run a target of the Makefile with everything below a folder."""
    given = [f"{name}={value}" for name, value in {"PREFIX": str(folder / "prefix"), **variables}.items()]
    subprocess.run(
        ["make", "-s", "-C", str(REPOSITORY), target, *given],
        env=environment(), check=True, capture_output=True, umask=umask,
    )  # fmt: skip


def closed_to_others(folder: Path) -> list[Path]:
    """What stands in a folder and the service's user could not read, or not enter."""
    needed = {path: 0o005 if path.is_dir() else 0o004 for path in (folder, *folder.rglob("*"))}
    return [path for path, mode in needed.items() if not path.is_symlink() and path.stat().st_mode & mode != mode]


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as it is installed for a lake below a folder of the test."""
    make("install-units", tmp_path, LAKE=str(tmp_path / "lake"), SYSCONFDIR=str(tmp_path / "etc"))
    program = tmp_path / "prefix/bin/distilld"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path / "prefix/lib/systemd/system/distilld.service"


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze; skips where there is none."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


UNITS = ("distilld.service", "distilld-once.service", "distilld@lake.service", "distilld.timer")


@pytest.mark.parametrize("name", UNITS)
def test_unit_is_without_fault(unit: Path, name: str) -> None:
    """systemd-analyze verify finds nothing to say of the unit."""
    done = analyze("verify", "--man=no", "--recursive-errors=one", str(unit.with_name(name)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", UNITS[:2])
def test_exposure_is_low(unit: Path, name: str) -> None:
    """systemd-analyze security scores the unit 0.4 or lower."""
    done = analyze("security", "--offline=true", "--no-pager", str(unit.with_name(name)))
    found = re.search(r"Overall exposure level for [a-z-]+.service: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE_MOST


def test_other_units_are_the_service_but_for_a_few_words(unit: Path) -> None:
    """One run, and an instance, are shut in like the service; only what must differ does."""
    service = unit.read_text().splitlines()
    once = unit.with_name("distilld-once.service").read_text().splitlines()
    assert once == service[: service.index("[Install]")]
    changed = {
        new.partition("=")[0]: new
        for old, new in zip(service, unit.with_name("distilld@.service").read_text().splitlines(), strict=True)
        if old != new and not new.startswith("#")
    }
    assert set(changed) == {
        "Description", "RequiresMountsFor", "ExecStartPre", "ExecStart", "StateDirectory", "ReadWritePaths",
        "NoExecPaths", "ReadOnlyPaths",
    }  # fmt: skip
    assert changed["StateDirectory"] == "StateDirectory=distilld/%i"
    assert changed["ReadWritePaths"] == "ReadWritePaths=-/srv/%i/exports -/srv/%i/reports"


def test_every_setting_that_hardens_says_what_it_protects() -> None:
    """Below the heading on what it can write, each setting stands right below a comment of its own."""
    text = (SYSTEMD / "distilld.service").read_text()
    hardening = text.partition("# ---- What it can write ----\n")[2].partition("[Install]")[0].splitlines()
    settings = [number for number, line in enumerate(hardening) if line and not line.startswith("#")]
    assert len(settings) > 20
    assert [hardening[number] for number in settings if not hardening[number - 1].startswith("# ")] == []


def test_installed_files_name_this_machine(unit: Path, tmp_path: Path) -> None:
    """No path of the templates is left where another was asked for, and DESTDIR is in none of the files."""
    make("install-units", tmp_path, LAKE="/lake", SERVICE_USER="somebody", PREFIX="/opt/x", DESTDIR=str(tmp_path / "d"))
    for path in (tmp_path / "d").rglob("*.*"):
        if path.is_file():
            text = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
            assert not re.search(r"/usr/local|/srv/lakehouse|(User|Group)=distilld$", text, re.MULTILINE), path
            assert str(tmp_path) not in path.read_text()
    installed = (tmp_path / "d/opt/x/lib/systemd/system/distilld.service").read_text()
    assert "User=somebody\nGroup=somebody\n" in installed
    assert "ExecStart=/opt/x/bin/distilld --config /etc/distilld/distilld.toml run\n" in installed
    assert "ReadWritePaths=-/lake/exports -/lake/reports\n" in installed
    folders = (tmp_path / "d/opt/x/lib/tmpfiles.d/distilld.conf").read_text()
    assert "d /lake/exports 2750 somebody distilld-read -\n" in folders
    # The user is there already; the group of those who train may not be.
    assert "\nu " not in (tmp_path / "d/opt/x/lib/sysusers.d/distilld.conf").read_text()
    assert (unit.parents[2] / "sysusers.d/distilld.conf").exists()


def test_what_the_service_needs_is_open_to_its_user(tmp_path: Path) -> None:
    """Whatever the umask of who installs it: a Python that only makes the files stands for the real one."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    make("install", tmp_path, umask=0o077, DESTDIR=str(tmp_path / "d"), PREFIX="/opt/x", PYTHON=str(stub))
    assert (tmp_path / "d/etc/distilld/distilld.toml").read_text() == "config\n"
    assert (tmp_path / "d/opt/x/lib/distilld/lib/installed").exists()
    assert closed_to_others(tmp_path / "d") == []
    pages = tmp_path / "d/opt/x/share/doc/distilld"
    links = [
        (page, link)
        for page in pages.rglob("*.md")
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    ]
    assert len(links) > 40
    assert [(page, link) for page, link in links if not (page.parent / link).exists()] == []
    unit = (tmp_path / "d/opt/x/lib/systemd/system/distilld.service").read_text()
    assert (tmp_path / f"d{unit.partition('Documentation=file://')[2].split()[0]}").is_file()


def test_install_fetches_only_what_the_lock_file_has_a_hash_of(tmp_path: Path) -> None:
    """Root's 'make install' ran whatever an index gave out as setuptools that day, to build the wheel."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    make("install-program", tmp_path, PYTHON=str(stub))
    for call in (tmp_path / "prefix/lib/distilld/lib/installed").read_text().splitlines():
        locked = {"--require-hashes", "-r", "requirements.txt"} <= set(call.split())
        own = {"--no-index", "--no-deps", "--no-build-isolation"} <= set(call.split())
        assert locked or own or call.startswith("-m pip uninstall "), call


def test_lake_may_have_any_name(tmp_path: Path) -> None:
    """The story: '&' stood for the path in the template, '|' ended the rendering."""
    make("install-units", tmp_path, LAKE=r"/srv/R&D|a\b", PREFIX="/opt/x", DESTDIR=str(tmp_path / "d"))
    units = tmp_path / "d/opt/x/lib"
    service = (units / "systemd/system/distilld.service").read_text()
    assert "ReadWritePaths=-/srv/R&D|a\\b/exports -/srv/R&D|a\\b/reports\n" in service
    assert "d /srv/R&D|a\\b/exports 2750" in (units / "tmpfiles.d/distilld.conf").read_text()


def test_uninstall_takes_away_what_install_put(unit: Path, tmp_path: Path) -> None:
    """Nothing is left below the prefix."""
    make("uninstall", tmp_path)
    assert [path for path in (tmp_path / "prefix").rglob("*") if path.is_file()] == []
    assert not unit.exists()


@pytest.mark.slow
def test_install_works_from_a_folder_of_its_own(tmp_path: Path) -> None:
    """'make install' with DESTDIR leaves a program that runs, a config that is proved good, and no trace of DESTDIR."""
    source = tmp_path / "source"
    shutil.copytree(
        REPOSITORY, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "__pycache__")
    )
    planted = source / "build/lib/distilld/left_over.py"
    planted.parent.mkdir(parents=True)
    planted.touch()
    before = sorted(source.rglob("*"))
    done = subprocess.run(
        ["make", "-s", "-C", str(source), "install", f"DESTDIR={tmp_path / 'd'}", "PREFIX=/opt/x",
         f"LAKE={tmp_path / 'lake'}"],
        env=environment(), capture_output=True, text=True, check=False, umask=0o077,
    )  # fmt: skip
    if done.returncode and "No matching distribution" in done.stderr + done.stdout:
        pytest.skip("there is no package index here to install from")
    assert done.returncode == 0, done.stderr
    program = tmp_path / "d/opt/x/lib/distilld/bin/python"
    config = tmp_path / "d/etc/distilld/distilld.toml"
    (tmp_path / "lake").mkdir()
    check = [str(program), "-m", "distilld", "--config", str(config), "run", "--check"]
    plain = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    said = subprocess.run(check, env=plain, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"root {tmp_path / 'lake'}, state /var/lib/distilld/distilld.db" in said
    traces = [path for path in (tmp_path / "d").rglob("*") if path.is_file() and b"/d/opt/x" in path.read_bytes()]
    assert traces == []
    assert closed_to_others(tmp_path / "d") == []
    assert 'exec /opt/x/lib/distilld/bin/python -I -m distilld "$@"' in (tmp_path / "d/opt/x/bin/distilld").read_text()
    assert list((tmp_path / "d").rglob("left_over*")) == []
    assert sorted(source.rglob("*")) == before, "root left files in the checkout"
    listed = subprocess.run(
        [str(program), "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True
    ).stdout
    installed = {line.replace("_", "-").lower() for line in listed.splitlines() if not line.startswith("distilld ")}
    locked = set(re.findall(r"^[a-z0-9-]+==[^ ]+", (REPOSITORY / "requirements.txt").read_text(), re.MULTILINE))
    assert {name for name in locked if not name.startswith("flit-core")} == installed
