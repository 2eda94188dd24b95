"""The real command, run as a process: what it prints, what it changes, and how it ends."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from distilld import cli
from distilld.config import commented_toml, load
from distilld.model import EXPORT_PATHS
from distilld.once import bring_up_to_date, writer
from distilld.sample_lake import SampleLake, append_rows, rescore_in_place, write_sample_lake
from tests.golden.test_phase4_core import EXPECTED, STAMP
from tests.system.command import (
    LOCK_FILE,
    PHASE4,
    REPOSITORY,
    Ran,
    another_writer,
    command,
    distilld,
    environment,
    phase4,
    python,
    rows,
    snapshot,
)

_LOCATION = re.compile(rb',"location":\{"partition":"[^"]+","line_offset":\d+\}\}\n')


def once(root: Path, *arguments: str, **env: str) -> Ran:
    """``run --once`` on a lake."""
    return distilld("run", "--once", "--root", root, *arguments, cwd=root.parent, env=env)


def bring(root: Path) -> None:
    """One run in this process, to begin a test with."""
    settings = load(flags={"root": root}, environ={}, config_file=None, cwd=root)
    with capture_logs(), writer(settings) as engine:
        bring_up_to_date(engine)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phase4 lake after one run; tests only look at it."""
    root = phase4(tmp_path_factory.mktemp("done"))
    assert once(root).code == 0
    return root


@pytest.fixture
def worked(tmp_path: Path) -> Path:
    """The phase4 lake after one run, to be changed."""
    root = phase4(tmp_path)
    bring(root)
    return root


