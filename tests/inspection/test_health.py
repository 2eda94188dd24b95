"""Health: what is unhealthy, that each reason says what to do, and that the documents know every reason."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from distilld.cli.status import _writer as writer_in_words
from distilld.config.load import load
from distilld.config.settings import Settings
from distilld.core.model import (
    EXPORT_PATHS,
    REPORTS,
    SET_ASIDE,
    InputKind,
    OperatorError,
    StatFacts,
    Trigger,
    UnreadableError,
    UsageError,
)
from distilld.core.remedies import BY_ERRNO, BY_EVENT
from distilld.engine import file_reading, read_file
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.inspection import export_faults, status
from distilld.inspection.status import PERIODS, diagnose, look
from distilld.lake.scan import open_partition, tree_path
from distilld.publish.commit import Committer
from distilld.publish.receipt import iso_time
from distilld.service.dry_run import rehearsal
from distilld.service.health_record import Failure, Unreadable, Vitals, read_vitals, write_vitals
from distilld.service.lock import LOCK_FILE, Holder, tell_trouble
from distilld.service.run_once import bring_up_to_date, writer
from distilld.service.schedule import LONGEST_RETRY_SECONDS
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecord, Intent
from distilld.store.read_only import ReadOnly, open_read_only
from distilld.tables import counted
from tests.support.lake_by_formula import append_bench_rows, partition_of, write_bench_lake
from tests.support.query_plans import whole_scans

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A lake of 21 rows that saw one run."""
    write_bench_lake(tmp_path / "lake", rows=21, partitions=2, text_bytes=100)
    made = load(flags={"root": tmp_path / "lake"}, environ={}, config_file=None, cwd=tmp_path)
    with capture_logs(), writer(made) as engine:
        bring_up_to_date(engine)
    return made


@pytest.fixture
def running(settings: Settings) -> Iterator[Engine]:
    """A daemon's writer on the lake, with what a daemon leaves in the store."""
    with capture_logs(), writer(settings) as engine:
        leave(engine, alive())
        yield engine


def alive(**changes: object) -> Vitals:
    """The vitals of a daemon in this process that scanned just now."""
    now = iso_time(time.time_ns())
    return replace(Vitals(pid=os.getpid(), started_at=now, last_scan_at=now, watching="events"), **changes)  # type: ignore[arg-type]


def leave(engine: Engine, vitals: Vitals) -> None:
    """Write them."""
    write_vitals(engine.store, vitals, read_vitals(engine.store))


def names(settings: Settings, *, daemon: bool = True) -> list[str]:
    """The reasons, by name."""
    return [each.name for each in diagnose(settings, daemon=daemon)]


def ago(seconds: float) -> str:
    """A moment in the past, as it is stored."""
    return iso_time(time.time_ns() - round(seconds * 1e9))


def test_healthy_while_a_daemon_runs(settings: Settings, running: Engine) -> None:
    """A daemon that scanned a moment ago, and nothing else to tell: no reason."""
    assert names(settings) == []


