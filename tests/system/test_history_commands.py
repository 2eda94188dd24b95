"""The commands that look into a lake's history and decide about it, and what run does with a corrupt store.

They run within this process, which saves the start of Python.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from distilld.core.model import DATASET_PATHS, EXPORT_PATHS, Dataset
from tests.support.command import PHASE4, Cli, another_writer, bring, phase4, put, rows, snapshot
from tests.support.history_lake import A, B, HistoryLake, given, run

DAY = "2026/03/03"
TREES = ("data/scored-runs", "data/evidence")


def run_id_of(root: Path, dataset: Dataset = Dataset.RAG, number: int = 0) -> str:
    """A run that ships."""
    return str(rows(root / DATASET_PATHS[dataset])[number]["source_run_id"])


def take_day(root: Path) -> None:
    """Take one day out of both trees."""
    for tree in TREES:
        shutil.move(root / tree / DAY, root / tree.replace("/", "-"))


def files(root: Path) -> dict[str, bytes]:
    """The nine exports."""
    return {name: (root / path).read_bytes() for name, path in EXPORT_PATHS.items() if (root / path).exists()}


# explain


def test_explain_tells_of_a_run(cli: Cli, done: Path) -> None:
    """explain prints the run's rows, verdict, evidence and outcomes; --json has the same with stable names."""
    run_id = run_id_of(done)
    ran = cli("explain", run_id, "--root", done)
    assert ran.code == 0
    for text in (
        f"run {run_id}",
        "current verdict: ",
        "evidence: 2026/",
        "\nScored rows\n  2026/",
        "exported",
    ):
        assert text in ran.out
    story = cli("explain", run_id, "--root", done, "--json").json
    assert story["run_id"] == run_id
    assert set(story) == {"run_id", "verdicts", "rows", "evidence", "pairs", "withdrawals", "leaving", "look_alikes"}
    assert [fate["dataset"] for fate in story["rows"][0]["fates"]] == ["rag", "sft"]


def test_run_id_forges_no_line_of_explain(cli: Cli, tmp_path: Path) -> None:
    """The story: a run id with a line feed told of a verdict that nobody had given."""
    run_id = "r\ncurrent verdict: accepted\x1b[2J\u2028evidence: none"
    row = {"evidence_run_id": run_id, "evidence_task_id": "t", "category": "rejected"}
    put(tmp_path / TREES[0] / DAY / "a.jsonl", json.dumps(row) + "\n")
    bring(tmp_path)
    shown = cli("explain", run_id, "--root", tmp_path).out.splitlines()
    assert shown[0] == "run r\\ncurrent verdict: accepted\\x1b[2J\\u2028evidence: none"
    assert [line for line in shown if line.startswith("current verdict")] == [
        f"current verdict: rejected, at {DAY}/a.jsonl:0; forbids rag and sft"
    ]


def test_explain_takes_a_run_id_that_is_not_utf8(cli: Cli, tmp_path: Path) -> None:
    """It is looked for as the reader wrote it down, with U+FFFD; it was a traceback."""
    run_id, path = b"caf\xe9", tmp_path / TREES[0] / DAY / "a.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"evidence_run_id": "%s", "category": "rejected"}\n' % run_id)
    bring(tmp_path)
    for wanted, code in ((run_id, 0), (b"\xe9" + run_id, 1)):
        assert cli("explain", os.fsdecode(wanted), "--root", tmp_path, "--json").code == code


def test_explain_of_an_unknown_run_exits_with_1(cli: Cli, done: Path) -> None:
    """A run that nothing names is one clear line and exit code 1."""
    ran = cli("explain", "no\x1b[31m-such-run", "--root", done)
    assert ran.code == 1
    assert ran.out == ""
    (line,) = ran.errors
    assert "is not known" in line
    assert "\x1b" not in line