@pytest.fixture
def sample(tmp_path: Path) -> SampleLake:
    """A sample lake of one day that has seen one run."""
    lake = write_sample_lake(tmp_path / "sample", days=1)
    bring(lake.root)
    return lake


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
    """docs/cli.md has one line for each exit code, and no other."""
    from distilld.cli.exit_codes import ExitCode

    text = (REPOSITORY / "docs" / "cli.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)] == [*map(int, ExitCode)]


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


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_start_imports_nothing_slow(argument: str, tmp_path: Path) -> None:
    """--help and --version answer without pydantic, structlog, sqlite-utils, rich or orjson."""
    code = f"import sys\nfrom distilld.cli import run\nassert run([{argument!r}]) == 0\nprint(sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    loaded = set(ast.literal_eval(ran.stdout.splitlines()[-1]))
    assert "distilld.cli.commands" in loaded
    assert not loaded & {"pydantic", "structlog", "sqlite_utils", "rich", "orjson", "watchfiles", "prometheus_client"}


def test_unknown_command_and_option_are_wrong_usage(tmp_path: Path) -> None:
    """A command or an option that does not exist ends with 2 and names it."""
    ran = distilld("distil", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "No such command 'distil'" in ran.err
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


# run --once


def test_phase4_is_byte_identical(done: Path) -> None:
    """The six files have the bytes that the TypeScript wrote, timestamps and the quarantine's location aside."""
    (receipt,) = (done / "reports" / "distillation").glob("*/receipt.json")
    stamp = json.loads(receipt.read_bytes())["recorded_at"].encode()
    for name, expected in EXPECTED.items():
        path = EXPORT_PATHS[f"quarantine{name}".replace("-", "_") if name.startswith("-") else name]
        written = (done / path).read_bytes().replace(stamp, STAMP.encode())
        assert _LOCATION.sub(b"}\n", written) == (PHASE4 / "expected" / expected).read_bytes()


def test_first_run_says_what_it_did(tmp_path: Path) -> None:
    """The first run prints each dataset's figures and its receipt, and leaves nothing but its files."""
    root = phase4(tmp_path)
    ran = once(root)
    assert ran.code == 0
    assert re.search(r"^  rag +446 +446 +0 +0 +606 +exports/rag/playbooks.jsonl$", ran.out, flags=re.MULTILINE)
    assert re.search(r"^  sft +351 +351 +0 +0 +701 ", ran.out, flags=re.MULTILINE)
    assert re.search(r"^  preference +83 +83 +0 +0 +16 ", ran.out, flags=re.MULTILINE)
    receipt = re.search(r"receipt: (\S+)$", ran.out, flags=re.MULTILINE)
    assert receipt is not None
    assert json.loads((root / receipt[1]).read_bytes())["validation_pass"] is True
    assert [event["event"] for event in ran.events] == ["lock_taken", "batch_committed"]
    made = {path.relative_to(root).parts[0] for path in root.iterdir()}
    assert made == {"data", "exports", "reports", "state"}


def test_second_run_writes_nothing(worked: Path) -> None:
    """A run over unchanged inputs says so and leaves all as it is but the lock's record and the store's facts."""
    mine = frozenset({LOCK_FILE})
    before = {name: facts for name, facts in snapshot(worked, leave_out=mine).items() if not name.startswith("state")}
    ran = once(worked)
    after = {name: facts for name, facts in snapshot(worked, leave_out=mine).items() if not name.startswith("state")}
    assert (ran.code, ran.out) == (
        0,
        "up to date: rag 446 (606 held back), sft 351 (701 held back), preference 83 (16 held back)\n",
    )
    assert after == before
    assert [event["event"] for event in ran.events] == ["lock_taken", "up_to_date"]


def test_lake_through_a_link_is_the_same_lake(worked: Path, tmp_path: Path) -> None:
    """A lake that is reached by another name, or from within, is known again."""
    (tmp_path / "link").symlink_to(worked)
    assert once(tmp_path / "link").out.startswith("up to date")
    assert distilld("run", "--once", cwd=worked).out.startswith("up to date")
    assert distilld("run", "--once", "--root", "../lake/../lake", cwd=worked).out.startswith("up to date")


def test_empty_root_is_an_empty_lake(tmp_path: Path) -> None:
    """A root without data is empty: nothing ships, exit 0, and the run says that there is nothing to read."""
    root = tmp_path / "empty"
    root.mkdir()
    ran = once(root)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        f"note: there is no data/scored-runs below {root}, so there is nothing to read",
        "up to date: rag 0 (0 held back), sft 0 (0 held back), preference 0 (0 held back)",
    ]


def test_run_without_once_is_refused(tmp_path: Path) -> None:
    """The daemon is not there yet, and the command says so instead of doing something else."""
    ran = distilld("run", "--root", tmp_path, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "distilld: the daemon is not part of this version yet (use 'distilld run --once', from a timer for example)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_rejected_run_leaves_and_is_waited_for(sample: SampleLake) -> None:
    """A file that was re-scored in place a moment ago is waited for, and the run leaves all three datasets."""
    rescore_in_place(sample, sample.rescored_run_id)
    ran = once(sample.root)
    assert ran.code == 0
    assert [event["event"] for event in ran.events] == ["lock_taken", "settling", "batch_committed"]
    assert ran.out.count("withdrawn from ") == 3
    assert "withdrawn from sft: revoked 1\n" in ran.out
    for dataset in ("rag", "sft", "preference"):
        assert sample.rescored_run_id not in (sample.root / EXPORT_PATHS[dataset]).read_text()


def test_what_changes_nothing_is_worked_off_to_the_end(sample: SampleLake) -> None:
    """Batches that change no outcome do not end a run before everything that waits is judged."""
    for path in (sample.root / "data" / "evidence").rglob("*.jsonl"):
        evidence = [json.loads(line) for line in path.read_bytes().splitlines()]
        path.write_text("".join(json.dumps({**row, "unknown": 1}) + "\n" for row in evidence))
    assert once(sample.root, DISTILLD_BATCH_ROWS="7", DISTILLD_SETTLE_SECONDS="0").code == 0
    waiting = distilld("status", "--root", sample.root, "--json", cwd=sample.root).json["waiting"]
    assert waiting == {"rows": 0, "tasks": 0, "departures": 0, "frozen": 0}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "is no regular file"),
        (Path.mkdir, "is no regular file"),
        (lambda path: path.symlink_to("/etc/passwd"), "is a link and is not followed"),
    ],
    ids=["fifo", "folder", "link"],
)
def test_input_that_cannot_be_read_is_named_and_stops_nothing(
    sample: SampleLake, make: Callable[[Path], None], problem: str
) -> None:
    """What is no regular file is named, the rows beside it ship, and the exit code is 1, in a second run as well."""
    path = sample.scored_path(sample.partitions[0]).with_name("strange.jsonl")
    make(path)
    append_rows(sample)
    named = f"distilld: not read: {path.relative_to(sample.root)} {problem}"
    ran = once(sample.root)
    assert (ran.code, ran.errors) == (1, [named])
    assert "The datasets now" in ran.out
    ran = once(sample.root)
    assert (ran.code, ran.errors) == (1, [named])
    assert ran.out.startswith("up to date")
    problems = distilld("status", "--root", sample.root, "--json", cwd=sample.root).json["problems"]
    assert [each["text"] for each in problems] == [f"{path.relative_to(sample.root)} {problem}"]


CUT_OFF = """
import os, sys
from distilld import commit
commit.Committer._finish = lambda self: os._exit(9)
from distilld.cli import run
run(["run", "--once", "--root", sys.argv[1]])
"""