def test_it_looks_at_no_table_of_rows_as_a_whole(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: two counts read every scored row, so that a monitor's question took a second on a large lake."""
    asked: list[str] = []

    def traced(path: Path) -> ReadOnly:
        source = open_read_only(path)
        source.connection.set_trace_callback(asked.append)
        return source

    with capture_logs(), writer(settings) as engine:
        (settings.root / "data/evidence" / partition_of(0)).unlink()
        bring_up_to_date(engine)
    monkeypatch.setattr("distilld.store.connection.open_read_only", traced)
    names(settings)
    assert any("FROM retained_rows" in statement for statement in asked)
    with closing(sqlite3.connect(settings.state)) as store:
        assert whole_scans(store, asked) == []


def test_it_looks_at_no_receipt(settings: Settings, running: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: a monitor's question asked the size of every receipt, which only status shows."""
    walked: list[Path] = []
    walk = os.walk

    def noted(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        walked.append(folder)
        return walk(folder)

    monkeypatch.setattr(os, "walk", noted)
    assert names(settings) == []
    assert settings.root / REPORTS not in walked
    look(settings)
    assert settings.root / REPORTS in walked


def test_no_writer_is_a_reason_unless_none_is_expected(settings: Settings) -> None:
    """Without a daemon the lake is unhealthy, but not where a timer keeps it."""
    assert names(settings) == ["no_writer"]
    assert names(settings, daemon=False) == []


def test_setting_that_a_remedy_names_is_written_as_in_the_file(settings: Settings) -> None:
    """The story: pasted into the configuration, ``writer = timer`` was no TOML."""
    (problem,) = diagnose(settings)
    assert 'set writer = "timer"' in problem.remedy


def test_timer_is_judged_by_the_age_of_its_last_run(settings: Settings) -> None:
    """The story: who ran distilld from a timer, as the README says, was told every time that no daemon runs."""
    timed = replace(settings, writer="timer")
    assert names(timed) == []
    late_run(settings)
    assert names(timed) == [each.name for each in look(timed).problems] == ["run_overdue"]
    assert names(timed, daemon=False) == []
    with capture_logs(), writer(timed) as engine:
        # Who works now is not late, however long it takes.
        assert names(timed) == [each.name for each in look(timed).problems] == []
        bring_up_to_date(engine)
    assert names(timed) == []


def late_run(settings: Settings, *, seconds: float | None = None) -> None:
    """Have the last scan be longer ago than three periods; its lock file is of now."""
    with capture_logs(), writer(settings) as engine:
        late = 4 * settings.rescan_seconds if seconds is None else seconds
        leave(engine, replace(read_vitals(engine.store), last_scan_at=ago(late)))


@pytest.mark.parametrize("how", ["lock removed", "killed", "no scan"])
def test_only_a_scan_is_a_run_of_the_timer(settings: Settings, how: str) -> None:
    """The story: a lock file's time counted, so a run that was killed at once, or a look at 'prune', was a run."""
    timed = replace(settings, writer="timer")
    late_run(settings)
    if how == "lock removed":
        (settings.root / LOCK_FILE).unlink()
    else:
        with suppress(KeyboardInterrupt), capture_logs(), writer(settings) as engine:
            if how == "killed":
                engine.refuse_missing_lake = interrupted  # type: ignore[method-assign]
                bring_up_to_date(engine)
    assert names(timed) == ["run_overdue"]


def interrupted() -> None:
    """End what is under way."""
    raise KeyboardInterrupt


def test_timer_that_never_scanned_or_scanned_by_another_clock(settings: Settings) -> None:
    """A first run that did not get to its scan is no run; nor is a scan of the far future one of the last periods."""
    timed = replace(settings, writer="timer")
    late_run(settings, seconds=-86_400)
    assert names(timed) == ["run_overdue"]
    late_run(settings, seconds=-1)
    assert names(timed) == []
    with capture_logs(), writer(settings) as engine:
        leave(engine, replace(read_vitals(engine.store), last_scan_at=None))
    assert names(timed) == ["run_overdue"]


def test_command_that_writes_is_a_writer(settings: Settings) -> None:
    """While 'run --once' or 'rebuild' holds the lake, nobody misses the daemon, nor its scans."""
    with capture_logs(), writer(settings) as engine:
        leave(engine, alive(pid=1, started_at=ago(1e6), last_scan_at=ago(1e6)))
        assert names(settings) == []


def test_scan_that_is_overdue(settings: Settings, running: Engine) -> None:
    """Three rescan periods without a scan are a reason; a daemon that just started has time."""
    late = settings.rescan_seconds * 3 + 10
    leave(running, alive(started_at=ago(late * 2), last_scan_at=ago(late)))
    assert names(settings) == [each.name for each in look(settings).problems] == ["scan_overdue"]
    assert names(settings, daemon=False) == []
    leave(running, alive(started_at=ago(1), last_scan_at=ago(late)))
    assert names(settings) == []


@pytest.mark.parametrize("change", ["append", "truncate", "empty", "replace", "delete"])
def test_changed_export_beside_a_daemon(settings: Settings, running: Engine, change: str) -> None:
    """The story: a row that somebody appended to a dataset beside a daemon left health green for five minutes."""
    path = settings.root / EXPORT_PATHS["sft"]
    content = path.read_bytes()
    assert content
    if change == "delete":
        path.unlink()
    elif change == "replace":
        path.with_name("other").write_bytes(content[::-1])
        path.with_name("other").rename(path)
    else:
        path.write_bytes({"append": content + b'{"id":"leak"}\n', "truncate": content[:-9], "empty": b""}[change])
    (problem,) = diagnose(settings)
    assert problem.name == "export_changed"
    assert EXPORT_PATHS["sft"] in problem.text


@pytest.mark.parametrize(
    ("kind", "text"), [("folder", "is a folder"), ("link", "is a link"), ("fifo", "is no regular")]
)
def test_what_is_no_file_in_place_of_an_export(settings: Settings, running: Engine, kind: str, text: str) -> None:
    """The story: a folder was told as a file of 4096 bytes that should have some others."""
    path = settings.root / EXPORT_PATHS["sft"]
    path.rename(path.with_name("other"))
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("other")
    else:
        os.mkfifo(path)
    (problem,) = diagnose(settings)
    assert problem.text.startswith(f"{EXPORT_PATHS['sft']} {text}")


def test_tree_that_cannot_be_listed_names_the_remedy_of_its_error(settings: Settings, running: Engine) -> None:
    """The story: of a file in place of a tree, health said to make the folder readable, and a run to move the file."""
    tree = settings.root / "data"
    shutil.rmtree(tree)
    tree.touch()
    (problem,) = diagnose(settings)
    assert problem.name == "not_listed"
    assert problem.remedy == f"{BY_ERRNO[errno.ENOTDIR]}, then distilld run --once"


@pytest.mark.parametrize("name", [b"\xff.jsonl", b"a\x01b.jsonl"])
def test_name_that_cannot_be_used_is_to_be_changed(settings: Settings, running: Engine, name: bytes) -> None:
    """The story: the remedy for a regular file with such a name was to put a regular file in its place."""
    folder = settings.root / "data/scored-runs" / Path(partition_of(0)).parent
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    (problem,) = diagnose(settings)
    assert (problem.name, problem.remedy) == ("not_read", "rename it, or take it away")


def test_other_program_that_holds_the_lock_is_no_writer(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: a daemon was killed, and under "no distilld runs" status told of a running writer, and of its retries."""
    with capture_logs(), writer(settings) as engine:
        leave(
            engine,
            alive(started_at=ago(1e6), last_scan_at=ago(1e6), failure=Failure(ago(60), ago(1), 1, "no room", "")),
        )
    held = Holder(running=True, pid=os.getpid(), state=settings.state, foreign=True)
    monkeypatch.setattr(status, "holder", lambda _: held)
    found = look(settings)
    assert not found.writer_runs
    assert not found.daemon_runs
    assert [each.name for each in found.problems] == ["lock_held", "last_batch_failed"]
    assert found.problems[1].text.startswith("the last batch failed, 1 time since ")
    assert "then distilld run --once" in found.problems[1].remedy
    assert writer_in_words(found) == "none is running, and some other program holds the lake's lock"
    assert names(replace(settings, writer="timer")) == ["run_overdue", "lock_held", "last_batch_failed"]


def test_export_with_other_permissions_is_whole(settings: Settings, running: Engine) -> None:
    """Beside a daemon, too, a chmod or a touch with equal bytes is no edit."""
    path = settings.root / EXPORT_PATHS["sft"]
    path.chmod(0o600)
    os.utime(path)
    assert names(settings) == []


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_what_stands_at_the_path_of_an_export_without_rows(
    settings: Settings, running: Engine, make: Callable[[Path], None]
) -> None:
    """An empty file is no fault. A pipe is one, though it is as long."""
    path = settings.root / EXPORT_PATHS["withdrawals_sft"]
    assert not path.exists()
    path.parent.mkdir(exist_ok=True)
    make(path)
    assert names(settings) == ([] if path.is_file() else ["export_changed"])


def test_what_the_writer_has_in_hand_is_no_fault(settings: Settings, running: Engine) -> None:
    """An export that grows under an open intent is being appended to; one that shrinks is not."""
    path = settings.root / EXPORT_PATHS["sft"]
    size = path.stat().st_size
    with running.store.transaction():
        running.export_records.intend([Intent("sft", 2, size, None)])
    with path.open("ab") as file:
        file.write(b'{"schema_version":1,')
    assert names(settings) == []
    os.truncate(path, size - 1)
    assert names(settings) == ["export_changed"]


def test_batch_that_comes_while_health_looks_is_no_fault(
    settings: Settings, running: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that is longer than the store said a moment ago, and as long as it says now, is whole."""
    real = export_faults._fault_of

    def look_late(root: Path, record: ExportRecord) -> object:
        monkeypatch.setattr(export_faults, "_fault_of", real)
        append_bench_rows(root, partition_index=0, first_row=21, rows=7)
        running.run_pass(Trigger.WATCH)
        return real(root, record)

    monkeypatch.setattr(export_faults, "_fault_of", look_late)
    assert names(settings) == []


def test_other_settings_beside_a_daemon(settings: Settings, running: Engine) -> None:
    """The flags of a daemon hold as long as it runs; the note promised that every row is judged anew at once."""
    before = "the settings are not those of the last batch (include_review false to true); "
    changed = replace(settings, include_review=True)
    assert look(changed).notes == [
        f"{before}the daemon that runs keeps those that it was started with or last reloaded"
    ]
    leave(running, alive(pid=1))
    assert look(changed).notes == [f"{before}the next run judges every row again"]


def test_clock_that_ran_ahead_hides_no_hang(settings: Settings, running: Engine) -> None:
    """The story: a start of tomorrow, by a clock that was set right later, counted as the last sign until then."""
    late = settings.rescan_seconds * 3 + 10
    leave(running, alive(started_at=ago(-86_400), last_scan_at=ago(late)))
    assert names(settings) == ["scan_overdue"]
    leave(running, alive(started_at=ago(-86_400), last_scan_at=ago(1)))
    assert names(settings) == []
    leave(running, alive(started_at=ago(-86_400), last_scan_at=None))
    assert names(settings) == []


def test_failure_and_overdue_withdrawal(settings: Settings, running: Engine) -> None:
    """A failure that lasts says since when and what of; rows that must leave are a reason of their own."""
    leave(running, alive(failure=Failure(ago(60), ago(1), 7, "no room", "make some"), overdue_since=ago(60)))
    failed, overdue = diagnose(settings)
    assert (failed.name, overdue.name) == ("last_batch_failed", "withdrawal_overdue")
    assert "7 times since" in failed.text
    assert "no room" in failed.text
    assert failed.remedy.startswith("make some")
    assert "do not train" in overdue.remedy


def test_daemon_that_tries_again_does_not_hang(settings: Settings, running: Engine) -> None:
    """The story: while a failure came before each scan, the remedy was also to restart the daemon."""
    late = ago(PERIODS * LONGEST_RETRY_SECONDS + 1000)

    def failing(at: str) -> Vitals:
        return alive(started_at=late, last_scan_at=late, failure=Failure(late, at, 7, "no room", "make some"))

    quick = replace(settings, rescan_seconds=1.0)
    leave(running, failing(ago(LONGEST_RETRY_SECONDS)))
    assert names(quick) == names(settings) == ["last_batch_failed"]
    leave(running, failing(late))
    assert names(settings) == ["scan_overdue", "last_batch_failed"]
    # Where the store cannot take the failure, it does not take the scans either.
    leave(running, alive(started_at=late, last_scan_at=late))
    tell_trouble(settings.root, "the disk is full")
    assert names(settings) == ["last_batch_failed"]


def test_failure_outlives_the_daemon(settings: Settings, running: Engine) -> None:
    """A daemon that died failing is told as such, until somebody brings the lake up to date."""
    leave(running, alive(failure=Failure(ago(60), ago(1), 7, "no room", "make some")))
    running.store.connection.commit()
    assert "last_batch_failed" in names(settings, daemon=False)


def test_trouble_in_the_lock_file(settings: Settings, running: Engine) -> None:
    """What could not be said in the store is read from the lock file."""
    tell_trouble(settings.root, "the disk is full")
    (problem,) = diagnose(settings)
    assert (problem.name, "the disk is full" in problem.text) == ("last_batch_failed", True)
    tell_trouble(settings.root, None)
    assert names(settings) == []


class Refused(OperatorError):
    """What the system says in these tests."""


def run_once(settings: Settings, *, failing: bool = False) -> None:
    """What a timer does."""
    with capture_logs(), writer(settings) as engine:
        if failing:
            engine.run_pass = refused  # type: ignore[method-assign]
        bring_up_to_date(engine)


def refused(*_: object, **__: object) -> NoReturn:
    """A call that fails."""
    raise Refused("no room", hint="make some")


def test_run_by_a_timer_that_fails(settings: Settings) -> None:
    """The story: health said healthy after 'run --once' had failed for days; only a daemon left word of its failures."""
    for tries in (1, 2):
        with pytest.raises(Refused):
            run_once(settings, failing=True)
        (problem,) = diagnose(settings, daemon=False)
        assert problem.name == "last_batch_failed"
        assert f"the last batch failed, {counted(tries, 'time')} since " in problem.text
        assert problem.text.endswith(": no room")
        assert problem.remedy.startswith("make some")
    run_once(settings)
    assert names(settings, daemon=False) == []


@pytest.mark.parametrize(
    ("error", "text", "hint"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/lake/exports/sft"),
            "/lake/exports/sft: Permission",
            "give",
        ),
        (UsageError("exports/rag is a link", hint="put a folder"), "exports/rag is a link", "put a folder"),
        (KeyError("the text of a row"), "an unexpected KeyError", "report"),
    ],
    ids=["system", "usage", "unforeseen"],
)
def test_run_by_a_timer_that_ends_with_any_error(settings: Settings, error: Exception, text: str, hint: str) -> None:
    """The story: only some kinds of errors were recorded, so health said healthy after a run that failed."""

    def fail(_: object) -> NoReturn:
        raise error

    with capture_logs(), writer(settings) as engine:
        engine.run_pass = fail  # type: ignore[method-assign,assignment]
        with pytest.raises(type(error)):
            bring_up_to_date(engine)
    (found,) = diagnose(replace(settings, writer="timer"))
    assert found.name == "last_batch_failed"
    assert text in found.text
    assert hint in found.remedy
    assert "text of a row" not in found.text


def test_folder_of_reports_that_cannot_be_looked_at(
    settings: Settings, running: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health names it, and goes on to the inputs."""
    look_at = os.lstat

    def lstat(path: Any) -> os.stat_result:
        if str(path).endswith("reports/distillation"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return look_at(path)

    monkeypatch.setattr(os, "lstat", lstat)
    found = look(settings)
    assert [each.name for each in found.problems] == ["not_listed"]
    assert "reports/distillation" in found.problems[0].text
    assert found.lag is not None


def test_run_by_a_timer_that_cannot_withdraw(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a run was to take out and could not are a reason of their own, as beside a daemon."""
    path = settings.root / "data/scored-runs" / partition_of(0)
    shutil.copy(path, path.with_name("zz.jsonl"))
    path.with_name("zz.jsonl").write_bytes(path.read_bytes().replace(b'"accepted"', b'"rejected"'))
    with monkeypatch.context() as patch:
        patch.setattr(Committer, "commit", refused)
        with pytest.raises(Refused):
            run_once(settings)
    assert {"last_batch_failed", "withdrawal_overdue"} <= set(names(settings, daemon=False))
    run_once(settings)
    assert names(settings, daemon=False) == []


def test_input_that_a_run_by_a_timer_cannot_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, with its time, until a run can: also where who asks may read it."""
    path = settings.root / "data/scored-runs" / partition_of(0)
    path.write_bytes(path.read_bytes() + b"{}\n")
    shown = []
    with monkeypatch.context() as patch:
        patch.setattr(file_reading, "open_partition", all_but_one)
        for _ in range(2):
            run_once(settings)
            (problem,) = [each for each in diagnose(settings, daemon=False) if each.name == "not_read"]
            assert problem.text.startswith(
                f"data/scored-runs/{partition_of(0)} cannot be read: Input/output error, since "
            )
            shown.append(problem.text)
    assert shown[0] == shown[1]
    run_once(settings)
    assert names(settings, daemon=False) == []


def all_but_one(root: Path, kind: InputKind, path: str) -> AbstractContextManager[tuple[int, StatFacts]]:
    """Open a partition; but the disk gives one of them no more."""
    if (kind, path) == (InputKind.SCORED, partition_of(0)):
        raise UnreadableError(tree_path(kind, path), OSError(errno.EIO, "Input/output error"))
    return open_partition(root, kind, path)


def test_run_that_could_not_open_its_store(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be said in the store stands in the lock file until the next run, and is read when none runs."""
    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", refused)
        with pytest.raises(Refused):
            run_once(settings)
    (problem,) = diagnose(settings, daemon=False)
    assert (problem.name, problem.text) == ("last_batch_failed", "the last run failed: no room")
    run_once(settings)
    assert names(settings, daemon=False) == []


def test_run_beside_a_killed_daemon_of_its_pid(settings: Settings) -> None:
    """Where each is process 1 of its container, a run that takes long is no daemon that hangs."""
    with capture_logs(), writer(settings) as engine:
        leave(engine, alive(started_at=ago(1e6), last_scan_at=ago(1e6)))
    found: list[str] = []

    def look(engine: Engine) -> None:
        run_pass = engine.run_pass

        def looked(trigger: Trigger) -> PassResult:
            found.extend(names(settings))
            return run_pass(trigger)

        engine.run_pass = looked  # type: ignore[method-assign]

    with capture_logs(), writer(settings) as engine:
        assert names(settings) == ["scan_overdue"]
        look(engine)
        bring_up_to_date(engine)
    assert found == []


def test_unreadable_inputs_are_named_once(settings: Settings, running: Engine) -> None:
    """What the daemon cannot read and this command can see are told once each, the daemon's with its time."""
    folder = settings.root / "data/scored-runs" / Path(partition_of(0)).parent
    (folder / "link.jsonl").symlink_to("elsewhere")
    link = f"data/scored-runs/{Path(partition_of(0)).parent}/link.jsonl"
    since = ago(60)
    seen = (
        Unreadable(link, "is a link and is not followed", since),
        Unreadable("data/evidence/2026/01/01/eio.jsonl", "cannot be read: Input/output error", since),
    )
    leave(running, alive(unreadable=seen))
    found = [each for each in diagnose(settings) if each.name == "not_read"]
    assert len(found) == 2
    assert any("Input/output error" in each.text and since in each.text for each in found)


def test_no_other_path_hides_an_unreadable_input(settings: Settings, running: Engine) -> None:
    """The story: a recorded folder was not told any more once a file below it was."""
    folder = f"data/scored-runs/{Path(partition_of(0)).parent}/"
    (settings.root / folder / "link.jsonl").symlink_to("elsewhere")
    since = ago(60)
    seen = (
        Unreadable(folder, "cannot be listed: Permission denied", since),
        Unreadable(f"{folder}ink.jsonl", "cannot be read: Input/output error", since),
    )
    leave(running, alive(unreadable=seen))
    texts = [each.text for each in diagnose(settings)]
    assert texts[0].startswith(f"{folder}link.jsonl ")
    assert texts[1:] == [f"{each.path} {each.problem}, since {since}" for each in seen]


def test_file_of_too_many_lines_is_told_beside_others(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: this error had no path, so any other input that was told of hid it."""
    path = f"data/scored-runs/{partition_of(0)}"
    (settings.root / path).with_name("link.jsonl").symlink_to("elsewhere")
    monkeypatch.setattr(read_file, "LINES_END", 12)
    with (settings.root / path).open("ab") as file:
        file.write(b"{}\n" * 12)
    run_once(settings)
    texts = [each.text for each in diagnose(settings, daemon=False) if each.name == "not_read"]
    assert len(texts) == 2
    assert any(
        each.startswith(f"{path} cannot be read: it has 12 lines or more, and must be split, since") for each in texts
    )


def test_root_of_the_path_check_that_is_away(settings: Settings, tmp_path: Path) -> None:
    """It is told by the run that needs it, with its own remedy, and by a dry run; taking it away would mend nothing."""
    sources = tmp_path / "sources"
    settings = replace(settings, check_source_files=True, source_files_root=sources)
    with capture_logs(), rehearsal(settings) as engine:
        told = bring_up_to_date(engine).not_read
    assert told == (f"cannot read source_files_root {sources}: No such file or directory",)
    assert names(settings, daemon=False) == []
    run_once(settings)
    waiting, problem = diagnose(settings, daemon=False)
    assert (waiting.name, problem.name) == ("work_waiting", "not_read")
    assert problem.text.startswith(f"source_files_root {sources} cannot be read: No such file or directory, since ")
    assert problem.remedy == "mount it, make it readable for distilld's user, or correct source_files_root"
    sources.mkdir()
    (sources / "lib.rs").touch()
    run_once(settings)
    assert names(settings, daemon=False) == []


def test_set_aside_stores_are_named(settings: Settings, running: Engine) -> None:
    """A corrupt store that was put aside is a reason until its files are removed, and the command names them.

    The story: the bytes that set-aside files take were those of exports alone.
    """
    kept = settings.state.with_name(f"{settings.state.name}.corrupt-2026")
    kept.write_bytes(bytes(1000))
    assert look(settings).sizes["set_aside"] == 1000
    (problem,) = diagnose(settings)
    assert problem.name == "store_set_aside"
    assert str(kept) in problem.remedy
    kept.unlink()
    assert names(settings) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_empty_file_set_aside_is_named(settings: Settings, running: Engine, kind: str) -> None:
    """The story: an export was emptied, set aside and restored, and nothing said so."""
    kept = settings.root / SET_ASIDE / "playbooks.jsonl"
    if kind == "file":
        kept.parent.mkdir()
        kept.touch()
    else:
        kept.mkdir(parents=True)
    assert names(settings) == ["set_aside"]
    shutil.rmtree(kept.parent)
    kept.parent.mkdir()
    assert names(settings) == []


def test_cut_off_batch_is_pending(settings: Settings) -> None:
    """A batch that was cut off is a reason when nobody is at work on it."""
    with capture_logs(), writer(settings) as engine:
        engine.store.connection.execute("INSERT INTO intents VALUES ('rag', 2, 0, NULL)")
    assert "recovery_pending" in names(settings, daemon=False)


def test_never_run(tmp_path: Path) -> None:
    """A lake that nothing was ever done to is unhealthy, whoever is to do it."""
    settings = load(flags={"root": tmp_path}, environ={}, config_file=None, cwd=tmp_path)
    assert names(settings, daemon=False) == ["never_run", "no_inputs"]


def test_looking_changes_nothing(settings: Settings) -> None:
    """Health leaves no trace, so it may be asked every few seconds."""

    def facts() -> dict[Path, int]:
        # SQLite's own memory of who reads is no trace.
        return {path: path.stat().st_mtime_ns for path in settings.root.rglob("*") if path.suffix != ".db-shm"}

    before = facts()
    diagnose(settings)
    assert facts() == before


def test_vitals_of_another_form_are_left_out(settings: Settings, running: Engine) -> None:
    """What another version left, or somebody edited, is no reason to fail."""
    odd = {"last_failure": '{"odd": 1}', "unreadable_inputs": "no json", "daemon_pid": "x", "last_scan_at": "then"}
    before = read_vitals(running.store)
    for name, value in odd.items():
        running.store.remember(name, value)
    assert read_vitals(running.store) == Vitals(started_at=before.started_at, watching=before.watching)
    assert diagnose(settings) == []


def test_vitals_of_another_form_hide_no_other_one(settings: Settings, running: Engine) -> None:
    """An input that another version noted otherwise, or a list that is none, leaves the rest to be read."""
    since = "2026-01-01T00:00:00.000Z"
    before = read_vitals(running.store)
    vitals = replace(before, failure=Failure(since, since, 1, "why", ""), unreadable=(Unreadable("a", "b", since),))
    write_vitals(running.store, vitals, before)
    noted = json.loads(running.store.recall("unreadable_inputs") or "")
    running.store.remember("unreadable_inputs", json.dumps([{"odd": 1}, *noted, 5]))
    assert read_vitals(running.store) == vitals
    running.store.remember("unreadable_inputs", "5")
    assert read_vitals(running.store) == replace(vitals, unreadable=())
    running.store.remember("last_failure", '{"odd": 1}')
    assert read_vitals(running.store) == replace(vitals, failure=None, unreadable=())


def every_problem() -> set[str]:
    """The names of all problems in the source."""
    found = set()
    for module in ("inspection/status", "inspection/input_faults", "inspection/problem"):
        tree = ast.parse((REPOSITORY / "distilld" / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="Problem"), args=[ast.Constant(value=str(name)), *_]):
                    found.add(name)
    return found


def test_docs_say_what_to_do_about_every_reason() -> None:
    """The table of docs/operations.md has a line for each problem that status and health can name, and no other."""
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## What health says")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, flags=re.MULTILINE)) == every_problem()


def test_docs_say_what_to_do_on_every_error_event() -> None:
    """Each event that the source logs as an error or a warning is in the table of docs/operations.md, and no other."""
    logged: dict[str, str] = {}
    for path in (REPOSITORY / "distilld").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="error" | "warning" as level),
                    args=[ast.Constant(value=str(name))],
                ):
                    logged[name] = "error" if "error" in (level, logged.get(name)) else "warning"
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## What to do on an event")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `([a-z_]+)` \| (\w+) \|", table, flags=re.MULTILINE)) == logged
    assert BY_EVENT.keys() == logged.keys()


def test_a_folder_that_cannot_be_listed_is_named_until_a_run_can(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run applies all the rest and leaves word of the folder; who asks is told of it, listable to him or not."""
    folder = str(Path(settings.root, "data/scored-runs", partition_of(0)).parent)
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path) == folder:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        run_once(settings)
        (seen,) = diagnose(settings, daemon=False)
    (told,) = diagnose(settings, daemon=False)
    shown = f"{os.path.relpath(folder, settings.root)}/ cannot be listed: Permission denied"
    assert [seen.name, told.name] == ["not_listed", "not_listed"]
    assert shown == seen.text
    assert told.text.startswith(f"{shown}, since ")
    run_once(settings)
    assert names(settings, daemon=False) == []


def test_a_root_without_inputs_is_not_green(tmp_path: Path) -> None:
    """A wrong folder, or a mount that is not there: named, with the folders, before and after a run."""
    wrong = load(flags={"root": tmp_path}, environ={}, config_file=None, cwd=tmp_path)
    assert names(wrong, daemon=False) == ["never_run", "no_inputs"]
    with capture_logs(), writer(wrong) as engine:
        bring_up_to_date(engine)
    (problem,) = diagnose(wrong, daemon=False)
    assert problem.name == "no_inputs"
    assert str(tmp_path / "data/scored-runs") in problem.text


@pytest.mark.parametrize("on_delete", ["keep", "withdraw"])
def test_inputs_that_are_all_absent_are_not_green(settings: Settings, on_delete: str) -> None:
    """The story: with on_delete = keep, health was healthy while all of data/ was away. So it is before the next run."""
    flags = {"root": settings.root, "on_delete": on_delete}
    made = load(flags=flags, environ={}, config_file=None, cwd=settings.root)
    for tree in ("scored-runs", "evidence"):
        shutil.rmtree(settings.root / "data" / tree)
        (settings.root / "data" / tree).mkdir()
    assert names(made, daemon=False) == ["inputs_absent"]
    with capture_logs(), writer(made) as engine:
        bring_up_to_date(engine)
    assert names(made, daemon=False) == ["inputs_absent"]
