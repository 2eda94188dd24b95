"""The loop: what is due and when, what follows a failure or a signal. File events and the clock are scripted."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from distilld import logs
from distilld.config.load import load
from distilld.config.settings import Settings
from distilld.core.model import DATASET_PATHS, SET_ASIDE, OperatorError, StatFacts, Trigger, UsageError, WriterBusy
from distilld.core.remedies import BY_ERRNO
from distilld.engine import mend
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.engine.work_off import QueueWorker
from distilld.inspection.status import diagnose
from distilld.lake.scan import tree_path
from distilld.publish import restore
from distilld.publish.commit import CommittedBatch, Committer
from distilld.publish.exports import Exports
from distilld.publish.reading import ExportWriteError
from distilld.service import daemon, schedule, signals
from distilld.service import health_record as vitals
from distilld.service import listener as listening
from distilld.service import reporter as bulletin
from distilld.service.daemon import Daemon
from distilld.service.health_record import Vitals, read_vitals
from distilld.service.inotify import FolderGoneError, Folders, WatchBrokenError
from distilld.service.lock import holder
from distilld.service.recheck import Recheck
from distilld.service.run_once import StoreMovedError, writer
from distilld.service.run_once import recover as real
from distilld.service.signals import PassEnded
from distilld.service.systemd import Notifier
from distilld.store.connection import Store, StoreCorruptError, StoreFaultError
from tests.support.command import another_writer
from tests.support.lake_by_formula import append_bench_rows, partition_of

EXPORT = "exports/rag/playbooks.jsonl"
ACCEPTED = 0
"""A row of the formula that ships."""
DISK_FULL = ExportWriteError(EXPORT, OSError(28, "No space left on device"))

Step = Callable[[], object]


class Script:
    """Stands in for the watcher: does one step of a script at each wait, and stops the daemon behind the last."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps: list[Step] = []
        self.armed: Folders = {}
        self.refusals: list[Exception] = []
        self.waits: list[float] = []
        self.stop: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return self.now

    def arm(self, folders: Folders) -> None:
        self.armed = {}
        if self.refusals:
            raise self.refusals.pop(0)
        self.armed = dict(folders)

    def disarm(self) -> None:
        self.armed = {}

    def wait(self, seconds: float) -> bool:
        assert 0 < seconds <= schedule.TICK_SECONDS
        self.waits.append(seconds)
        self.now += seconds
        if not self.steps:
            self.stop()
            return False
        done = self.steps.pop(0)()
        return done if isinstance(done, bool) else False


class Heard(Notifier):
    """Keeps what systemd would be told."""

    def __init__(self, notified: list[str]) -> None:
        super().__init__(None)
        self._notified = notified

    def _send(self, message: str, **_: float) -> bool:
        self._notified.append(message)
        return True


class Scripted(Daemon):
    """A daemon that follows a script."""

    script: Script

    def _new_watcher(self) -> Any:
        return self.script


class Stage:
    """A lake, a script, and the daemon that runs on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.script = Script()
        self.settings = self.read()
        self.next_settings: Callable[[], Settings] = lambda: self.settings
        self.lines: list[Any] = []
        self.passes: list[Trigger] = []
        self.notified: list[str] = []
        self.failures: list[BaseException] = []
        self.results: list[PassResult] = []
        self.looks: list[Callable[[Engine], None]] = []

    def read(self, **changes: object) -> Settings:
        return load(flags={"root": self.root, **changes}, environ={}, config_file=None, cwd=self.root)

    def _read_again(self) -> Settings:
        return self.next_settings()

    def append(self, row: int = ACCEPTED, partition: int = 0) -> None:
        append_bench_rows(self.root, partition_index=partition, first_row=row, rows=1)

    def then(self, *steps: Step) -> None:
        self.script.steps += steps

    def wait(self, seconds: float) -> None:
        """A step for as long: ticks alone."""
        until = self.script.now + seconds + sum(1 for _ in self.script.steps)

        def tick() -> bool | None:
            if self.script.now < until:
                self.script.steps.insert(0, tick)
            return None

        self.then(tick)

    def events(self, name: str) -> list[Any]:
        return [line for line in self.lines if line["event"] == name]

    def exported(self) -> int:
        path = self.root / EXPORT
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def run(self) -> None:
        """Run it to the end of the script."""
        Scripted.script = self.script
        notifier = Heard(self.notified)
        made = Scripted(
            self.settings,
            read_settings=self._read_again,
            notifier=notifier,
            clock=self.script.clock,
        )
        self.script.stop = lambda: made.signals.on_stop(signal.SIGTERM, None)
        try:
            with capture_logs() as lines, made.signals.taken(), writer(self.settings, pulse=made.pulse) as engine:
                self.lines = lines
                self._listen(engine)
                made.run(engine)
        finally:
            structlog.reset_defaults()

    def _listen(self, engine: Engine) -> None:
        real = engine.run_pass

        def run_pass(trigger: Trigger) -> PassResult:
            self.passes.append(trigger)
            for look in self.looks:
                look(engine)
            if self.failures:
                raise self.failures.pop(0)
            result = real(trigger)
            self.results.append(result)
            return result

        engine.run_pass = run_pass  # type: ignore[method-assign]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A lake with one row."""
    made = Stage(tmp_path / "lake")
    made.root.mkdir()
    made.append()
    # A reload sets the log up anew, and these tests listen to it.
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    return made


