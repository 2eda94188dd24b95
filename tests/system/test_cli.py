"""The real command, run as a process: its commands and options, wrong usage, exit codes, and what a terminal gets."""

from __future__ import annotations

import ast
import errno
import importlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from inspect import getsource
from pathlib import Path
from typing import Final

import pytest

from distilld.cli.commands import COMMANDS, Common
from distilld.cli.main import execute
from distilld.cli.settings import load_settings
from distilld.cli.streams import WorkCommand
from distilld.config.load import load
from distilld.config.template import config_text
from distilld.core.model import EXPORT_PATHS
from distilld.demo.sample_lake import append_rows, rescore_in_place
from tests.support.command import (
    REPOSITORY,
    Ran,
    another_writer,
    command,
    distilld,
    environment,
    once,
    phase4,
    put,
    snapshot,
)
from tests.support.sample import SampleLake

# what every command does


def commands_in_help() -> list[str]:
    """The commands that --help lists."""
    text = distilld("--help", cwd=REPOSITORY).out
    return re.findall(r"^  ([a-z-]+) {2,}\S", text.split("Commands:")[1], flags=re.MULTILINE)


def test_docs_name_the_commands_and_their_options() -> None:
    """docs/cli.md has a section for each command of --help, and each section names every option of its command."""
    text = (REPOSITORY / "docs" / "cli.md").read_text()
    common, *sections = re.split(r"^## distilld ", text, flags=re.MULTILINE)
    described = {section.partition("\n")[0]: section for section in sections}
    assert list(described) == commands_in_help()
    for name, section in described.items():
        options = set(re.findall(r"^ +(--[a-z-]+)", distilld(name, "--help", cwd=REPOSITORY).out, flags=re.MULTILINE))
        assert options >= {"--config", "--root", "--state"} or name == "demo"
        for option in options:
            assert f"`{option}" in section or f"`{option}" in common, (name, option)


def test_docs_name_the_exit_codes() -> None:
    """docs/cli.md has one line for each exit code, and no other; --help names the same."""
    from distilld.cli.commands import ExitCode

    text = (REPOSITORY / "docs" / "cli.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)] == [*map(int, ExitCode)]
    told = distilld("--help", cwd=REPOSITORY).out.partition("Exit codes:")[2]
    assert [int(code) for code in re.findall(r"\d+", told)] == [*map(int, ExitCode)]


def test_readme_names_only_commands_that_exist() -> None:
    """Every command and every file that the README names is there."""
    text = (REPOSITORY / "README.md").read_text()
    named = set(re.findall(r"distilld ([a-z-]+)(?= |`|\n|$)", text)) - {"keeps"}
    assert named & set(commands_in_help()) >= {"init", "run", "status"}
    assert named <= set(commands_in_help()) | {"remembers", "is"}
    for path in EXPORT_PATHS.values():
        assert path in text or re.sub(r"/[a-z]+\.jsonl", "/{rag,sft,preference}.jsonl", path) in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (REPOSITORY / link).exists()


def test_readme_leads_to_a_lake_that_is_up_to_date(tmp_path: Path) -> None:
    """The README's commands, given one after the other in a checkout, bring a lake up to date; the checkout is none."""
    root = phase4(tmp_path)
    (tmp_path / "config").mkdir()
    shutil.copy(REPOSITORY / "config" / "distilld.toml", tmp_path / "config")
    section = (REPOSITORY / "README.md").read_text().split("## Use it on a real lakehouse")[1].partition("\n## ")[0]
    steps = re.findall(r"^distilld (.*?) +#", section, flags=re.MULTILINE)
    assert len(steps) == 4
    for step in steps:
        ran = distilld(*step.replace("/srv/lakehouse", str(root)).split(), cwd=tmp_path)
        assert (ran.code, ran.errors) == (0, [])
    assert distilld("health", "--no-daemon", "--root", root, cwd=tmp_path).code == 0
    assert (root / EXPORT_PATHS["rag"]).exists()
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_start_imports_nothing_slow(argument: str, tmp_path: Path) -> None:
    """--help and --version answer without pydantic, structlog, sqlite-utils, rich or orjson."""
    loaded = loaded_by([argument], tmp_path)
    assert "distilld.cli.commands" in loaded
    assert not loaded & {*SLOW, "orjson"}


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["health", "--no-daemon"]])
def test_a_look_at_the_lake_imports_nothing_slow(arguments: list[str], done: Path) -> None:
    """status and health, which a monitor asks for again and again, read the store without what writers need."""
    loaded = loaded_by([*arguments, "--root", str(done)], done)
    assert "distilld.store.queries" in loaded
    assert not loaded & {*SLOW, "distilld.publish.commit", "distilld.store.decisions"}


