"""One writer for a lake, and one for a state store (SPEC 5, 'One writer').

A writer holds two locks (flock) until it ends: on ``exports/.distilld.lock`` below the root, and on the store's path
plus ``.lock``. The kernel releases both when the process ends, however it ends. The files remain. The lake's file names
the lake's store, so that no later writer uses another store by mistake. A writer records a store only after it opened
the store and found it to be this lake's; a writer that cannot do so leaves the recorded store as it was.

If a lock file is removed or moved away (with all of ``exports``, for example), its writer still holds the lock but no
other process finds it. So a writer checks before it writes (:meth:`WriterLock.keep`), and locks the file at the path.
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
from functools import partial
from pathlib import Path
from typing import Final

from distilld.core.model import OperatorError, UsageError, WriterBusy
from distilld.core.remedies import remedy_of
from distilld.files.durable import make_folder, make_private
from distilld.files.regular import owned, user_name

LOCK_FILE: Final = "exports/.distilld.lock"
_PATIENCE_SECONDS: Final = 0.25
"""How long a new writer waits for a lock: ``holder`` takes it for a moment to see whether a writer runs."""
_LONGER_PATIENCE_SECONDS: Final = 4 * _PATIENCE_SECONDS
"""The wait for a lost lock file: a second writer holds the lake's lock while it waits for the store's, then fails."""
_RETRY_SECONDS: Final = 0.01
_NO_FILE: Final = "it is no regular file"
_MOST_BYTES: Final = 65_536
_BEGINNING: Final = b'{"pid": '
_MOST_TROUBLE: Final = 1000
"""Bytes of ``trouble`` and of ``remedy`` each, as JSON, so that the file normally fits in its one block."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lake's lock file says; ``pid`` is None unless a writer is running and its record could be read.

    ``state`` is the store of the last writer, running or not; None if there is no record of one.
    ``trouble`` is the failure that the last writer could not note in its store, or why it could not note anything;
    ``remedy`` is what to do about it.
    ``foreign``: the process that wrote the record has ended, so another program holds the lock.
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
    """Raises UsageError if this writer must not lock the file of this descriptor."""
    descriptor: int


class WriterLock:
    """The two locks of a writer. ``kept``: a lock file already named the store, so that file is a state store."""

    def __init__(self, store: Path, held: tuple[_Held, _Held]) -> None:
        self._store = store
        self._held = held
        last = [_read(each.descriptor).state for each in held]
        self.kept = store in last
        for each, state in zip(held, last, strict=True):
            _write(each.descriptor, state)

    def bind(self) -> None:
        """Record this store as the lake's; it was opened and found to be the lake's.

        Raises:
            OperatorError: The record cannot be written.
        """
        for each in self._held:
            _write(each.descriptor, self._store)

    def keep(self) -> tuple[Path, ...]:
        """Make sure that other processes find the locks; return the files that were gone and are locked again.

        Raises:
            WriterBusy: Another process locked such a file first.
            UsageError: Another writer did, and has ended: the lake is kept with that writer's store now.
            OperatorError: A lock file cannot be examined, made or written.
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
    """Return the path of a state store's lock file."""
    return state.with_name(state.name + ".lock")


@contextmanager
def writer_lock(root: Path, state: Path, *, take_over: bool = False) -> Iterator[WriterLock]:
    """Be the one writer of a lake and of a store. ``take_over`` allows another store than the last writer's.

    The recorded store stays as it was until the writer calls :meth:`WriterLock.bind`.

    Raises:
        WriterBusy: Another process holds the lake, or the store.
        UsageError: The lake is kept with another store, which still exists; or another program's file is at the path
            of the store's lock.
        OperatorError: A lock file cannot be made or written.
    """
    store = Path(os.path.realpath(state))
    lake_file, store_file = root / LOCK_FILE, lock_of_store(store)

    def refuse_other(descriptor: int) -> None:
        refuse_other_store(_read(descriptor), root, store)

    with (
        _held(lake_file, f"the lake {root}", refuse_other, at_first=not take_over) as lake_lock,
        _held(store_file, f"the state store {store}", partial(_refuse_foreign, path=store_file)) as store_lock,
    ):
        yield WriterLock(store, (lake_lock, store_lock))