def test_run_that_was_cut_off_is_completed_by_the_next(tmp_path: Path) -> None:
    """A run that died after its commit is told by status and by a dry run, and completed by the next run."""
    root = phase4(tmp_path)
    with python(CUT_OFF, root) as process:
        assert process.wait() == 9
    problems = distilld("status", "--root", root, "--json", cwd=tmp_path).json["problems"]
    assert [(each["name"], each["remedy"]) for each in problems] == [("recovery_pending", "distilld run --once")]
    dry = once(root, "--dry-run")
    assert dry.out.startswith("an earlier batch was cut off; the next run completes or undoes it first\nup to date: ")
    ran = once(root)
    assert ran.code == 0
    assert ran.out.startswith("an earlier batch was cut off; it was completed or undone first\nup to date: rag 446 ")
    assert [event["event"] for event in ran.events][1:3] == ["recovery_started", "recovery_finished"]
    assert distilld("receipts", "--root", root, cwd=tmp_path).code == 0
    assert once(root).out.startswith("up to date")


def test_corrupt_store_is_set_aside_and_rebuilt(worked: Path) -> None:
    """A store that is no database is kept under another name, and the next run gives the same datasets."""
    before = {path: (worked / path).read_bytes() for path in EXPORT_PATHS.values() if (worked / path).exists()}
    state = worked / "state" / "distilld.db"
    for beside in state.parent.glob("distilld.db-*"):
        beside.unlink()
    state.write_bytes(b"this is no database" * 500)
    ran = once(worked)
    assert ran.code == 0
    assert "store_set_aside" in [event["event"] for event in ran.events]
    assert [path.read_bytes()[:19] for path in state.parent.glob("distilld.db.corrupt-*")] == [b"this is no database"]
    for path, content in before.items():
        if "quarantine" not in path:
            assert (worked / path).read_bytes() == content
    assert once(worked).out.startswith("up to date")


# the older names


def test_export_commands_end_with_the_older_summaries(tmp_path: Path) -> None:
    """Each older name prints its dataset's line with the figures of the older exporters, then what the run did."""
    root = phase4(tmp_path)
    ran = distilld("export-rag", "--root", root, cwd=tmp_path)
    assert (ran.code, ran.out.splitlines()) == (
        0,
        [
            (
                "[export_rag] read=1052 exported=446 quarantined=606 (empty_content=70, category_disallowed=536)"
                " added=446 withdrawn=0"
            ),
            "[export_rag] output: exports/rag/playbooks.jsonl",
        ],
    )
    ran = distilld("export-sft", "--root", root, cwd=tmp_path)
    assert ran.out.splitlines()[0].startswith("up to date: ")
    assert ran.out.splitlines()[1:] == [
        (
            "[export_sft] read=1052 exported=351 quarantined=701"
            " (missing_source_run_id=33, unsafe_sft_category=536, category_disallowed=132) added=0 withdrawn=0"
        ),
        "[export_sft] output: exports/sft/instruction_response.jsonl",
    ]
    paired, insufficient = pairing_of_phase4()
    ran = distilld("export-preference", "--root", root, cwd=tmp_path)
    assert ran.out.splitlines()[1:] == [
        (
            f"[export_preference] read=1052 pairs=83 task_ids_paired={paired} quarantined=16"
            " (invalid_preference_pairing=16) added=0 withdrawn=0"
        ),
        f"[export_preference] insufficient_pair_task_ids={insufficient} (only one record OR all-same-category)",
        "[export_preference] output: exports/preference/chosen_rejected.jsonl",
    ]
    everything = distilld("export-all", "--root", root, cwd=tmp_path).out.splitlines()
    assert [line.split("]")[0] for line in everything[1:]] == [
        "[export_rag", "[export_rag", "[export_sft", "[export_sft", *["[export_preference"] * 3,
    ]  # fmt: skip


def pairing_of_phase4() -> tuple[int, int]:
    """How many tasks have a shipped pair, and how many have rows but no pair to try, counted in the plainest way."""
    categories: defaultdict[str, list[str]] = defaultdict(list)
    for path in (PHASE4 / "data" / "scored-runs").rglob("*.jsonl"):
        runs = {row["run_id"] for row in rows(Path(str(path).replace("/scored-runs/", "/evidence/")))}
        for row in rows(path):
            if row["evidence_run_id"] in runs and row["evidence_task_id"]:
                categories[row["evidence_task_id"]].append(row["category"])
    shipped = {
        row["prompt"].removeprefix("Task: ").partition(" · file=")[0]
        for row in rows(PHASE4 / "expected" / EXPECTED["preference"])
    }
    insufficient = sum(
        "accepted" not in found or not {"rejected", "partially_accepted"} & set(found) for found in categories.values()
    )
    return len(shipped), insufficient