SLOW = {"pydantic", "structlog", "sqlite_utils", "rich", "watchfiles", "prometheus_client"}


def loaded_by(arguments: list[str], folder: Path) -> set[str]:
    """The modules that a command, which must succeed, has imported at its end."""
    code = f"import sys\nfrom distilld.cli.main import execute\nassert execute({arguments!r}) == 0\nprint(sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    return set(ast.literal_eval(ran.stdout.splitlines()[-1]))


def test_unknown_command_and_option_are_wrong_usage(tmp_path: Path) -> None:
    """A command or an option that does not exist ends with 2 and names it."""
    ran = distilld("distil", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "No such command 'distil'" in ran.err
    assert "'explain'" in distilld("explian", cwd=tmp_path).err
    ran = distilld("run", "--twice", cwd=tmp_path)
    assert ran.code == 2
    assert "--twice" in ran.err


def test_common_options_stand_before_or_after_the_command(done: Path, tmp_path: Path) -> None:
    """--root before the command is the same as after it; given twice, the one behind the command wins."""
    after = distilld("status", "--root", done, "--json", cwd=tmp_path)
    assert after.code == 0
    assert distilld("--root", done, "status", "--json", cwd=tmp_path).json["root"] == str(done)
    assert distilld("--root", "/nowhere", "status", "--root", done, "--json", cwd=tmp_path).out == after.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--once", "--dry-run"),
        ("export-all", "--dry-run"),
        ("status",),
        ("quarantine",),
        ("quarantine", "--limit", "3"),
        ("receipts",),
    ],
    ids=" ".join,
)
def test_json_is_all_that_is_printed(done: Path, arguments: tuple[str, ...]) -> None:
    """With --json, standard output is one JSON object."""
    ran = distilld(*arguments, "--root", done, "--json", cwd=done)
    assert ran.code == 0
    assert isinstance(ran.json, dict)


# wrong usage