def test_looking_changes_nothing_beside_a_writer(cli: Cli, done: Path) -> None:
    """explain, diff, and prune without --yes work while another process is the writer, and leave every byte alone."""
    before = snapshot(done / "exports", leave_out=frozenset({".distilld.lock"}))
    with another_writer(done):
        assert cli("explain", run_id_of(done), "--root", done).code == 0
        assert cli("diff", PHASE4 / "expected/rag/playbooks.jsonl", "--root", done).code == 0
        assert cli("prune", "--root", done).code == 0
        for command in (["prune", "--yes"], ["prune", "--accept", "--yes"], ["rebuild"]):
            assert cli(*command, "--root", done).code == 75
    assert snapshot(done / "exports", leave_out=frozenset({".distilld.lock"})) == before


# diff


@pytest.mark.parametrize("dataset", Dataset)
def test_diff_of_the_older_exporters_file(cli: Cli, done: Path, dataset: Dataset) -> None:
    """diff exits with 0 on the older exporters' files."""
    path = PHASE4 / "expected" / DATASET_PATHS[dataset].removeprefix("exports/")
    ran = cli("diff", path, "--root", done)
    assert ran.code == 0
    assert ran.out.endswith("both hold the same rows\n")


def test_diff_of_another_file_exits_with_1(cli: Cli, done: Path, tmp_path: Path) -> None:
    """diff names what differs and exits with 1; --json counts it."""
    content = (PHASE4 / "expected/rag/playbooks.jsonl").read_bytes().replace(b'"title":"', b'"title":"x', 1)
    (tmp_path / "other.jsonl").write_bytes(content)
    ran = cli("diff", tmp_path / "other.jsonl", "--root", done)
    assert ran.code == 1
    assert "title" in ran.out
    assert ran.out.endswith("they differ\n")
    told = cli("diff", tmp_path / "other.jsonl", "--root", done, "--json", "--limit", "0").json
    assert (told["equal"], told["different"], told["by_key"]) == (False, 1, {"title": 1})


def test_diff_of_wrong_files(cli: Cli, done: Path, tmp_path: Path) -> None:
    """A file that is missing, or does not tell which dataset it is, is wrong usage."""
    (tmp_path / "empty.jsonl").touch()
    assert cli("diff", tmp_path / "nothing.jsonl", "--root", done).code == 2
    ran = cli("diff", tmp_path / "empty.jsonl", "--root", done)
    assert ran.code == 2
    assert "--dataset" in ran.err


# prune


def empty(path: Path) -> None:
    """Leave nothing in a file."""
    path.write_bytes(b"")


def test_prune_asks_first(cli: Cli, worked: Path) -> None:
    """Without --yes prune says what it would withdraw, changes nothing and exits with 2; with nothing to do, with 0."""
    assert cli("prune", "--root", worked).code == 0
    take_day(worked)
    assert cli("run", "--once", "--root", worked).code == 0
    before = files(worked)
    ran = cli("prune", "--root", worked)
    assert ran.code == 2
    assert "18 absent files would be forgotten" in ran.out
    assert "add --yes" in ran.out
    told = cli("prune", "--root", worked, "--json").json
    assert told["done"] is False
    assert {each["kind"] for each in told["withdraw"]} == {"absent"}
    assert files(worked) == before


@pytest.mark.parametrize("flags", [[], ["--yes"]], ids=" ".join)
def test_prune_refuses_a_glob_that_is_not_utf8(cli: Cli, done: Path, flags: list[str]) -> None:
    """No partition has such a name; it was a traceback."""
    ran = cli("prune", "--partition", os.fsdecode(b"caf\xe9*"), *flags, "--root", done)
    assert (ran.code, ran.out) == (2, "")
    assert ran.errors[0].startswith("distilld: --partition = 'caf\\udce9*'; ")