def test_flag_holds_for_one_run(worked: Path) -> None:
    """--include-partial ships 95 rows and says what becomes of them; the next run withdraws them, and says so."""
    sft = worked / EXPORT_PATHS["sft"]
    before = sft.read_bytes()
    ran = distilld("export-sft", "--include-partial", "--root", worked, cwd=worked)
    assert ran.out.splitlines()[0].endswith(" added=95 withdrawn=0")
    assert ran.out.splitlines()[2:] == [
        "[export_sft] partially_accepted INCLUDED (--include-partial)",
        "[export_sft] the next run without --include-partial withdraws these rows again",
    ]
    assert Counter(row["quality_score"] for row in rows(sft)) == {"accepted": 351, "partially_accepted": 95}
    ran = distilld("export-sft", "--root", worked, cwd=worked)
    assert ran.out.splitlines()[0].endswith(" added=0 withdrawn=95")
    assert ran.out.splitlines()[2:] == [
        "[export_sft] withdrew 95 partially_accepted rows: the run before had include_partial, this one has not"
    ]
    assert sft.read_bytes() == before
    causes = Counter(row["cause"] for row in rows(worked / EXPORT_PATHS["withdrawals_sft"]))
    assert causes == {"options_changed": 95}
    assert once(worked).out.startswith("up to date")


def test_review_flag_says_so_too(sample: SampleLake) -> None:
    """--include-review ships unreviewed runs to RAG, never to SFT, and the run after it withdraws them and says so."""
    ran = once(sample.root, "--include-review")
    assert "rag: needs_human_review INCLUDED (--include-review)\n" in ran.out
    assert "rag: the next run without --include-review withdraws these rows again\n" in ran.out
    rag = sample.root / EXPORT_PATHS["rag"]
    shipped = {row["id"] for row in rows(rag) if row["source_category"] == "needs_human_review"}
    assert shipped
    assert {row["quality_score"] for row in rows(sample.root / EXPORT_PATHS["sft"])} == {"accepted"}
    ran = once(sample.root)
    left = len(shipped - {row["id"] for row in rows(rag)})
    assert {row["source_category"] for row in rows(rag)} == {"accepted", "partially_accepted"}
    assert f"rag: withdrew {left} needs_human_review rows: the run before had include_review" in ran.out


def test_setting_includes_for_good(worked: Path) -> None:
    """What the settings include is named as such, and nothing is said about a next run without the flag."""
    (worked / "own.toml").write_text("include_partial = true\n")
    arguments = ("export-sft", "--config", "own.toml", "--root", ".")
    for flag in ((), ("--include-partial",)):
        lines = distilld(*arguments, *flag, cwd=worked).out.splitlines()
        assert lines[-1] == "[export_sft] partially_accepted INCLUDED (include_partial in the settings)"


# --dry-run


def test_dry_run_on_a_new_lake_makes_nothing(tmp_path: Path) -> None:
    """A dry run on a lake that nobody wrote says what would ship, and makes no file, no folder and no store."""
    root = phase4(tmp_path)
    before = snapshot(tmp_path)
    ran = once(root, "--dry-run")
    assert ran.code == 0
    assert re.search(r"^  sft +351 +0 +0 +- +351$", ran.out, flags=re.MULTILINE)
    assert ran.out.endswith("nothing was changed (DRY RUN)\n")
    assert snapshot(tmp_path) == before


def test_dry_run_foretells_the_run_and_changes_nothing(sample: SampleLake) -> None:
    """A dry run says exactly what the next run then does, and leaves every byte, time and inode as it was."""
    append_rows(sample)
    rescore_in_place(sample, sample.rescored_run_id)
    root = sample.root
    before = snapshot(root)
    told = distilld("export-all", "--dry-run", "--root", root, cwd=root)
    foretold = distilld("export-all", "--dry-run", "--json", "--root", root, cwd=root).json
    assert snapshot(root) == before
    assert all(line.endswith("(DRY RUN)") for line in told.out.splitlines() if " read=" in line)
    withdrawn = {each["id"] for each in foretold["withdrawn"]}
    assert {each["cause"] for each in foretold["withdrawn"]} == {"revoked"}
    assert len(withdrawn) == 3
    assert all(each in told.out for each in withdrawn)

    done = distilld("export-all", "--json", "--root", root, cwd=root).json
    keys = ("rows", "held", "by_reason", "added", "replaced", "withdrawn", "causes")
    for name, each in done["datasets"].items():
        assert {key: each[key] for key in keys} == {key: foretold["datasets"][name][key] for key in keys}
    assert (done["up_to_date"], foretold["up_to_date"], foretold["dry_run"]) == (False, False, True)
    published = {
        row["id"] for kind in ("rag", "sft", "preference") for row in rows(root / EXPORT_PATHS[f"withdrawals_{kind}"])
    }
    assert published == withdrawn


