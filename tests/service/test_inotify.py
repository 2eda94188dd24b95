"""File events as hints, and everything that keeps them from coming."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from distilld.service import inotify
from distilld.service.inotify import (
    FolderGoneError,
    Folders,
    WatchBrokenError,
    Watcher,
    file_system_without_events,
)
from tests.support.command import REPOSITORY, environment

PATIENCE_SECONDS = 10.0


def folders(*paths: Path) -> Folders:
    """Folders with their identities."""
    return {str(path): (path.stat().st_dev, path.stat().st_ino) for path in paths}


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    """One with the default debounce, that nobody stops."""
    made = Watcher(debounce_ms=100, stopped=lambda: False)
    yield made
    made.disarm()


def test_new_file_and_append_give_hints(watcher: Watcher, tmp_path: Path) -> None:
    """A file that is made, and one that grows, each end a wait."""
    watcher.arm(folders(tmp_path))
    (tmp_path / "a.jsonl").write_text("1\n")
    assert watcher.wait(PATIENCE_SECONDS) is True
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("2\n")
    assert watcher.wait(PATIENCE_SECONDS) is True


def test_events_before_the_wait_are_kept(watcher: Watcher, tmp_path: Path) -> None:
    """What happens between arming and waiting ends the wait: a scan may come in between."""
    watcher.arm(folders(tmp_path))
    (tmp_path / "a").touch()
    (tmp_path / "a").unlink()
    assert watcher.wait(PATIENCE_SECONDS) is True


def test_wait_without_an_event_ends(watcher: Watcher, tmp_path: Path) -> None:
    """With nothing to tell, a wait lasts as long as was asked; with nothing armed too."""
    for armed in (folders(tmp_path), {}):
        watcher.arm(armed)
        start = time.monotonic()
        assert watcher.wait(0.1) is False
        assert time.monotonic() - start >= 0.09


@pytest.mark.parametrize("armed", [True, False])
def test_stop_ends_a_wait(tmp_path: Path, armed: bool) -> None:
    """A wait of an hour ends at once when the process is to stop, armed or not."""
    watcher = Watcher(debounce_ms=100, stopped=lambda: True)
    if armed:
        watcher.arm(folders(tmp_path))
    start = time.monotonic()
    assert watcher.wait(3600) is False
    assert time.monotonic() - start < PATIENCE_SECONDS
    watcher.disarm()


def test_folder_below_is_not_watched_unasked(watcher: Watcher, tmp_path: Path) -> None:
    """Only the folders of the list are watched, so a link or a folder of others costs nothing."""
    below = tmp_path / "below"
    below.mkdir()
    watcher.arm(folders(tmp_path))
    (below / "a").touch()
    assert watcher.wait(0.2) is False
    watcher.arm(folders(tmp_path, below))
    (below / "b").touch()
    assert watcher.wait(PATIENCE_SECONDS) is True


def test_new_folder_changes_its_parent(watcher: Watcher, tmp_path: Path) -> None:
    """A folder that is not in the list yet gives a hint by appearing."""
    watcher.arm(folders(tmp_path))
    (tmp_path / "2026").mkdir()
    assert watcher.wait(PATIENCE_SECONDS) is True


def test_missing_folder_is_told(watcher: Watcher, tmp_path: Path) -> None:
    """A folder that went before it was watched is told apart from everything else, and nothing is watched then."""
    watcher.arm(folders(tmp_path))
    with pytest.raises(FolderGoneError):
        watcher.arm({**folders(tmp_path), str(tmp_path / "gone"): (1, 1)})
    assert watcher.armed == {}


def test_name_that_is_not_utf8_breaks_the_watch(watcher: Watcher, tmp_path: Path) -> None:
    """A file name that watchfiles cannot tell ends the watch aloud; it can be armed again."""
    watcher.arm(folders(tmp_path))
    odd = os.path.join(os.fsencode(tmp_path), b"\xff.jsonl")
    with open(odd, "w"):
        pass
    with pytest.raises(WatchBrokenError, match="not UTF-8"):
        watcher.wait(PATIENCE_SECONDS)
    assert watcher.armed == {}
    watcher.arm(folders(tmp_path))
    (tmp_path / "a.jsonl").touch()
    assert watcher.wait(PATIENCE_SECONDS) is True


ARM_FIFTY = """
import sys
from pathlib import Path
from types import SimpleNamespace
from distilld.service.inotify import Watcher, WatchBrokenError
root = Path(sys.argv[1])
try:
    Watcher(debounce_ms=100, stopped=lambda: False).arm({str(each): (1, 1) for each in root.iterdir()})
    print("armed")