@pytest.mark.parametrize("flags", [[], ["--yes"], ["--accept", "--yes"]], ids=" ".join)
def test_prune_without_a_store_is_refused(cli: Cli, tmp_path: Path, flags: list[str]) -> None:
    """The story: prune --yes on a lake that no run had seen did a whole first pass, which nobody had asked for."""
    root = phase4(tmp_path)
    before = snapshot(root)
    ran = cli("prune", *flags, "--root", root)
    told = f"distilld: there is no state store at {root}/state/distilld.db (run 'distilld run --once' first)"
    assert (ran.code, ran.out, ran.errors) == (1, "", [told])
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("tree", "gone", "kinds"),
    [
        ("scored-runs", Path.unlink, {"absent"}),
        ("evidence", Path.unlink, {"absent", "evidence absent"}),
        ("scored-runs", empty, {"vanished"}),
        ("evidence", empty, {"vanished"}),
    ],
)
def test_what_is_kept_is_counted_alike(
    cli: Cli, worked: Path, tree: str, gone: Callable[[Path], None], kinds: set[str]
) -> None:
    """status counts what prune would withdraw, line by line; verify --deep tells it by dataset and kind.

    The stories: a row that ships to two datasets was one row to status, and verify named status for more. Rows that are
    kept without their evidence were none to status: it knew of no problem where prune would withdraw them.
    """
    for path in (worked / "data" / tree / DAY).glob("*.jsonl"):
        gone(path)
    env = {"DISTILLD_TRIPWIRE_ROWS": "0", "DISTILLD_TRIPWIRE_SHARE": "0", "DISTILLD_SETTLE_SECONDS": "0"}
    assert cli("run", "--once", "--root", worked, **env).code == 0
    cli("prune", "--accept", "--yes", "--root", worked)
    retained = cli("prune", "--root", worked, "--json").json["withdraw"]
    by_kind, by_dataset = Counter[str](), Counter[str]()
    for each in retained:
        by_kind[each["kind"]] += each["rows"]
        by_dataset[each["dataset"]] += each["rows"]
    assert set(by_kind) == kinds
    status = cli("status", "--root", worked, "--json").json
    assert status["retained"] == by_kind
    assert {each["name"]: each["retained"] for each in status["exports"] if each["retained"]} == by_dataset
    (note,) = (each for each in status["notes"] if "prune" in each)
    assert f": {by_kind.total()} exported rows; distilld prune shows what would go" in note
    ran = cli("verify", "--deep", "--root", worked)
    assert ", ".join(f"{each['dataset']} {each['rows']} {each['kind']}" for each in retained) in ran.out
    assert "question 9 in docs/state.md" in ran.out


def test_prune_withdraws_what_it_said(cli: Cli, worked: Path) -> None:
    """prune --yes withdraws the rows that it named before, publishes them as pruned, and leaves the rest alone."""
    take_day(worked)
    cli("run", "--once", "--root", worked)
    before = files(worked)
    asked = cli("prune", "--root", worked, "--json").json
    ran = cli("prune", "--yes", "--root", worked, "--json")
    assert ran.code == 0
    for each in asked["withdraw"]:
        gone = rows(worked / EXPORT_PATHS[f"withdrawals_{each['dataset']}"])
        assert len(gone) == each["rows"]
        assert {row["cause"] for row in gone} == {"pruned"}
        assert ran.json["datasets"][each["dataset"]]["causes"] == {"pruned": each["rows"]}
        left = set(files(worked)[each["dataset"]].splitlines())
        assert len(left) == len(before[each["dataset"]].splitlines()) - each["rows"]
        assert left < set(before[each["dataset"]].splitlines())
    assert cli("prune", "--root", worked).code == 0
    assert "\n\nWithdrawn\n" in cli("explain", gone_run(worked), "--root", worked).out


def gone_run(root: Path) -> str:
    """A run that was withdrawn."""
    return str(rows(root / EXPORT_PATHS["withdrawals_rag"])[0]["source_run_id"])


