"""The commit, branch and state of a checkout, without running a program that another user may have put into it.

The commit and branch are read from files. Git runs only to find whether files changed, and only if no one but this
user and root can write the checkout's configuration: the configuration names programs for git to run.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distilld.files.regular import lstat, open_regular
from distilld.files.safe_path import find_program

_SHA: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BRANCH: Final = "refs/heads/"
_MOST_BYTES: Final = 1 << 24
_OTHERS_WRITE: Final = 0o022


@dataclass(frozen=True, slots=True)
class GitState:
    """The checkout that contains the root, at start or reload; all None if there is none."""

    sha: str | None = None
    branch: str | None = None
    dirty: bool | None = None


def git_state(root: Path) -> GitState:
    """Return the state of the checkout that contains the root; empty if there is none."""
    for top in (root, *root.parents):
        if (top / ".git").exists():
            break
    else:
        return GitState()
    folder = _folder(top)
    if folder is None:
        return GitState()
    common = _pointed(folder / "commondir", folder) or folder
    head = _read(folder / "HEAD")
    ref = head.removeprefix("ref: ") if head.startswith("ref: ") else None
    sha = head if ref is None else _ref(ref, folder, common)
    if not _SHA.fullmatch(sha):
        return GitState()
    branch = ref.removeprefix(_BRANCH) if ref else "HEAD"
    return GitState(sha, branch, _is_dirty(top, folder, common))


def _folder(top: Path) -> Path | None:
    """Return the folder of git's files: ``.git``, or the folder that ``.git`` names if it is a file."""
    if (top / ".git").is_dir():
        return top / ".git"
    return _pointed(top / ".git", top)


def _pointed(file: Path, base: Path) -> Path | None:
    path = _read(file).removeprefix("gitdir: ")
    return base / path if path else None


def _ref(ref: str, folder: Path, common: Path) -> str:
    if ".." in ref or not ref.startswith("refs/"):
        return ""
    if sha := _read(folder / ref) or _read(common / ref):
        return sha
    packed = (line.partition(" ") for line in _read(common / "packed-refs").splitlines())
    return next((sha for sha, _, name in packed if name == ref), "")


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read(_MOST_BYTES).decode().strip()
    except (OSError, ValueError):
        return ""


def _is_dirty(top: Path, folder: Path, common: Path) -> bool | None:
    git = find_program("git", os.defpath)
    # Submodules are skipped: their own configurations could name programs to run.
    names = [top, *(each / name for each in {folder, common} for name in ("..", "", "config", "config.worktree"))]
    if git is None or not all(map(_is_trusted, names)):
        return None
    try:
        done = subprocess.run(
            [git, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--git-dir", str(folder),
             "--work-tree", str(top), "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"],
            capture_output=True, timeout=10, check=False, stdin=subprocess.DEVNULL, cwd=top,
            env={"PATH": os.defpath, "GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_NOSYSTEM": "1",
                 "GIT_CONFIG_GLOBAL": os.devnull},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None


def _is_trusted(path: Path) -> bool:
    """Return whether only this user and root can write a path; a missing path is trusted."""
    try:
        status = lstat(path)
    except OSError:
        return False
    return status is None or (
        status.st_uid in (0, os.geteuid()) and not status.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(status.st_mode)
    )
