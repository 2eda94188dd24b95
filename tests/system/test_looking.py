"""The commands that only look: status, quarantine, receipts, schema."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from distilld.config.load import load
from distilld.core.model import EXPORT_PATHS
from distilld.demo.sample_lake import RESCORED_RUN_ID, append_rows, rescore_in_place
from distilld.inspection.status import look
from distilld.publish.receipt import iso_time
from tests.support.command import (
    REPOSITORY,
    another_writer,
    distilld,
    once,
    phase4,
    put,
    rows,
    snapshot,
)
from tests.support.sample import SampleLake

CLOCK_TICK_SECONDS = 0.02
"""How far a file's times may be behind the clock."""

NO_WRITER = (
    "no distilld is running, so what changes waits for the next run; to have it taken in at once:"
    " systemctl start distilld, or distilld run"
)

# looking


def test_status_of_a_lake_at_rest(done: Path) -> None:
    """status gives the datasets' figures and committed lengths, the quarantine, the input, and no problem."""
    shown = distilld("status", "--root", done, "--json", cwd=done).json
    exports = {each["name"]: each for each in shown["exports"]}
    for name, path in EXPORT_PATHS.items():
        content = (done / path).read_bytes() if (done / path).exists() else b""
        assert (exports[name]["path"], exports[name]["committed_bytes"]) == (path, len(content))
        assert exports[name]["rows"] == content.count(b"\n")
    assert shown["writer"]["running"] is False
    assert shown["lag"] == {
        "new_files": 0,
        "changed_files": 0,
        "gone_files": 0,
        "unread_bytes": 0,
        "seconds": 0.0,
        "oldest": [],
    }
    assert [(tree["kind"], tree["present"], tree["lines"]) for tree in shown["trees"]] == [
        ("scored", 45, 1052),
        ("evidence", 45, 1052),
    ]
    assert (shown["problems"], shown["notes"], shown["pending_tails"]) == ([], [NO_WRITER], [])
    text = distilld("status", "--root", done, cwd=done).out
    assert text.startswith("healthy as of the last run, and no distilld is running\n")
    assert "\nlag          none: every file is read as it is\n" in text
    assert text.endswith(f"note: {NO_WRITER}\n")
    timed = distilld("status", "--root", done, cwd=done, env={"DISTILLD_WRITER": "timer"}).out
    assert timed.startswith("healthy\n")
    assert "note:" not in timed


def test_status_shows_how_the_datasets_grew(sample: SampleLake) -> None:
    """Rows an hour and a day ago are those of the newest receipts that are as old; before there was one, nothing is known."""
    assert once(sample.root).code == 0
    root, state = sample.root, sample.root / "state" / "distilld.db"
    settings = load(flags={"root": root}, environ={}, config_file=None, cwd=root)
    assert look(settings).rows_before == {"hour": {}, "day": {}}
    then = {each.name: each.rows for each in look(settings).exports if each.name in {"rag", "sft", "preference"}}
    with closing(sqlite3.connect(state)) as store, store:
        store.execute("UPDATE batches SET recorded_at = ?", (iso_time(time.time_ns() - 2 * 3600 * 10**9),))
    rescore_in_place(sample.root)
    assert once(sample.root).code == 0
    assert look(settings).rows_before == {"hour": then, "day": {}}
    shown = distilld("status", "--root", root, cwd=root).out
    assert re.search(r"^ +sft +\d+ +-1 +- ", shown, flags=re.MULTILINE)


