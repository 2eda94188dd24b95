"""Every command that only looks works with read permission alone: as a real user, and on a read-only mount."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from distilld.core.json_text import stringify
from tests.support.command import bring, command, environment, phase4, python, snapshot
from tests.support.running import daemon

SERVICE, READER, GROUP = 64_001, 64_002, 64_003
HOLDER = """
import sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("PRAGMA wal_autocheckpoint = 0")
store.execute("INSERT OR REPLACE INTO lake VALUES ('held', 'yes')")
print("held", flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"),
    reason="takes root, setpriv and unshare to be another user and to mount",
)

As = Callable[[Path, list[str]], list[str]]


def as_reader(_root: Path, line: list[str]) -> list[str]:
    """As a user who is in the service's group and in no other."""
    return ["setpriv", f"--reuid={READER}", f"--regid={GROUP}", "--clear-groups", *line]


def on_a_read_only_mount(root: Path, line: list[str]) -> list[str]:
    """As root, where the whole lake and its store are mounted read-only."""
    script = f"mount --bind {root} {root} && mount -o remount,ro,bind {root} && exec {shlex.join(line)}"
    return ["unshare", "--mount", "sh", "-ec", script]


def as_reader_on_a_read_only_mount(root: Path, line: list[str]) -> list[str]:
    """Both."""
    return on_a_read_only_mount(root, as_reader(root, line))


WAYS = [as_reader, on_a_read_only_mount, as_reader_on_a_read_only_mount]
LOOKS = [
    ["status"],
    ["health", "--no-daemon"],
    ["verify"],
    ["verify", "--deep"],
    ["receipts"],
    ["quarantine"],
    ["schema", "rag"],
    ["run", "--once", "--dry-run"],
]


@pytest.fixture(scope="module")
def lake() -> Iterator[Path]:
    """A lake that saw one run, kept by a service user of its own, readable by its group; below no private folder."""
    with tempfile.TemporaryDirectory(prefix="distilld-read-only-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        root = phase4(folder)
        tried = ["setpriv", f"--reuid={READER}", f"--regid={GROUP}", "--clear-groups", *command("--version")]
        if subprocess.run(tried, cwd="/", env=environment(), capture_output=True, check=False).returncode:
            pytest.skip("this interpreter, or this source, cannot be read by another user")
        bring(root)
        hand_over(root)
        yield root


def hand_over(root: Path) -> None:
    """Give everything to the service's user and group, with the modes that it would give them."""
    for path in (root, *root.rglob("*")):
        os.chown(path, SERVICE, GROUP)
        path.chmod(0o750 if path.is_dir() else 0o640)


def without_log(root: Path, *suffixes: str) -> None:
    """Another program removes the files beside the store, as closing it in the sqlite3 shell does."""
    with closing(sqlite3.connect(root / "state/distilld.db")) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in suffixes:
        (root / f"state/distilld.db{suffix}").unlink(missing_ok=True)


def look(way: As, root: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one command that looks."""
    line = way(root, command(*arguments, "--root", str(root)))
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o1777)
        return subprocess.run(
            line, cwd="/", env=environment({"TMPDIR": name}), capture_output=True, text=True, check=False, timeout=60
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gone", [(), ("-wal", "-shm"), ("-shm",)], ids=["all there", "no log", "no index"])
def test_looking_takes_no_leave_to_write(lake: Path, way: As, gone: tuple[str, ...]) -> None:
    """At rest, with and without -wal and -shm: every command that looks gives what it gives its owner, and no trace.

    The story: after any program removed -wal and -shm, readers got 'attempt to write a readonly database'.
    """
    without_log(lake, *gone)
    if not gone:
        bring(lake)
        hand_over(lake)
    before = snapshot(lake)
    for arguments in LOOKS:
        if way is on_a_read_only_mount and "run" in arguments:
            continue  # root becomes the lake's keeper for it, who may not come to this interpreter
        ran = look(way, lake, arguments)
        assert (ran.returncode, ran.stderr.count("cannot")) == (0, 0), (arguments, ran.stdout, ran.stderr)
    assert snapshot(lake) == before


@pytest.mark.parametrize("way", WAYS)
def test_run_is_explained_to_a_reader(lake: Path, way: As) -> None:
    """explain and diff read the store and the exports, and nothing else is needed."""
    without_log(lake, "-wal", "-shm")
    with closing(sqlite3.connect(f"file:{lake}/state/distilld.db?immutable=1", uri=True)) as store:
        (run,) = store.execute("SELECT run_id FROM scored_rows WHERE run_id IS NOT NULL LIMIT 1").fetchone()
    assert look(way, lake, ["explain", run]).returncode == 0, stringify(run)
    rag = str(lake / "exports/rag/playbooks.jsonl")
    assert look(way, lake, ["diff", rag, "--dataset", "rag"]).returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_what_stands_in_the_log_alone_is_read(lake: Path, way: As) -> None:
    """A log with content whose index is gone and cannot be made: the committed rows of the log count too."""
    state = lake / "state/distilld.db"
    with python(HOLDER, state) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert (lake / "state/distilld.db-wal").stat().st_size > 0
        with ExitStack() as restored:
            copy = restored.enter_context(tempfile.TemporaryDirectory(dir=lake.parent))
            os.chmod(copy, 0o755)
            root = Path(shutil.copytree(lake, Path(copy) / "lake", symlinks=True))
            (root / "state/distilld.db-shm").unlink()
            with closing(sqlite3.connect(root / "state/distilld.db")) as store:
                # The root is another one; the log is what this is about.
                store.execute("PRAGMA wal_autocheckpoint = 0")
                store.execute("UPDATE lake SET value = ? WHERE name = 'root'", (str(root),))
                store.commit()
                wal = (root / "state/distilld.db-wal").read_bytes()
                content = state.read_bytes()
            (root / "state/distilld.db").write_bytes(content)
            (root / "state/distilld.db-wal").write_bytes(wal)
            (root / "state/distilld.db-shm").unlink(missing_ok=True)
            hand_over(root)
            ran = look(way, root, ["receipts"])
            assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout


@pytest.mark.parametrize("way", WAYS)
def test_looking_beside_a_daemon(lake: Path, way: As) -> None:
    """The same while a daemon runs."""
    without_log(lake, "-wal", "-shm")
    service = ("setpriv", f"--reuid={SERVICE}", f"--regid={GROUP}", "--clear-groups")
    with daemon(lake, prefix=service, umask=0o007) as running:
        running.wait_for("scan_finished")
        for arguments in (*LOOKS, ["health"]):
            if way is on_a_read_only_mount and "run" in arguments:
                continue
            ran = look(way, lake, arguments)
            assert (ran.returncode, ran.stderr.count("cannot")) == (0, 0), (arguments, ran.stdout, ran.stderr)
        assert running.stop() == 0


def test_a_store_that_may_not_be_read_is_not_called_missing(lake: Path) -> None:
    """Somebody outside the group learns that it is a matter of permission, not that no run ever was."""
    line = ["setpriv", f"--reuid={READER}", f"--regid={READER}", "--clear-groups"]
    lake.chmod(0o755)
    try:
        for arguments in (["receipts"], ["status"], ["health"]):
            ran = look(lambda _, rest: [*line, *rest], lake, arguments)
            assert ran.returncode == 1
            assert "Permission denied" in ran.stderr
            assert "there is no state store" not in ran.stdout + ran.stderr
    finally:
        lake.chmod(0o750)