except WatchBrokenError as error:
    print(error)
"""


def in_user_namespace(setting: str) -> list[str]:
    """The start of a command line that runs the rest with a limit of its own; skips where that is not permitted."""
    start = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{setting}; exec "$@"', "sh"]
    try:
        permitted = subprocess.run([*start, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        permitted = False
    if not permitted:
        pytest.skip("limits of one's own need unshare and user namespaces, which are not permitted here")
    return start


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("echo 40 > /proc/sys/user/max_inotify_watches", "limit of watches"),
        ("echo 0 > /proc/sys/user/max_inotify_instances", "limit of inotify instances"),
    ],
)
def test_limits_are_told(tmp_path: Path, setting: str, reason: str) -> None:
    """Where the kernel has no watch, or no inotify, left, arming fails aloud and names the setting to raise."""
    start = in_user_namespace(setting)
    for number in range(50):
        (tmp_path / str(number)).mkdir()
    done = subprocess.run(
        [*start, sys.executable, "-c", ARM_FIFTY, str(tmp_path)],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert reason in done.stdout
    assert "fs.inotify.max_user_" in done.stdout


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /srv rw,relatime - nfs4 server:/export rw
31 30 254:1 / /srv/local\\040disk rw - xfs /dev/vdb rw
32 22 0:41 / /mnt/a rw - fuse.sshfs host: rw
33 22 0:42 / /mnt/b rw - fuseblk /dev/sdc rw
torn line
"""


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ((254, 0), None),
        ((0, 40), "nfs4"),
        ((254, 1), None),
        ((0, 41), "fuse.sshfs"),
        ((0, 42), None),
        ((0, 4), None),
    ],
)
def test_file_system_is_looked_up_by_its_device(
    device: tuple[int, int], kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's st_dev names its file system, wherever links and mounts lead; a shared one is named."""
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    monkeypatch.setattr(inotify, "MOUNTS", table)
    assert file_system_without_events(os.makedev(*device)) == kind


def test_file_system_without_events_is_not_watched(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system others' writes give no event: the folders are refused, and nothing is watched then."""
    watcher.arm(folders(tmp_path))
    monkeypatch.setattr(inotify, "file_system_without_events", lambda _: "nfs4")
    with pytest.raises(WatchBrokenError, match="nfs4"):
        watcher.arm(folders(tmp_path))
    assert watcher.armed == {}


def test_this_machine_has_a_mount_table(tmp_path: Path) -> None:
    """The real table can be read and asked."""
    assert file_system_without_events(tmp_path.stat().st_dev) in (None, *("9p", "nfs", "nfs4", "virtiofs"))


def test_watcher_wakes_up_less_often_where_nothing_happens(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """For ten seconds after an event it looks for the next one every 25 ms, then every 50 ms."""
    steps: list[int] = []
    now = [1000.0]
    found: list[object] = ["timeout", {("modified", "x")}, "timeout", "timeout", "timeout"]

    def watch(_debounce: int, step: int, limit: int, _stop: object) -> object:
        steps.append(step)
        now[0] += limit / 1000
        return found.pop(0)

    monkeypatch.setattr(inotify, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(watcher, "_events", SimpleNamespace(watch=watch, close=lambda: None))
    wakes = [watcher.wait(seconds) for seconds in (1.0, 1.0, 5.0, 5.0, 1.0)]
    assert wakes == [False, True, False, False, False]
    assert steps == [50, 50, 25, 25, 50]
