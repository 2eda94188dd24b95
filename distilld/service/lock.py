"""One writer for a lake, and one for a state store (SPEC 5, 'One writer').

A writer holds two locks (flock) for as long as it lives: ``exports/.distilld.lock`` below the root, and the store's
path with ``.lock`` behind it. The kernel lets go of both when the process ends, however it ends. The files stay behind;
the lake's one says which store the lake is kept with, so that nobody goes on with another one by mistake. It says so of
a store that was opened and is this lake's: a writer that is refused its store leaves the record as it was.

A lock file that is removed or moved away, with all of ``exports`` say, is locked by its writer but found by nobody. So
the writer asks before it writes (:meth:`WriterLock.keep`), and locks the one that stands there then.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distilld.core.model import OperatorError, UsageError, WriterBusy
from distilld.core.remedies import remedy_of
from distilld.files.durable import make_folder, make_private
from distilld.files.regular import owned, user_name

LOCK_FILE: Final = "exports/.distilld.lock"
_PATIENCE_SECONDS: Final = 0.25
"""``holder`` holds the lock for a moment to see whether a writer does; a writer that starts then waits this long."""
_LONGER_PATIENCE_SECONDS: Final = 4 * _PATIENCE_SECONDS
"""A second writer holds the lake's lock for as long as it waits for the store's, and is then turned away."""
_RETRY_SECONDS: Final = 0.01
_MOST_BYTES: Final = 65_536
_BEGINNING: Final = b'{"pid": '
_MOST_TROUBLE: Final = 1000
"""Characters; with them the file still fits the one block that it has."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What a look at a lake's lock tells; ``pid`` is None unless a writer is running and its record could be read.

    ``state`` is the store that the last writer kept the lake with, running or not; None where none ever wrote.
    ``trouble`` is what the last writer failed of and could not note in its store, or that it could not; ``remedy`` is
    what to do about it.
    ``foreign`` says that something holds the lock that is not the writer of the record: that one is gone.
    """

    running: bool
    pid: int | None = None
    state: Path | None = None
    trouble: str | None = None
    remedy: str | None = None
    foreign: bool = False


@dataclass(slots=True)
class _Held:
    """A lock file that this process holds."""

    path: Path
    what: str
    refuse: Callable[[int], None]
    """Raises UsageError where the file of this descriptor is not for this writer to lock."""
    descriptor: int


class WriterLock:
    """Both locks in the hands of the writer. ``kept`` says that one of them named the store before, so it is one."""

    def __init__(self, store: Path, held: tuple[_Held, _Held]) -> None:
        self._store = store
        self._held = held
        last = [_read(each.descriptor).state for each in held]
        self.kept = store in last
        for each, state in zip(held, last, strict=True):
            _write(each.descriptor, state)

    def bind(self) -> None:
        """From now on the lake is kept with this store, which was opened and found to be the lake's.

        Raises:
            OperatorError: The record cannot be written.
        """
        for each in self._held:
            _write(each.descriptor, self._store)

    def keep(self) -> tuple[Path, ...]:
        """Make sure that others still find the locks; returns the files that were gone and are locked again.

        Raises:
            WriterBusy: Another process was quicker.
            UsageError: Another one was, and is gone: the lake is kept with its store now.
            OperatorError: A lock file cannot be looked at, made or written.
        """
        lost = [each for each in self._held if not _stands_at(each.descriptor, each.path)]
        for each in lost:
            self._take_again(each)
        return tuple(each.path for each in lost)

    def _take_again(self, held: _Held) -> None:
        def claim(descriptor: int) -> None:
            held.refuse(descriptor)
            _write(descriptor, self._store)

        found = _take_file(held.path, held.what, claim, patience_seconds=_LONGER_PATIENCE_SECONDS)
        lost, held.descriptor = held.descriptor, found
        _let_go(lost)


def lock_of_store(state: Path) -> Path:
    """Where the lock of a state store stands."""
    return state.with_name(state.name + ".lock")


@contextmanager
def writer_lock(root: Path, state: Path, *, take_over: bool = False) -> Iterator[WriterLock]:
    """Be the one writer of a lake and of a store. ``take_over`` goes on with another store than the last writer's.

    Which store the lake is kept with stays as it was until the writer says :meth:`WriterLock.bind`.

    Raises:
        WriterBusy: Another process holds the lake, or the store.
        UsageError: The lake is kept with another store, which still exists; or another program's file stands where the
            store's lock is to be.
        OperatorError: A lock file cannot be made or written.
    """
    store = Path(os.path.realpath(state))

    def refuse_other(descriptor: int) -> None:
        refuse_other_store(_read(descriptor), root, store)

    def refuse_foreign(descriptor: int) -> None:
        _refuse_foreign(descriptor, lock_of_store(store))

    with (
        _held(root / LOCK_FILE, f"the lake {root}", refuse_other, at_first=not take_over) as lake_lock,
        _held(lock_of_store(store), f"the state store {store}", refuse_foreign) as store_lock,
    ):
        yield WriterLock(store, (lake_lock, store_lock))


def holder(root: Path) -> Holder:
    """Whether a writer is running on the lake, its pid, and the store that the lake is kept with. Changes nothing.

    Raises:
        OperatorError: The lock file cannot be read, or the system refuses to lock it.
    """
    path = root / LOCK_FILE
    try:
        descriptor = _open_existing(path)
    except FileNotFoundError:
        return Holder(running=False)
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {_why(error)}", hint=remedy_of(error)) from error
    try:
        record = _read(descriptor)
        if _take(descriptor, fcntl.LOCK_SH, path):
            return Holder(running=False, state=record.state, trouble=record.trouble, remedy=record.remedy)
        return record
    finally:
        os.close(descriptor)


def tell_trouble(root: Path, trouble: str | None, remedy: str = "") -> None:
    """Say in the lake's lock file, which this process holds, what cannot be said in the store; None takes it back.

    Which store the lake is kept with stays as it was.

    The file is written in place, which works on a full disk. Where even that does not, or another process's record
    stands there, nothing is said.
    """
    with suppress(OSError, OperatorError):
        descriptor = os.open(root / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            record = _read(descriptor)
            if record.pid == os.getpid():
                _write(descriptor, record.state, trouble, remedy)
        finally:
            os.close(descriptor)


def refuse_other_store(last: Holder, root: Path, state: Path) -> None:
    """Raise UsageError where the lake was last kept with another store than ``state``, and that one still exists."""
    store = Path(os.path.realpath(state))
    if last.state is not None and _is_another(last.state, store):
        raise UsageError(
            f"the lake {root} is kept with the state store {last.state}, not with {store}",
            hint=f"give --state {last.state}, or --take-over to go on with the other store",
        )


@contextmanager
def _held(path: Path, what: str, refuse: Callable[[int], None], *, at_first: bool = True) -> Iterator[_Held]:
    descriptor = _take_file(path, what, refuse if at_first else lambda _: None)
    held = _Held(path, what, refuse, descriptor)
    try:
        yield held
    finally:
        _let_go(held.descriptor)


def _let_go(descriptor: int) -> None:
    # Said aloud: a process that was forked meanwhile has the same open file, and would keep the lock.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _take_file(
    path: Path, what: str, claim: Callable[[int], None], *, patience_seconds: float = _PATIENCE_SECONDS
) -> int:
    """Open and lock the file that stands at ``path``, not one that was just removed from there.

    It is let go again where ``claim``, called with the descriptor of the locked file, raises.
    """
    until = time.monotonic() + patience_seconds
    while True:
        descriptor = _open(path, what)
        try:
            if _take(descriptor, fcntl.LOCK_EX, path):
                if _stands_at(descriptor, path):
                    claim(descriptor)
                    kept, descriptor = descriptor, -1
                    return kept
            elif time.monotonic() >= until:
                raise _busy(_read(descriptor), path, what)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        time.sleep(_RETRY_SECONDS)


def _busy(last: Holder, path: Path, what: str) -> WriterBusy:
    named = "" if last.pid is None else f" (pid {last.pid})"
    if not last.foreign:
        return WriterBusy(f"another distilld{named} holds {what}", pid=last.pid)
    error = WriterBusy(f"no distilld{named} runs any more, and some other program holds the lock {path}", pid=None)
    error.hint = find_holder(path)
    return error


def find_holder(path: Path) -> str:
    """What to do about a program that is no writer and holds a lock."""
    return f"find that program with fuser -v {shlex.quote(str(path))} and stop it; only distilld may open the file"


def _open(path: Path, what: str) -> int:
    try:
        make_folder(path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise OperatorError(
            f"cannot lock {what}: {path}: {_why(error)}{owned(path)}", hint=_remedy(error, path)
        ) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        try:
            make_private(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise OperatorError(f"cannot make {path} private: {_why(error)}") from error
        return descriptor
    os.close(descriptor)
    raise OperatorError(f"cannot lock {what}: {path} is no regular file", hint="remove it")


def _open_existing(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _refuse_foreign(descriptor: int, path: Path) -> None:
    """Refuse to write a record over what is none, nor the beginning of one that was cut off."""
    if not _BEGINNING.startswith(os.pread(descriptor, len(_BEGINNING), 0).rstrip(b"\0")):
        raise UsageError(
            f"{path}, the lock of the state store, is a file of something else", hint="give another --state"
        )


def _take(descriptor: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OperatorError(
            f"cannot lock {path}: {_why(error)}", hint="it must stand on a file system that can lock files (flock)"
        ) from error
    return True


def _stands_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise OperatorError(f"cannot look at {path}: {_why(error)}", hint=remedy_of(error)) from error


def _write(descriptor: int, state: Path | None, trouble: str | None = None, remedy: str = "") -> None:
    record = {"pid": os.getpid(), "state": None if state is None else str(state), "process": _process("self")}
    if trouble is not None:
        record |= {"trouble": trouble[:_MOST_TROUBLE], "remedy": remedy[:_MOST_TROUBLE]}
    content = json.dumps(record).encode() + b"\n"
    try:
        # In place, and cut behind it: a full disk does not keep a writer from starting.
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    except OSError as error:
        raise OperatorError(f"cannot write the lock file: {_why(error)}", hint=remedy_of(error)) from error


def _read(descriptor: int) -> Holder:
    """What the writer that holds, or last held, the lock recorded; what cannot be read is left out."""
    try:
        found = json.loads(os.pread(descriptor, _MOST_BYTES, 0).split(b"\n", 1)[0])
        pid, state = found["pid"], found["state"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return Holder(running=True)
    trouble, remedy = found.get("trouble"), found.get("remedy")
    return Holder(
        running=True,
        pid=pid if type(pid) is int else None,
        state=Path(state) if isinstance(state, str) and _is_path(state) else None,
        trouble=trouble if isinstance(trouble, str) else None,
        remedy=remedy if isinstance(remedy, str) and remedy else None,
        foreign=type(pid) is int and _is_gone(pid, found.get("process")),
    )


def _process(pid: int | str) -> str | None:
    """What tells a process from every other one that has or had its pid, in a container too; None where unknown."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
        started = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"{namespace}:{started}"


def _is_gone(pid: int, recorded: object) -> bool:
    """Whether the process of a record certainly runs no more; of a process in another container nothing is certain."""
    own = _process("self")
    if own is None or not isinstance(recorded, str) or recorded.partition(":")[0] != own.partition(":")[0]:
        return False
    found = _process(pid)
    if found is not None:
        return found != recorded
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def _is_path(text: str) -> bool:
    """Whether a recorded path is one that a file can have."""
    try:
        return os.path.isabs(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_another(recorded: Path, wanted: Path) -> bool:
    """Whether the recorded store is still there, and is not the wanted one under another name."""
    try:
        found = os.stat(recorded)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return recorded != wanted
    try:
        return not os.path.samestat(found, os.stat(wanted))
    except OSError:
        return recorded != wanted


def _remedy(error: OSError, path: Path) -> str:
    """After one run as another user, the lock file is that user's: say how the service gets it back."""
    user = user_name(os.geteuid())
    if error.errno == errno.EACCES and owned(path):
        return f"as root: chown {user}: {shlex.quote(str(path))}; run distilld by hand as that user (sudo -u {user})"
    return remedy_of(error)


def _why(error: OSError) -> str:
    return "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
