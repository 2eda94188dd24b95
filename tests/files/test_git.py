"""A checkout is looked at without running what somebody put into it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from distilld.files.git import GitState, git_state
from tests.support.users import STRANGER, needs_root


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one commit on the branch 'trunk', whose configuration names programs that leave a mark."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("one")
    (root / ".gitattributes").write_text("file filter=mark\n")
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q", "-b", "trunk"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)
    mark = tmp_path / "mark"
    mark.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    mark.chmod(0o755)
    for key in ("core.fsmonitor", "filter.mark.clean"):
        subprocess.run(["git", "-C", str(root), "config", key, str(mark)], check=True)
    # Another time and the same size: git has to read it.
    (root / "file").write_text("two")
    return root


def sha_of(root: Path) -> str:
    """What git says of the commit."""
    return subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("name", [".git", ".git/config"])
def test_runs_nothing_that_others_may_have_written(checkout: Path, name: str) -> None:
    """'git status' ran the core.fsmonitor of whoever could write the root's .git."""
    path = checkout / name
    path.chmod(path.stat().st_mode | 0o022)
    assert git_state(checkout) == GitState(sha_of(checkout), "trunk", None)
    assert not (checkout.parent / "ran").exists()


@needs_root
def test_runs_nothing_of_another_users_checkout(checkout: Path) -> None:
    """A checkout of another user is read, and git is not started in it."""
    for path in (checkout / ".git", checkout / ".git/config"):
        os.chown(path, STRANGER.uid, STRANGER.gid)
    assert git_state(checkout).dirty is None
    assert not (checkout.parent / "ran").exists()


def test_runs_no_fsmonitor_of_its_own_checkout(checkout: Path) -> None:
    """In a checkout that nobody else can write, git says whether something was changed."""
    subprocess.run(["git", "-C", str(checkout), "config", "--unset", "filter.mark.clean"], check=True)
    assert git_state(checkout) == GitState(sha_of(checkout), "trunk", dirty=True)
    assert not (checkout.parent / "ran").exists()


def test_reads_worktrees_packed_refs_and_folders_within(checkout: Path) -> None:
    """Whichever way git keeps a commit, it is read; a commit that is on no branch is HEAD, as git calls it."""
    git = ["git", "-C", str(checkout)]
    subprocess.run([*git, "pack-refs", "--all"], check=True)
    (checkout / "data").mkdir()
    assert git_state(checkout / "data").sha == sha_of(checkout)
    subprocess.run([*git, "worktree", "add", "-q", "-b", "other", str(checkout.parent / "tree")], check=True)
    found = git_state(checkout.parent / "tree")
    assert (found.sha, found.branch) == (sha_of(checkout), "other")
    subprocess.run([*git, "checkout", "-q", "-f", "--detach"], check=True)
    assert git_state(checkout).branch == "HEAD"


def test_no_git_of_the_working_directory_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty part of PATH is the working directory: a program called git there ran."""
    subprocess.run(["git", "-C", str(checkout), "config", "--unset", "filter.mark.clean"], check=True)
    fake = checkout / "git"
    fake.write_text(f"#!/bin/sh\ntouch {checkout.parent}/ran\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(checkout)
    git_state(checkout)
    assert not (checkout.parent / "ran").exists()
