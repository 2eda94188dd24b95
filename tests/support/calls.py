"""Every call by which the program changes the disk or the store, counted, so that a test can strike at each.

A call counts where code of ``distilld`` stands on the stack, whatever it goes through: ``os``, ``pathlib``,
``tempfile``, ``sqlite3``. A write counts twice, before it and when half of it is done; a COMMIT counts before it and
after it. In between the calls that count nothing changes, so the state of the disk at each call is each state that a
kill can leave.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO, Any, Final, NamedTuple

import distilld

PACKAGE: Final = str(Path(distilld.__file__).parent) + os.sep
_CHANGES: Final = (
    "fchmod", "fchown", "fdatasync", "fsync", "ftruncate", "link", "mkdir", "remove", "rename", "replace", "rmdir",
    "symlink", "truncate", "unlink", "utime",
)  # fmt: skip
_READS: Final = ("pread", "scandir")
_SQL_CHANGES: Final = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER"})


class Call(NamedTuple):
    """A call that is about to be made: its number from 1, what it is, and the function of distilld that makes it."""

    number: int
    name: str
    place: str

    @property
    def is_inner(self) -> bool:
        """Whether it is a statement inside a transaction, which changes nothing that lasts."""
        return self.name == "sql statement"


Act = Callable[[Call], None]


class Watcher:
    """Hears of calls before and after they are made; used to know what a power cut would take."""

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """A call is about to be made."""

    def after(self, name: str, arguments: tuple[Any, ...]) -> None:
        """A call was made."""

    def cut(self) -> None:
        """The process is about to be killed."""


@contextmanager
def calls(act: Act, *, reads: bool = False, watcher: Watcher | None = None) -> Iterator[None]:
    """Let ``act`` see each call before it is made; what it raises, the program gets.

    ``reads`` counts calls too that open, list or read an existing file.
    """
    counter = _Counter(act, watcher or Watcher())
    ours: list[tuple[ModuleType, str, Callable[..., Any]]] = [
        *((os, name, counter.counted(name, getattr(os, name))) for name in (*_CHANGES, *(_READS if reads else ()))),
        (os, "open", counter.open(os.open, reads=reads)),
        (os, "write", counter.write(os.write)),
        (tempfile, "TemporaryFile", counter.temporary_file(tempfile.TemporaryFile)),
        (sqlite3, "connect", counter.connect(sqlite3.connect)),
    ]
    real = [(owner, name, getattr(owner, name)) for owner, name, _ in ours]
    try:
        for owner, name, value in ours:
            setattr(owner, name, value)
        yield
    finally:
        counter.stop()
        for owner, name, value in real:
            setattr(owner, name, value)


def _below_its_folder(arguments: tuple[Any, ...], folder: int | None) -> tuple[Any, ...]:
    """The same arguments, their path made whole where it starts at an open folder."""
    if folder is None:
        return arguments
    return (Path(f"/proc/self/fd/{folder}").readlink() / arguments[0], *arguments[1:])


class _Counter:
    def __init__(self, act: Act, watcher: Watcher) -> None:
        self._act = act
        self._watcher = watcher
        self._number = 0
        self._watching = False

    def stop(self) -> None:
        """Count no more, though connections that were made meanwhile live on."""
        self._watching = True

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """What is done in here is the test's own doing, and does not count."""
        self._watching, before = True, self._watching
        try:
            yield
        finally:
            self._watching = before

    def reached(self, name: str) -> bool:
        """Count a call; False where it is none of the program's own."""
        place = None if self._watching else _place()
        if place is None:
            return False
        self._number += 1
        with self._unwatched():
            self._act(Call(self._number, name, place))
        return True

    def _before(self, name: str, *arguments: Any) -> None:
        with self._unwatched():
            self._watcher.before(name, arguments)

    def _after(self, name: str, *arguments: Any) -> None:
        with self._unwatched():
            self._watcher.after(name, arguments)

    def counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            ours = self.reached(f"os.{name}")
            told = _below_its_folder(arguments, named.get("dir_fd", named.get("src_dir_fd")))
            if "dst_dir_fd" in named:
                told = (told[0], *_below_its_folder(arguments[1:], named["dst_dir_fd"]))
            if ours:
                self._before(name, *told)
            result = real(*arguments, **named)
            if ours:
                self._after(name, *told)
            return result

        return call

    def open(self, real: Callable[..., int], *, reads: bool) -> Callable[..., int]:
        def call(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            makes = bool(flags & os.O_CREAT) or flags & os.O_TMPFILE == os.O_TMPFILE
            ours = (makes or reads) and self.reached("os.open" if makes else "os.open to read")
            (told,) = _below_its_folder((path,), named.get("dir_fd"))
            if ours:
                self._before("open", told, flags)
            descriptor = real(path, flags, *arguments, **named)
            if ours:
                self._after("open", told, flags)
            return descriptor

        return call

    def write(self, real: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        def call(descriptor: int, data: Any) -> int:
            if not self.reached("os.write"):
                return real(descriptor, data)
            self._before("write", descriptor)
            half = len(data) // 2
            written = real(descriptor, data[:half])
            self.reached("os.write, half done")
            return written + real(descriptor, data[half:])

        return call

    def temporary_file(self, real: Callable[..., IO[bytes]]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            file = real(*arguments, **named)
            return _TemporaryFile(self, file) if _place() is not None else file

        return call

    def connect(self, real: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        counter = self

        class Connection(sqlite3.Connection):
            def execute(self, *arguments: Any) -> sqlite3.Cursor:
                return counter.statement(super().execute, arguments)

            def executemany(self, *arguments: Any) -> sqlite3.Cursor:
                return counter.statement(super().executemany, arguments)

        def call(*arguments: Any, **named: Any) -> sqlite3.Connection:
            return real(*arguments, **{"factory": Connection, **named})

        return call

    def statement(self, real: Callable[..., sqlite3.Cursor], arguments: tuple[Any, ...]) -> sqlite3.Cursor:
        word = arguments[0].split(None, 1)[0].rstrip(";").upper()
        if word in ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA"):
            self.reached(f"sql {word}")
        elif word in _SQL_CHANGES:
            self.reached("sql statement")
        result = real(*arguments)
        if word == "COMMIT":
            self.reached("sql COMMIT done")
        return result


class _TemporaryFile:
    """A temporary file whose writes and reads count."""

    def __init__(self, counter: _Counter, file: IO[bytes]) -> None:
        self._counter = counter
        self._file = file

    def write(self, data: Any) -> int:
        self._counter.reached("spool write")
        return self._file.write(data)

    def read(self, size: int) -> bytes:
        self._counter.reached("spool read")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


_SHELLS: Final = {"open_in_folder", "rename_in_folder"}
"""Functions that make one call, safely: the place of the call is where they are called."""


def _place() -> str | None:
    """The two innermost functions of distilld on the stack, the inner one last; None where there is none."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(found) < 2:
        if frame.f_code.co_filename.startswith(PACKAGE) and frame.f_code.co_name not in _SHELLS:
            module = frame.f_code.co_filename.removeprefix(PACKAGE).removesuffix(".py").removesuffix("/__init__")
            found.insert(0, f"{module}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    return " > ".join(found) or None


def one_of_each(made: list[Call]) -> list[Call]:
    """The first call of each kind at each place."""
    first: dict[tuple[str, str], Call] = {}
    for call in made:
        first.setdefault((call.name, call.place), call)
    return list(first.values())
