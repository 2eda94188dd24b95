"""The demo: what it shows holds, it replaces only itself, and it hurts nothing else."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from distilld.core.model import EXPORT_PATHS, Dataset, Reason
from distilld.demo.demo import MARKER
from tests.support.command import Ran, another_writer, distilld, put, rows, snapshot


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A demo in the default folder: where it was made, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    ran = distilld("demo", cwd=folder)
    assert ran.code == 0, ran.err
    return folder, ran


def test_demo_stays_in_its_folder_and_logs_nothing(shown: tuple[Path, Ran]) -> None:
    """The demo makes one folder, with what a lake holds and a config file, and its output is not mixed with a log."""
    folder, ran = shown
    assert [path.name for path in folder.iterdir()] == ["demo-lake"]
    made = {path.name for path in (folder / "demo-lake").iterdir()}
    assert made == {"crates", "data", "exports", "reports", "state", "distilld.toml", MARKER}
    assert ran.err == ""
    assert max(map(len, ran.out.splitlines())) < 500


def test_demo_shows_what_is_held_back_and_why(shown: tuple[Path, Ran]) -> None:
    """Every reason that occurs in its lake is in the demo's table, with what it means."""
    _, ran = shown
    for reason in set(Reason) - {Reason.SELF_PAIRING, Reason.TOO_MANY_EXPORTS}:
        assert re.search(rf"^  {reason} +[\d-]+ +[\d-]+ +[\d-]+  \S", ran.out, flags=re.MULTILINE), reason
    assert "self_pairing" not in ran.out