def test_status_of_a_usual_lake_fits_one_screen(sample: SampleLake) -> None:
    """At 80 columns and 24 lines, and the first line names what is wrong.

    The story: the problems stood below four tables, where nobody saw them.
    """
    assert once(sample.root).code == 0
    with (sample.root / EXPORT_PATHS["sft"]).open("ab") as file:
        file.write(b"{}\n")
    lines = distilld("status", "--root", sample.root, cwd=sample.root).out.splitlines()
    assert lines[0] == "unhealthy: export_changed"
    assert lines[1].startswith("problem: exports/sft/instruction_response.jsonl has ")
    table = [line for line in lines if line.startswith("  ")]
    assert all(len(line) <= 80 for line in table)
    assert sum(len(line) // 80 + 1 for line in lines) <= 24


def test_withdrawals_since_a_time_or_a_batch(sample: SampleLake) -> None:
    """What left is listed with its cause and run; what left before the time, or with the batch itself, is not."""
    cli = partial(distilld, cwd=sample.root)
    assert once(sample.root).code == 0
    first = cli("receipts", "--root", sample.root, "--json").json["receipts"][0]["batch_id"]
    rescore_in_place(sample.root)
    assert once(sample.root).code == 0
    last = cli("receipts", "--root", sample.root, "--json").json["receipts"][0]["batch_id"]
    shown = cli("withdrawals", "--since", first, "--root", sample.root)
    assert RESCORED_RUN_ID in shown.out
    found = cli("withdrawals", "--since", "2026-01-01", "--root", sample.root, "--json", "--limit", "1").json
    assert len(found["withdrawals"]) == 1 < found["count"]
    assert {each["withdrawn_batch"] for each in found["withdrawals"]} == {last}
    assert cli("withdrawals", "--since", last, "--root", sample.root).out.startswith("nothing was withdrawn since")
    wrong = cli("withdrawals", "--since", "yesterday", "--root", sample.root)
    assert wrong.code == 2
    assert "--since = 'yesterday'; allowed: a time such as" in wrong.err


def test_show_of_a_row_and_of_one_that_left(sample: SampleLake) -> None:
    """The row, its run and what became of it; after its withdrawal the run alone; an id that never was is an error."""
    cli = partial(distilld, cwd=sample.root)
    assert once(sample.root).code == 0
    row = next(each for each in rows(sample.root / EXPORT_PATHS["sft"]) if each["source_run_id"] == RESCORED_RUN_ID)
    shown = cli("show", row["id"], "--root", sample.root)
    assert shown.out.startswith(f"row {row['id']} of sft\n")
    assert f"run {RESCORED_RUN_ID}\n" in shown.out
    assert cli("show", row["id"], "--root", sample.root, "--json").json["row"] == row
    pair = rows(sample.root / EXPORT_PATHS["preference"])[0]
    both = cli("show", pair["id"], "--root", sample.root, "--json").json["runs"]
    assert [each["run_id"] for each in both] == [pair["chosen_run_id"], pair["rejected_run_id"]]
    rescore_in_place(sample.root)
    assert once(sample.root).code == 0
    gone = cli("show", row["id"], "--root", sample.root)
    assert gone.out.startswith(f"row {row['id']} is no longer in sft\n")
    assert "Withdrawn\n" in gone.out
    assert cli("show", "sft-0000000000000000", "--root", sample.root).code == 1
    assert cli("show", "sft-1", "--root", sample.root).code == 2


def test_status_of_a_lake_that_was_never_run(tmp_path: Path) -> None:
    """status works without a store, counts what is to be read, names the command, and makes nothing."""
    root = phase4(tmp_path)
    before = snapshot(tmp_path)
    text = distilld("status", "--root", root, cwd=tmp_path).out
    assert re.search(
        r"^lag          90 new, 0 changed and 0 missing files, [\d.]+ MiB not read yet, for \d+ s$",
        text,
        flags=re.MULTILINE,
    )
    assert f"problem: there is no state store at {root}/state/distilld.db; what to do: distilld run --once" in text
    assert snapshot(tmp_path) == before


def test_status_tells_what_is_behind_and_what_waits(sample: SampleLake) -> None:
    """New, grown and missing files are counted with their bytes, and since when they wait; an unfinished line is named."""
    scored = sample.scored_path(sample.partitions[0])
    with scored.open("ab") as file:
        file.write(b'{"evidence_run_id": "half')
    assert once(sample.root).code == 0
    began = time.time() - CLOCK_TICK_SECONDS
    with sample.evidence_path(sample.partitions[0]).open("ab") as file:
        file.write(b"\n" * 10)
    shutil.copy(scored, scored.with_name("new.jsonl"))
    # What a producer says of the time does not count, but since when it stands there.
    os.utime(scored.with_name("new.jsonl"), (1, 1))
    sample.evidence_path(sample.partitions[1]).unlink()
    shown = distilld("status", "--root", sample.root, "--json", cwd=sample.root).json
    assert 0 < (seconds := shown["lag"].pop("seconds")) < time.time() - began
    oldest = shown["lag"].pop("oldest")
    changed = [sample.evidence_path(sample.partitions[0]), scored.with_name("new.jsonl")]
    assert [each["path"] for each in oldest] == [str(each.relative_to(sample.root)) for each in changed]
    assert [each["unread_bytes"] for each in oldest] == [10, scored.stat().st_size]
    assert oldest[0]["seconds"] == seconds
    assert shown["lag"] == {
        "new_files": 1, "changed_files": 1, "gone_files": 1, "unread_bytes": 10 + scored.stat().st_size
    }  # fmt: skip
    assert shown["pending_tails"] == [{"path": str(scored.relative_to(sample.root)), "bytes": 25}]


def test_status_tells_each_problem_with_its_remedy(worked: Path) -> None:
    """Exports that were cut or edited and a set-aside file are problems, one only touched is none; settings are a note.

    The story: a chmod or chgrp of an export at rest was told as an edit.
    """
    with (worked / EXPORT_PATHS["sft"]).open("ab") as file:
        file.write(b"{}\n")
    rag = (worked / EXPORT_PATHS["rag"]).read_bytes()
    (worked / EXPORT_PATHS["rag"]).write_bytes(rag.replace(b"accepted", b"rejected", 1))
    (worked / EXPORT_PATHS["quarantine_rag"]).chmod(0o644)
    os.utime(worked / EXPORT_PATHS["quarantine_sft"])
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
            "the settings are not those of the last batch (include_partial false to true);"
            " the next run judges every row again"
        ),
        NO_WRITER,
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
    assert (none.code, none.out) == (0, "nothing is quarantined for this\n")


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


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_holds_nobody_up(sample: SampleLake, make: Callable[[Path], None]) -> None:
    """A FIFO or a folder in the place of an export or a receipt is named, and no command waits for it."""
    receipt = next((sample.root / "reports/distillation").glob("*/receipt.json"))
    held = sample.root / EXPORT_PATHS["quarantine_rag"]
    for path in (receipt, held):
        path.unlink()
        make(path)
    ran = distilld("receipts", "--root", sample.root, "--json", cwd=sample.root)
    assert ran.code == 1
    assert [each["state"] for each in ran.json["receipts"]] == ["cannot be read: is no regular file"]
    ran = distilld("quarantine", "--limit", "1", "--root", sample.root, cwd=sample.root)
    restores = "('distilld run --once' restores it; see 'distilld status')"
    problem = f"{EXPORT_PATHS['quarantine_rag']} cannot be read: is no regular file"
    assert (ran.code, ran.errors) == (1, [f"distilld: {problem} {restores}"])
    ran = distilld("verify", "--root", sample.root, "--json", cwd=sample.root)
    assert (ran.code, ran.json["faults"]) == (1, 2)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"{}\n" + path.read_bytes()[3:])])