@pytest.mark.parametrize(
    ("arguments", "toml", "env", "code", "told"),
    [
        (("--root", "nowhere"), "", {}, 2, "root = '{cwd}/nowhere' does not exist; allowed: the folder of a lakehouse"),
        (("--root", "file"), "", {}, 2, "root = '{cwd}/file' is no folder; allowed: the folder of a lakehouse"),
        (("--root", "file/below"), "", {}, 2, "root = '{cwd}/file/below' is no folder; allowed: the folder of a lakehouse"),
        (("--root", "n" * 300), "", {}, 2, "nnn' has too long a name; allowed: the folder of a lakehouse"),
        (("--root", "loop"), "", {}, 2, "root = '{cwd}/loop' is a link to itself; allowed: the folder of a lakehouse"),
        (("--root", ""), "", {}, 2, "--root: root = ''; allowed: a path in valid UTF-8"),
        ((), 'root = "nowhere"', {}, 2, "root = '{cwd}/nowhere' does not exist"),
        ((), "", {"DISTILLD_ROOT": "nowhere"}, 2, "root = '{cwd}/nowhere' does not exist"),
        ((), "", {"LH_DISTILL_ROOT": "nowhere"}, 2, "root = '{cwd}/nowhere' does not exist"),
        (("--config", "no.toml"), "", {}, 2, "no.toml: cannot be read (No such file or directory)"),
        ((), "batch_rows = 0", {}, 2, "config/distilld.toml: batch_rows = 0; allowed: a whole number from 1 to 1"),
        ((), "on_delete = 'forget'", {}, 2, "on_delete = 'forget'; allowed: keep or withdraw"),
        ((), "bach_rows = 5", {}, 2, "bach_rows is not a known key; the nearest one is batch_rows"),
        ((), "root = ", {}, 2, "config/distilld.toml: is not TOML"),
        ((), "", {"DISTILLD_REVOKE": "maybe"}, 2, "DISTILLD_REVOKE: revoke = 'maybe'; allowed: true or false"),
        (("--state", "data/scored-runs/2026/03/02/a.jsonl"), "", {}, 2, "a.jsonl' lies below data of the root; allowed"),
        ((), "state = 'exports/rag/x.db'", {}, 2, "/exports/rag/x.db' lies below exports of the root; allowed: a file "),
        ((), "", {"DISTILLD_STATE": "exports/.distilld.lock"}, 2, "/.distilld.lock' lies below exports of the root"),
        (("--state", "reports"), "", {}, 2, "state = '{cwd}/reports' lies below reports of the root; allowed: "),
        (("--state", "config"), "", {}, 2, "state = '{cwd}/config' is no regular file; allowed: "),
        (("--state", "/dev/null"), "", {}, 2, "state = '/dev/null' is no regular file; allowed: "),
        ((), "metrics_file = 'data/a/b/c/a.jsonl'", {}, 2, "metrics_file = '{cwd}/data/a/b/c/a.jsonl' lies below data of"),
        ((), "", {"DISTILLD_METRICS_FILE": "exports/.distilld.lock"}, 2, ".lock' lies below exports of the root; allowed"),
        ((), "metrics_file = 'reports/m.prom'", {}, 2, "m.prom' lies below reports of the root; allowed: a file of its own"),
        ((), "metrics_file = 'state/distilld.db'", {}, 2, "distilld.db' is a file of the state store; allowed: a file of"),
        ((), "metrics_file = 'state/distilld.db-wal'", {}, 2, "distilld.db-wal' is a file of the state store; allowed: "),
        ((), "metrics_file = 'x.lock'\nstate = 'x'", {}, 2, "x.lock' is a file of the state store; allowed: "),
        ((), "metrics_file = 'config'", {}, 2, "metrics_file = '{cwd}/config' is no regular file; allowed: "),
        ((), "metrics_file = '/dev/null'", {}, 2, "metrics_file = '/dev/null' is no regular file; allowed: "),
        ((), "metrics_file = 'config/distilld.toml'", {}, 2, "/distilld.toml' is a file of something else; allowed: a file"),
        (("--root", "\x1b[2J\n"), "", {}, 2, "--root: root = '\\x1b[2J\\n'; allowed: a path"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command_line", [("run", "--once"), ("run", "--check"), ("status",)], ids=" ".join)
def test_wrong_path_key_or_value_is_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command_line: tuple[str, ...],
    arguments: tuple[str, ...],
    toml: str,
    env: dict[str, str],
    code: int,
    told: str,
) -> None:
    """What is wrong is told in one line with the key, the value and what is allowed; nothing is done."""
    put(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    put(tmp_path / "config" / "distilld.toml", toml)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if "DISTILL" in name]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert execute([*command_line, *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("distilld: ")
    assert told.format(cwd=tmp_path) in err
    assert not (tmp_path / "reports").exists()


def test_wrong_usage_as_a_process(tmp_path: Path) -> None:
    """The process ends with the code and the one line on standard error that the command gave."""
    for arguments, code, told in (
        (("run", "--once", "--root", "nowhere"), 2, f"root = '{tmp_path}/nowhere' does not exist"),
        (("run", "--once", "--state", "/dev/null/x.db"), 1, "cannot lock the state store /dev/null/x.db: "),
        (("run", "--once", "--state", "."), 2, f"state = '{tmp_path}' is no regular file; allowed: "),
        (("status", "--config", "no.toml"), 2, "no.toml: cannot be read (No such file or directory)"),
    ):
        ran = distilld(*arguments, cwd=tmp_path)
        assert (ran.code, ran.out, len(ran.errors)) == (code, "", 1)
        assert told in ran.errors[0]


def test_root_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a folder above it may not be searched, the root is not wrong; it cannot be read, and that is said."""

    def refuse(path: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        for name in ("stat", "scandir"):
            patch.setattr(os, name, refuse)
        assert execute(["run", "--check", "--root", str(tmp_path)]) == 1
    assert f"distilld: root = '{tmp_path}' cannot be read: Permission denied (" in capsys.readouterr().err


def test_working_directory_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relative paths begin there, and a config file may stand there."""
    monkeypatch.chdir(put(tmp_path / "gone" / "file").parent)
    shutil.rmtree(tmp_path / "gone")
    assert execute(["run", "--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("distilld: the working directory cannot be found: No such file")


@pytest.mark.parametrize("name", [b"r\xff\xfe", b"a\nb"])
@pytest.mark.parametrize("key", ["root", "state", "metrics_file"])
def test_path_that_leads_to_a_name_that_is_no_text_is_refused(tmp_path: Path, key: str, name: bytes) -> None:
    """The story: a link led to such a root; the path as given was looked at, and the store could not hold the real one."""
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    os.symlink(name, tmp_path / "link")
    given = "link" if key == "root" else "link/file"
    before = snapshot(tmp_path)
    for arguments in (("run", "--once"), ("run", "--check"), ("status",)):
        ran = distilld(*arguments, cwd=tmp_path, env={f"DISTILLD_{key.upper()}": given})
        assert (ran.code, ran.out, len(ran.errors)) == (2, "", 1)
        assert re.match(rf"distilld: {key} = '.*(\\udcff|\\n).*'; allowed: a path in valid", ran.err)
    assert snapshot(tmp_path) == before


def test_link_to_the_source_files_stays_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lead elsewhere later, or nowhere yet: that is no other option, so nothing is judged again for it.

    The story: a link within a mount was resolved where the mount was there at the start, and not where it came later.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lake").mkdir()
    for name in ("r7", "r8"):
        (tmp_path / name).mkdir()
    (tmp_path / "entrance").symlink_to("lake")
    monkeypatch.setenv("DISTILLD_SOURCE_FILES_ROOT", "current")
    found = []
    for target in ("nothing", "r7", "r8"):
        (tmp_path / "current").unlink(missing_ok=True)
        (tmp_path / "current").symlink_to(target)
        found.append(load_settings(Common(root="entrance")).options())
    assert {each.source_files_root for each in found} == {str(tmp_path / "current")}
    monkeypatch.delenv("DISTILLD_SOURCE_FILES_ROOT")
    # By default it is the root, which is resolved.
    assert load_settings(Common(root="entrance")).source_files_root == tmp_path / "lake"


def test_root_that_the_shell_stands_in_is_refused_alike(tmp_path: Path) -> None:
    """The root is the working directory by default, whatever its name."""
    (tmp_path / "a\nb").mkdir()
    ran = distilld("run", "--once", cwd=tmp_path / "a\nb")
    assert (ran.code, len(ran.errors)) == (2, 1)
    assert list((tmp_path / "a\nb").iterdir()) == []


def test_every_fault_of_a_config_is_told_at_once(tmp_path: Path) -> None:
    """Two faults are two lines, with one hint."""
    put(tmp_path / "config" / "distilld.toml", "batch_rows = 0\nworkers = -1\n")
    ran = distilld("run", "--once", cwd=tmp_path)
    assert ran.code == 2
    assert [re.sub(r" = .*", "", line) for line in ran.errors] == [
        "distilld: config/distilld.toml: batch_rows",
        "distilld: config/distilld.toml: workers",
    ]
    assert ran.err.count("distilld init") == 1


@pytest.mark.parametrize("flag", ["--once", "--dry-run", "--json"])
def test_check_goes_with_no_work(tmp_path: Path, flag: str) -> None:
    """The story: --check with --json printed plain text, and --once was passed over without a word."""
    ran = distilld("run", "--check", flag, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.errors == [
        f"distilld: --check does not go with {flag} (it validates the configuration and does no work)"
    ]


def test_unknown_variable_is_a_warning(done: Path) -> None:
    """A command does its work, and says on standard error that nobody reads such a variable."""
    ran = distilld("status", "--root", done, cwd=done, env={"DISTILLD_SERVICE_HOST": "10.0.0.1"})
    assert ran.code == 0
    (warning,) = ran.errors
    assert warning.startswith("distilld: warning: the environment: DISTILLD_SERVICE_HOST is not a known key")


def test_state_below_a_mounted_tree_is_refused(tmp_path: Path) -> None:
    """Also where an input tree is a link to another folder, which the path names."""
    (tmp_path / "mounted").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "evidence").symlink_to(tmp_path / "mounted")
    ran = distilld("run", "--check", "--state", "mounted/x.db", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "lies below data/evidence of the root" in ran.err


def test_metrics_file_reached_by_a_link_is_refused_all_the_same(tmp_path: Path) -> None:
    """What is written there would stand in the folder that the path leads to."""
    (tmp_path / "exports" / "rag").mkdir(parents=True)
    (tmp_path / "metrics").symlink_to("exports/rag")
    ran = distilld("run", "--check", cwd=tmp_path, env={"DISTILLD_METRICS_FILE": "metrics/m.prom"})
    assert (ran.code, ran.out) == (2, "")
    assert f"metrics_file = '{tmp_path}/exports/rag/m.prom' lies below exports of the root" in ran.err


@pytest.mark.parametrize("content", [None, b"", b"\0" * 9, b"# HELP dist", b"# HELP distilld_info Always 1."])
def test_metrics_file_may_be_an_earlier_one(tmp_path: Path, content: bytes | None) -> None:
    """One that is yet to be made will do, one from an earlier run, and what a power cut left of that."""
    if content is not None:
        (tmp_path / "m.prom").write_bytes(content)
    assert distilld("run", "--check", cwd=tmp_path, env={"DISTILLD_METRICS_FILE": "m.prom"}).code == 0


def test_fifo_in_the_place_of_the_state_is_waited_for_by_nobody(tmp_path: Path) -> None:
    """The story: status, health, verify and receipts hung until somebody wrote into it."""
    os.mkfifo(tmp_path / "fifo")
    for arguments in (("status",), ("health",), ("verify",), ("receipts",), ("run", "--once"), ("run", "--check")):
        ran = distilld(*arguments, "--state", "fifo", cwd=tmp_path)
        assert (ran.code, len(ran.errors)) == (2, 1)
        assert f"state = '{tmp_path}/fifo' is no regular file" in ran.err


def test_file_of_something_else_is_no_state(tmp_path: Path) -> None:
    """A state that names another file by mistake is refused in one line, and the file stays as it is."""
    config = put(tmp_path / "config" / "distilld.toml", "state = 'config/distilld.toml'\n")
    ran = distilld("run", "--once", cwd=tmp_path)
    assert (ran.code, len(ran.errors)) == (2, 1)
    assert f"{config} is no state store, and no SQLite database (correct --state; " in ran.err
    assert config.read_text() == "state = 'config/distilld.toml'\n"
    assert distilld("run", "--once", "--state", "own.db", cwd=tmp_path).code == 0


def test_store_of_another_root_does_not_bind_the_lake(done: Path, tmp_path: Path) -> None:
    """A command that is refused its store leaves the lake as it was: the right command works, and health agrees."""
    state = done / "state" / "distilld.db"
    assert once(tmp_path, "--state", str(state)).code == 2
    problems = distilld("status", "--json", cwd=tmp_path).json["problems"]
    assert {each["name"] for each in problems} == {"never_run", "no_inputs"}
    assert once(tmp_path).code == 0
    problems = distilld("status", "--json", cwd=tmp_path).json["problems"]
    assert {each["name"] for each in problems} == {"no_inputs"}


def test_store_of_another_root_is_refused(done: Path, tmp_path: Path) -> None:
    """A store belongs to one root: each command that opens it for another one ends with 2 and changes nothing."""
    state = done / "state" / "distilld.db"
    before = snapshot(tmp_path)
    for arguments in (("run", "--once", "--dry-run"), ("status",), ("quarantine",), ("receipts",)):
        ran = distilld(*arguments, "--root", tmp_path, "--state", state, cwd=tmp_path)
        assert ran.code == 2
        assert ran.errors == [
            (
                f"distilld: the state store {state} belongs to the root {done}, not to {tmp_path}"
                " (give each root its own --state: a lake that was moved or copied needs a new one)"
            )
        ]
    assert snapshot(tmp_path) == before


def test_other_store_for_a_lake_is_refused_without_take_over(worked: Path, tmp_path: Path) -> None:
    """A lake that is kept with one store is not written with another by mistake; --take-over says that it is none."""
    other = tmp_path / "other.db"
    for more in ((), ("--dry-run",)):
        ran = once(worked, "--state", str(other), *more)
        assert ran.code == 2
        assert len(ran.errors) == 1
        assert f"(give --state {worked}/state/distilld.db, or --take-over to go on with the other store)" in ran.err
    assert not other.exists()
    problems = distilld("status", "--root", worked, "--state", other, "--json", cwd=tmp_path).json["problems"]
    # Not never_run, too: 'distilld run --once' would be refused.
    assert [each["name"] for each in problems] == ["other_store"]
    assert once(worked, "--state", str(other), "--take-over").code == 0
    assert once(worked).code == 2


def test_busy_lake_is_exit_75(worked: Path) -> None:
    """While another distilld is the writer, run and the older names end with 75 and name its pid; looking works."""
    with another_writer(worked) as process:
        for arguments in (("run", "--once"), ("export-all",)):
            ran = distilld(*arguments, "--root", worked, cwd=worked)
            assert (ran.code, ran.out) == (75, "")
            assert ran.errors == [
                (
                    f"distilld: another distilld (pid {process.pid}) holds the lake {worked}"
                    " (stop it, or wait until it is done)"
                )
            ]
        shown = distilld("status", "--root", worked, "--json", cwd=worked).json
        assert (shown["writer"]["running"], shown["writer"]["pid"]) == (True, process.pid)
        assert f"running, pid {process.pid}" in distilld("status", "--root", worked, cwd=worked).out
    assert once(worked).code == 0


def test_interrupted_run_is_exit_130(sample: SampleLake) -> None:
    """Ctrl-C while a run waits ends it with 130 and one line, and the next run does the rest."""
    rescore_in_place(sample.root)
    arguments = command("run", "--once", "--root", str(sample.root))
    # A shell has its background jobs ignore it, and so would theirs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        arguments, env=environment({"DISTILLD_SETTLE_SECONDS": "600"}), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"event":"settling"' in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    signal.signal(signal.SIGINT, before)
    assert process.returncode == 130
    assert rest.strip() == "distilld: interrupted; what was committed stands, and the next run goes on from there"
    assert "withdrawn from sft" in once(sample.root, DISTILLD_SETTLE_SECONDS="0").out


_INTERRUPTED_IMPORT = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("distilld", run_name="__main__")
"""


def test_interrupted_start_is_exit_130() -> None:
    """Ctrl-C while the program is still being imported ends it with 130 and without a traceback."""
    arguments = [sys.executable, "-c", _INTERRUPTED_IMPORT]
    ran = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (130, "")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"distilld": "distilld.__main__:main"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "--\x1b[31mno"], "No such option '--\\x1b[31mno'"),
        (["diff", "a\x1b[2J"], "Invalid value for 'FILE': File 'a\\x1b[2J' does not exist"),
        (["schema"], "Missing argument '{rag|sft|preference|quarantine|withdrawals|scored-run|evidence|receipt}'."),
        (["explain"], "Missing argument 'RUN_ID'"),
    ],
)
def test_wrong_arguments_are_one_line_that_steers_no_terminal(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line has the form of every other error, and names the command that shows what is allowed."""
    assert execute(arguments) == 2
    out, told = capsys.readouterr()
    assert out == ""
    assert told.startswith(f"distilld: {line}")
    assert told.endswith(f" (see 'distilld {arguments[0]} --help')\n")
    assert told.count("\n") == 1


# init


def test_init_writes_the_config_and_never_over_one(tmp_path: Path) -> None:
    """init writes every key commented out; a second one ends with 2 and leaves the file as it is."""
    ran = distilld("init", cwd=tmp_path)
    assert (ran.code, ran.out) == (0, "wrote config/distilld.toml\n")
    path = tmp_path / "config" / "distilld.toml"
    assert path.read_text() == config_text({}, source="test")
    path.write_text("workers = 3\n")
    ran = distilld("init", "--root", tmp_path, cwd=tmp_path)
    assert (ran.code, ran.out, len(ran.errors)) == (2, "", 1)
    assert path.read_text() == "workers = 3\n"


def test_init_leaves_no_half_file(tmp_path: Path) -> None:
    """A file that cannot be written whole is named and removed, so that the next try may write it."""
    ran = distilld("init", cwd=tmp_path, most_file_bytes=100)
    assert ran.code == 1
    assert ran.err.startswith("distilld: config/distilld.toml: File too large (")
    assert distilld("init", cwd=tmp_path).code == 0


def test_init_sets_root_and_state(done: Path, tmp_path: Path) -> None:
    """init with --root and --state sets them, so that the file works from any folder."""
    (tmp_path / "rel").symlink_to(done)
    ran = distilld("init", "--config", "deep/my own.toml", "--root", "rel", "--state", 'sta"te.db', cwd=tmp_path)
    assert ran.out.splitlines() == ["wrote deep/my own.toml", "use it with --config 'deep/my own.toml'"]
    settings = load(flags={}, environ={}, config_file=tmp_path / "deep" / "my own.toml", cwd=Path("/"))
    assert (settings.root, settings.state) == (tmp_path / "rel", tmp_path / 'sta"te.db')
    ran = distilld("init", "--config", "bad.toml", "--root", "", cwd=tmp_path)
    assert ran.code == 2
    assert not (tmp_path / "bad.toml").exists()


# on a terminal


def on_terminal(arguments: list[str]) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit code and everything that it showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment({"TERM": "xterm", "LINES": "40"})
    ) as process:
        os.close(theirs)
        shown = bytearray()
        while True:
            try:
                block = os.read(ours, 65_536)
            except OSError:  # EIO: the other side is closed
                break
            if not block:
                break
            shown += block
    os.close(ours)
    return process.returncode, shown.decode()


def test_terminal_gets_a_bar_and_tables(tmp_path: Path) -> None:
    """On a terminal a pass shows rows, mebibytes, rows a second and the time left, and tables."""
    root = phase4(tmp_path)
    code, shown = on_terminal(command("run", "--once", "--root", str(root)))
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"reading .* 100 % 1,052 rows  \d\.\d MiB  [\d,]+ rows/s +\d:\d\d:\d\d", plain)
    assert re.search(r"judging .* 100 % 1,052 rows  \d\.\d MiB  [\d,]+ rows/s", plain)
    assert re.search(r"  dataset +rows", plain)
    assert re.search(r"rag +446 +606 +446 +0 +0\r?\n", plain)
    assert re.search(r"\[info +\] batch_committed", plain)


def test_terminal_gets_a_bar_while_a_long_look_goes_on(done: Path) -> None:
    """A check against the inputs and a comparison show how much was read, and leave nothing behind but their result."""
    dataset = done / "exports/rag/playbooks.jsonl"
    for arguments in (("verify", "--deep"), ("diff", str(dataset))):
        code, shown = on_terminal(command(*arguments, "--root", str(done)))
        assert code == 0
        assert re.search(
            r"reading .*[ 0-9]+ % [\d,]+ rows  [\d.,]+ (?:bytes|KiB|MiB)", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
        )


def test_pipe_gets_no_escape_sequence(done: Path) -> None:
    """What is no terminal gets plain text alone."""
    for arguments in (("status",), ("receipts",), ("quarantine", "--limit", "2")):
        assert "\x1b" not in distilld(*arguments, "--root", done, cwd=done).out


def test_closed_log_stops_no_work(sample: SampleLake) -> None:
    """A run whose standard error is closed does its work; only the log's lines are lost."""
    append_rows(sample.root)
    ran = with_lost(2, "closed", "run", "--once", "--root", sample.root, cwd=sample.root)
    assert ran.returncode == 0
    assert "12 rows judged" in ran.stdout
    assert distilld("status", "--root", sample.root, "--json", cwd=sample.root).json["lag"]["unread_bytes"] == 0


def with_lost(
    stream: int, how: str, *arguments: str | Path, cwd: Path, unbuffered: bool = False
) -> subprocess.CompletedProcess[str]:
    """A command of which one standard stream is on a full disk, closed, or a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    redirection = {"full": f"{stream}>/dev/full", "closed": f"{stream}>&-", "pipe": f"{stream}>&{write}"}[how]
    started = ["bash", "-c", f'exec "$@" {redirection}', "bash", *command(*map(str, arguments))]
    env = environment({"PYTHONUNBUFFERED": "1" if unbuffered else ""})
    try:
        return subprocess.run(
            started, cwd=cwd, env=env, pass_fds=[write], capture_output=True, text=True, check=False, timeout=60
        )
    finally:
        os.close(write)


LOST: Final = [("full", False), ("full", True), ("pipe", False), ("pipe", True), ("closed", False)]
FULL: Final = "distilld: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(("how", "unbuffered"), LOST)
def test_lost_standard_error_changes_no_exit_code(worked: Path, how: str, unbuffered: bool) -> None:
    """The story: Python flushed once more what could not be written, and each of these codes became 120."""
    (worked / "data/scored-runs/2026/03/03/link.jsonl").symlink_to("elsewhere")
    with another_writer(worked):
        assert with_lost(2, how, "run", "--once", cwd=worked, unbuffered=unbuffered).returncode == 75
    for arguments, code in (
        (("nonsense",), 2),
        (("--help",), 0),
        (("status",), 0),
        (("health", "--no-daemon"), 1),
        (("run", "--check", "--root", "nowhere"), 2),
        (("run", "--once", "--state", "data/x.db"), 2),
        (("explain", "no-such-run"), 1),
        (("run", "--once"), 1),
        (("stage", "s", "--input", "x", "--output", "x", "--", "sh", "-c", "rm -r reports; > reports; exit 5"), 5),
    ):
        ran = with_lost(2, how, *arguments, cwd=worked, unbuffered=unbuffered)
        assert (arguments, ran.returncode) == (arguments, code)


@pytest.mark.parametrize(("how", "unbuffered"), LOST)
def test_lost_standard_output_fails_the_commands_whose_product_it_is(done: Path, how: str, unbuffered: bool) -> None:
    """A page that did not get out is a failure, named once; a reader that has gone has seen enough."""
    for arguments in (
        ("--version",),
        ("--help",),
        ("run", "--help"),
        ("status",),
        ("health", "--no-daemon"),
        ("explain", json.loads((done / EXPORT_PATHS["rag"]).read_bytes().splitlines()[0])["source_run_id"]),
        ("quarantine", "--limit", "1000"),
        ("receipts", "--json"),
        ("verify",),
        ("schema", "rag"),
        ("diff", done / EXPORT_PATHS["rag"]),
    ):
        ran = with_lost(1, how, *arguments, cwd=done, unbuffered=unbuffered)
        assert (arguments, ran.returncode) == (arguments, 0 if how == "pipe" else 1)
        assert ran.stderr == (FULL if how == "full" else "")


def test_commands_that_write_are_work_and_the_docs_name_them() -> None:
    """Compact opened a writer and was no work command: root wrote as root, and lost output failed it."""
    modules = {name: importlib.import_module(f"distilld.cli.{module}") for name, (module, _) in COMMANDS.items()}
    work = {name for name in COMMANDS if isinstance(getattr(modules[name], name.replace("-", "_")), WorkCommand)}
    writes = {
        name for name in COMMANDS if re.search(r"import .*\b(?:writer|bring|at_work)\b", getsource(modules[name]))
    }
    assert {"run", "rebuild", "compact", "prune"} <= writes <= work
    for page in ("docs/contract.md", "docs/cli.md"):
        text = " ".join((REPOSITORY / page).read_text().split())
        named = re.search(r"page\b[^.]*? exit with 1[,;]([^.]*?) keep", text)
        assert named is not None
        told = set(re.findall(r"`([a-z-]+)", named[1])) - {"status", "explain", "schema"}
        assert told == {name for name in work if not name.startswith("export-")} | {"snapshot"}


@pytest.mark.parametrize(("how", "unbuffered"), LOST)
def test_lost_standard_output_changes_nothing_for_work(worked: Path, how: str, unbuffered: bool) -> None:
    """What a run, a rebuild or a snapshot does is its product, not what it prints of it."""
    (worked / "data/scored-runs/2026/03/03/new.jsonl").write_text("{}\n")
    for arguments in (
        ("run", "--once"),
        ("export-rag",),
        ("rebuild",),
        ("compact",),
        ("snapshot", "copy"),
        ("prune", "--yes"),
        ("init", "--config", "c.toml"),
    ):
        ran = with_lost(1, how, *arguments, cwd=worked, unbuffered=unbuffered)
        assert (arguments, ran.returncode) == (arguments, 0)
        assert Ran(0, "", ran.stderr).errors == (FULL.splitlines() if how == "full" else [])
    assert once(worked).out.startswith("up to date")


@pytest.mark.parametrize("name", ["receipts", "quarantine", "diff"])
@pytest.mark.parametrize("limit", ["9223372036854775808", "99999999999999999999999", "-1"])
def test_limit_that_no_list_can_have_is_exit_2(done: Path, name: str, limit: str) -> None:
    """A number of rows that is out of all bounds is told with what is allowed."""
    file = [done / EXPORT_PATHS["rag"]] if name == "diff" else []
    ran = distilld(name, *file, "--limit", limit, "--root", done, cwd=done)
    assert ran.code == 2
    assert f"{limit} is not in the range 0<=x<=2147483648" in ran.err


def test_paths_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    """Where the output's encoding does not hold a path, the path is escaped, and stops nothing."""
    root = phase4(tmp_path / "日")
    ran = distilld("status", "--root", root, cwd=tmp_path, env={"PYTHONIOENCODING": "latin-1"})
    assert ran.code == 0
    assert f"root         {tmp_path}/\\u65e5/lake\n" in ran.out