def test_dry_run_with_nothing_to_do(worked: Path) -> None:
    """A dry run over unchanged inputs says up to date, and leaves the lake as it is."""
    before = snapshot(worked)
    ran = once(worked, "--dry-run")
    assert (ran.code, ran.out) == (
        0,
        "up to date: rag 446 (606 held back), sft 351 (701 held back), preference 83 (16 held back) (DRY RUN)\n",
    )
    assert snapshot(worked) == before


def test_dry_run_works_beside_a_writer(worked: Path) -> None:
    """A dry run does not need the lock, and copies the store of a running writer."""
    with another_writer(worked):
        assert once(worked, "--dry-run").out.startswith("up to date: ")
        assert once(worked).code == 75


def test_dry_run_refuses_to_work_below_the_root(worked: Path) -> None:
    """Where temporary files would go below the root, a dry run is refused: it would change something there."""
    (worked / "tmp").mkdir()
    ran = once(worked, "--dry-run", TMPDIR=str(worked / "tmp"))
    assert ran.code == 2
    assert "TMPDIR" in ran.err
    assert list((worked / "tmp").iterdir()) == []


def test_dry_run_says_that_exports_would_be_taken_over(worked: Path) -> None:
    """Where exports stand that no store knows, a dry run and the run after it say so, and the rows are adopted."""
    shutil.rmtree(worked / "state")
    note = "exports stand there from before this store; the next run takes them over first"
    assert note in once(worked, "--dry-run").out
    assert not (worked / "state").exists()
    ran = once(worked)
    assert "exports stood there from before this store; they were taken over\n" in ran.out
    assert "adopted in sft: 351 rows, as they stood\n" in ran.out


# wrong usage


def put(path: Path, content: str = "") -> Path:
    """Write a file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("arguments", "toml", "env", "code", "told"),
    [
        (("--root", "nowhere"), "", {}, 2, "root = '{cwd}/nowhere' does not exist; allowed: the folder of a lakehouse"),
        (("--root", "file"), "", {}, 2, "root = '{cwd}/file' is no folder; allowed: the folder of a lakehouse"),
        (("--root", ""), "", {}, 2, "--root: root = ''; allowed: a path in valid UTF-8"),
        ((), 'root = "nowhere"', {}, 2, "root = '{cwd}/nowhere' does not exist"),
        ((), "", {"DISTILLD_ROOT": "nowhere"}, 2, "root = '{cwd}/nowhere' does not exist"),
        ((), "", {"LH_DISTILL_ROOT": "nowhere"}, 2, "root = '{cwd}/nowhere' does not exist"),
        (("--config", "no.toml"), "", {}, 2, "no.toml: cannot be read (No such file or directory)"),
        ((), "batch_rows = 0", {}, 2, "config/distilld.toml: batch_rows = 0; allowed: a whole number from 1 to 1"),
        ((), "on_delete = 'forget'", {}, 2, "on_delete = 'forget'; allowed: keep or withdraw"),
        ((), "bach_rows = 5", {}, 2, "bach_rows is not a known key; the nearest one is batch_rows"),
        ((), "root = ", {}, 2, "config/distilld.toml: is not TOML"),
        ((), "", {"DISTILLD_WORKER": "5"}, 2, "DISTILLD_WORKER is not a known key; the nearest one is"),
        ((), "", {"DISTILLD_REVOKE": "maybe"}, 2, "DISTILLD_REVOKE: revoke = 'maybe'; allowed: true or false"),
        (("--state", "file/x.db"), "", {}, 1, "cannot lock the state store {cwd}/file/x.db: "),
        (("--state", "folder"), "", {}, 1, "{cwd}/folder"),
        (("--root", "\x1b[2J\n"), "", {}, 2, "--root: root = '\\x1b[2J\\n'; allowed: a path"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command_line", [("run", "--once"), ("status",)], ids=" ".join)
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
    (tmp_path / "folder").mkdir()
    put(tmp_path / "config" / "distilld.toml", toml)
    if command_line == ("status",) and "file/x.db" in arguments:
        pytest.skip("a store that cannot be is one that is not there, to somebody who only looks")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if "DISTILL" in name]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli.run([*command_line, *arguments]) == code
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
        (("status", "--config", "no.toml"), 2, "no.toml: cannot be read (No such file or directory)"),
    ):
        ran = distilld(*arguments, cwd=tmp_path)
        assert (ran.code, ran.out, len(ran.errors)) == (code, "", 1)
        assert told in ran.errors[0]


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
                " (give each root its own --state)"
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
    assert {each["name"] for each in problems} == {"other_store", "never_run"}
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
        assert shown["writer"] == {"running": True, "pid": process.pid, "state": f"{worked}/state/distilld.db"}
        assert f"running, pid {process.pid}" in distilld("status", "--root", worked, cwd=worked).out
    assert once(worked).code == 0


def test_interrupted_run_is_exit_130(sample: SampleLake) -> None:
    """Ctrl-C while a run waits ends it with 130 and one line, and the next run does the rest."""
    rescore_in_place(sample, sample.rescored_run_id)
    arguments = command("run", "--once", "--root", str(sample.root))
    with subprocess.Popen(
        arguments, env=environment({"DISTILLD_SETTLE_SECONDS": "600"}), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"event":"settling"' in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.strip() == "distilld: interrupted; what was committed stands, and the next run goes on from there"
    assert "withdrawn from sft" in once(sample.root, DISTILLD_SETTLE_SECONDS="0").out


# looking


def test_status_of_a_lake_at_rest(done: Path) -> None:
    """status gives the datasets' figures and committed lengths, the quarantine, the input, and no problem."""
    shown = distilld("status", "--root", done, "--json", cwd=done).json
    exports = {each["name"]: each for each in shown["exports"]}
    for name, path in EXPORT_PATHS.items():
        content = (done / path).read_bytes() if (done / path).exists() else b""
        assert (exports[name]["path"], exports[name]["bytes"]) == (path, len(content))
        assert exports[name]["rows"] == content.count(b"\n")
    assert shown["writer"]["running"] is False
    assert shown["lag"] == {"new_files": 0, "changed_files": 0, "gone_files": 0, "unread_bytes": 0}
    assert [(tree["kind"], tree["present"], tree["lines"]) for tree in shown["trees"]] == [
        ("scored", 45, 1052),
        ("evidence", 45, 1052),
    ]
    assert (shown["problems"], shown["notes"], shown["pending_tails"]) == ([], [], [])
    text = distilld("status", "--root", done, cwd=done).out
    assert "behind       nothing: every file is read as it stands\n" in text
    assert text.endswith("no problem is known\n")