def test_starts_watches_looks_again_and_stops(stage: Stage) -> None:
    """The first pass ships what is there; a second one follows the watch; the end leaves nothing half done."""
    stage.run()
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH]
    assert stage.exported() == 1
    names = [line["event"] for line in stage.lines]
    assert names[0] == "lock_taken"
    assert [name for name in names if name in ("daemon_started", "watch_started", "daemon_stopping")] == [
        "daemon_started",
        "watch_started",
        "daemon_stopping",
    ]
    assert names[-1] == "daemon_stopped"
    assert "READY=1" in stage.notified
    assert stage.notified[-1] == "STOPPING=1"


def test_hint_is_followed_by_a_pass(stage: Stage) -> None:
    """A file event leads to a pass at once, and the row stands in the export."""

    def write() -> bool:
        stage.append(row=1_000_000 * 105)
        return True

    stage.then(write)
    stage.run()
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH, Trigger.WATCH]
    assert stage.exported() == 2


def test_change_that_the_facts_hide_is_found_in_a_rest(stage: Stage) -> None:
    """Without a file event, and with facts that are as recorded: hashing the file again leads to a pass, once."""
    stage.settings = stage.read(settle_seconds=0)
    engines: list[Engine] = []
    stage.looks.append(engines.append)

    def lie() -> None:
        engine, path = engines[0], stage.root / "data/scored-runs" / partition_of(0)
        path.write_bytes(path.read_bytes().replace(b"accepted", b"rejected"))
        with engine.store.transaction():
            for record in engine.inputs.files().values():
                facts = StatFacts.of((stage.root / tree_path(record.kind, record.path)).stat())
                record.facts, record.unsure_since_ns = facts, 0
                engine.inputs.write_file(record)

    stage.then(lie)
    stage.wait(100)
    stage.run()
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH, Trigger.WATCH]
    assert stage.exported() == 0


def test_nothing_to_do_is_no_pass(stage: Stage) -> None:
    """Between two rescans nothing is scanned, however many ticks go by; at the rescan something is."""
    stage.wait(stage.settings.rescan_seconds * 1.5)
    stage.run()
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH, Trigger.RESCAN]


def test_every_pass_puts_the_rescan_off(stage: Stage) -> None:
    """Every pass is a whole scan, so a rescan is due only a period after the last one."""
    stage.wait(stage.settings.rescan_seconds * 0.9)
    stage.then(lambda: True)
    stage.wait(stage.settings.rescan_seconds * 0.9)
    stage.run()
    assert Trigger.RESCAN not in stage.passes


def meddle(stage: Stage) -> None:
    """Append a foreign row to a dataset."""
    with (stage.root / EXPORT).open("ab") as file:
        file.write(b'{"id":"leak"}\n')