def test_quarantine_that_was_damaged_is_restored_by_a_run(sample: SampleLake, damage: Callable[[Path], None]) -> None:
    """The story: whoever asked for its rows was told to put the file back, or saw fewer of them without a word."""
    damage(sample.root / EXPORT_PATHS["quarantine_rag"])
    arguments = ("quarantine", "--root", sample.root)
    assert distilld(*arguments, cwd=sample.root).code == 0
    ran = distilld(*arguments, "--limit", "1", cwd=sample.root)
    assert (ran.code, ran.out, "'distilld run --once' restores it" in ran.err) == (1, "", True)
    assert once(sample.root).code == 0
    assert distilld(*arguments, "--limit", "1", cwd=sample.root).code == 0


def test_receipts_follow_the_chain(sample: SampleLake) -> None:
    """Each batch is listed, newest first; a receipt that is edited or missing is named, and the exit code is 1."""
    append_rows(sample.root)
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
    assert text.endswith("the chain is whole over 1 receipt\n")

    receipt = reports / newest["batch_id"] / "receipt.json"
    receipt.write_bytes(receipt.read_bytes().replace(b'"once"', b'"ONCE"'))
    (reports / first["batch_id"] / "receipt.json").unlink()
    ran = distilld("receipts", "--root", sample.root, "--json", cwd=sample.root)
    assert ran.code == 1
    assert [each["state"] for each in ran.json["receipts"]] == ["changed", "missing"]
    ran = distilld("receipts", "--root", sample.root, cwd=sample.root)
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "the chain is broken in 2 of 2 receipts")