def test_status_of_a_lake_that_was_never_run(tmp_path: Path) -> None:
    """status works without a store, counts what is to be read, names the command, and makes nothing."""
    root = phase4(tmp_path)
    before = snapshot(tmp_path)
    text = distilld("status", "--root", root, cwd=tmp_path).out
    assert re.search(r"^behind       90 new, 0 changed and 0 missing files, [\d,]+ bytes", text, flags=re.MULTILINE)
    assert f"problem: there is no state store at {root}/state/distilld.db; to put it right: distilld run --once" in text
    assert snapshot(tmp_path) == before


def test_status_tells_what_is_behind_and_what_waits(sample: SampleLake) -> None:
    """New, grown and missing files are counted with their bytes; a last line that is not finished is named."""
    scored = sample.scored_path(sample.partitions[0])
    with scored.open("ab") as file:
        file.write(b'{"evidence_run_id": "half')
    assert once(sample.root).code == 0
    with sample.evidence_path(sample.partitions[0]).open("ab") as file:
        file.write(b"\n" * 10)
    shutil.copy(scored, scored.with_name("new.jsonl"))
    sample.evidence_path(sample.partitions[1]).unlink()
    shown = distilld("status", "--root", sample.root, "--json", cwd=sample.root).json
    assert shown["lag"] == {
        "new_files": 1, "changed_files": 1, "gone_files": 1, "unread_bytes": 10 + scored.stat().st_size
    }  # fmt: skip
    assert shown["pending_tails"] == [{"path": str(scored.relative_to(sample.root)), "bytes": 25}]


def test_status_tells_each_problem_with_its_remedy(worked: Path) -> None:
    """An export that was cut, one that was touched and a set-aside file are problems; other settings are a note."""
    with (worked / EXPORT_PATHS["sft"]).open("ab") as file:
        file.write(b"{}\n")
    os.utime(worked / EXPORT_PATHS["rag"])
    (worked / EXPORT_PATHS["preference"]).unlink()
    put(worked / "exports" / ".set-aside" / "rag-1", "x")
    ran = distilld("status", "--root", worked, "--json", cwd=worked, env={"DISTILLD_INCLUDE_PARTIAL": "true"})
    assert ran.code == 0
    told = [(each["name"], each["text"].split(" ")[0]) for each in ran.json["problems"]]
    assert told == [
        ("export_changed", "exports/rag/playbooks.jsonl"),
        ("export_changed", "exports/sft/instruction_response.jsonl"),
        ("export_changed", "exports/preference/chosen_rejected.jsonl"),
        ("set_aside", "exports/.set-aside"),
    ]
    assert all(each["remedy"] for each in ran.json["problems"])
    assert ran.json["notes"] == [
        (
            "the settings are not those of the last batch (include_partial False to True);"
            " the next run judges every row anew"
        )
    ]


