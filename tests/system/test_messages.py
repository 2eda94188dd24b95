"""What commands say about unusual states of a lake. They run within this process."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest
from structlog.testing import capture_logs

from distilld.core.model import EXPORT_PATHS, InputKind
from distilld.core.remedies import BY_ERRNO
from distilld.files.regular import open_regular
from distilld.lake import scan as scan_module
from distilld.lake.scan import Scan, Unlisted
from distilld.publish import committed
from tests.support.command import Cli
from tests.support.history_lake import A, B, HistoryLake, given, run

WIDEST = 80


@pytest.fixture
def lake(tmp_path: Path) -> HistoryLake:
    """A lake of two rows after one pass."""
    made = HistoryLake(tmp_path / "lake")
    made.both(A, run("a"), run("b"))
    with capture_logs():
        made.go()
    made.stop()
    return made


# status


def test_status_names_what_is_no_partition(cli: Cli, lake: HistoryLake) -> None:
    """The story: only --json named it, so a producer's other suffix went unseen."""
    for name in ("b.ndjson", "c.ndjson", "d.jsonl.gz"):
        lake.scored_path(A).with_name(name).write_bytes(b"{}")
    lines = cli("status", "--root", lake.root).out.splitlines()
    at = lines.index("note: 2 paths in data/ can be no partition: .ndjson")
    assert lines[at + 1].split() == ["such", "as", "data/scored-runs/2026/04/27/b.ndjson"]
    assert "note: 1 path in data/ can be no partition: .jsonl.gz" in lines
    assert max(map(len, lines[at:])) <= WIDEST


def test_batch_of_a_clock_that_was_ahead_has_its_time(cli: Cli, lake: HistoryLake) -> None:
    """The story: after the clock was set back, the last batch was 0 s ago for as long as the clock had been ahead."""
    with closing(sqlite3.connect(lake.state)) as store, store:
        store.execute("UPDATE batches SET recorded_at = '2999' || substr(recorded_at, 5)")
    shown = cli("status", "--root", lake.root).out
    assert re.search(r"^last batch   at 2999-\S+Z, by a clock that was ahead \(trigger", shown, re.MULTILINE)


# values and files that no command may fall over