def test_receipt_that_a_writer_is_about_to_write_breaks_no_chain(sample: SampleLake) -> None:
    """The story: beside a busy daemon every tenth look said that the chain is broken, and exited with 1."""
    assert once(sample.root).code == 0
    (path,) = (sample.root / "reports/distillation").glob("*/receipt.json")
    path.unlink()
    with closing(sqlite3.connect(sample.root / "state/distilld.db")) as store, store:
        store.execute("UPDATE receipts SET written = 0")
    arguments = ("receipts", "--root", sample.root)
    with another_writer(sample.root):
        ran = distilld(*arguments, "--json", cwd=sample.root)
        assert (ran.code, ran.json["chain"], ran.json["receipts"][0]["state"]) == (0, "whole", "not written yet")
    ran = distilld(*arguments, cwd=sample.root)
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "the chain is broken in 1 of 1 receipt")


def test_receipts_of_other_stages_are_listed(sample: SampleLake) -> None:
    """They were nowhere but in their folder: each run is listed with its exit code, and a broken chain is named."""
    assert once(sample.root).code == 0
    for word, code in (("true", 0), ("false", 1)):
        assert distilld("stage", "score_runs", "--root", sample.root, "--", word, cwd=sample.root).code == code
    shown = distilld("receipts", "--root", sample.root, "--json", cwd=sample.root)
    assert (shown.code, shown.json["chain"]) == (0, "whole")
    newest, first = shown.json["stages"]
    assert [(each["stage"], each["exit_code"], each["problem"]) for each in (newest, first)] == [
        ("score_runs", 1, None), ("score_runs", 0, None)
    ]  # fmt: skip
    text = distilld("receipts", "--root", sample.root, cwd=sample.root).out
    assert text.index(newest["batch_id"]) < text.index(first["batch_id"])
    assert text.endswith("the chain is whole over 3 receipts\n")
    assert first["batch_id"] not in distilld("receipts", "--root", sample.root, "--limit", "1", cwd=sample.root).out

    receipt = sample.root / "reports/distillation" / first["batch_id"] / "receipt.json"
    receipt.write_bytes(receipt.read_bytes().replace(b'"once"', b'"ONCE"'))
    ran = distilld("receipts", "--root", sample.root, cwd=sample.root)
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "the chain is broken in 1 of 3 receipts")


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


def test_ten_questions_have_one_command_each(sample: SampleLake) -> None:
    """Each command of the table in docs/operations.md answers its question, and no question needs SQL."""
    assert once(sample.root).code == 0
    rescore_in_place(sample.root)
    assert once(sample.root).code == 0
    shutil.rmtree(sample.scored_path(sample.partitions[-1]).parent)
    assert once(sample.root).code == 0
    row = rows(sample.root / EXPORT_PATHS["rag"])[0]
    values = {"RUN_ID": row["source_run_id"], "ID": row["id"], "TIME": "2026-01-01"}
    answers = {
        "health": "no distilld is running",
        "status": "retained",
        "explain": row["id"],
        "show": row["source_run_id"],
        "withdrawals": RESCORED_RUN_ID,
        "quarantine": "category_disallowed",
        "receipts": "the chain is whole",
        "verify": "agree",
        "run": "up to date",
        "prune": "absent",
    }
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## See what it does")[2].partition("\n## ")[0]
    commands = re.findall(r"^\| [^|]+\? \| `distilld ([^`]+)` \|$", table, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == [*answers]
    for command in commands:
        words = [values.get(word, word) for word in command.split()]
        assert answers[words[0]] in distilld(*words, "--root", sample.root, cwd=sample.root).out, command
