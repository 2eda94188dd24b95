"""The daemon as an operator meets it: a process that is started, signalled, killed, and left with a busy producer.

File events are what finds the changes here: ``RARELY`` keeps rescans out, where a test is about events.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from distilld.core.model import Category
from tests.support.command import REPOSITORY, another_writer, bring, command, distilld, environment, once, python, rows
from tests.support.committed import at_rest, committed_and_whole
from tests.support.lake_by_formula import (
    CYCLE,
    append_bench_rows,
    category_of,
    partition_of,
    run_of,
    write_bench_lake,
)
from tests.support.running import Running, daemon, until

RAG = "exports/rag/playbooks.jsonl"
RARELY = {"DISTILLD_RESCAN_SECONDS": "86400"}
OFTEN = {"DISTILLD_RESCAN_SECONDS": "1"}
STOP_SECONDS = 10.0
"""So long a stop may take (SPEC 6)."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A lake of 50 rows in two partitions."""
    lake = tmp_path / "lake"
    write_bench_lake(lake, rows=50, partitions=2, text_bytes=200)
    return lake


def is_past(moment: float) -> bool:
    """Whether a moment of the monotonic clock has come."""
    return time.monotonic() >= moment


def accepted(first: int) -> int:
    """The first row of the formula from ``first`` on that ships to RAG."""
    return next(row for row in range(first, first + 1000) if category_of(row) is Category.ACCEPTED)


def exported(root: Path) -> set[str]:
    """The runs in the RAG export; whole lines only, as a reader beside a writer sees them."""
    try:
        whole = (root / RAG).read_bytes().rpartition(b"\n")[0]
    except FileNotFoundError:
        return set()
    return {json.loads(line)["source_run_id"] for line in whole.splitlines()}


def append(root: Path, row: int, partition: int = 0) -> str:
    """Write a row and its evidence as a producer does; returns the run."""
    append_bench_rows(root, partition_index=partition, first_row=row, rows=1, text_bytes=200)
    return run_of(row)


def wait_exported(root: Path, *runs: str) -> None:
    """Wait until these runs stand in the RAG export."""
    until(lambda: set(runs) <= exported(root), f"{len(runs)} runs in the export")


def wait_judged(root: Path, rows: int, *, seconds: float = 60) -> None:
    """Wait until the store says of so many rows that they are judged; what only stands in an export may be undone."""

    def judged() -> bool:
        with closing(sqlite3.connect(f"file:{root / 'state/distilld.db'}?mode=ro", uri=True)) as store:
            counters = dict(store.execute("SELECT name, value FROM counters"))
        return (counters["scored_rows"], counters["unjudged_rows"]) == (rows, 0)

    until(judged, f"{rows} rows judged", seconds=seconds)


def full_pass(root: Path, folder: Path) -> dict[str, object]:
    """What one pass by a lake of its own makes of the same inputs."""
    again = folder / "again"
    shutil.copytree(root / "data", again / "data")
    bring(again)
    return at_rest(again)


def stop(running: Running) -> None:
    """Stop it as an operator does: exit code 0, in time, nothing half done."""
    start = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - start < STOP_SECONDS
    assert "STOPPING=1" in running.notified
    assert running.events("daemon_stopped")


def test_row_appears_without_anybody_asking(root: Path, tmp_path: Path) -> None:
    """From its start a daemon ships what is there and what comes, and ends in order when it is told to."""
    with daemon(root, env=RARELY) as running:
        running.wait_ready()
        wait_exported(root, *(run_of(row) for row in range(50) if category_of(row) is Category.ACCEPTED))
        wait_exported(root, append(root, accepted(1000)))
        wait_judged(root, 51)
        stop(running)
    committed_and_whole(root)
    assert at_rest(root) == full_pass(root, tmp_path)


def test_interrupt_ends_it_too(root: Path) -> None:
    """Ctrl-C is a stop, not a crash."""
    with daemon(root) as running:
        running.wait_for("scan_finished")
        running.send(signal.SIGINT)
        assert running.process.wait(STOP_SECONDS) == 0
        assert "Traceback" not in running.log.read_text()


