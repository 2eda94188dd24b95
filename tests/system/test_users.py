"""What users of their own can and cannot do to a lake: root, operators, who may read exports, and strangers."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import LOCK_FILE
from tests.support.lake_by_formula import append_bench_rows, write_bench_lake
from tests.support.users import (
    OPERATOR,
    READERS,
    SERVICE,
    STRANGER,
    TRAINER,
    User,
    distilld_as,
    give,
    interpreter,
    needs_root,
    open_folder,
    reachable,
)

pytestmark = needs_root

UNIT_UMASK = 0o007
STORE = "state/distilld.db"
HOLD_LOCK = (
    "import fcntl,os,sys;"
    "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX);"
    "print('held', flush=True);sys.stdin.read()"
)


@pytest.fixture
def lake() -> Iterator[Path]:
    """A lake that the service keeps as the unit does: producers' data, exports for readers, a state of its own."""
    with open_folder() as folder:
        root = folder / "lake"
        root.mkdir()
        write_bench_lake(root, rows=30, partitions=2, text_bytes=200)
        for name, mode in (("exports", 0o2750), ("reports", 0o750), ("state", 0o750)):
            (root / name).mkdir()
            os.chown(root / name, SERVICE.uid, READERS if name == "exports" else SERVICE.gid)
            (root / name).chmod(mode)
        yield root


def once(root: Path, user: User | None = SERVICE, umask: int = UNIT_UMASK) -> None:
    """Bring the lake up to date."""
    done = distilld_as(user, "--root", root, "run", "--once", cwd=root, umask=umask)
    assert done.code == 0, done.err


@contextmanager
def holding(user: User, path: Path) -> Iterator[bool]:
    """A process of a user that tries to hold a lock through a read-only descriptor; gives whether it does."""
    words = user.command(interpreter(), "-c", HOLD_LOCK, str(path))
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        assert process.stdout is not None
        yield process.stdout.readline() == b"held\n"
        process.kill()


def owned(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Owner, group and mode of all that stands below a folder."""
    return {
        str(path.relative_to(folder)): (found.st_uid, found.st_gid, f"{stat.S_IMODE(found.st_mode):04o}")
        for path in sorted(folder.rglob("*"))
        for found in [path.lstat()]
    }


@pytest.mark.parametrize(
    "command", [["run", "--once"], ["prune", "--yes"], ["rebuild"], ["compact"], ["status"], ["verify"]]
)
def test_root_works_as_the_keeper_of_the_lake(lake: Path, command: list[str]) -> None:
    """An administrator's 'distilld run --once' left files that the service could not open from then on."""
    if command[0] != "run":
        once(lake)
        append_bench_rows(lake, partition_index=0, first_row=100, rows=10, text_bytes=200)
    distilld_as(None, "--root", lake, *command, cwd=lake)
    kept = {name: found for name, found in owned(lake).items() if not name.startswith("data")}
    assert {uid for uid, _, _ in kept.values()} == {SERVICE.uid}
    once(lake)


def test_root_makes_the_first_files_of_a_users_lake_as_that_user() -> None:
    """In a lake that has no exports yet, the owner of the lake is its keeper."""
    with open_folder() as folder:
        root = folder / "lake"
        root.mkdir()
        write_bench_lake(root, rows=30, partitions=2, text_bytes=200)
        give(root, SERVICE)
        once(root, None)
        assert {uid for uid, _, _ in owned(root).values()} == {SERVICE.uid}


def test_root_that_cannot_become_the_keeper_refuses(lake: Path) -> None:
    """Without the capability to change its user, root would leave files of its own."""
    without = ["setpriv", "--bounding-set", "-setuid,-setgid", interpreter(), "-m", "distilld"]
    done = subprocess.run(
        [*without, "--root", str(lake), "run", "--once"],
        capture_output=True,
        text=True,
        check=False,
        cwd=lake,
        env=reachable(),
    )
    assert done.returncode == 2
    assert f"setpriv --reuid {SERVICE.uid}" in done.stderr
    assert not any((lake / "exports").iterdir())


def test_who_reads_exports_cannot_hold_the_writer_up(lake: Path) -> None:
    """Whoever may read exports held flock on the lake's lock file, and the service did not start."""
    once(lake)
    for user in (TRAINER, STRANGER):
        for path in (lake / LOCK_FILE, lake / (STORE + ".lock"), lake / STORE, lake / (STORE + "-shm")):
            with holding(user, path) as held:
                assert not held, f"{user.uid} holds {path}"
    once(lake)


def test_who_reads_exports_reads_the_datasets(lake: Path) -> None:
    """The group of the exports folder is handed on to what is made below it; strangers get nothing."""
    once(lake)
    for path in (lake / "exports/rag/playbooks.jsonl", lake / "exports/quarantine/rag.jsonl"):
        for user, code in ((TRAINER, 0), (STRANGER, 1)):
            words = user.command("cat", str(path))
            assert subprocess.run(words, capture_output=True, check=False).returncode == code


@pytest.mark.parametrize("command", [["status"], ["health", "--no-daemon"], ["explain", "run-of-nobody"], ["verify"]])
def test_operators_of_the_group_look(lake: Path, command: list[str]) -> None:
    """A member of the service's group and of the readers' sees what the service's user sees; a stranger nothing."""
    once(lake)
    seen = distilld_as(SERVICE, "--root", lake, *command, cwd=lake)
    assert distilld_as(OPERATOR, "--root", lake, *command, cwd=lake).code == seen.code
    assert "ermission denied" in distilld_as(STRANGER, "--root", lake, *command, cwd=lake).err


def test_a_lock_without_a_writer_is_told(lake: Path) -> None:
    """A program that held the lock was told of as a writer, and 'health' called the lake healthy."""
    once(lake)
    with holding(OPERATOR, lake / LOCK_FILE) as held:
        assert held
        refused = distilld_as(SERVICE, "--root", lake, "run", "--once", cwd=lake)
        assert refused.code == 75
        assert "some other program holds the lock" in refused.err
        assert "fuser" in refused.err
        found = distilld_as(SERVICE, "--root", lake, "health", "--json", cwd=lake)
    assert found.code == 1
    assert "lock_held" in found.out


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027, UNIT_UMASK])
def test_modes_of_all_that_is_made(lake: Path, umask: int) -> None:
    """Every file that distilld makes, with its group and mode: nobody but its user and its operators locks anything."""
    once(lake, umask=umask)
    private = "0660" if umask == UNIT_UMASK else "0600"
    folder, file = f"{0o750 & ~umask:04o}", f"{0o640 & ~umask:04o}"
    inner = f"{0o2750 & ~umask:04o}"
    found = {name: (gid, mode) for name, (_, gid, mode) in owned(lake).items() if not name.startswith("data")}
    receipts = [name for name in found if name.startswith("reports/distillation/2")]
    readers, own = READERS, SERVICE.gid
    assert {name: found[name] for name in found if name not in receipts} == {
        "exports": (readers, "2750"),
        LOCK_FILE: (own, private),
        **{f"exports/{name}": (readers, inner) for name in ("rag", "sft", "preference", "quarantine", "withdrawals")
           if f"exports/{name}" in found},
        **{name: (readers, file) for name in found if name.endswith((".jsonl", "README.md"))},
        "reports": (own, "0750"),
        "reports/distillation": (own, folder),
        "reports/distillation/latest.md": (own, file),
        "state": (own, "0750"),
        **{f"{STORE}{ending}": (own, private) for ending in ("", "-wal", "-shm", ".lock")},
    }  # fmt: skip
    assert {found[name] for name in receipts} == {(own, folder), (own, file)}