def test_prune_tells_the_files_that_it_forgets(cli: Cli, tmp_path: Path) -> None:
    """It lets go of what the preview counted: exported rows, and files with their verdicts.

    The story: where only an absent rejection was forgotten, and its run exported again, there was nothing to prune; and
    a pair that was held counted as let go.
    """
    lake = HistoryLake(tmp_path)
    lake.scored(A, run("r"), run("x", task_id="t"), run("y", "rejected", task_id="t"))
    lake.evidence(A, given("r"), given("x", "one text"), given("y", "one text"))
    lake.both(B, run("r", "rejected"))
    bring(lake.root)
    lake.move_away(*lake.paths(B, "both"))
    bring(lake.root)
    asked = cli("prune", "--root", lake.root, "--json").json
    assert (asked["withdraw"], asked["forget_absent_files"]) == ([], 2)
    told = cli("prune", "--yes", "--root", lake.root).out
    assert told.startswith("2 absent files were forgotten, with the verdicts that stood there\n")
    assert "nothing to prune" not in told
    lake.move_away(*lake.paths(A, "both"))
    bring(lake.root)
    asked = cli("prune", "--root", lake.root, "--json").json
    ran = cli("prune", "--yes", "--root", lake.root, "--json")
    assert ran.json["pruned"] == sum(each["rows"] for each in asked["withdraw"]) == 4
    assert ran.json["forgotten_absent_files"] == asked["forget_absent_files"] == 2
    (event,) = (each for each in ran.events if each["event"] == "pruned")
    assert (event["rows"], event["files"]) == (4, 2)
    assert cli("prune", "--yes", "--root", lake.root).out.startswith("there was nothing to prune\n")


def test_prune_of_one_partition(cli: Cli, worked: Path) -> None:
    """prune --partition takes out what came from the partitions that match, and nothing else."""
    take_day(worked)
    cli("run", "--once", "--root", worked)
    whole = {each["dataset"]: each["rows"] for each in cli("prune", "--root", worked, "--json").json["withdraw"]}
    ran = cli("prune", "--partition", f"{DAY}/audits.jsonl", "--yes", "--root", worked)
    assert ran.code == 0
    left = {each["dataset"]: each["rows"] for each in cli("prune", "--root", worked, "--json").json["withdraw"]}
    assert 0 < left["rag"] < whole["rag"]


def test_pruned_partition_that_returned_meanwhile_stays(cli: Cli, worked: Path) -> None:
    """A day is back before anybody ran: prune --yes finds it, and no row of it leaves."""
    before = files(worked)
    take_day(worked)
    cli("run", "--once", "--root", worked)
    for tree in TREES:
        shutil.move(worked / tree.replace("/", "-"), worked / tree / DAY)
    assert cli("prune", "--yes", "--root", worked).code == 0
    for dataset in Dataset:
        assert sorted(files(worked)[dataset].splitlines()) == sorted(before[dataset].splitlines())
        assert f"withdrawals_{dataset}" not in files(worked)


def test_prune_decides_about_the_tripwire(cli: Cli, worked: Path) -> None:
    """What the tripwire keeps is accepted with --accept --yes, and withdrawn by a later prune --yes.

    prune --vanished is what the tripwire's remedy names, and takes exactly what status counts.
    """
    for path in (worked / "data/scored-runs").rglob("*.jsonl"):
        path.write_bytes(b"")
    env = {"DISTILLD_TRIPWIRE_ROWS": "50", "DISTILLD_SETTLE_SECONDS": "0"}
    before = files(worked)
    cli("run", "--once", "--root", worked, **env)
    assert files(worked)["rag"] == before["rag"]
    asked = cli("prune", "--accept", "--root", worked, "--json", **env)
    assert (asked.code, asked.json["accept"]) == (2, {"rag": 446, "sft": 351, "preference": 83})
    told = cli("prune", "--vanished", "--root", worked, "--json", **env).json["withdraw"]
    assert {each["dataset"]: each["rows"] for each in told} == asked.json["accept"]
    assert "--vanished" in cli("prune", "--root", worked, **env).out
    accepted = cli("prune", "--accept", "--yes", "--root", worked, **env)
    assert accepted.out == "kept for good: rag 446, sft 351, preference 83\n"
    assert cli("prune", "--accept", "--root", worked, **env).code == 0
    assert cli("prune", "--vanished", "--root", worked, **env).code == 0
    cli("run", "--once", "--root", worked, **env)
    assert files(worked)["rag"] == before["rag"]
    assert cli("prune", "--yes", "--root", worked, **env).code == 0
    assert files(worked)["rag"] == b""


@pytest.mark.parametrize(
    "flags",
    [
        ["--orphans", "--accept"],
        ["--vanished", "--accept"],
        ["--orphans", "--partition", "*"],
        ["--accept", "--partition", "*"],
    ],
)
def test_prune_refuses_flags_that_do_not_go_together(cli: Cli, done: Path, flags: list[str]) -> None:
    """Flags of prune that contradict each other are wrong usage."""
    ran = cli("prune", *flags, "--yes", "--root", done)
    assert ran.code == 2
    assert "does not go with" in ran.err