def test_stop_in_a_long_pass(tmp_path: Path) -> None:
    """A stop while thousands of rows are taken in ends in time, and the next start goes on from there."""
    root = tmp_path / "lake"
    write_bench_lake(root, rows=20_000, partitions=20, text_bytes=200)
    with daemon(root, env={"DISTILLD_BATCH_ROWS": "1000"}) as running:
        running.wait_for("batch_committed")
        stop(running)
        assert len(running.events("batch_committed")) < 20
    committed_and_whole(root)
    assert once(root).code == 0
    assert len(exported(root)) == sum(
        category_of(row) in (Category.ACCEPTED, Category.PARTIALLY_ACCEPTED) for row in range(20_000)
    )


def test_second_instance_is_turned_away(root: Path) -> None:
    """A second daemon, and a 'run --once' beside it, exit with 75 and name the process that holds the lake."""
    with daemon(root) as running:
        running.wait_ready()
        for arguments in (("run",), ("run", "--once")):
            second = distilld(*arguments, "--root", root, cwd=root.parent)
            assert second.code == 75
            assert f"pid {running.pid}" in second.errors[-1]
        assert distilld("health", "--root", root, cwd=root.parent).out == "healthy\n"
        stop(running)


def test_removed_exports_let_no_second_writer_in(root: Path, tmp_path: Path) -> None:
    """A daemon that restores its exports holds the lake again; one whose lake was taken before that ends with 75."""
    with daemon(root, env=RARELY) as running:
        running.wait_ready()
        wait_judged(root, 50)
        (root / "exports").rename(tmp_path / "removed")
        wait_exported(root, append(root, accepted(1000)))
        assert distilld("health", "--root", root, cwd=root.parent).out == "healthy\n"
        second = distilld("run", "--once", "--root", root, "--state", tmp_path / "other.db", cwd=root.parent)
        assert second.code == 75
        # It would hold the lake again within a moment.
        running.send(signal.SIGSTOP)
        shutil.rmtree(root / "exports")
        with another_writer(root, tmp_path / "other.db"):
            running.send(signal.SIGCONT)
            assert running.process.wait(STOP_SECONDS) == 75
        assert os.listdir(root / "exports") == [".distilld.lock"]


def test_reload_good_and_bad(root: Path) -> None:
    """SIGHUP puts a changed option in force; a file with faults is refused, and each fault is logged."""
    config = root.parent / "distilld.toml"
    config.write_text("include_review = false\n")
    unreviewed = next(row for row in range(50) if category_of(row) is Category.NEEDS_HUMAN_REVIEW)
    with daemon(root, "--config", str(config), env=RARELY) as running:
        running.wait_for("scan_finished")
        assert run_of(unreviewed) not in exported(root)
        config.write_text("include_review = true\n")
        running.send(signal.SIGHUP)
        wait_exported(root, run_of(unreviewed))
        running.wait_notified("READY=1", times=2)

        config.write_text("include_review = 'perhaps'\ninclude_partail = true\n")
        running.send(signal.SIGHUP)
        refused = running.wait_for("reload_refused")
        assert any("include_review" in fault and "perhaps" in fault for fault in refused["faults"])
        assert any("nearest one is include_partial" in fault for fault in refused["faults"])
        running.wait_notified("READY=1", times=3)
        wait_exported(root, append(root, accepted(1000)))
        assert run_of(unreviewed) in exported(root)

        config.write_text("include_review = false\n")
        running.send(signal.SIGHUP)
        until(lambda: run_of(unreviewed) not in exported(root), "the row is withdrawn again")
        assert any(line.startswith("MONOTONIC_USEC=") for line in running.notified)
        stop(running)


