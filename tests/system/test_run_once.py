"""run --once, the older names for it, and --dry-run: what is printed, and what is changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from distilld.core.model import EXPORT_PATHS
from distilld.demo.sample_lake import RESCORED_RUN_ID, append_rows, rescore_in_place
from tests.golden.test_phase4_core import EXPECTED, STAMP
from tests.support.command import (
    LOCK_FILE,
    PHASE4,
    another_writer,
    distilld,
    once,
    phase4,
    python,
    rows,
    snapshot,
)
from tests.support.sample import SampleLake

_LOCATION = re.compile(rb',"location":\{"partition":"[^"]+","line_offset":\d+\}\}\n')


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
    assert re.search(r"^  rag +446 +606 +446 +0 +0$", ran.out, flags=re.MULTILINE)
    assert re.search(r"^  sft +351 +701 +351 +0 +0$", ran.out, flags=re.MULTILINE)
    assert re.search(r"^  preference +83 +16 +83 +0 +0$", ran.out, flags=re.MULTILINE)
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
        "up to date: rag 446 (606 quarantined), sft 351 (701 quarantined), preference 83 (16 quarantined)\n",
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
    """A root without data is empty: nothing ships, exit 0, and one warning names the folders and what to do."""
    root = tmp_path / "empty"
    root.mkdir()
    ran = once(root)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "up to date: rag 0 (0 quarantined), sft 0 (0 quarantined), preference 0 (0 quarantined)",
    ]
    (warning,) = (line for line in ran.errors if "warning" in line)
    assert f"no partition file lies below {root}/data/scored-runs and {root}/data/evidence" in warning


def test_rejected_run_leaves_and_is_waited_for(sample: SampleLake) -> None:
    """A file that was re-scored in place is waited for, ten times settle_seconds at most, and the run then leaves."""
    path = rescore_in_place(sample.root)
    never_still = time.time() + 3600
    os.utime(path, (never_still, never_still))
    ran = once(sample.root, DISTILLD_SETTLE_SECONDS="0.1")
    assert ran.code == 0
    first, *waits, last = [event["event"] for event in ran.events]
    assert (first, set(waits), last) == ("lock_taken", {"settling", "partition_rewritten"}, "batch_committed")
    # On a busy machine a wait takes longer, and there are fewer.
    assert 1 <= waits.count("settling") <= 11
    assert ran.out.count("withdrawn from ") == 3
    assert "withdrawn from sft: revoked 1\n" in ran.out
    for dataset in ("rag", "sft", "preference"):
        assert RESCORED_RUN_ID not in (sample.root / EXPORT_PATHS[dataset]).read_text()


def test_what_changes_nothing_is_worked_off_to_the_end(sample: SampleLake) -> None:
    """Batches that change no outcome do not end a run before everything that waits is judged."""
    for path in (sample.root / "data" / "evidence").rglob("*.jsonl"):
        evidence = [json.loads(line) for line in path.read_bytes().splitlines()]
        path.write_text("".join(json.dumps({**row, "unknown": 1}) + "\n" for row in evidence))
    assert once(sample.root, DISTILLD_BATCH_ROWS="7", DISTILLD_SETTLE_SECONDS="0").code == 0
    waiting = distilld("status", "--root", sample.root, "--json", cwd=sample.root).json["waiting"]
    assert waiting == {"rows": 0, "tasks": 0, "departures": 0, "retained": 0}


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
    append_rows(sample.root)
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
from distilld.publish import commit
commit.receipts.write_receipt = lambda *_, **__: os._exit(9)
from distilld.cli.main import execute
execute(["run", "--once", "--root", sys.argv[1]])
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
    assert [event["event"] for event in ran.events][1:4] == [
        "recovery_started",
        "receipt_repaired",
        "recovery_finished",
    ]
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
    """How many tasks have an exported pair, and how many have rows but no pair to try, counted in the plainest way."""
    categories: defaultdict[str, list[str]] = defaultdict(list)
    for path in (PHASE4 / "data" / "scored-runs").rglob("*.jsonl"):
        runs = {row["run_id"] for row in rows(Path(str(path).replace("/scored-runs/", "/evidence/")))}
        for row in rows(path):
            if row["evidence_run_id"] in runs and row["evidence_task_id"]:
                categories[row["evidence_task_id"]].append(row["category"])
    exported = {
        row["prompt"].removeprefix("Task: ").partition(" · file=")[0]
        for row in rows(PHASE4 / "expected" / EXPECTED["preference"])
    }
    insufficient = sum(
        "accepted" not in found or not {"rejected", "partially_accepted"} & set(found) for found in categories.values()
    )
    return len(exported), insufficient


def test_flag_holds_for_one_run(worked: Path) -> None:
    """--include-partial ships 95 rows and says what becomes of them; the next run withdraws them, and says so."""
    sft = worked / EXPORT_PATHS["sft"]
    before = sft.read_bytes()
    ran = distilld("export-sft", "--include-partial", "--root", worked, cwd=worked)
    assert ran.out.splitlines()[0].endswith(" added=95 withdrawn=0")
    assert ran.out.splitlines()[2:] == [
        "[export_sft] partially_accepted INCLUDED (--include-partial)",
        "[export_sft] the next run without --include-partial withdraws these 95 rows again",
    ]
    (warning,) = (line for line in ran.errors if "warning: the next run" in line)
    assert warning.endswith(
        "the next run without --include-partial withdraws 95 partially_accepted rows from sft again"
    )
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
    said = once(sample.root, "--include-review", "--dry-run").out
    ran = once(sample.root, "--include-review")
    assert "rag: needs_human_review INCLUDED (--include-review)\n" in ran.out
    rag = sample.root / EXPORT_PATHS["rag"]
    exported = {row["id"] for row in rows(rag) if row["source_category"] == "needs_human_review"}
    assert exported
    assert {row["quality_score"] for row in rows(sample.root / EXPORT_PATHS["sft"])} == {"accepted"}
    ran = once(sample.root)
    left = len(exported - {row["id"] for row in rows(rag)})
    assert f"rag: the next run without --include-review withdraws these {left} rows again\n" in said
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
    append_rows(sample.root)
    rescore_in_place(sample.root)
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
    keys = ("rows", "quarantined", "by_reason", "added", "replaced", "withdrawn", "causes")
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
        "up to date: rag 446 (606 quarantined), sft 351 (701 quarantined), preference 83 (16 quarantined) (DRY RUN)\n",
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


def test_dry_run_names_exports_that_would_be_restored(worked: Path) -> None:
    """Where an export was edited, a dry run says that the run restores it, and restores nothing itself."""
    edited = worked / EXPORT_PATHS["sft"]
    edited.write_bytes(edited.read_bytes()[:-1])
    before = snapshot(worked)
    size = edited.stat().st_size
    problem = f"{EXPORT_PATHS['sft']} has {size} bytes and should have {size + 1}"
    note = "the next run restores it first; the figures here count it as whole"
    assert once(worked, "--dry-run").errors == [f"distilld: damaged: {problem}: {note}"]
    assert snapshot(worked) == before
    assert once(worked).code == 0
    assert once(worked, "--dry-run").errors == []


def test_dry_run_says_that_exports_would_be_taken_over(worked: Path) -> None:
    """Where exports stand that no store knows, a dry run and the run after it say so, and the rows are adopted."""
    shutil.rmtree(worked / "state")
    note = "exports stand there from before this store; the next run takes them over first"
    told = once(worked, "--dry-run").out
    assert note in told
    assert "the figures here count as if they were empty\n" in told
    assert not (worked / "state").exists()
    # Partitions that the old quarantine names return with their first reading: here at once, however young they are.
    ran = once(worked, DISTILLD_SETTLE_SECONDS="0")
    assert "exports stood there from before this store; they were taken over\n" in ran.out
    assert "adopted in sft: 351 rows, as they stood\n" in ran.out