def test_prune_of_orphans(cli: Cli, tmp_path: Path) -> None:
    """prune --orphans takes out rows of older exports that no input produces."""
    root = phase4(tmp_path)
    shutil.copytree(PHASE4 / "expected", root / "exports")
    shutil.rmtree(root / "data/scored-runs" / DAY)
    assert cli("run", "--once", "--root", root).code == 0
    asked = cli("prune", "--orphans", "--root", root, "--json")
    assert asked.code == 2
    assert {each["kind"] for each in asked.json["withdraw"]} == {"orphan"}
    assert cli("prune", "--orphans", "--yes", "--root", root).code == 0
    assert {row["cause"] for row in rows(root / EXPORT_PATHS["withdrawals_rag"])} == {"pruned"}


# rebuild


def test_rebuild_leaves_walk_order(cli: Cli, tmp_path: Path) -> None:
    """Days that came in the wrong order stand in walk order after rebuild, with the times of their first writing.

    The story: no row counted as judged where nothing followed from it, so that no batch and no receipt tells of it.
    """
    root = phase4(tmp_path)
    take_day(root)
    cli("run", "--once", "--root", root)
    for tree in TREES:
        shutil.move(root / tree.replace("/", "-"), root / tree / DAY)
    cli("run", "--once", "--root", root)
    before = files(root)
    ran = cli("rebuild", "--root", root)
    assert ran.code == 0
    assert "every row judged again; the files are in walk order\n1,052 rows judged, " in ran.out
    assert " MiB read; receipt: reports/distillation/" in ran.out
    assert [each["event"] for each in ran.events if each["event"].startswith("rebuild")] == [
        "rebuild_started",
        "rebuild_finished",
    ]
    after = files(root)
    for dataset in Dataset:
        assert after[dataset] != before[dataset]
        assert sorted(after[dataset].splitlines()) == sorted(before[dataset].splitlines())
        expected = rows(PHASE4 / "expected" / DATASET_PATHS[dataset].removeprefix("exports/"))
        assert [row["id"] for row in rows(root / DATASET_PATHS[dataset])] == [row["id"] for row in expected]
    ran = cli("rebuild", "--json", "--root", root)
    told = ran.json
    assert told["rows_judged"] == 1052
    assert told["bytes_read"] >= sum(path.stat().st_size for path in (root / "data").rglob("*.jsonl"))
    (finished,) = (each for each in ran.events if each["event"] == "rebuild_finished")
    assert finished["rows_judged"] == 1052
    assert told["datasets"]["rag"]["added"] == told["datasets"]["rag"]["withdrawn"] == 0
    assert files(root) == after


# a corrupt store


@pytest.mark.parametrize("whole_page", [False, True], ids=["no database", "a broken page"])
def test_run_rebuilds_a_corrupt_store(cli: Cli, worked: Path, whole_page: bool) -> None:
    """run --once sets a corrupt store aside, whether it shows at the start or later, and goes on with a new one."""
    before = files(worked)
    state = worked / "state/distilld.db"
    if whole_page:
        content = bytearray(state.read_bytes())
        for page in range(len(content) // 4096 // 3, len(content) // 4096):
            content[page * 4096 : page * 4096 + 4096] = os.urandom(4096)
        state.write_bytes(content)
    else:
        state.write_bytes(b"no database" * 1000)
    with (worked / "data/scored-runs" / DAY / "audits.jsonl").open("ab") as file:
        file.write(b"no JSON\n")
    ran = cli("run", "--once", "--root", worked, DISTILLD_SETTLE_SECONDS="0")
    assert ran.code == 0, ran.err
    (told,) = [each for each in ran.events if each["event"] == "store_set_aside"]
    assert told["level"] == "error"
    assert Path(told["copy"]).exists()
    for dataset in Dataset:
        assert files(worked)[dataset] == before[dataset]
    assert cli("run", "--once", "--root", worked).out.startswith("up to date")