def test_log_that_nobody_reads_holds_up_no_stop(root: Path) -> None:
    """The story: a daemon that waited for room in the pipe of its log did not end at SIGTERM."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as log, os.fdopen(write, "wb") as pipe:
        process = subprocess.Popen(
            command("run", "--root", str(root)), env=environment(RARELY), stdin=subprocess.DEVNULL, stderr=pipe
        )
        try:
            for line in log:
                if b'"scan_finished"' in line:
                    break
            os.set_blocking(pipe.fileno(), False)
            with suppress(BlockingIOError):
                while True:
                    os.write(pipe.fileno(), b"x")
            os.set_blocking(pipe.fileno(), True)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_SECONDS) == 0
        finally:
            process.kill()
            process.wait()


STARTING = """
import os, signal, sys
from distilld.service import daemon
from distilld.cli.main import execute
def serve(*_, **__):
    os.kill(os.getpid(), signal.SIGHUP)
    print(signal.sigpending() == {signal.SIGHUP})
daemon.serve = serve
sys.exit(execute(["run", "--root", sys.argv[1]]))
"""


def test_reload_does_not_end_a_start(root: Path) -> None:
    """SIGHUP waits until the daemon can take it."""
    with python(STARTING, root) as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "True\n")


def test_flags_outlive_a_reload(root: Path) -> None:
    """What was given on the command line holds for the whole run, whatever the file says later."""
    unreviewed = next(row for row in range(50) if category_of(row) is Category.NEEDS_HUMAN_REVIEW)
    with daemon(root, "--include-review") as running:
        wait_exported(root, run_of(unreviewed))
        running.send(signal.SIGHUP)
        running.wait_for("reload_finished")
        wait_exported(root, append(root, accepted(1000)))
        assert run_of(unreviewed) in exported(root)


def test_folders_made_and_filled_in_one_go(root: Path) -> None:
    """Files in new nested folders, and a tree that is moved in, are read without a rescan."""
    trials = 40
    with daemon(root, env=RARELY) as running:
        running.wait_for("watch_started")
        # A year of its own for each: three folders that nobody watched yet, in both trees.
        runs = [append(root, accepted(10_000 + 1000 * each), 9 * 366 * (each + 1)) for each in range(trials)]
        prepared = root.parent / "prepared"
        for tree in ("scored-runs", "evidence"):
            (prepared / "data" / tree).mkdir(parents=True)
        runs.append(append(prepared, accepted(500_000), partition=9 * 366 * (trials + 2)))
        for tree in ("evidence", "scored-runs"):
            (year,) = (prepared / "data" / tree).iterdir()
            year.rename(root / "data" / tree / year.name)
        wait_exported(root, *runs)
        # The folders are watched from now on.
        wait_exported(root, *(append(root, accepted(600_000 + 1000 * n), 9 * 366 * (n + 1)) for n in range(trials)))
        assert not running.events("watch_fallback")


def test_trees_that_come_later_and_are_replaced(tmp_path: Path) -> None:
    """A lake without data/ is waited for; a tree that another takes the place of is read in its place."""
    root = tmp_path / "lake"
    root.mkdir()
    with daemon(root, env=RARELY) as running:
        running.wait_for("scan_finished")
        first = append(root, accepted(0))
        wait_exported(root, first)
        (root / "data").rename(root / "former")
        wait_exported(root, append(root, accepted(1000), partition=1))
        # What is only absent stays (on_delete = "keep").
        assert first in exported(root)
        shutil.rmtree(root / "data")
        (root / "former").rename(root / "data")
        wait_exported(root, append(root, accepted(2000)))
        stop(running)


def test_name_that_is_no_text(root: Path) -> None:
    """A file whose name is not UTF-8 makes the daemon deaf to nothing; health names it."""
    with daemon(root, env=RARELY) as running:
        running.wait_for("watch_started")
        folder = root / "data/scored-runs" / Path(partition_of(0)).parent
        odd = os.path.join(os.fsencode(folder), b"\xff.jsonl")
        for number in range(3):
            with open(odd, "ab") as file:
                file.write(b"{}\n")
            wait_exported(root, append(root, accepted(1000 * (number + 1))))
        health = distilld("health", "--root", root, cwd=root.parent)
        assert health.code == 1
        assert "not UTF-8" in health.out
        stop(running)


@pytest.mark.parametrize("setting", ["max_inotify_watches", "max_inotify_instances"])
def test_watch_limit(root: Path, setting: str) -> None:
    """Where the kernel gives no file events, scanning finds what comes, and the log says why and how often."""
    with daemon(root, prefix=with_limit(setting)) as running:
        fallback = running.wait_for("watch_fallback")
        assert setting.removeprefix("max_inotify_") in fallback["reason"]
        wait_exported(root, append(root, accepted(1000)))
        status = distilld("status", "--root", root, cwd=root.parent).out
        assert "scanning only" in status
        stop(running)


def with_limit(setting: str) -> tuple[str, ...]:
    """The start of a command line whose process may have no inotify watch, or instance, of its own."""
    start = ("unshare", "--user", "--map-root-user", "sh", "-c", f'echo 0 >/proc/sys/user/{setting}; exec "$@"', "sh")
    try:
        permitted = subprocess.run([*start, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        permitted = False
    if not permitted:
        pytest.skip("limits of one's own need unshare and user namespaces, which are not permitted here")
    return start


def test_signs_of_life_come_from_the_work(tmp_path: Path) -> None:
    """The watchdog hears of a daemon within a long pass as well as of one with nothing to do."""
    root = tmp_path / "lake"
    write_bench_lake(root, rows=10_000, partitions=10, text_bytes=200)
    watched = {"WATCHDOG_USEC": "80000", "DISTILLD_BATCH_ROWS": "500"}
    with daemon(root, env=watched) as running:
        running.wait_for("scan_finished")
        within = running.notified.count("WATCHDOG=1")
        assert within >= 5
        running.wait_notified("WATCHDOG=1", times=within + 5)
        assert any(line.startswith("STATUS=judging") for line in running.notified)


def test_full_disk_is_waited_out(tmp_path: Path) -> None:
    """On a full disk the daemon stays up, says so in log and health, and goes on by itself when there is room."""
    lake = tmp_path / "lake"
    lake.mkdir()
    mounted = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    script = f'mount -t tmpfs -o size=3m tmpfs {lake} && exec "$@"'
    if subprocess.run([*mounted, script, "sh", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small disk of one's own needs unshare, user namespaces and tmpfs, which are not permitted here")
    with daemon(lake, prefix=(*mounted, script, "sh"), env=OFTEN) as running:
        running.wait_for("scan_finished")
        seen = Path(f"/proc/{running.pid}/root/{lake}")
        wait_exported(seen, append(seen, accepted(0)))
        ballast = seen / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(65536)):
                pass
        # What was written before the disk was full stands in data/; the pages of these rows are there already.
        path = seen / "data/scored-runs" / partition_of(0)
        rejection = path.read_bytes().replace(b'"accepted"', b'"rejected"')
        with path.open("r+b") as file:
            file.write(rejection)
        running.wait_for("retry_scheduled", seconds=60)
        health = subprocess.run(
            ["nsenter", "--target", str(running.pid), "--user", "--preserve-credentials", "--mount",
             *command("health", "--root", str(lake), "--json")],
            env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        problems = {each["name"] for each in json.loads(health.stdout)["problems"]}
        assert "last_batch_failed" in problems, health.stdout
        ballast.unlink()
        running.wait_for("failure_over", seconds=90)
        until(lambda: not exported(seen), "the rejected row leaves")
        stop(running)


# bursts, and kill -9


def burst(root: Path, partitions: int, seconds: float) -> None:
    """Make so many partitions with a row each beside a running daemon; all must be read, none twice."""
    with daemon(root, env=RARELY) as running:
        running.wait_for("watch_started")
        first = accepted(1_000_000)
        # What a row comes to repeats itself every CYCLE rows.
        made = {append(root, first + index * CYCLE, partition=100 + index) for index in range(partitions)}
        wait_judged(root, 50 + partitions, seconds=seconds)
        assert made <= exported(root)
        stop(running)
    found = Counter(row["id"] for row in rows(root / RAG))
    assert set(found.values()) == {1}
    committed_and_whole(root)


def test_burst_of_new_partitions(root: Path, tmp_path: Path) -> None:
    """500 partitions that appear at once are all read, and none twice."""
    burst(root, 500, 60)
    assert at_rest(root) == full_pass(root, tmp_path)


@pytest.mark.slow
def test_burst_of_10000_new_partitions(root: Path, tmp_path: Path) -> None:
    """10,000 partitions that appear at once are all read, and none twice."""
    burst(root, 10_000, 600)
    assert at_rest(root) == full_pass(root, tmp_path)


PRODUCER = """
import random, select, sys, time
from pathlib import Path
from tests.support.lake_by_formula import append_bench_rows
root, rows, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
dice, row, told = random.Random(7), 0, False
while not told or row < rows:
    append_bench_rows(root, partition_index=dice.randrange(12), first_row=row, rows=1, text_bytes=200)
    row += 1
    if not told:
        told = bool(select.select([sys.stdin], [], [], dice.uniform(0, 2 * pause))[0])