def test_modes_of_an_older_version_are_put_right(lake: Path) -> None:
    """A lake that version 0.1.0 kept has a store and locks that the readers of exports may open."""
    once(lake)
    old = [LOCK_FILE, *(f"{STORE}{ending}" for ending in ("", "-wal", "-shm", ".lock"))]
    for name in old:
        os.chown(lake / name, SERVICE.uid, READERS)
        (lake / name).chmod(0o644)
    once(lake)
    assert {owned(lake)[name] for name in old} == {(SERVICE.uid, SERVICE.gid, "0660")}


@pytest.mark.parametrize("user", [None, STRANGER])
def test_a_config_file_of_the_working_directory_counts_only_for_its_owner(lake: Path, user: User | None) -> None:
    """A config/distilld.toml in a folder that others may write decided what root's command did there."""
    folder = lake.parent / "anybodys"
    (folder / "config").mkdir(parents=True)
    (folder / "config/distilld.toml").write_text("root = '/nowhere'\n")
    give(folder, OPERATOR)
    seen = distilld_as(user, "run", "--check", cwd=folder)
    assert "/nowhere" not in seen.out + seen.err
    assert "is not read" in seen.err
    assert "/nowhere" in distilld_as(OPERATOR, "run", "--check", cwd=folder).err


def test_root_obeys_a_config_file_only_where_nobody_else_writes(lake: Path) -> None:
    """A file of root's own may have been moved into a folder of others."""
    folder = lake.parent / "roots"
    (folder / "config").mkdir(parents=True)
    (folder / "config/distilld.toml").write_text("root = '/nowhere'\n")
    assert "/nowhere" in distilld_as(None, "run", "--check", cwd=folder).err
    folder.chmod(0o1777)
    assert "is not read" in distilld_as(None, "run", "--check", cwd=folder).err


def test_stage_follows_no_link_that_a_glob_finds(lake: Path) -> None:
    """A glob followed links of producers into files that they could not read, and the receipt told their digests."""
    secret = lake.parent / "secret.jsonl"
    secret.write_text("a\nb\n")
    (lake / "data/scored-runs/link.jsonl").symlink_to(secret)
    (lake / "data/scored-runs/folder").symlink_to(lake.parent)
    for glob in ("data/**/*.jsonl", "data/*/folder/*.jsonl", "data/scored-runs/*/secret.jsonl"):
        done = distilld_as(None, "--root", lake, "stage", "look", "--input", glob, "--", "true", cwd=lake)
        assert done.code == 0, done.err
    told = "".join(path.read_text() for path in (lake / "reports").rglob("receipt.json"))
    assert "secret" not in told.replace("*/secret.jsonl", "")
    assert "link.jsonl" not in told
