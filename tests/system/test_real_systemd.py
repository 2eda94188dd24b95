"""The unit under a real systemd: it starts, reloads, is restarted after a hang and a kill, is shut in, and stops."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import Category
from distilld.engine.pool import PROCESSES_FROM
from tests.support.lake_by_formula import append_bench_rows, category_of, run_of
from tests.support.running import until
from tests.support.systemd_box import SITE, SOURCE, Box, booted, wait_state
from tests.system.test_units import make

pytestmark = pytest.mark.slow

LAKE = "/srv/lakehouse"
WORKED_PARTITIONS = 25
"""Of 1,000 rows each: a pass of some seconds, so that its workers are seen by one who asks now and then."""
CONFIG = "/etc/distilld/distilld.toml"
RAG = "exports/rag/playbooks.jsonl"
QUICK = """\
[Service]
WatchdogSec=2s
TimeoutAbortSec=1s
RestartSec=0
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A machine with distilld installed as docs/operations.md tells, the program itself apart."""
    with booted(tmp_path_factory.mktemp("systemd")) as made:
        program = made.root / "usr/local/bin/distilld"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={SOURCE}:{SITE} exec {Path(sys.executable).resolve()} -m distilld "$@"\n'
        )
        program.chmod(0o755)
        make("install-units", made.root, DESTDIR=str(made.root), PREFIX="/usr/local")
        made.run("mkdir", "-p", LAKE)
        made.run("systemd-sysusers")
        made.run("systemd-tmpfiles", "--create", "--prefix", LAKE)
        made.run("distilld", "--config", CONFIG, "--root", LAKE, "--state", "/var/lib/distilld/distilld.db", "init")
        made.run("mkdir", "-p", "/etc/systemd/system/distilld.service.d")
        (made.root / "etc/systemd/system/distilld.service.d/quick.conf").write_text(QUICK)
        made.run("systemctl", "daemon-reload")
        yield made


@pytest.fixture
def running(box: Box) -> Iterator[Box]:
    """The service, up; what the journal holds of it is shown if it does not come up."""
    box.run("systemctl", "reset-failed", "distilld", check=False)
    box.run("systemctl", "start", "distilld", check=False)
    assert box.property("ActiveState") == "active", box.run("journalctl", "-u", "distilld", "-o", "cat", "-n", "30")
    yield box
    box.run("systemctl", "stop", "distilld", check=False)


def append(box: Box, row: int) -> str:
    """A row that ships, written as a producer of the machine does."""
    row = next(each for each in range(row, row + 1000) if category_of(each) is Category.ACCEPTED)
    append_bench_rows(box.root / LAKE.lstrip("/"), partition_index=0, first_row=row, rows=1, text_bytes=200)
    return run_of(row)


def wait_exported(box: Box, run: str) -> None:
    """Wait until the run stands in the export."""
    path = box.root / LAKE.lstrip("/") / RAG
    until(lambda: path.exists() and f'"{run}"' in path.read_text(), run)


def events(box: Box, name: str) -> list[dict[str, Any]]:
    """The journal's lines of one event, read as docs/operations.md tells."""
    lines = box.run("journalctl", "-u", "distilld", "-o", "cat").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{") and f'"event":"{name}"' in line]
    return [line for line in found if line["event"] == name]


def in_sandbox(box: Box, script: str) -> str:
    """What a shell in the service's own mounts says."""
    return box.run("nsenter", "-t", box.property("MainPID"), "-m", "sh", "-c", script, check=False)


def test_starts_ships_and_stops(running: Box) -> None:
    """'systemctl start' returns when it is up; a row that comes ships; 'systemctl stop' ends it in order."""
    assert running.property("ActiveState") == "active"
    wait_exported(running, append(running, 0))
    until(lambda: running.property("StatusText").startswith("up to date"), "the status line")
    running.run("systemctl", "stop", "distilld")
    assert running.property("Result") == "success"
    assert running.property("ExecMainStatus") == "0"
    assert running.property("ActiveState") == "inactive"
    # Whoever may read the folder can read the store of a service that is down.
    assert "healthy" in running.run("distilld", "--config", CONFIG, "health", "--no-daemon")


def test_timer_runs_it_once(running: Box) -> None:
    """Where a timer runs distilld, its service does one run in the same sandbox, and health asks for its age alone."""
    running.run("systemctl", "stop", "distilld")
    run = append(running, 500)
    running.run("systemctl", "start", "distilld-once")
    assert f'"{run}"' in (running.root / LAKE.lstrip("/") / RAG).read_text()
    assert "distilld-once.service" in running.run("systemctl", "show", "distilld.timer", "-p", "Unit")
    timed = ("env", "DISTILLD_WRITER=timer", "distilld", "--config", CONFIG, "health")
    assert "healthy" in running.run(*timed)


def test_workers_work_in_the_sandbox(running: Box) -> None:
    """Many new partitions are judged in processes of their own, shut in as the service is, which end with the work."""
    running.run("systemctl", "stop", "distilld")
    # All is new: a file that was written a moment ago is read once more, and then rows are taken in one by one.
    running.run(
        "sh", "-c", f"rm -rf {LAKE}/data {LAKE}/exports/* {LAKE}/exports/.d* {LAKE}/reports/* /var/lib/distilld/*"
    )
    root = running.root / LAKE.lstrip("/")
    for number in range(WORKED_PARTITIONS):
        append_bench_rows(root, partition_index=100 + number, first_row=40_000 + number * 1000, rows=1000)
    assert sum(path.stat().st_size for path in (root / "data").rglob("*.jsonl")) > PROCESSES_FROM
    running.run("systemctl", "start", "distilld")
    pid = running.property("MainPID")
    until(lambda: running.run("sh", "-c", f"cat /proc/{pid}/task/*/children").strip(), "a worker")
    until(lambda: events(running, "scan_finished")[-1]["files"] >= 2 * WORKED_PARTITIONS, "the first pass", seconds=120)
    assert not running.run("sh", "-c", f"cat /proc/{pid}/task/*/children").strip()
    assert events(running, "batch_failed") == []
    assert "everything agrees" in running.run("distilld", "--config", CONFIG, "verify", "--deep")


def test_reload_good_and_bad(running: Box) -> None:
    """'systemctl reload' takes a good file and refuses a bad one, and the service stays up."""
    path = running.root / CONFIG.lstrip("/")
    good = path.read_text()
    before = len(events(running, "reload_finished"))
    path.write_text(good + "rescan_seconds = 60\n")
    running.run("systemctl", "reload", "distilld")
    until(lambda: len(events(running, "reload_finished")) == before + 1, "the reload")
    path.write_text(good + "rescan_seconds = 'often'\n")
    running.run("systemctl", "reload", "distilld")
    refused = until(lambda: events(running, "reload_refused"), "the refusal")
    assert "rescan_seconds" in refused[-1]["faults"][0]
    wait_state(running, "ActiveState", "active")
    # With such a file it would not start: ExecStartPre tells why.
    running.run("systemctl", "restart", "distilld", check=False)
    wait_state(running, "ActiveState", "failed")
    assert "rescan_seconds = 'often'" in running.run("journalctl", "-u", "distilld", "-o", "cat", "-n", "20")
    path.write_text(good)


def test_kill_is_followed_by_a_restart(running: Box) -> None:
    """After kill -9 it is up again, with another process, and goes on."""
    pid = running.property("MainPID")
    running.run("kill", "-9", pid)
    until(lambda: running.property("MainPID") not in ("0", pid), "another process")
    wait_state(running, "ActiveState", "active")
    wait_exported(running, append(running, 10_000))


def test_hang_is_noticed(running: Box) -> None:
    """A process that stands still is taken for dead by the watchdog, and another takes its place."""
    pid = running.property("MainPID")
    running.run("kill", "-STOP", pid)
    until(lambda: running.property("MainPID") not in ("0", pid), "another process", seconds=60)
    wait_state(running, "ActiveState", "active")
    assert "watchdog" in running.run("journalctl", "-u", "distilld", "-u", "init.scope", "-b").lower()
    wait_exported(running, append(running, 20_000))


def test_no_watchdog_bites_a_daemon_at_rest(running: Box) -> None:
    """With nothing to do, it is alive for longer than the watchdog's patience."""
    pid, start = running.property("MainPID"), running.property("NRestarts")
    since = events(running, "daemon_started")
    until(lambda: running.run("cat", "/proc/uptime") and _age(running) > 6, "three times the patience", seconds=30)
    assert (running.property("MainPID"), running.property("NRestarts")) == (pid, start)
    assert events(running, "daemon_started") == since


def _age(box: Box) -> float:
    now = float(box.run("cat", "/proc/uptime").split()[0])
    return now - int(box.property("ExecMainStartTimestampMonotonic")) / 1e6


def test_sandbox_holds(running: Box) -> None:
    """From within the service, inputs cannot be written, exports can, and there is no network."""
    wait_exported(running, append(running, 30_000))
    assert "Read-only" in in_sandbox(running, f"touch {LAKE}/data/x 2>&1")
    assert "Read-only" in in_sandbox(running, "touch /etc/x 2>&1")
    assert in_sandbox(running, f"touch {LAKE}/exports/.x && rm {LAKE}/exports/.x && echo done") == "done\n"
    script = f"printf '#!/bin/sh\\necho ran' > {LAKE}/exports/.x; chmod 700 {LAKE}/exports/.x; {LAKE}/exports/.x"
    assert "ran" not in in_sandbox(running, f"{script}; rm {LAKE}/exports/.x")
    pid = running.property("MainPID")
    assert running.run("nsenter", "-t", pid, "-n", "ls", "/sys/class/net").split() in (["lo"], [])


def test_owners_and_modes(running: Box) -> None:
    """Exports are for those who train, locks and store for the service and its operators; root changes none of it."""
    running.run("systemctl", "stop", "distilld")
    running.run("systemd-tmpfiles", "--create", "--prefix", LAKE)
    running.run("systemctl", "start", "distilld")
    wait_exported(running, append(running, 60_000))
    running.run("distilld", "--config", CONFIG, "status")
    for path, facts in (
        (f"{LAKE}/exports", "distilld:distilld-read 2750"),
        (f"{LAKE}/exports/rag", "distilld:distilld-read 2750"),
        (f"{LAKE}/{RAG}", "distilld:distilld-read 640"),
        (f"{LAKE}/exports/.distilld.lock", "distilld:distilld 660"),
        ("/var/lib/distilld/distilld.db", "distilld:distilld 660"),
        ("/var/lib/distilld/distilld.db-shm", "distilld:distilld 660"),
        ("/var/lib/distilld/distilld.db.lock", "distilld:distilld 660"),
    ):
        assert running.run("stat", "-c", "%U:%G %a", path).strip() == facts, path
    running.run("systemctl", "stop", "distilld")
    assert "distilld:distilld" in running.run("stat", "-c", "%U:%G", "/var/lib/distilld/distilld.db-shm")