@pytest.mark.parametrize("since", ["0001-01-01T00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_time_outside_the_calendar_is_wrong_usage(cli: Cli, lake: HistoryLake, since: str) -> None:
    """In UTC these are before the year 1 and after 9999."""
    ran = cli("withdrawals", "--since", since, "--root", lake.root)
    assert (ran.code, "allowed: a time such as" in ran.err) == (2, True)


@pytest.mark.parametrize("share", ["nan", "inf", "-inf", "-0.1", "1.1"])
def test_share_is_between_none_and_all(cli: Cli, lake: HistoryLake, share: str) -> None:
    """NaN compares with no limit, so a plain range lets it through."""
    ran = cli("snapshot", lake.root.parent / "copy", f"--validation={share}", "--root", lake.root)
    assert (ran.code, "is not in the range 0<=x<=1" in ran.err) == (2, True)


@pytest.mark.parametrize(
    "change",
    [
        {"files": ["a"]},
        {"files": None},
        {"files": [{"path": "sft/train.jsonl", "sha256": "0"}]},
        {"files": [{"path": "a\0b", "rows": 1, "sha256": "0"}]},
        {"files": []},
    ],
)
def test_damaged_manifest_is_a_damaged_snapshot(cli: Cli, lake: HistoryLake, change: dict[str, object]) -> None:
    """The last one leaves out a list of rows that the check would otherwise read unchecked."""
    copy = lake.root.parent / "copy"
    assert cli("snapshot", copy, "--root", lake.root).code == 0
    manifest = copy / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    ran = cli("snapshot", copy, "--check", "--root", lake.root)
    assert ran.code == 1
    assert ran.out.startswith("damaged: ")
    assert "the snapshot is damaged" in ran.out


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}"])
@pytest.mark.parametrize("hashed", [False, True])
def test_receipt_in_the_store_that_is_none_breaks_the_chain(
    cli: Cli, lake: HistoryLake, text: str, hashed: bool
) -> None:
    """It is no reason to show none of the others."""
    sha256 = hashlib.sha256(text.encode()).hexdigest() if hashed else "0" * 64
    with closing(sqlite3.connect(lake.state)) as store, store:
        store.execute("UPDATE receipts SET receipt = ?, receipt_sha256 = ?", (text, sha256))
    ran = cli("receipts", "--root", lake.root)
    assert ran.code == 1
    assert ("no receipt, checks unknown" if hashed else "changed in the store, checks unknown") in ran.out
    assert "the chain is broken in 1 of 1 receipt" in ran.out


def test_replaced_rows_are_told_apart_from_those_that_left(cli: Cli, lake: HistoryLake) -> None:
    """The story: of a batch that replaced rows, receipts and status said that as many were withdrawn, and run none."""
    lake.evidence(A, given("a", "other words"), given("b"))
    with capture_logs():
        lake.go()
    lake.stop()
    shown = cli("receipts", "--limit", "1", "--json", "--root", lake.root).json["receipts"][0]
    assert (shown["appended"], shown["replaced"], shown["withdrawn"]) == (2, 2, 0)
    head, row = cli("receipts", "--limit", "1", "--root", lake.root).out.splitlines()[1:3]
    told = dict(zip(head.split(), row.split(), strict=True))
    assert (told["added"], told["replaced"], told["withdrawn"]) == ("0", "2", "0")
    assert "2 exported, 0 quarantined, 2 withdrawn or replaced" in cli("status", "--root", lake.root).out
    with closing(sqlite3.connect(lake.state)) as store, store:
        store.execute("UPDATE receipts SET receipt = '{}'")
    assert cli("receipts", "--json", "--root", lake.root).json["receipts"][0]["replaced"] is None


def test_many_problems_of_one_name_hide_nothing_else(cli: Cli, lake: HistoryLake) -> None:
    """The story: a producer's 20,000 links were 20,000 lines of status, health and run, and the rest was out of sight."""
    for number in range(25):
        lake.scored_path(A).with_name(f"l{number:02}.jsonl").symlink_to(lake.root)
    ran = cli("run", "--once", "--root", lake.root)
    named = [line for line in ran.err.splitlines() if line.startswith("distilld: not read: ")]
    assert (ran.code, len(named)) == (1, 11)
    assert named[-1] == "distilld: not read: 15 more; distilld status --json lists all"
    shown = cli("status", "--root", lake.root).out.splitlines()
    assert sum(line.startswith("problem: ") for line in shown) == 11
    assert "problem: 15 more are not_read; what to do: distilld status --json lists all" in shown
    asked = cli("health", "--root", lake.root)
    named = asked.out.splitlines()
    assert (asked.code, len(named)) == (1, 12)
    assert named[-2] == "unhealthy: 15 more are not_read; what to do: distilld status --json lists all"
    assert "no distilld is running" in named[-1]
    assert len(cli("health", "--json", "--root", lake.root).json["problems"]) == 26


def test_receipts_fit_80_columns(cli: Cli, lake: HistoryLake) -> None:
    """A large first batch after a crash has the widest figures; what is wrong with a receipt has lines of its own.

    The story: the table took 85 columns, so that a terminal of 80 showed nine lines for each batch.
    """
    with closing(sqlite3.connect(lake.state)) as store, store:
        store.execute("UPDATE batches SET trigger = 'recovery', rows_exported = 123456, duration_ms = 1234567")
        store.execute("UPDATE batches SET rows_quarantined = 1234567, rows_withdrawn = 1234567")
        (batch_id,) = store.execute("SELECT batch_id FROM batches").fetchone()
    shown = cli("receipts", "--root", lake.root)
    assert (shown.code, max(map(len, shown.out.splitlines())) <= WIDEST) == (0, True)
    (lake.root / f"reports/distillation/{batch_id}/receipt.json").unlink()
    shown = cli("receipts", "--root", lake.root)
    lines = shown.out.splitlines()
    assert (shown.code, max(map(len, lines)) <= WIDEST) == (1, True)
    assert [batch_id, "missing"] in map(str.split, lines)


@pytest.mark.parametrize("damage", ["no JSON", b"{\xff}", "{}"])
def test_receipt_that_was_damaged_in_the_store_stops_nothing(cli: Cli, lake: HistoryLake, damage: str | bytes) -> None:
    """The story: a damaged receipt was a traceback of status, and of every run from then on."""
    with closing(sqlite3.connect(lake.state)) as store, store:
        store.execute("UPDATE receipts SET receipt = CAST(? AS TEXT)", (damage,))
        store.execute("UPDATE batches SET recorded_at = '2020' || substr(recorded_at, 5)")
    for name, code in {"status": 0, "health": 1, "explain": 0, "receipts": 1, "verify": 1, "snapshot": 0}.items():
        given = {"explain": ("a",), "snapshot": (lake.root.parent / "copy",)}.get(name, ())
        ran = cli(name, *given, "--root", lake.root)
        assert ran.code == code, (name, ran.err)
        assert "Traceback" not in ran.err
    lake.both(B, run("c"))
    assert cli("run", "--once", "--root", lake.root).code == 0


def test_dry_run_without_room_for_its_copy_says_so_once(
    cli: Cli, lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story: the message was Python's, with a number and both paths again."""

    def refuse(*paths: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *map(str, paths[:1]))

    monkeypatch.setattr(shutil, "copyfile", refuse)
    ran = cli("run", "--once", "--dry-run", "--root", lake.root)
    told = rf"distilld: cannot copy the state store {lake.state} to \S+: No space left on device \(make room .*"
    assert (ran.code, bool(re.fullmatch(told, ran.err.strip()))) == (1, True), ran.err


# snapshots


def test_snapshot_over_a_folder_that_exists_is_refused(cli: Cli, lake: HistoryLake) -> None:
    """The story: it was told to be no regular file, which a snapshot never is."""
    copy = lake.root.parent / "copy"
    copy.mkdir()
    ran = cli("snapshot", copy, "--root", lake.root)
    assert (ran.code, f"{copy} exists; a snapshot is never changed" in ran.err) == (2, True)


def test_snapshot_without_permission_says_what_is_missing(
    cli: Cli, lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is no remedy for a folder that may not be written."""

    def refused(path: Path, mode: int = 0o777) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    ran = cli("snapshot", lake.root.parent / "copy", "--root", lake.root)
    assert (ran.code, "make room" in ran.err, BY_ERRNO[errno.EACCES] in ran.err) == (1, False, True)


@pytest.mark.parametrize("content", [b"", b"no database, but longer than its header", None])
def test_check_of_a_snapshot_needs_no_store(
    cli: Cli, lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """An empty store, a corrupt one and one out of reach are as good as none: the files say what left."""
    copy = lake.root.parent / "copy"
    assert cli("snapshot", copy, "--root", lake.root).code == 0
    if content is None:
        monkeypatch.setattr("distilld.store.connection.is_there", out_of_reach)
    else:
        lake.state.write_bytes(content)
    ran = cli("snapshot", copy, "--check", "--root", lake.root)
    assert ran.code == 0
    assert "stand as they were" in ran.out
    assert re.search(r"note: .*state store.*; the exports were read as they are", ran.err)


def out_of_reach(path: Path) -> NoReturn:
    """Say nothing of a path."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


# health


@pytest.mark.parametrize(("of", "code"), [("corrupt", 1), ("foreign", 2)])
def test_health_as_json_is_json_whatever_the_store_is(cli: Cli, lake: HistoryLake, of: str, code: int) -> None:
    """A monitor reads JSON or nothing; the exit code stays that of the error."""
    lake.state.unlink()
    if of == "corrupt":
        lake.state.write_bytes(b"no database, but longer than its header")
    else:
        with closing(sqlite3.connect(lake.state)) as store, store:
            store.execute("CREATE TABLE of_another_program (a)")
    ran = cli("health", "--json", "--root", lake.root)
    assert ran.code == code
    assert not ran.json["healthy"]
    (problem,) = ran.json["problems"]
    assert (problem["name"], str(lake.state) in problem["text"]) == ("not_known", True)
    assert problem["text"] in ran.err


# prune


def test_prune_names_an_option_that_takes_the_rows(cli: Cli, lake: HistoryLake) -> None:
    """The story: it advised --vanished for rows that were accepted, and then --vanished found nothing to prune."""
    lake.restart(tripwire_rows=0, tripwire_share=0.0)
    with capture_logs():
        lake.scored(A)
        lake.go()
        assert lake.engine.accept_vanished() > 0
        lake.both(B, run("c"))
        lake.go()
        lake.scored(B)
        lake.go()
    lake.stop()
    table = [line.split() for line in cli("prune", "--root", lake.root).out.splitlines()]
    assert ["rag", "vanished", "1", "--vanished"] in table
    assert ["rag", "vanished,", "accepted", "2", "--partition", "GLOB"] in table
    told = cli("prune", "--vanished", "--root", lake.root, "--json").json
    assert [each["rows"] for each in told["withdraw"] if each["dataset"] == "rag"] == [1]
    told = cli("prune", "--partition", A, "--root", lake.root, "--json").json
    assert [each["rows"] for each in told["withdraw"] if each["dataset"] == "rag"] == [2]


# run


def test_hint_for_an_input_that_is_a_link_does_not_stop_at_its_permissions(cli: Cli, lake: HistoryLake) -> None:
    """The story: 'make it readable' was the advice for a link and for a FIFO, which no permission makes readable."""
    lake.scored_path(A).with_name("link.jsonl").symlink_to(lake.scored_path(A))
    ran = cli("run", "--once", "--root", lake.root)
    (line,) = [each for each in map(json.loads, ran.err.splitlines()[:-1]) if each["event"] == "file_unreadable"]
    assert "regular file" in line["hint"]


# run with flags


def test_rows_that_are_only_replaced_are_not_announced_as_withdrawn(cli: Cli, lake: HistoryLake) -> None:
    """The story: 85 rows were announced; 84 were withdrawn, and one was replaced by an accepted row with its id."""
    with capture_logs():
        lake.scored(A, run("a", "partially_accepted"), run("a"), run("b", "partially_accepted"))
        lake.go()
    lake.stop()
    at = ("--root", lake.root)
    announced = "the next run without --include-partial withdraws 1 partially_accepted row from sft again"
    ran = cli("run", "--once", "--include-partial", *at, DISTILLD_SETTLE_SECONDS="0")
    assert announced in ran.err
    assert "sft: the next run without --include-partial withdraws this row again" in ran.out
    dry = cli("run", "--once", "--dry-run", *at, DISTILLD_SETTLE_SECONDS="0").out
    assert "sft: would withdraw 1 partially_accepted row: " in dry
    assert "withdrew" not in dry
    ran = cli("run", "--once", "--json", *at, DISTILLD_SETTLE_SECONDS="0")
    told = ran.json["datasets"]["sft"]
    assert (told["withdrawn"], told["replaced"]) == (1, 1)


def test_table_of_a_run_has_what_is_there_before_what_it_did(cli: Cli, lake: HistoryLake) -> None:
    """The story: what is quarantined by now stood behind what the run did, and was read as its doing."""
    head, row = cli("rebuild", "--root", lake.root).out.splitlines()[1:3]
    told = dict(zip(head.split(), row.split(), strict=True))
    assert list(told) == ["dataset", "rows", "quarantined", "added", "replaced", "withdrawn"]
    assert told == {**told, "dataset": "rag", "rows": "2", "quarantined": "0", "added": "0"}


def test_export_that_may_not_be_read_has_the_remedy_of_that(
    cli: Cli, lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story: health said to find out who writes there and to run distilld, which was refused the file as well."""
    (lake.root / EXPORT_PATHS["rag"]).chmod(0o600)

    def denied(path: Path) -> BinaryIO:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("distilld.inspection.export_faults.open_regular", denied)
    said = cli("health", "--no-daemon", "--root", lake.root).out
    problem = f"{EXPORT_PATHS['rag']} cannot be read: Permission denied"
    assert said == f"unhealthy: {problem}; what to do: {BY_ERRNO[errno.EACCES]}\n"


def test_one_row_is_a_row(cli: Cli, lake: HistoryLake) -> None:
    """One row was judged, not 1 rows."""
    with lake.scored_path(A).open("a") as file:
        file.write(lake.scored_path(A).read_text().splitlines()[0] + "\n")
    ran = cli("run", "--once", "--root", lake.root, DISTILLD_SETTLE_SECONDS="0")
    assert "\n1 row judged, " in ran.out


# explain, verify, configuration


def test_explain_names_what_is_unusual(cli: Cli, lake: HistoryLake) -> None:
    """An unfinished last line, and a category that is none of the four, were shown like any other row."""
    with capture_logs():
        lake.both(
            B, run("p", task_id="t"), run("q", "rejected", task_id="t"), run("u", "approved"), run("v", "REJECTED")
        )
        path = lake.scored_path(B)
        path.write_bytes(path.read_bytes() + json.dumps(run("a", "rejected")).encode()[:-1])
        lake.go()
    lake.stop()

    def explained(run_id: str) -> str:
        return cli("explain", run_id, "--root", lake.root).out

    assert f"{B}:4, rejected, said by the unfinished last line of the file\n" in explained("a")
    unreviewed = "needs_human_review, for its category is none of the four, evidence found\n"
    assert f"{B}:2, {unreviewed}" in explained("u")
    assert "rejected, for its category is 'rejected' in another spelling, evidence found\n" in explained("v")
    assert "  task t\n" in explained("p")


@pytest.mark.parametrize("category", ["rejected", "needs_human_review"])
def test_explain_calls_a_malformed_line_malformed(cli: Cli, lake: HistoryLake, category: str) -> None:
    """The story: of a line that spells its category as it should, but is torn, explain said that the category is odd."""
    with capture_logs():
        lake.scored(B, b'{"evidence_run_id":"m","category":"%s",}' % category.encode())
        lake.go()
    lake.stop()
    shown = cli("explain", "m", "--root", lake.root).out
    assert f"  {B}:0, {category}, for the malformed line says so, evidence missing\n" in shown
    with capture_logs():
        lake.move_away(lake.scored_path(B))
        lake.go()
    lake.stop()
    assert f"{category}, for the malformed line says so, " in cli("explain", "m", "--root", lake.root).out


def test_verify_blames_no_batch_where_none_is_under_way(cli: Cli, lake: HistoryLake) -> None:
    """Rows also wait where a pass ended early."""
    with closing(sqlite3.connect(lake.state)) as store, store:
        store.execute("INSERT INTO rejudge_rows (walk, forced) SELECT min(walk), 0 FROM scored_rows")
    assert "changed meanwhile: rows that wait to be judged\n" in cli("verify", "--deep", "--root", lake.root).out


def test_empty_path_is_told_to_be_empty(cli: Cli) -> None:
    """It is valid UTF-8 without control characters, so that alone explains nothing."""
    ran = cli("status", "--root", "")
    assert (ran.code, "and not empty" in ran.err) == (2, True)


def test_deep_verify_names_a_folder_once_that_cannot_be_listed(
    cli: Cli, lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story: 'cannot list ...: cannot be listed: Permission denied (...; mount what is missing)'."""
    real = scan_module.scan

    def without_a_folder(root: Path) -> Scan:
        folder = Unlisted(InputKind.EVIDENCE, "2026/", "cannot be listed: Permission denied")
        return replace(real(root), unlisted=(folder,))

    monkeypatch.setattr(scan_module, "scan", without_a_folder)
    ran = cli("verify", "--deep", "--root", lake.root)
    problem = "distilld: data/evidence/2026/ cannot be listed: Permission denied (make the folder readable"
    assert (ran.code, ran.err.startswith(problem)) == (1, True)


# inspect


def test_inspect_refuses_the_store_of_another_root(cli: Cli, lake: HistoryLake, tmp_path: Path) -> None:
    """The story: it served the problems of one lake above the tables of another."""
    (tmp_path / "other").mkdir()
    ran = cli("inspect", "--root", tmp_path / "other", "--state", lake.state)
    assert (ran.code, f"belongs to the root {lake.root}" in ran.err) == (2, True)


# changes


@pytest.mark.parametrize("command", [["changes", "--dataset", "rag", "--since", "0"], ["snapshot", "copy"]])
def test_export_that_may_not_be_read_is_not_called_damaged(
    cli: Cli, lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """No run restores what this user may not read; an export that is gone, it does."""
    monkeypatch.chdir(lake.root.parent)
    rag = lake.root / EXPORT_PATHS["rag"]

    def denied(path: Path, *, follow_link: bool = False) -> BinaryIO:
        if path == rag:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_regular(path, follow_link=follow_link)

    with monkeypatch.context() as patch:
        patch.setattr(committed, "open_regular", denied)
        ran = cli(*command, "--root", lake.root)
    assert ran.code == 1
    assert "'distilld run --once' restores it" not in ran.err
    assert BY_ERRNO[errno.EACCES] in ran.err
    rag.unlink()
    assert "'distilld run --once' restores it" in cli(*command, "--root", lake.root).err