def test_quarantine_counts_what_the_files_hold(done: Path) -> None:
    """quarantine's figures are those of the quarantine files, by dataset and reason, and the flags narrow them."""
    shown = distilld("quarantine", "--root", done, "--json", cwd=done).json
    counts = {(each["dataset"], each["reason"]): each["rows"] for each in shown["by_reason"]}
    files = {name: rows(done / EXPORT_PATHS[f"quarantine_{name}"]) for name in ("rag", "sft", "preference")}
    assert counts == Counter((name, row["reason"]) for name, held in files.items() for row in held)
    assert shown["rows"] == []

    arguments = ("quarantine", "--root", done, "--dataset", "sft", "--reason", "missing_source_run_id", "--limit", "5")
    shown = distilld(*arguments, "--json", cwd=done).json
    assert shown["by_reason"] == [{"dataset": "sft", "reason": "missing_source_run_id", "rows": 33}]
    expected = [row for row in files["sft"] if row["reason"] == "missing_source_run_id"][:5]
    assert shown["rows"] == [
        {
            "dataset": "sft",
            "reason": row["reason"],
            "partition": row["location"]["partition"],
            "line": row["location"]["line_offset"],
            "errors": row["errors"],
        }
        for row in expected
    ]
    text = distilld(*arguments, cwd=done).out
    assert f"{expected[0]['location']['partition']}:{expected[0]['location']['line_offset']}" in text
    none = distilld("quarantine", "--root", done, "--reason", "self_pairing", cwd=done)
    assert (none.code, none.out) == (0, "nothing is held back for this\n")


def test_what_comes_from_data_cannot_steer_a_terminal(sample: SampleLake) -> None:
    """Control characters of a row's values are escaped in tables and in JSON."""
    evil = "\x1b[2J\x07\u202e"
    row = rows(sample.scored_path(sample.partitions[0]))[0]
    row |= {"evidence_run_id": evil, "category": "accepted"}
    with sample.scored_path(sample.partitions[0]).open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert once(sample.root).code == 0
    arguments = ("quarantine", "--reason", "missing_source_run_id", "--limit", "9", "--root", sample.root)
    for more in ((), ("--json",)):
        out = distilld(*arguments, *more, cwd=sample.root).out
        assert "not found" in out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", out)


def test_commands_that_look_need_a_store(tmp_path: Path) -> None:
    """Without a store, quarantine and receipts end with 1 and name the command that makes one."""
    for name in ("quarantine", "receipts"):
        ran = distilld(name, "--root", tmp_path, cwd=tmp_path)
        assert (ran.code, ran.out) == (1, "")
        assert ran.errors == [
            f"distilld: there is no state store at {tmp_path}/state/distilld.db (run 'distilld run --once' first)"
        ]
    assert list(tmp_path.iterdir()) == []


def test_store_that_is_no_database_is_told_to_those_who_look(tmp_path: Path) -> None:
    """A file that is no store gives one line and 1, and stays as it is."""
    put(tmp_path / "state" / "distilld.db", "no database " * 100)
    for name in ("status", "quarantine", "receipts"):
        ran = distilld(name, "--root", tmp_path, cwd=tmp_path)
        assert (ran.code, len(ran.errors)) == (1, 1)
        assert "is corrupt" in ran.err
    assert (tmp_path / "state" / "distilld.db").read_text() == "no database " * 100


def test_receipts_follow_the_chain(sample: SampleLake) -> None:
    """Each batch is listed, newest first; a receipt that is edited or missing is named, and the exit code is 1."""
    append_rows(sample)
    assert once(sample.root).code == 0
    shown = distilld("receipts", "--root", sample.root, "--json", cwd=sample.root)
    assert shown.code == 0
    assert shown.json["chain"] == "whole"
    newest, first = shown.json["receipts"]
    assert [each["sequence"] for each in (newest, first)] == [2, 1]
    reports = sample.root / "reports" / "distillation"
    assert {path.name for path in reports.iterdir()} == {newest["batch_id"], first["batch_id"], "latest.md"}
    text = distilld("receipts", "--root", sample.root, "--limit", "1", cwd=sample.root).out
    assert newest["batch_id"] in text
    assert first["batch_id"] not in text
    assert text.endswith("the chain is whole over these 1 receipts\n")

    receipt = reports / newest["batch_id"] / "receipt.json"
    receipt.write_bytes(receipt.read_bytes().replace(b'"once"', b'"ONCE"'))
    (reports / first["batch_id"] / "receipt.json").unlink()
    ran = distilld("receipts", "--root", sample.root, "--json", cwd=sample.root)
    assert ran.code == 1
    assert [each["state"] for each in ran.json["receipts"]] == ["changed", "missing"]
    ran = distilld("receipts", "--root", sample.root, cwd=sample.root)
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "the chain is broken in 2 of these 2 receipts")


