"""Users of their own: commands as somebody who is not root, and a lake that such a user keeps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.support.command import REPOSITORY, Ran, environment

needs_root: Final = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becoming other users needs root and setpriv"
)


@dataclass(frozen=True)
class User:
    """A user by number; the machine need not know it."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def command(self, *command: str) -> list[str]:
        """The command line that runs a command as this user, with no group but its own."""
        groups = ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
        return ["setpriv", "--reuid", str(self.uid), "--regid", str(self.gid), *groups, *command]


SERVICE: Final = User(47101, 47101)
OPERATOR: Final = User(47102, 47102, (47101, 47103))
TRAINER: Final = User(47104, 47104, (47103,))
STRANGER: Final = User(47105, 47105)
READERS: Final = 47103
"""The group that may read exports."""


@cache
def interpreter() -> str:
    """A Python of this version that every user can run: this one, or the system's."""
    for path in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        words = STRANGER.command(path, "-c", _PROBE)
        probed = subprocess.run(words, capture_output=True, text=True, check=False, env=reachable(), cwd="/")
        if probed.returncode == 0 and probed.stdout.strip() == "True":
            return path
    pytest.skip(f"other users cannot run a Python with {REPOSITORY} here")


_PROBE: Final = (
    "import os,sys,distilld.logs,distilld.engine.engine;"
    "print(os.path.dirname(os.path.realpath(sys.executable)) == os.path.join(sys.base_prefix, 'bin'))"
)


def reachable(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which that interpreter finds this source and its packages."""
    found = environment(extra)
    return {**found, "PYTHONPATH": f"{REPOSITORY}:{sysconfig.get_path('purelib')}"}


def run_as(
    user: User | None,
    command: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    umask: int = 0o22,
) -> Ran:
    """Run a command to its end as a user, root where it is None."""
    words = [*map(str, command)]
    done = subprocess.run(
        user.command(*words) if user else words, cwd=cwd, env=reachable(env), capture_output=True, text=True,
        check=False, timeout=60, stdin=subprocess.DEVNULL, umask=umask,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def distilld_as(
    user: User | None, *arguments: str | Path, cwd: Path, umask: int = 0o22, env: Mapping[str, str] | None = None
) -> Ran:
    """Run distilld to its end as a user."""
    return run_as(user, [interpreter(), "-m", "distilld", *arguments], cwd=cwd, umask=umask, env=env)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user comes to."""
    folder = Path(tempfile.mkdtemp(prefix="distilld-users-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def give(folder: Path, user: User) -> None:
    """Make a user the owner of a folder and of all that is below it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