print(row)
"""


class Producer:
    """A process that appends rows without pause until it is told to end, and until it wrote so many."""

    def __init__(self, root: Path, *, rows: int, pause: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRODUCER, str(root), str(rows), str(pause)],
            env=environment(),
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def end(self) -> int:
        """Tell it to end; returns how many rows it wrote."""
        out, _ = self._process.communicate(b"enough\n", timeout=1800)
        assert self._process.returncode == 0
        return int(out)

    def kill(self) -> None:
        """In any case."""
        self._process.kill()
        self._process.communicate()


def kill_again_and_again(root: Path, kills: int, rows: int, folder: Path) -> None:
    """Kill the daemon at random moments while a producer writes; at the end the exports equal the full pass."""
    dice = random.Random(kills)
    writing = Producer(root, rows=rows, pause=0.004)
    try:
        for number in range(kills):
            with daemon(root, env=RARELY) as running:
                running.wait_for("daemon_started")
                until_then = time.monotonic() + dice.uniform(0, 0.6)
                until(partial(is_past, until_then), "the moment of the kill")
                assert running.process.poll() is None, f"it ended by itself before kill {number}"
                running.kill()
        with daemon(root, env=RARELY) as running:
            wait_judged(root, 50 + writing.end())
            stop(running)
    finally:
        writing.kill()
    committed_and_whole(root)
    assert at_rest(root) == full_pass(root, folder)


def test_killed_while_a_producer_writes(root: Path, tmp_path: Path) -> None:
    """Six kills at random moments, the producer never pausing: nothing is lost, doubled or torn."""
    kill_again_and_again(root, kills=6, rows=0, folder=tmp_path)


@pytest.mark.slow
def test_killed_a_hundred_times(root: Path, tmp_path: Path) -> None:
    """A hundred kills, and as many rows as a producer writes in half an hour that writes twenty a second."""
    kill_again_and_again(root, kills=100, rows=36_000, folder=tmp_path)


def test_no_descriptor_is_left_to_children(root: Path) -> None:
    """What git is started with does not include the service manager's socket."""
    with daemon(root) as running:
        running.wait_ready()
        lines = Path(f"/proc/{running.pid}/environ").read_bytes().split(b"\0")
        # The kernel shows the environment as it was at the start; what the process hands on is another one.
        assert any(line.startswith(b"NOTIFY_SOCKET=") for line in lines)
        stop(running)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(root.parent / "told"))
        code = "import os; from distilld.service.systemd import Notifier; Notifier.from_environ(os.environ); os.system('env')"
        told = environment({"NOTIFY_SOCKET": str(root.parent / "told")})
        out = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True).stdout
        assert "NOTIFY_SOCKET" not in out