def test_edited_export_is_restored_at_a_tick(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in an hour the next tick takes an edit back; from the third time on it takes a pause, and one pass.

    The story: nothing watched the exports, so a foreign row stood in a dataset until the rescan.
    """
    clock = SimpleNamespace(time_ns=lambda: round(stage.script.now * 1e9), monotonic=time.monotonic)
    monkeypatch.setattr(mend, "time", clock)
    monkeypatch.setattr(daemon, "time", clock)
    began: list[float] = []
    lasted: list[float] = []

    def look() -> None:
        if b"leak" in (stage.root / EXPORT).read_bytes():
            stage.then(look)
            return
        if began:
            lasted.append(stage.script.now - began[-1])
        if len(lasted) < 4:
            began.append(stage.script.now)
            meddle(stage)
            stage.then(look)

    stage.then(look)
    stage.run()
    assert all(seconds <= schedule.TICK_SECONDS for seconds in lasted[:2]), lasted
    pause = restore.PAUSE_SECONDS
    assert all(pause <= seconds <= pause + 2 * schedule.TICK_SECONDS for seconds in lasted[2:]), lasted
    assert len(stage.events("export_tampered")) == 4
    # Two at the start, one for each of the first edits, two for each of the others: to see it, and to restore it.
    assert len(stage.passes) == 2 + 2 + 2 * 2


def test_new_folders_are_watched_and_looked_at_again(stage: Stage) -> None:
    """A folder that a scan finds is watched, and a pass follows for what was written before it was."""

    def write() -> bool:
        stage.append(row=1, partition=9)
        return True

    stage.then(write)
    stage.run()
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH, Trigger.WATCH, Trigger.WATCH]
    day = stage.root / "data/scored-runs" / Path(partition_of(9)).parent
    assert str(day) in {folder for result in stage.results[-1:] for folder in result.scan.folders}  # type: ignore[union-attr]
    (rearmed,) = stage.events("watch_rearmed")
    assert rearmed["log_level"] == "debug"


def test_replaced_tree_is_noticed_at_a_tick(stage: Stage) -> None:
    """A tree that another takes the place of gives no event; its identity is compared at each tick."""

    def replace_tree() -> None:
        tree = stage.root / "data/evidence"
        tree.rename(stage.root / "former")
        append_bench_rows(stage.root, partition_index=0, first_row=0, rows=1)

    stage.then(replace_tree)
    stage.wait(2)
    stage.run()
    assert stage.passes[2:] == [Trigger.RESCAN, Trigger.WATCH]
    (rearmed,) = stage.events("watch_rearmed")
    assert rearmed["log_level"] == "info"


def test_trees_may_come_later(stage: Stage, tmp_path: Path) -> None:
    """A lake without data/ is no failure; when its trees appear they are read."""
    (stage.root / "data").rename(tmp_path / "kept")
    stage.then(lambda: (tmp_path / "kept").rename(stage.root / "data"))
    stage.wait(2)
    stage.run()
    assert stage.passes == [Trigger.STARTUP, Trigger.RESCAN, Trigger.WATCH]
    assert stage.exported() == 1
    assert not stage.events("batch_failed")


def test_mount_of_the_source_files_may_come_later(stage: Stage, tmp_path: Path) -> None:
    """A daemon that starts before the mount goes on, says what waits, and judges it with the rescan behind the mount."""
    sources = tmp_path / "sources"
    stage.settings = stage.read(check_source_files=True, source_files_root=sources)
    found: list[int] = []

    def mount() -> None:
        found.append(stage.exported())
        for number in range(500):
            path = sources / f"crates/bench/src/file_{number}.rs"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    stage.then(mount)
    stage.wait(stage.settings.rescan_seconds)
    stage.run()
    assert found == [0]
    assert stage.exported() == 1
    (told,) = stage.events("file_unreadable")
    assert (told["path"], told["problem"]) == (
        f"source_files_root {sources}",
        "cannot be read: No such file or directory",
    )
    assert "mount it" in told["hint"]
    assert stage.events("batch_failed") == []


def test_file_in_the_making_is_looked_at_again(stage: Stage) -> None:
    """A file that was rewritten a moment ago is left alone, and another pass follows when it may be still."""

    def rewrite() -> bool:
        path = stage.root / "data/scored-runs" / partition_of(0)
        path.write_bytes(path.read_bytes().replace(b"accepted", b"rejected"))
        return True

    stage.then(rewrite)
    stage.wait(stage.settings.settle_seconds * 1.5)
    stage.run()
    assert len(stage.passes) >= 4
    (settling,) = stage.events("settling")
    assert settling["files"] == (f"data/scored-runs/{partition_of(0)}",)
    assert any(each.startswith(f"STATUS=waiting to read {settling['files'][0]};") for each in stage.notified)


# failures


def test_failure_is_tried_again_with_growing_pauses(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try waits twice as long as the one before, up to a minute, less a random part; then all is as before."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    stage.failures = [DISK_FULL] * 8
    stage.wait(1 + 2 + 4 + 8 + 16 + 32 + 60 + 60 + 10)
    stage.run()
    assert [line["seconds"] for line in stage.events("retry_scheduled")] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert stage.passes[:9] == [Trigger.STARTUP, *[Trigger.RECOVERY] * 8]
    assert stage.events("batch_failed")[0]["problem"] == str(DISK_FULL)
    (over,) = stage.events("failure_over")
    assert over["failures"] == 8
    assert stage.exported() == 1


def test_pauses_are_spread(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons that failed together do not try again together."""
    asked: list[tuple[float, float]] = []

    def least(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    monkeypatch.setattr(random, "uniform", least)
    stage.failures = [DISK_FULL]
    stage.wait(3)
    stage.run()
    assert asked == [(0.5, 1.0)]
    assert stage.events("retry_scheduled")[0]["seconds"] == 0.5


def test_file_events_do_not_shorten_a_pause(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that goes on writing does not make a failing daemon try without pause."""
    monkeypatch.setattr(schedule, "FIRST_RETRY_SECONDS", 10 * schedule.TICK_SECONDS)
    stage.failures = [DISK_FULL]
    stage.then(*[lambda: True] * 3)
    stage.run()
    assert stage.passes == [Trigger.STARTUP]


def test_failure_that_lasts_is_unhealthy_and_told(stage: Stage) -> None:
    """While it lasts, health names the failure, since when, and what to do; afterwards it does not."""
    found: list[list[str]] = []

    def look() -> None:
        found.append([f"{each.name}: {each.text} {each.remedy}" for each in diagnose(stage.settings)])

    stage.failures = [DISK_FULL]
    stage.then(look)
    stage.wait(3)
    stage.then(look)
    stage.run()
    assert any("last_batch_failed" in each and "No space left" in each and "make room" in each for each in found[0])
    assert found[1] == []


@pytest.mark.parametrize("error", [ValueError("the text of a row"), KeyError("the text of a row"), MemoryError()])
def test_unexpected_error_is_tried_again_too(stage: Stage, error: Exception) -> None:
    """What nobody thought of ends no daemon; its kind and place are told, its message is not."""
    stage.failures = [error]
    stage.wait(3)
    stage.run()
    assert stage.exported() == 1
    (failed,) = stage.events("batch_failed")
    assert failed["exc_info"] is error
    assert "text of a row" not in str([line for line in stage.lines if line is not failed])


REFUSED = PermissionError(errno.EACCES, "Permission denied", "/lake/reports/distillation")


def test_error_of_the_system_is_told_with_its_remedy(stage: Stage) -> None:
    """A call that fails in an unforeseen place is the operator's matter all the same, and is noted as a failure."""
    found: list[str] = []
    stage.failures = [REFUSED]
    stage.then(lambda: found.extend(f"{each.name}: {each.text} {each.remedy}" for each in diagnose(stage.settings)))
    stage.wait(3)
    stage.run()
    assert stage.exported() == 1
    (failed,) = stage.events("batch_failed")
    assert failed["problem"] == "/lake/reports/distillation: Permission denied"
    assert failed["hint"] == BY_ERRNO[errno.EACCES]
    assert any("last_batch_failed" in each and "/lake/reports/distillation" in each for each in found)


@pytest.mark.parametrize("error", [REFUSED, OSError(errno.EIO, "Input/output error"), ValueError("the text of a row")])
def test_failing_recovery_ends_no_daemon(stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A batch was interrupted, and its recovery fails for another reason: that is told, and tried again."""
    broken = [False]

    def recover(engine: Engine) -> bool:
        if broken[0]:
            raise error
        return real(engine)

    def break_it(*_: object) -> None:
        broken[0] = bool(stage.failures)

    monkeypatch.setattr(daemon, "recover", recover)
    monkeypatch.setattr(Committer, "needs_recovery", lambda _: broken[0])
    stage.failures = [DISK_FULL]
    stage.looks = [break_it]
    stage.then(break_it)
    stage.wait(60)
    stage.then(lambda: broken.__setitem__(0, True))
    stage.run()
    assert stage.exported() == 1
    # After the pass that failed, and at the end.
    assert len(stage.events("recovery_failed")) == 2
    assert "text of a row" not in str(stage.events("recovery_failed"))
    assert stage.events("failure_over")


def test_recovery_that_fails_for_the_same_reason_is_told_once(stage: Stage) -> None:
    """A receipt that cannot be written fails the batch and its recovery alike; one line says so at each try."""
    blocked = stage.root / "reports"
    stage.looks = [lambda _: blocked.touch()]
    stage.wait(3)
    stage.then(stage.looks.clear, blocked.unlink)
    stage.wait(60)
    stage.run()
    assert stage.exported() == 1
    assert len(stage.events("batch_failed")) > 1
    assert stage.events("recovery_failed") == []


def test_no_recovery_is_told_of_if_nothing_was_interrupted(stage: Stage) -> None:
    """Without the input trees no pass begins, so nothing is left to recover, and no line says that this failed."""
    data, away = stage.root / "data", stage.root / "away"
    stage.then(lambda: data.rename(away))
    stage.wait(3)
    stage.run()
    assert stage.events("scan_failed")
    assert stage.events("recovery_failed") == []


def test_error_between_passes_is_tried_again_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails while the daemon rests is told like a pass that fails, and ends no daemon either."""
    errors: list[Exception] = [MemoryError(), REFUSED]
    real_step = Recheck.step

    def step(recheck: Recheck) -> float:
        if errors:
            raise errors.pop()
        return real_step(recheck)

    monkeypatch.setattr(Recheck, "step", step)
    stage.wait(3 * schedule.LONGEST_RETRY_SECONDS)
    stage.run()
    assert errors == []
    assert len(stage.events("batch_failed")) == len(stage.events("failure_over")) == 2


def test_reload_that_fails_unexpectedly_ends_no_daemon(stage: Stage) -> None:
    """It is told and tried again as a pass is; systemd hears that the reload is over."""

    def fail() -> Settings:
        raise MemoryError

    stage.next_settings = fail
    stage.then(lambda: os.kill(os.getpid(), signal.SIGHUP))
    stage.wait(3)
    stage.run()
    assert stage.events("batch_failed")
    assert stage.events("failure_over")
    assert [each for each in stage.notified if each.startswith(("READY", "RELOADING"))][-1] == "READY=1"


def test_corrupt_store_ends_the_run(stage: Stage) -> None:
    """A store that turns out to be corrupt is no matter of trying again: it is set aside and begun anew."""
    stage.failures = [StoreCorruptError("corrupt")]
    with pytest.raises(StoreCorruptError):
        stage.run()


def test_lake_is_still_held_when_its_exports_were_removed(stage: Stage) -> None:
    """The folder that a pass restores has the lock in it again; that it was gone is told."""

    def remove() -> bool:
        shutil.rmtree(stage.root / "exports")
        return True

    def look() -> None:
        assert holder(stage.root).pid == os.getpid()

    stage.then(remove, look)
    stage.run()
    assert stage.exported() == 1
    (told,) = stage.events("lock_taken_again")
    assert told["path"].endswith("exports/.distilld.lock")


@pytest.mark.parametrize("how", ["moved", "replaced"])
def test_daemon_ends_when_its_store_is_no_longer_at_its_path(stage: Stage, how: str) -> None:
    """The story: a daemon committed on to a store that had been moved away, and health told to run it once."""
    state = stage.settings.state
    found: list[str] = []

    def take_away() -> bool:
        state.parent.rename(state.parent.with_name("elsewhere"))
        found.extend(f"{each.name}: {each.remedy}" for each in diagnose(stage.settings))
        if how == "replaced":
            shutil.copytree(state.parent.with_name("elsewhere"), state.parent)
        stage.append(row=3)
        return True

    stage.then(take_away)
    with pytest.raises(StoreMovedError, match="moved or removed") as raised:
        stage.run()
    assert "builds it again" in raised.value.hint
    assert stage.exported() == 1
    assert state.exists() == (how == "replaced")
    assert [each for each in found if each.startswith("never_run")] == ["never_run: systemctl restart distilld"]


def test_nothing_is_written_beside_a_writer_that_took_the_lake(stage: Stage, tmp_path: Path) -> None:
    """A daemon that finds another one in its place ends as a second writer does, and touches nothing."""
    with ExitStack() as running:

        def take() -> bool:
            shutil.rmtree(stage.root / "exports")
            running.enter_context(another_writer(stage.root, tmp_path / "other.db"))
            return True

        stage.then(take)
        with pytest.raises(WriterBusy):
            stage.run()
        assert [path.name for path in (stage.root / "exports").rglob("*")] == [".distilld.lock"]
        assert holder(stage.root).state == tmp_path / "other.db"


def test_what_a_writer_that_took_the_lake_wrote_is_not_set_aside(stage: Stage, tmp_path: Path) -> None:
    """To the daemon whose lake it was, they are exports that somebody changed; they are not the daemon's to mend."""
    exports = [stage.root / path for path in DATASET_PATHS.values()]
    with ExitStack() as running:

        def take() -> bool:
            shutil.rmtree(stage.root / "exports")
            running.enter_context(another_writer(stage.root, tmp_path / "other.db"))
            for export in exports:
                export.parent.mkdir()
                export.write_bytes(b"a row of theirs\n")
            return True

        stage.then(take)
        with pytest.raises(WriterBusy):
            stage.run()
        assert {export.read_bytes() for export in exports} == {b"a row of theirs\n"}
        assert not (stage.root / SET_ASIDE).exists()


def test_nothing_is_written_where_the_lake_was_taken_within_a_batch(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch whose lake is taken before its first write is not written, nor is what a failure would undo."""
    real = QueueWorker._commit
    with ExitStack() as running:

        def commit(self: QueueWorker, *given: Any, **named: Any) -> CommittedBatch | None:
            shutil.rmtree(stage.root / "exports")
            running.enter_context(another_writer(stage.root, tmp_path / "other.db"))
            return real(self, *given, **named)

        monkeypatch.setattr(QueueWorker, "_commit", commit)
        with pytest.raises(WriterBusy):
            stage.run()
        assert [path.name for path in (stage.root / "exports").rglob("*")] == [".distilld.lock"]


def test_withdrawal_that_waits_is_named_with_its_age(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that must leave while the disk refuses are an error of their own, in log and health, until they left."""
    moment = [time.time_ns()]
    monkeypatch.setattr(bulletin.Bulletin.__init__, "__kwdefaults__", {"clock": lambda: moment[0]})
    names: list[set[str]] = []

    def refuse(*_: object) -> None:
        raise DISK_FULL

    def reject() -> bool:
        monkeypatch.setattr(Exports, "rewrite", refuse)
        path = stage.root / "data/scored-runs" / partition_of(0)
        with path.open("ab") as file:
            file.write(path.read_bytes().replace(b'"accepted"', b'"rejected"'))
        return True

    def later() -> None:
        names.append({each.name for each in diagnose(stage.settings)})
        moment[0] += 100 * 10**9

    stage.then(reject, later)
    stage.wait(4)
    stage.then(monkeypatch.undo)
    stage.wait(70)
    stage.then(later)
    stage.run()
    overdue = stage.events("withdrawal_overdue")
    assert overdue[0]["age_seconds"] == 0
    assert overdue[0]["rows"] > 0
    assert overdue[1]["age_seconds"] == 100
    assert overdue[0]["since"] == overdue[1]["since"]
    assert "withdrawal_overdue" in names[0]
    assert names[1] == set()
    assert stage.exported() == 0


def test_trouble_stands_in_the_lock_file_where_the_store_refuses(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written into the store stands in the lock file, where health reads it, until it is over."""
    found: list[str | None] = []

    def refuse(*_: object) -> None:
        raise StoreFaultError("cannot use the state store: database or disk is full")

    stage.failures = [DISK_FULL]
    real = vitals.write_vitals
    monkeypatch.setattr(bulletin, "write_vitals", refuse)
    monkeypatch.setattr(schedule, "FIRST_RETRY_SECONDS", 10 * schedule.TICK_SECONDS)
    stage.then(lambda: found.append(holder(stage.root).trouble))
    stage.then(lambda: found.append(" ".join(each.text for each in diagnose(stage.settings))))
    stage.then(lambda: monkeypatch.setattr(bulletin, "write_vitals", real))
    stage.wait(11)
    stage.then(lambda: found.append(holder(stage.root).trouble))
    stage.run()
    assert found[0] == str(DISK_FULL)
    assert "No space left" in str(found[1])
    assert found[2] is None


def test_unreadable_input_is_noted_with_its_time(stage: Stage) -> None:
    """An input that cannot be read is in the vitals with the time when it was first seen, until it is gone."""
    odd = stage.root / "data/scored-runs" / Path(partition_of(0)).parent / "pipe.jsonl"
    os.mkfifo(odd)
    found: list[Vitals] = []
    looks = [lambda engine: found.append(read_vitals(engine.store))]
    stage.then(lambda: stage.looks.extend(looks), lambda: True, odd.unlink, lambda: True)
    stage.then(lambda: True)
    stage.run()
    assert [len(each.unreadable) for each in found] == [1, 1, 0]
    assert found[0].unreadable == found[1].unreadable
    assert found[0].unreadable[0].path.endswith("pipe.jsonl")


# no file events


def test_watch_limit_falls_back_to_scanning_and_says_so(stage: Stage) -> None:
    """Without file events it scans every second or so, says once why, and listens again when that is possible."""
    stage.script.refusals = [WatchBrokenError("the limit")] * 2
    stage.wait(stage.settings.rescan_seconds * 2.5)
    stage.run()
    (fallback,) = stage.events("watch_fallback")
    assert fallback["reason"] == "the limit"
    period = fallback["scan_every_seconds"]
    assert 1 <= period < 60
    scans = stage.passes.count(Trigger.RESCAN)
    assert scans >= stage.settings.rescan_seconds / (period + 1)
    # It was refused at the start and after a period, and armed after the second.
    assert not stage.script.refusals
    (started,) = stage.events("watch_started")
    assert started["folders"] > 0
    assert read(stage).watching == "events"


def read(stage: Stage) -> Vitals:
    """The vitals as they were left."""
    with writer(stage.settings) as engine:
        return read_vitals(engine.store)


def test_folders_that_cannot_be_watched_are_scanned(stage: Stage) -> None:
    """Where nothing can be watched, as on a network file system, scans follow one another, and status says why."""
    stage.script.refusals = [WatchBrokenError("nfs4 tells nothing")]
    stage.wait(10)
    stage.run()
    (fallback,) = stage.events("watch_fallback")
    assert "nfs4" in fallback["reason"]
    assert stage.passes.count(Trigger.RESCAN) >= 2
    assert "nfs4" in str(read(stage).watching)


def test_watch_that_breaks_is_armed_again_at_once(stage: Stage) -> None:
    """A watch that ends by itself is followed by a pass and armed again; at the second time in a minute it is not."""

    def break_it() -> bool:
        stage.script.disarm()
        raise WatchBrokenError("a name that is not UTF-8")

    armed: list[bool] = []
    stage.then(break_it, lambda: armed.append(bool(stage.script.armed)))
    stage.wait(5)
    stage.then(break_it, lambda: armed.append(bool(stage.script.armed)))
    stage.wait(listening.BROKEN_AGAIN_SECONDS * 1.2)
    stage.then(lambda: armed.append(bool(stage.script.armed)))
    stage.run()
    assert armed == [True, False, True]
    assert [line["reason"] for line in stage.events("watch_fallback")] == ["a name that is not UTF-8"]


def test_folder_that_goes_while_it_is_armed(stage: Stage) -> None:
    """A folder that went is looked for once more; if it is still listed and cannot be watched, scanning has to do."""
    stage.script.refusals = [FolderGoneError()]
    stage.run()
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH, Trigger.WATCH]
    assert stage.events("watch_started")


def test_folder_that_cannot_be_watched_is_no_endless_loop(stage: Stage) -> None:
    """The same folders refused twice are a reason to fall back, not to try for ever."""
    stage.script.refusals = [FolderGoneError()] * 2
    stage.run()
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH]
    assert stage.events("watch_fallback")


# SIGHUP


def hang_up() -> None:
    """What 'systemctl reload' sends."""
    os.kill(os.getpid(), signal.SIGHUP)


def test_reload_takes_the_new_settings(stage: Stage) -> None:
    """SIGHUP puts new settings in force, judges anew where an option changed, and tells systemd when it is done."""
    stage.append(row=2)  # needs a review
    stage.next_settings = lambda: stage.read(include_review=True, rescan_seconds=7)
    before: list[int] = []
    stage.then(lambda: before.append(stage.exported()), hang_up)
    stage.wait(8)
    stage.run()
    (finished,) = stage.events("reload_finished")
    assert finished["changed"] == ["include_review", "rescan_seconds"]
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH, Trigger.RELOAD, Trigger.RESCAN]
    assert before == [1]
    assert stage.exported() == 2
    reloading = next(each for each in stage.notified if each.startswith("RELOADING=1"))
    assert stage.notified.index("READY=1", stage.notified.index(reloading)) > 0


def test_reload_that_was_asked_for_at_the_start_is_done(stage: Stage) -> None:
    """The story: 'systemctl reload' killed a daemon that was still starting. It waits until the daemon can take it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # To this thread: another one of the process that runs the tests would take it, and end it.
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
    stage.run()
    assert stage.events("reload_finished")
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_reload_with_other_tunables_judges_nothing(stage: Stage) -> None:
    """A setting that changes no row is in force without a batch."""
    stage.next_settings = lambda: stage.read(debounce_ms=50, batch_rows=7)
    stage.then(hang_up)
    stage.wait(1)
    stage.run()
    assert stage.events("reload_finished")[0]["changed"] == ["debounce_ms", "batch_rows"]
    assert len(stage.events("batch_committed")) == 1


def test_bad_configuration_is_refused_and_the_old_one_stays(stage: Stage) -> None:
    """Every fault is in the log, with the word that nothing changed; the daemon goes on as before."""

    def fail() -> Settings:
        raise UsageError("distilld.toml: a fault\ndistilld.toml: another fault")

    stage.next_settings = fail
    stage.then(hang_up)
    stage.wait(stage.settings.rescan_seconds * 1.2)
    stage.run()
    (refused,) = stage.events("reload_refused")
    assert refused["faults"] == ["distilld.toml: a fault", "distilld.toml: another fault"]
    assert "as they were" in refused["in_force"]
    assert stage.passes == [Trigger.STARTUP, Trigger.WATCH, Trigger.RESCAN]
    assert stage.notified.count("READY=1") == 2


def test_configuration_that_the_system_refuses_ends_no_daemon(stage: Stage) -> None:
    """What nobody foresaw of the system is a refusal like any other."""

    def fail() -> Settings:
        raise PermissionError(errno.EACCES, "Permission denied", "/lake")

    stage.next_settings = fail
    stage.then(hang_up)
    stage.run()
    (refused,) = stage.events("reload_refused")
    assert refused["faults"] == ["/lake: Permission denied"]
    assert refused["hint"] == BY_ERRNO[errno.EACCES]
    assert stage.events("daemon_stopping")


@pytest.mark.parametrize("name", ["root", "state"])
def test_root_and_state_do_not_change_while_it_runs(stage: Stage, tmp_path: Path, name: str) -> None:
    """What the lock stands for cannot be exchanged under it."""
    stage.next_settings = lambda: replace(stage.settings, **{name: tmp_path / "other"})  # type: ignore[arg-type]
    stage.then(hang_up)
    stage.run()
    (refused,) = stage.events("reload_refused")
    assert name in refused["faults"][0]
    assert refused["hint"] == "restart it"


def test_reload_tries_a_failing_pass_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """'systemctl reload' after the disk was emptied does not wait for the end of the pause."""
    monkeypatch.setattr(schedule, "FIRST_RETRY_SECONDS", 60.0)
    stage.failures = [DISK_FULL]
    stage.then(hang_up)
    stage.run()
    assert stage.passes[:2] == [Trigger.STARTUP, Trigger.RECOVERY]
    assert stage.exported() == 1


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_settings_outlast_a_corrupt_store(stage: Stage, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """What a SIGHUP put in force holds with the store that is begun anew, and so does one that nobody took up yet.

    The story: the daemon began anew with the settings of its start, and rows that the operator had just forbidden came
    back; a SIGHUP that came while the store was found corrupt was forgotten.
    """
    stage.append(row=2)  # needs a review
    real = Engine.run_pass
    corrupt: list[StoreCorruptError] = []

    def run_pass(engine: Engine, trigger: Trigger) -> PassResult:
        stage.passes.append(trigger)
        if corrupt:
            if when == "meanwhile":
                hang_up()
            raise corrupt.pop()
        return real(engine, trigger)

    def break_store() -> bool:
        corrupt.append(StoreCorruptError("corrupt"))
        return True

    exported: list[int] = []
    stage.then(lambda: exported.append(stage.exported()))
    if when == "before":
        stage.then(hang_up, lambda: exported.append(stage.exported()))
    stage.then(break_store)
    monkeypatch.setattr(Engine, "run_pass", run_pass)
    monkeypatch.setattr(daemon, "Daemon", Scripted)
    Scripted.script = stage.script
    stage.script.stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
    # What comes back is read at once.
    settings = stage.read(include_review=True, settle_seconds=0)
    with capture_logs() as stage.lines:
        daemon.serve(settings, read_settings=lambda: stage.read(settle_seconds=0), notifier=Heard(stage.notified))
    assert len(stage.events("store_set_aside")) == 1
    assert len(stage.events("daemon_started")) == len(stage.events("daemon_stopped")) == 2
    assert exported == ([2, 1] if when == "before" else [2])
    assert stage.exported() == 1


# SIGTERM


def test_stop_within_a_pass_undoes_the_batch_in_hand(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the middle of a write ends at the next block; the batch is undone, and the next start does it."""
    real = Exports.rewrite

    def rewrite(self: Exports, name: str, *rest: Any) -> Any:
        written = real(self, name, *rest)
        if name == "rag":
            os.kill(os.getpid(), signal.SIGTERM)
            self._pulse()
        return written

    monkeypatch.setattr(Exports, "rewrite", rewrite)
    stage.run()
    assert stage.exported() == 0
    assert not stage.events("batch_failed")
    assert stage.events("daemon_stopping")[0]["cut_off"]
    monkeypatch.undo()
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    stage.run()
    assert stage.exported() == 1


def test_pass_that_gives_no_sign_is_cut_off(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that comes to no place where it could end is ended all the same, within seconds."""
    monkeypatch.setattr(signals, "STOP_PATIENCE_SECONDS", 0.05)

    def hang(_: Engine) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            pass
        raise AssertionError("nobody cut it off")

    stage.looks = [hang]
    stage.run()
    assert stage.events("daemon_stopped")


def test_statement_that_takes_long_is_interrupted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that works for minutes does not keep the daemon from ending."""
    monkeypatch.setattr(signals, "STOP_PATIENCE_SECONDS", 0.05)

    def work(engine: Engine) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
        engine.store.connection.execute(endless).fetchone()

    stage.looks = [work]
    stage.run()
    assert stage.events("daemon_stopped")


def test_stop_before_the_first_pass(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that hangs, in git for example, is cut off as well."""
    monkeypatch.setattr(signals, "STOP_PATIENCE_SECONDS", 0.05)

    def hang(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            pass
        raise AssertionError("nobody cut it off")

    monkeypatch.setattr(daemon, "writer", hang)
    notifier = Heard(stage.notified)
    daemon.serve(stage.settings, read_settings=stage.read, notifier=notifier)
    assert stage.notified == []


def test_signal_handlers_are_given_back(stage: Stage) -> None:
    """What handled the signals before does so again afterwards."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)]
    stage.run()
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)]
    assert after == before


def test_pass_ended_is_no_exception() -> None:
    """No 'except Exception' on the way can keep a daemon from ending."""
    assert not issubclass(PassEnded, Exception)


# the store


def test_idle_pass_writes_no_vitals(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the scan is written a few times a rescan period, not at every pass that finds nothing."""
    written: list[str] = []
    real = Store.remember

    def remember(self: Store, name: str, value: str | None) -> None:
        written.append(name)
        real(self, name, value)

    monkeypatch.setattr(Store, "remember", remember)
    stage.then(*[lambda: True] * 20)
    stage.run()
    assert len(stage.passes) == 22
    assert written.count(vitals.SCANNED) == 1


@pytest.mark.usefixtures("look_after_each_batch")
def test_long_pass_notes_its_looks(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: a pass that scanned every two seconds for half an hour was told as a daemon that scans no more."""
    moments = iter(range(1_800_000_000, 1_900_000_000, 1000))
    noted: list[str | None] = []

    def commit(engine: Engine) -> None:
        real_batch = QueueWorker.run_batch

        def run_batch(queues: QueueWorker) -> CommittedBatch | None:
            noted.append(read_vitals(engine.store).last_scan_at)
            return real_batch(queues)

        monkeypatch.setattr(QueueWorker, "run_batch", run_batch)

    monkeypatch.setattr(bulletin.Bulletin.__init__, "__kwdefaults__", {"clock": lambda: next(moments) * 10**9})
    for partition in range(1, 4):
        stage.append(partition=partition)
    stage.settings = stage.read(batch_rows=1)
    stage.looks = [commit]
    stage.run()
    assert len(noted) >= 3
    assert None not in noted
    assert len(set(noted)) == len(noted)


def test_log_is_cut_when_idle(stage: Stage) -> None:
    """After a batch, once nothing is going on, the store's write-ahead log is emptied into the store."""
    sizes: list[int] = []
    log = Path(f"{stage.settings.state}-wal")
    stage.then(lambda: sizes.append(log.stat().st_size))
    stage.wait(schedule.CHECKPOINT_AFTER_SECONDS + 1)
    stage.then(lambda: sizes.append(log.stat().st_size))
    stage.run()
    assert sizes[0] > 0
    assert sizes[1] == 0


def _close(readers: list[sqlite3.Connection]) -> None:
    readers.pop().close()


def test_log_is_cut_soon_after_a_long_reader_ends(stage: Stage) -> None:
    """Within ten seconds of its end, while nothing changes.

    The story: one try was made, the reader was in its way, and the log stayed at 32 MB for as long as the daemon rested.
    """
    wal = stage.settings.state.with_name("distilld.db-wal")
    sizes: list[int] = []
    readers: list[sqlite3.Connection] = []

    def begin() -> bool:
        reader = sqlite3.connect(stage.settings.state, isolation_level=None)
        readers.append(reader)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM lake").fetchone()
        stage.append()
        return True

    stage.then(begin)
    stage.wait(schedule.CHECKPOINT_AFTER_SECONDS + 1)
    stage.then(lambda: sizes.append(wal.stat().st_size), lambda: _close(readers))
    stage.wait(10)
    stage.then(lambda: sizes.append(wal.stat().st_size))
    stage.run()
    assert sizes[0] > 0
    assert sizes[1] == 0


def test_health_knows_of_the_first_failure_before_anything_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program keeps the store locked: health is unhealthy when the first pass failed, and names the cause.

    The story: the failure was noted behind a recovery that waited for the same lock, seconds later.
    """
    known: list[list[str]] = []

    def slow(engine: Engine) -> bool:
        if stage.passes:
            known.append([each.name for each in diagnose(stage.settings)])
        return real(engine)

    monkeypatch.setattr("distilld.service.daemon.recover", slow)
    monkeypatch.setattr(Committer, "needs_recovery", lambda _: True)
    stage.failures = [DISK_FULL]
    stage.run()
    assert "last_batch_failed" in known[0]


def test_failing_checkpoint_is_no_failure(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is a courtesy; the next commit tells if the disk is at fault."""

    def refuse(_: object) -> None:
        raise OperatorError("no room")

    monkeypatch.setattr("distilld.store.connection.Store.checkpoint", refuse)
    stage.wait(schedule.CHECKPOINT_AFTER_SECONDS + 1)
    stage.run()
    assert not stage.events("batch_failed")


def test_run_once_forgets_a_failure(stage: Stage) -> None:
    """Where a daemon died failing, and 'run --once' brought the lake up to date, health says nothing of it."""
    from distilld.service.run_once import bring_up_to_date

    stage.failures = [DISK_FULL]
    stage.run()
    assert read(stage).failure is not None
    with capture_logs(), writer(stage.settings) as engine:
        bring_up_to_date(engine)
        assert read_vitals(engine.store).failure is None
        assert engine.receipts.last_batch()