def holder(root: Path) -> Holder:
    """Return whether a writer is running on the lake, its pid, and the lake's store. Change nothing.

    Raises:
        OperatorError: The lock file cannot be read, or the system refuses to lock it.
    """
    path = root / LOCK_FILE
    try:
        descriptor = _open_file(path, os.O_RDONLY)
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
    """Write to the lake's lock file, which this process holds, what the store cannot take; None clears it.

    The recorded store stays as it was.

    The file is written in place, which works on a full disk. If even that fails, or if the record is another
    process's, nothing is written.
    """
    with suppress(OSError, OperatorError):
        descriptor = _open_file(root / LOCK_FILE, os.O_RDWR)
        try:
            record = _read(descriptor)
            if record.pid == os.getpid():
                _write(descriptor, record.state, trouble, remedy)
        finally:
            os.close(descriptor)


def refuse_other_store(last: Holder, root: Path, state: Path) -> None:
    """Raise UsageError if the lake was last kept with another store than ``state``, and that store still exists."""
    store = Path(os.path.realpath(state))
    if last.state is not None and _is_another(last.state, store):
        raise UsageError(
            f"the lake {root} is kept with the state store {last.state}, not with {store}",
            hint=f"give --state {shlex.quote(str(last.state))}, or --take-over to go on with the other store",
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
    # Unlock explicitly: a process that was forked meanwhile shares the open file, and would keep the lock.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _take_file(
    path: Path, what: str, claim: Callable[[int], None], *, patience_seconds: float = _PATIENCE_SECONDS
) -> int:
    """Open and lock the file at ``path``; try again if it was removed or replaced meanwhile. Return its descriptor.

    The lock is released again if ``claim``, called with the descriptor of the locked file, raises.
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
    """Return what to do about a program that holds a lock and is not a writer."""
    return f"find that program with fuser -v {shlex.quote(str(path))} and stop it; only distilld may open the file"


def _open(path: Path, what: str) -> int:
    try:
        make_folder(path.parent)
        descriptor = _open_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise OperatorError(
            f"cannot lock {what}: {path}: {_why(error)}{owned(path)}", hint=_remedy(error, path)
        ) from error
    try:
        make_private(descriptor)
    except OSError as error:
        os.close(descriptor)
        raise OperatorError(f"cannot make {path} private: {_why(error)}", hint=remedy_of(error)) from error
    return descriptor


def _open_file(path: Path, flags: int) -> int:
    """Open a lock file, for a writer or for a look. Anything else at its path is an OSError that has a remedy."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise FileExistsError(errno.EEXIST, _NO_FILE) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise FileExistsError(errno.EEXIST, _NO_FILE)


def _refuse_foreign(descriptor: int, path: Path) -> None:
    """Raise UsageError if the file holds neither a record nor the beginning of one, so that no record overwrites it."""
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
        record |= {"trouble": _cut(trouble), "remedy": _cut(remedy)}
    content = json.dumps(record).encode() + b"\n"
    try:
        # In place, then cut to length: a full disk does not keep a writer from starting.
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    except OSError as error:
        raise OperatorError(f"cannot write the lock file: {_why(error)}", hint=remedy_of(error)) from error


def _cut(text: str) -> str:
    # As JSON, a character takes one byte, six or twelve.
    text = text[:_MOST_TROUBLE]
    while len(json.dumps(text)) > _MOST_TROUBLE:
        text = text[: len(text) * 7 // 8]
    return text


def _read(descriptor: int) -> Holder:
    """Return what the writer that holds or last held the lock recorded; leave out what cannot be read."""
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
    """Return what tells a process from any other with its pid, earlier or in another container; None if unknown."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
        started = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"{namespace}:{started}"


def _is_gone(pid: int, recorded: object) -> bool:
    """Return whether the recorded process has certainly ended; for one in another container nothing is certain."""
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
    """Return whether a file can have the recorded path."""
    try:
        return os.path.isabs(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_another(recorded: Path, wanted: Path) -> bool:
    """Return whether the recorded store still exists and is not the wanted one under another name."""
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
    """Return the remedy; after a run as another user it says how the service gets the lock file back."""
    if error.errno == errno.EACCES and owned(path):
        name, user = shlex.quote(str(path)), user_name(os.geteuid())
        with suppress(OSError):
            if os.stat(path).st_uid == os.geteuid():
                return f"chmod u+rw {name}"
        return f"as root: chown {user}: {name}; run distilld by hand as that user (sudo -u {user})"
    return remedy_of(error)


def _why(error: OSError) -> str:
    return "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