@pytest.mark.parametrize("name", ["rag", "sft", "preference"])
def test_schema_describes_the_rows(done: Path, name: str) -> None:
    """The schema of a dataset names exactly the keys of its rows, in their order, and allows no other."""
    schema = distilld("schema", name, cwd=done).json
    row = rows(done / EXPORT_PATHS[name])[0]
    assert list(schema["properties"]) == list(row) == schema["required"]
    assert schema["additionalProperties"] is False
    provenance = schema["$defs"]["Provenance"]
    assert list(provenance["properties"]) == list(row["provenance"]) == provenance["required"]


def test_schemas_hold_the_second_wall(tmp_path: Path) -> None:
    """The SFT schema knows accepted and partially_accepted alone; the RAG schema does not know rejected."""
    sft = distilld("schema", "sft", cwd=tmp_path).json
    assert sft["properties"]["quality_score"]["enum"] == ["accepted", "partially_accepted"]
    rag = distilld("schema", "rag", cwd=tmp_path).json
    assert "rejected" not in rag["properties"]["source_category"]["enum"]
    quarantine = distilld("schema", "quarantine", cwd=tmp_path).json
    assert "source_provenance" not in quarantine["required"]
    assert distilld("schema", "nothing", cwd=tmp_path).code == 2


# init


def test_init_writes_the_config_and_never_over_one(tmp_path: Path) -> None:
    """init writes every key commented out; a second one ends with 2 and leaves the file as it is."""
    ran = distilld("init", cwd=tmp_path)
    assert (ran.code, ran.out) == (0, "wrote config/distilld.toml\n")
    path = tmp_path / "config" / "distilld.toml"
    assert path.read_text() == commented_toml()
    path.write_text("workers = 3\n")
    ran = distilld("init", "--root", tmp_path, cwd=tmp_path)
    assert (ran.code, ran.out, len(ran.errors)) == (2, "", 1)
    assert path.read_text() == "workers = 3\n"


def test_init_sets_root_and_state(done: Path, tmp_path: Path) -> None:
    """init with --root and --state sets them, so that the file works from any folder."""
    (tmp_path / "rel").symlink_to(done)
    ran = distilld("init", "--config", "deep/own.toml", "--root", "rel", "--state", 'sta"te.db', cwd=tmp_path)
    assert ran.out.splitlines() == ["wrote deep/own.toml", "use it with --config deep/own.toml"]
    settings = load(flags={}, environ={}, config_file=tmp_path / "deep" / "own.toml", cwd=Path("/"))
    assert (settings.root, settings.state) == (tmp_path / "rel", tmp_path / "rel" / 'sta"te.db')
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
    """On a terminal a pass shows files, rows, rows a second and the time left, and tables have rules."""
    root = phase4(tmp_path)
    code, shown = on_terminal(command("run", "--once", "--root", str(root)))
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"reading .* 100 % 90 files  1,052 rows  [\d,]+ rows/s +\d:\d\d:\d\d", plain)
    assert re.search(r"judging .* 100 % 90 files  1,052 rows  [\d,]+ rows/s", plain)
    assert "─────" in plain
    assert re.search(r"rag +446 +446 +0 +0 +606 +exports/rag/playbooks.jsonl", plain)
    assert re.search(r"info +batch_committed", plain)


def test_pipe_gets_no_escape_sequence(done: Path) -> None:
    """What is no terminal gets plain text alone."""
    for arguments in (("status",), ("receipts",), ("quarantine", "--limit", "2")):
        assert "\x1b" not in distilld(*arguments, "--root", done, cwd=done).out


def test_reader_that_goes_away_gets_no_traceback(done: Path) -> None:
    """A pipe that is closed early ends the command without a traceback."""
    with subprocess.Popen(
        command("quarantine", "--limit", "1000", "--root", str(done)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_paths_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    """Where the output's encoding does not hold a path, the path is escaped, and stops nothing."""
    root = phase4(tmp_path / "日")
    ran = distilld("status", "--root", root, cwd=tmp_path, env={"PYTHONIOENCODING": "latin-1"})
    assert ran.code == 0
    assert f"root         {tmp_path}/\\u65e5/lake\n" in ran.out