def test_json_holds_the_tables(shown: tuple[Path, Ran], tmp_path: Path) -> None:
    """--json prints the tables of the demo, and nothing else."""
    ran = distilld("demo", "--json", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["folder"] == "demo-lake"
    for table in ran.json["tables"]:
        assert set(table) == {"title", "columns", "rows"}
        assert f"{table['title']}\n  {table['columns'][0]} " in shown[1].out
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert [table["title"] for table in ran.json["tables"]] == re.findall(
        r"^(\S.*)\n  (?:dataset|reason|file) {2}", shown[1].out, flags=re.MULTILINE
    )


def test_demo_shows_the_rejected_run_leave(shown: tuple[Path, Ran]) -> None:
    """The run that is scored anew in place stood in all three datasets, stands in none now, and is published."""
    folder, ran = shown
    assert "keeps its size, inode, mtime." in ran.out
    run_id = re.search(r"^- The run (\S+)$", ran.out, flags=re.MULTILINE)
    assert run_id is not None
    for dataset in Dataset:
        path = f"demo-lake/{EXPORT_PATHS[dataset]}"
        assert re.search(rf"^  {path} +1 +0$", ran.out, flags=re.MULTILINE)
        assert run_id[1] not in (folder / path).read_text()
        (withdrawn,) = rows(folder / "demo-lake" / EXPORT_PATHS[f"withdrawals_{dataset}"])
        assert run_id[1] in (withdrawn["source_run_id"], withdrawn["chosen_run_id"])
        assert withdrawn["cause"] == "revoked"
    line = (folder / "demo-lake" / EXPORT_PATHS["withdrawals_sft"]).read_text().rstrip()
    assert f"  {line}\n" in ran.out


def test_demo_judged_only_what_changed(shown: tuple[Path, Ran]) -> None:
    """The second run judges a small part of the rows."""
    judged = re.search(r"It judged (\d+) of (\d+) rows", shown[1].out)
    assert judged is not None
    assert 0 < int(judged[1]) < int(judged[2]) / 10


def test_demo_names_files_and_commands_that_work(shown: tuple[Path, Ran]) -> None:
    """Each file that the demo points at is there, and each command that it suggests ends with 0."""
    folder, ran = shown
    look, _, tries = ran.out.partition("3. LOOK FOR YOURSELF")[2].partition("Then try:")
    files = re.findall(r"^  (\S+)$", look, flags=re.MULTILINE)
    assert len(files) == 6
    assert all((folder / name).is_file() for name in files)
    *commands, last = re.findall(r"^  distilld (.+)$", tries, flags=re.MULTILINE)
    assert (len(commands), last.split()[-1]) == (4, "inspect")  # which runs until somebody ends it
    for command in commands:
        assert distilld(*command.split(), cwd=folder).code == 0
    assert distilld(*commands[0].split(), cwd=folder).out.startswith("up to date: ")


def test_commands_of_a_demo_in_an_odd_folder_work(tmp_path: Path) -> None:
    """The story: of a folder with a space, the suggested commands had one word too many."""
    ran = distilld("demo", "--folder", "my lake", cwd=tmp_path)
    tries = re.findall(r"^  distilld (.+)$", ran.out.partition("Then try:")[2], flags=re.MULTILINE)
    assert distilld(*shlex.split(tries[0]), cwd=tmp_path).out.startswith("up to date: ")


def test_prose_of_the_demo_fits_into_80_columns(shown: tuple[Path, Ran]) -> None:
    """What is no table, path, command or row of an export is read without a line that a terminal breaks."""
    prose = [line for line in shown[1].out.splitlines() if not line.startswith("  ") or line.startswith("  was ")]
    assert len(prose) > 10
    assert [line for line in prose if len(line) > 80] == []


def test_second_demo_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    """A demo in an earlier demo's folder begins anew, and leaves alone what somebody put beside it."""
    folder = tmp_path / "mine"
    assert distilld("demo", "--folder", "mine", cwd=tmp_path).code == 0
    put(folder / "notes.txt", "keep me")
    put(folder / "data" / "scored-runs" / "2026" / "03" / "02" / "extra.jsonl", "{}\n")
    ran = distilld("demo", "--folder", "mine", cwd=tmp_path)
    assert ran.code == 0
    assert (folder / "notes.txt").read_text() == "keep me"
    assert not list(folder.rglob("extra.jsonl"))
    assert len(list((folder / "reports" / "distillation").glob("*/receipt.json"))) == 3


def test_demo_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    """A folder with anything in it that no demo made, or a file, is refused and stays as it is."""
    put(tmp_path / "lake" / "data" / "x", "real")
    put(tmp_path / "file", "real")
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    for name, told in (("lake", "lake holds something that no demo made"), ("file", "file is no folder")):
        ran = distilld("demo", "--folder", name, cwd=tmp_path)
        assert (ran.code, ran.out, len(ran.errors)) == (2, "", 1)
        assert told in ran.err
        assert "--folder" in ran.err
    assert snapshot(tmp_path) == before


def test_demo_does_not_disturb_a_writer(tmp_path: Path) -> None:
    """A demo whose folder another distilld works in is not replaced: exit 75."""
    put(tmp_path / "demo-lake" / MARKER)
    root = tmp_path / "demo-lake"
    with another_writer(root) as process:
        before = snapshot(tmp_path)
        ran = distilld("demo", cwd=tmp_path)
        assert (ran.code, ran.out) == (75, "")
        assert f"another distilld works in demo-lake (pid {process.pid})" in ran.err
        assert snapshot(tmp_path) == before


def test_demo_is_not_led_astray_by_settings(tmp_path: Path) -> None:
    """Neither the environment nor a config file in the working directory changes what the demo does."""
    put(tmp_path / "config" / "distilld.toml", 'root = "/nowhere"\nbatch_rows = 0\n')
    ran = distilld("demo", cwd=tmp_path, env={"DISTILLD_ROOT": "/nowhere", "DISTILLD_REVOKE": "false"})
    assert ran.code == 0
    assert "unsafe_rag_category" in ran.out


def test_disk_that_is_full_is_told_with_the_folder(tmp_path: Path) -> None:
    """A write that fails names no file by itself."""
    ran = distilld("demo", cwd=tmp_path, most_file_bytes=10)
    assert ran.code == 1
    assert ran.err.startswith("distilld: demo-lake: File too large (")
