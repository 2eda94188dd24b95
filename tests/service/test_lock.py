"""One writer: who holds a lake, who is refused, and what the lock file says."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distilld.config.load import load
from distilld.core.model import OperatorError, UsageError, WriterBusy
from distilld.core.remedies import BY_ERRNO
from distilld.inspection.status import look
from distilld.service.lock import (
    LOCK_FILE,
    Holder,
    holder,
    lock_of_store,
    refuse_other_store,
    tell_trouble,
    writer_lock,
)
from tests.support.command import another_writer, distilld, python


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty lake."""
    folder = tmp_path / "lake"
    folder.mkdir()
    return folder


@pytest.fixture
def state(root: Path) -> Path:
    """Where its store stands by default."""
    return root / "state" / "distilld.db"


def put_store(path: Path) -> Path:
    """A file that stands for a store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def keep(root: Path, state: Path, *, take_over: bool = False) -> None:
    """A writer that opened its store, and is gone."""
    with writer_lock(root, state, take_over=take_over) as lock:
        lock.bind()


def test_second_writer_of_a_lake_is_refused_and_told_the_pid(root: Path, state: Path) -> None:
    """While a process holds the lake, another one gets WriterBusy with its pid, and the lake is free when it ends."""
    with another_writer(root, state) as process:
        told = rf"another distilld \(pid {process.pid}\) holds the lake {root}"
        with pytest.raises(WriterBusy, match=told) as caught, writer_lock(root, state):
            pytest.fail("two writers")
        assert caught.value.pid == process.pid
    keep(root, state)


def test_second_writer_of_a_store_is_refused(tmp_path: Path, root: Path, state: Path) -> None:
    """Two lakes cannot be written with one store at a time, and the lake that was locked for it is let go again."""
    other = tmp_path / "other"
    other.mkdir()
    with another_writer(root, state) as process:
        told = rf"pid {process.pid}\) holds the state store {state}"
        with pytest.raises(WriterBusy, match=told), writer_lock(other, state):
            pytest.fail("two writers")
        with writer_lock(other, other / "own.db"):
            pass


def test_killed_writer_leaves_nothing_locked(root: Path, state: Path) -> None:
    """After kill -9 the file is still there, and the next writer starts at once."""
    with another_writer(root, state) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (root / LOCK_FILE).exists()
        assert holder(root) == Holder(running=False, state=state)
        with writer_lock(root, state):
            pass


def test_forked_process_does_not_keep_the_lock(root: Path, state: Path) -> None:
    """A process that was forked while the lock was held does not hold it on."""
    with writer_lock(root, state):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            os._exit(0)
    try:
        assert not holder(root).running
        with writer_lock(root, state):
            pass
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_lock_file_names_pid_and_store_and_stays(root: Path, state: Path) -> None:
    """The file holds one line of JSON with the pid and the absolute path of the store, mode 0640 under the umask."""
    old = os.umask(0o022)
    try:
        keep(root, state)
    finally:
        os.umask(old)
    for path in (root / LOCK_FILE, lock_of_store(state)):
        assert json.loads(path.read_text()).items() >= {"pid": os.getpid(), "state": str(state)}.items()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_shorter_record_leaves_nothing_of_a_longer_one(tmp_path: Path, root: Path) -> None:
    """A new record replaces the old one, however long that was."""
    keep(root, tmp_path / ("x" * 100) / "a.db")
    keep(root, tmp_path / "b.db")
    assert json.loads((root / LOCK_FILE).read_text())["state"] == str(tmp_path / "b.db")


def test_lake_of_another_store_is_refused(root: Path, state: Path, tmp_path: Path) -> None:
    """A lake that is kept with a store which still exists is not written with another; the message names --state."""
    put_store(state)
    keep(root, state)
    before = (root / LOCK_FILE).read_bytes()
    with pytest.raises(UsageError) as caught, writer_lock(root, tmp_path / "new.db"):
        pytest.fail("two stores")
    assert str(caught.value) == f"the lake {root} is kept with the state store {state}, not with {tmp_path / 'new.db'}"
    assert caught.value.hint == f"give --state {state}, or --take-over to go on with the other store"
    assert (root / LOCK_FILE).read_bytes() == before
    assert not lock_of_store(tmp_path / "new.db").exists()


def test_store_to_give_is_quoted(root: Path, tmp_path: Path) -> None:
    """The story: of a store with a space in its path, the option that the message named was two words."""
    state = put_store(tmp_path / "my state" / "distilld.db")
    keep(root, state)
    with pytest.raises(UsageError) as caught:
        keep(root, put_store(tmp_path / "other.db"))
    assert shlex.split(caught.value.hint)[:3] == ["give", "--state", f"{state},"]
    settings = load(flags={"root": root, "state": tmp_path / "other.db"}, environ={}, config_file=None, cwd=tmp_path)
    told = [each.remedy for each in look(replace(settings, state=tmp_path / "third.db")).problems]
    assert shlex.split(told[0]) == ["give", "--state", str(state)]


def test_take_over_goes_on_with_another_store(root: Path, state: Path, tmp_path: Path) -> None:
    """With take_over the other store is recorded, and the first one is the other from then on."""
    put_store(state)
    keep(root, state)
    other = put_store(tmp_path / "new.db")
    keep(root, other, take_over=True)
    assert holder(root).state == other
    with pytest.raises(UsageError), writer_lock(root, state):
        pytest.fail("two stores")


def test_store_that_is_gone_binds_nobody(root: Path, state: Path, tmp_path: Path) -> None:
    """Once the recorded store no longer exists, any store may be used."""
    keep(root, state)
    assert not state.exists()
    keep(root, tmp_path / "new.db")


def test_writer_that_is_refused_its_store_binds_nobody(root: Path, state: Path, tmp_path: Path) -> None:
    """What the lake is kept with stays as it was until the store was opened; the pid is told meanwhile.

    The story: a store of another root was given by mistake and refused, and the lake was bound to it all the same: the
    right store was refused from then on, and the store that the message named as well.
    """
    other = put_store(tmp_path / "other.db")
    with writer_lock(root, other) as lock:
        assert not lock.kept
        assert holder(root) == Holder(running=True, pid=os.getpid())
    keep(root, put_store(state))
    with writer_lock(root, other, take_over=True):
        assert holder(root) == Holder(running=True, pid=os.getpid(), state=state)
    with writer_lock(root, state) as lock:
        assert lock.kept


def test_store_that_another_lake_kept_is_known_as_one(root: Path, state: Path, tmp_path: Path) -> None:
    """The lock beside a store names it too, so it is known as a store where the lake says nothing."""
    keep(root, put_store(state))
    (root / LOCK_FILE).unlink()
    with writer_lock(root, state) as lock:
        assert lock.kept


def test_store_by_another_name_is_the_same_store(root: Path, state: Path, tmp_path: Path) -> None:
    """A store that is reached through a link, or has a second name, is not another one."""
    put_store(state)
    keep(root, state)
    (tmp_path / "link.db").symlink_to(state)
    with writer_lock(root, tmp_path / "link.db") as lock:
        lock.bind()
        assert holder(root).state == state
    (tmp_path / "hard.db").hardlink_to(state)
    keep(root, tmp_path / "hard.db")


def put_socket(path: Path) -> None:
    """A socket, which stays when its program has ended."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path.relative_to(Path.cwd())))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.symlink_to("/dev/null"), "it is a link (put the file itself in place of the link)"),
        (os.mkfifo, "it is no regular file (something stands in its place: move it away)"),
        (put_socket, "it is no regular file (something stands in its place: move it away)"),
        (os.mkdir, "Is a directory (a folder stands where a file belongs: move it away)"),
    ],
    ids=["link", "fifo", "socket", "folder"],
)
def test_what_is_no_regular_file_is_no_lock(
    root: Path, state: Path, make: Callable[[Path], None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story: a look took a folder in the lock file's place for a lock that nobody holds.

    A link, a FIFO or a folder is refused, and never followed or waited for: by a writer, by a look, and by health.
    """
    monkeypatch.chdir(root)  # the path of a socket must be short
    (root / "exports").mkdir()
    make(root / LOCK_FILE)
    with pytest.raises(OperatorError) as refused, writer_lock(root, state):
        pytest.fail("locked what is no file")
    assert f"{refused.value} ({refused.value.hint})" == f"cannot lock the lake {root}: {root / LOCK_FILE}: {told}"
    asked = distilld("health", "--root", root, cwd=root)
    assert (asked.code, asked.out, asked.err) == (1, "", f"distilld: cannot read {root / LOCK_FILE}: {told}\n")


def test_lock_that_cannot_be_made_is_the_operators_matter(root: Path, tmp_path: Path) -> None:
    """A store below a file, or exports that is a file, gives an error that names the path."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(OperatorError, match="cannot lock the state store"),
        writer_lock(root, tmp_path / "file" / "x.db"),
    ):
        pytest.fail("locked below a file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "exports").touch()
    with pytest.raises(OperatorError, match="cannot lock the lake"), writer_lock(other, tmp_path / "x.db"):
        pytest.fail("locked below a file")


def test_lock_that_the_system_refuses_is_the_operators_matter(
    root: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be locked, as on some network file systems, a writer and a look name the file and the reason."""
    keep(root, state)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = re.escape(f"cannot lock {root / LOCK_FILE}: No locks available")
    with pytest.raises(OperatorError, match=told):
        holder(root)
    with pytest.raises(OperatorError, match=told):
        keep(root, state)


def test_lock_that_cannot_be_made_private_is_the_operators_matter(
    root: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story: the message named no remedy."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    (root / "exports").mkdir()
    (root / LOCK_FILE).touch()
    (root / LOCK_FILE).chmod(0o666)
    monkeypatch.setattr(os, "chmod", refuse)
    with pytest.raises(OperatorError, match=r"cannot make .*private: Operation not permitted") as caught:
        keep(root, state)
    assert caught.value.hint == BY_ERRNO[errno.EPERM]


def test_lock_that_cannot_be_looked_at_is_the_operators_matter(
    root: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder of the lock may not be entered any more, nobody knows whether the lock is lost."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with writer_lock(root, state) as lock:
        monkeypatch.setattr(os, "lstat", refuse)
        with pytest.raises(OperatorError, match=re.escape(f"cannot look at {root / LOCK_FILE}: Permission denied")):
            lock.keep()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[1]\n", b'{"pid": "1"}\n', b'{"pid": 1, "state": 5}\n', b"\xff", b"[" * 60_000,
        b'{"pid": 1, "state": "/a\\u0000b"}\n', b'{"pid": 1, "state": "/a\\ud800b"}\n',
    ],
    ids=lambda content: content[:30],
)  # fmt: skip
def test_torn_record_binds_nobody(root: Path, state: Path, content: bytes) -> None:
    """A lock file that cannot be read as a record names no pid and no store, and stops no writer."""
    (root / "exports").mkdir()
    (root / LOCK_FILE).write_bytes(content)
    assert holder(root) == Holder(running=False)
    with writer_lock(root, state) as lock:
        assert not lock.kept
        assert holder(root) == Holder(running=True, pid=os.getpid())
        lock.bind()
        assert holder(root) == Holder(running=True, pid=os.getpid(), state=state)


def test_lock_of_another_program_is_not_written_over(root: Path, tmp_path: Path) -> None:
    """A store that is to be called 'poetry' would have its lock in a file that is somebody else's."""
    other = lock_of_store(tmp_path / "poetry")
    other.write_text("# This file is made by Poetry\n")
    with pytest.raises(UsageError, match=r"poetry\.lock, the lock of the state store, is a file of something else"):
        keep(root, tmp_path / "poetry")
    assert other.read_text() == "# This file is made by Poetry\n"
    for torn in (b"", b"\0" * 60, b'{"pi'):
        other.write_bytes(torn)
        keep(root, tmp_path / "poetry")


def test_holder_of_a_lake_that_nobody_wrote(root: Path) -> None:
    """A look at a lake without a lock file finds no writer, and makes nothing."""
    assert holder(root) == Holder(running=False)
    assert list(root.iterdir()) == []


def test_holder_names_the_writer_and_changes_nothing(root: Path, state: Path) -> None:
    """A look at a lake finds its writer, then none, and leaves the lock file as it is."""
    with another_writer(root, state) as process:
        before = (root / LOCK_FILE).stat()
        assert holder(root) == Holder(running=True, pid=process.pid, state=state)
    assert holder(root) == Holder(running=False, state=state)
    after = (root / LOCK_FILE).stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)


def test_a_look_does_not_keep_a_writer_from_starting(root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that finds the lock taken for a moment, as a look takes it, waits and then starts."""
    (root / "exports").mkdir()
    look = os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(look, fcntl.LOCK_SH)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        fcntl.flock(look, fcntl.LOCK_UN)

    monkeypatch.setattr("distilld.service.lock.time.sleep", pause)
    with writer_lock(root, state):
        assert len(pauses) == 1
    os.close(look)


def test_removed_lock_file_does_not_let_a_second_writer_in(root: Path, state: Path) -> None:
    """Somebody who removes the lock file of a running writer does not make room for a second one with its store."""
    with another_writer(root, state) as process:
        (root / LOCK_FILE).unlink()
        with pytest.raises(WriterBusy, match=f"pid {process.pid}"), writer_lock(root, state):
            pytest.fail("two writers")


@pytest.mark.parametrize(
    "lose",
    [
        lambda root: (root / LOCK_FILE).unlink(),
        lambda root: shutil.rmtree(root / "exports"),
        lambda root: (root / "exports").rename(root / "exports.old"),
        lambda root: ((root / LOCK_FILE).unlink(), (root / LOCK_FILE).touch()),
        lambda root: lock_of_store(root / "state" / "distilld.db").unlink(),
    ],
    ids=["removed", "folder removed", "folder moved", "replaced", "the store's"],
)
def test_lost_lock_is_taken_anew(root: Path, state: Path, lose: Callable[[Path], object]) -> None:
    """A writer whose lock file is no longer where others look makes one there; one that stands is left alone.

    The story: exports/ was removed beside a daemon, which restored it without the lock file; health said that no
    distilld runs, and a second writer took the lake.
    """
    with writer_lock(root, put_store(state)) as lock:
        lock.bind()
        assert lock.keep() == ()
        lose(root)
        assert len(lock.keep()) == 1
        assert lock.keep() == ()
        assert holder(root) == Holder(running=True, pid=os.getpid(), state=state)
        for path in (root / LOCK_FILE, lock_of_store(state)):
            assert json.loads(path.read_text()).items() >= {"pid": os.getpid(), "state": str(state)}.items()
            with path.open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not holder(root).running


def test_lost_lock_that_another_writer_took(root: Path, state: Path, tmp_path: Path) -> None:
    """Who comes with another store than ours takes a lake whose lock file is gone; its record is not touched then.

    As long as it runs, and when it is gone, too, this process is not the writer: the lake is kept with another store.
    """
    other = put_store(tmp_path / "other.db")
    with writer_lock(root, put_store(state)) as lock:
        lock.bind()
        (root / LOCK_FILE).unlink()
        with another_writer(root, other) as process:
            theirs = Holder(running=True, pid=process.pid, state=other)
            for _ in range(2):
                with pytest.raises(WriterBusy, match=f"pid {process.pid}"):
                    lock.keep()
            tell_trouble(root, "the disk is full")
            assert holder(root) == theirs
        for _ in range(2):
            with pytest.raises(UsageError, match="is kept with the state store"):
                lock.keep()
    assert holder(root) == Holder(running=False, state=other)


def test_trouble_outlasts_its_writer_and_binds_no_store(root: Path, state: Path, tmp_path: Path) -> None:
    """What a writer left word of is read when it is gone, until the next one; the lake's store is the one it was."""
    keep(root, state)
    with writer_lock(root, tmp_path / "other.db"):
        tell_trouble(root, "the disk is full")
        assert holder(root) == Holder(True, os.getpid(), state, "the disk is full")
    assert holder(root) == Holder(running=False, state=state, trouble="the disk is full")
    with writer_lock(root, state):
        assert holder(root).trouble is None
    assert holder(root) == Holder(running=False, state=state)


@pytest.mark.parametrize("letter", ["a", "é", "日", "𝄞", "\udc80", "\n"])
def test_trouble_stays_within_its_block_in_any_script(root: Path, state: Path, letter: str) -> None:
    """The file is overwritten in place, which works on a full disk only where it takes no further block."""
    with writer_lock(root, state) as lock:
        lock.bind()
        tell_trouble(root, "why: " + letter * 5000, letter * 5000)
        assert (root / LOCK_FILE).stat().st_size < 4096
        found = holder(root)
        assert (found.trouble or "").startswith("why: " + letter * 50)
        assert set(found.remedy or "") == {letter}


REPLACE_THEN_HOLD = """
import os, sys
from pathlib import Path
from distilld.service import lock
take = lock._take
def once(descriptor, kind, path):
    lock._take = take
    os.unlink(path)
    return take(descriptor, kind, path)
lock._take = once
with lock.writer_lock(Path(sys.argv[1]), Path(sys.argv[2])) as held:
    held.bind()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_is_taken_on_the_file_that_stands_there(root: Path, state: Path) -> None:
    """A file that is removed between opening and locking is no lock: the writer locks the one that others find."""
    with python(REPLACE_THEN_HOLD, root, state) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert holder(root) == Holder(running=True, pid=process.pid, state=state)


def test_refusal_without_a_lock(root: Path, state: Path, tmp_path: Path) -> None:
    """What only reads is refused another store as well, from the record alone."""
    put_store(state)
    refuse_other_store(Holder(running=False), root, state)
    refuse_other_store(Holder(running=False, state=state), root, state)
    with pytest.raises(UsageError):
        refuse_other_store(Holder(running=True, state=state), root, tmp_path / "x.db")


def test_a_lock_file_that_cannot_be_opened_is_named_with_its_owner(
    root: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one run as root, the service says whose the lock file is and how it gets it back."""
    with writer_lock(root, state):
        pass
    real = os.open

    def refused(path: object, flags: int, *rest: int, **more: int) -> int:
        if str(path).endswith(".distilld.lock"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with (
        pytest.raises(OperatorError, match=r"Permission denied; it belongs to .* and this runs as ") as caught,
        writer_lock(root, state),
    ):
        pass
    mine = caught.value.hint
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(root).st_uid + 1)
    with pytest.raises(OperatorError) as caught, writer_lock(root, state):
        pass
    assert caught.value.hint.startswith("as root: chown ")
    # The story: the owner was told to give the file to itself, though its mode was at fault.
    assert mine == f"chmod u+rw {root / LOCK_FILE}"
