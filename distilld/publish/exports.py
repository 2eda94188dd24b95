"""The only module that opens an export for writing (docs/design.md, 'The commit protocol').

The crash contract. ``append`` and ``rewrite`` may be cut off at any call: an appended file then has a tail behind its
committed length, a rewritten one a temporary file beside it, and both are named by an intent that was committed
before. ``cut_back``, ``discard`` and ``install`` bring either to the state of the last commit; each may itself be cut
off and run again. Nothing here decides which: :mod:`distilld.publish.commit` does.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distilld.core.model import EXPORT_PATHS, Committed, OperatorError, StatFacts
from distilld.core.remedies import remedy_of
from distilld.files.durable import FILE_MODE, make_folder, sync_folder, sync_up, take_after, write_all
from distilld.files.regular import is_there, owned

BLOCK_BYTES: Final = 1 << 17

RENAME_ORDER: Final = ("sft", "preference", "rag", *(name for name in EXPORT_PATHS if "_" in name))
"""Rows that must leave are gone from the datasets before anything else is renamed."""

Drop = Callable[[bytes], bool]
"""Whether a line (line feed included) is left out of a rewritten file."""


class ExportTamperedError(OperatorError):
    """An export is not what its last commit left: somebody else edited, cut or deleted it."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path} {problem}", hint="distilld is the only writer of exports/; see docs/operations.md")
        self.path = path
        self.problem = problem


class ExportWriteError(OperatorError):
    """A write to an export failed: a full disk, a quota, a read-only file system, EIO."""

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(
            f"cannot write {path}: {cause.strerror or cause}{owned(cause.filename)}",
            hint=f"{remedy_of(cause)}; the next run goes on",
        )
        self.path = path
        self.errno = cause.errno


class ExportReadError(OperatorError):
    """An export could not be read: a missing permission, no descriptor left, EIO."""

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(
            f"cannot read {path}: {cause.strerror or cause}", hint=f"{remedy_of(cause)}; the next run goes on"
        )
        self.path = path
        self.errno = cause.errno


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the whole file's length, digest and stat facts; how many lines were left out."""

    size: int
    sha256: str
    facts: StatFacts
    dropped: int = 0


class Exports:
    """Writes below one root. Keeps the running sha256 and the last stat of each file it has touched.

    ``pulse`` is called at every block of what may take long.
    """

    def __init__(self, root: Path, pulse: Callable[[], None] = lambda: None) -> None:
        self._root = root
        self._pulse = pulse
        self._hashes: dict[str, tuple[hashlib._Hash, StatFacts]] = {}

    def forget(self) -> None:
        """Drop what is held in memory; the next touch reads the files again (after a failure)."""
        self._hashes.clear()

    # looking

    def stands(self, name: str) -> bool:
        """Whether there is anything in the place of an export.

        Raises:
            ExportReadError: The system does not say.
        """
        with _reading(EXPORT_PATHS[name]):
            return is_there(self._root / EXPORT_PATHS[name])

    def check(self, name: str, known: Committed) -> StatFacts | None:
        """Make sure that the file is what its last commit left; returns its facts, None where there is no file yet.

        Raises:
            ExportTamperedError: It is not.
            ExportReadError: The system refused.
        """
        with _reading(EXPORT_PATHS[name]):
            descriptor = _open_live(self._root / EXPORT_PATHS[name], EXPORT_PATHS[name], known)
            if descriptor is None:
                self._hashes.pop(name, None)
                return None
            try:
                return self._check_open(name, descriptor, known)
            finally:
                os.close(descriptor)

    def _check_open(self, name: str, descriptor: int, known: Committed) -> StatFacts:
        facts = StatFacts.of(os.fstat(descriptor), time.time_ns())
        held = self._hashes.get(name)
        if held is not None and held[1].same_file_state(facts):
            return facts
        self._hashes.pop(name, None)
        sha = sha_of(descriptor, known.size, self._pulse)
        if sha.hexdigest() != known.sha256:
            raise ExportTamperedError(EXPORT_PATHS[name], "has other bytes than its last commit")
        self._hashes[name] = (sha, facts)
        return facts

    # writing

    def append(self, name: str, known: Committed, blocks: Iterable[bytes]) -> Written:
        """Append behind the committed length, fsync; there is a file, and the caller has committed an intent.

        Raises:
            ExportTamperedError: The file is not what its last commit left.
            ExportWriteError: The system refused.
        """
        self.check(name, known)
        with _writing(EXPORT_PATHS[name]):
            descriptor = os.open(self._root / EXPORT_PATHS[name], os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                sha = self._hashes[name][0].copy()
                size = known.size
                os.lseek(descriptor, size, os.SEEK_SET)
                for block in blocks:
                    sha.update(block)
                    write_all(descriptor, block)
                    size += len(block)
                os.fsync(descriptor)
                facts = StatFacts.of(os.fstat(descriptor), time.time_ns())
            finally:
                os.close(descriptor)
        if facts.size != size:
            raise ExportTamperedError(EXPORT_PATHS[name], f"grew to {facts.size} bytes while it was written")
        self._hashes[name] = (sha, facts)
        return Written(size, sha.hexdigest(), facts)

    def rewrite(self, name: str, known: Committed, temp: str, drop: Drop, blocks: Iterable[bytes]) -> Written:
        """Stream the file into a temporary one beside it, without the dropped lines and with new ones behind; fsync.

        The live file is left as it is until :meth:`install`.

        Raises:
            ExportTamperedError: The live file is not what its last commit left.
            ExportWriteError: The system refused.
        """
        path = self._root / EXPORT_PATHS[name]
        target = path.with_name(temp)
        self._hashes.pop(name, None)
        with _writing(EXPORT_PATHS[name]):
            make_folder(path.parent)
            old = _open_live(path, EXPORT_PATHS[name], known)
            try:
                descriptor = _create(target, old)
                try:
                    sha, size, dropped = _stream(old, known, EXPORT_PATHS[name], drop, descriptor, self._pulse)
                    for block in blocks:
                        sha.update(block)
                        write_all(descriptor, block)
                        size += len(block)
                    os.fsync(descriptor)
                    facts = StatFacts.of(os.fstat(descriptor), time.time_ns())
                finally:
                    os.close(descriptor)
            finally:
                if old is not None:
                    os.close(old)
            sync_up(path.parent, self._root)
        self._hashes[name] = (sha, facts)
        return Written(size, sha.hexdigest(), facts, dropped)

    def compose(self, name: str, temp: str, blocks: Iterable[bytes]) -> Written:
        """Write a whole new version of a file into a temporary one beside it; fsync. The live file is left as it is.

        Raises:
            ExportWriteError: The system refused.
        """
        path = self._root / EXPORT_PATHS[name]
        with _writing(EXPORT_PATHS[name]):
            make_folder(path.parent)
            live = _lstat(path)
            like = None
            if live is not None and stat.S_ISREG(live.st_mode):
                like = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                descriptor = _create(path.with_name(temp), like)
                try:
                    sha, size = hashlib.sha256(), 0
                    for block in blocks:
                        self._pulse()
                        sha.update(block)
                        write_all(descriptor, block)
                        size += len(block)
                    os.fsync(descriptor)
                    facts = StatFacts.of(os.fstat(descriptor), time.time_ns())
                finally:
                    os.close(descriptor)
            finally:
                if like is not None:
                    os.close(like)
            sync_up(path.parent, self._root)
        self._hashes[name] = (sha, facts)
        return Written(size, sha.hexdigest(), facts)

    def in_the_way(self, name: str, temp: str, *, is_first: bool) -> ExportTamperedError | None:
        """What is wrong with the place of the live file, if a temporary one is to go there.

        It may hold what is no file; or a file with something in it, where there was none before.
        """
        path = self._root / EXPORT_PATHS[name]
        with _writing(EXPORT_PATHS[name]):
            live = _lstat(path)
            if live is None or _lstat(path.with_name(temp)) is None:
                return None
        problem = _what_is_no_file(live.st_mode)
        if problem is None and is_first and live.st_size:
            problem = "appeared while it was written"
        return ExportTamperedError(EXPORT_PATHS[name], problem) if problem else None

    def install(self, name: str, temp: str, committed: Committed) -> StatFacts | None:
        """Put the finished temporary file in the live one's place; does nothing where that was done before.

        Returns None where neither file is what was committed: somebody changed or removed it, and the live one is to be
        restored. A temporary file that was changed is left as it is.
        """
        path = self._root / EXPORT_PATHS[name]
        source = path.with_name(temp)
        with _writing(EXPORT_PATHS[name]):
            found = self._is_version(source, name, committed)
            if found:
                os.rename(source, path)
            else:
                found = self._is_version(path, name, committed)
            # Even where it was renamed before: a kill may have come between the rename and this.
            if path.parent.is_dir():
                sync_folder(path.parent)
            live = _lstat(path)
        if not found or live is None:
            self._hashes.pop(name, None)
            return None
        facts = StatFacts.of(live, time.time_ns())
        held = self._hashes.get(name)
        if held is not None:
            self._hashes[name] = (held[0], facts)
        return facts

    def _is_version(self, path: Path, name: str, committed: Committed) -> bool:
        """Whether a file holds a committed version; it is read, unless this process wrote it and left it so."""
        status = _lstat(path)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != committed.size:
            return False
        held = self._hashes.get(name)
        if held is not None and held[1].same_file_state(StatFacts.of(status, 0)):
            return held[0].hexdigest() == committed.sha256
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return sha_of(descriptor, committed.size, self._pulse).hexdigest() == committed.sha256
        finally:
            os.close(descriptor)

    def cut_back(self, name: str, known: Committed) -> None:
        """Undo an append: cut the file back to its committed length.

        A file that does not begin with the committed bytes is not the one that was appended to. Somebody put it there,
        and what is in it may be needed: it is left whole for :meth:`check` to find.
        """
        self._hashes.pop(name, None)
        with _writing(EXPORT_PATHS[name]):
            live = _lstat(self._root / EXPORT_PATHS[name])
            if live is not None and stat.S_ISREG(live.st_mode) and live.st_size >= known.size:
                self._cut(name, known)

    def _cut(self, name: str, known: Committed) -> None:
        descriptor = os.open(self._root / EXPORT_PATHS[name], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            sha = sha_of(descriptor, known.size, self._pulse)
            if sha.hexdigest() != known.sha256:
                return
            os.ftruncate(descriptor, known.size)
            os.fsync(descriptor)
            self._hashes[name] = (sha, StatFacts.of(os.fstat(descriptor), time.time_ns()))
        finally:
            os.close(descriptor)

    def discard(self, name: str, temp: str) -> None:
        """Undo a rewrite: remove the temporary file."""
        path = self._root / EXPORT_PATHS[name]
        self._hashes.pop(name, None)
        with _writing(EXPORT_PATHS[name]):
            path.with_name(temp).unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_folder(path.parent)

    @contextmanager
    def reading(self, name: str, known: Committed) -> Iterator[CommittedFile]:
        """Have a file of committed rows open for reading.

        Raises:
            ExportTamperedError: It is gone, no regular file, or of another length.
            ExportReadError: The system refused.
        """
        shown = EXPORT_PATHS[name]
        with _reading(shown):
            descriptor = _open_live(self._root / shown, shown, known)
        if descriptor is None:
            raise ExportTamperedError(shown, "is gone")
        try:
            yield CommittedFile(descriptor, shown, known, self._pulse)
        finally:
            os.close(descriptor)


class CommittedFile:
    """An export that is open for reading: what it gives is what was committed, or the end of it says otherwise."""

    def __init__(self, descriptor: int, shown: str, known: Committed, pulse: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._shown = shown
        self._known = known
        self._pulse = pulse
        self._facts = self._look()

    def lines(self) -> Iterator[bytes]:
        """All lines, line feeds included.

        Raises:
            ExportTamperedError: At the end: they are not the committed ones.
            ExportReadError: The system refused.
        """
        sha = hashlib.sha256()

        def blocks() -> Iterator[bytes]:
            for block in _blocks(self._descriptor, self._known.size):
                self._pulse()
                sha.update(block)
                yield block

        with _reading(self._shown):
            yield from _lines(blocks())
        if sha.hexdigest() != self._known.sha256:
            raise ExportTamperedError(self._shown, "has other bytes than its last commit")

    def pick(self, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes at each (offset, length); asked for behind :meth:`lines`.

        Raises:
            ExportTamperedError: At the end: somebody touched the file since it was opened.
            ExportReadError: The system refused.
        """
        for start, length in spans:
            with _reading(self._shown):
                block = os.pread(self._descriptor, length, start)
            yield block
        if not self._look().same_file_state(self._facts):
            raise ExportTamperedError(self._shown, "was changed while it was read")

    def _look(self) -> StatFacts:
        with _reading(self._shown):
            return StatFacts.of(os.fstat(self._descriptor), time.time_ns())


def drop_ids(lines: dict[bytes, bytes]) -> Drop:
    """Drop dataset lines by id; every row of ours begins with its schema version and its id."""
    prefix = b'{"schema_version":1,"id":"'
    start = len(prefix)

    def drop(line: bytes) -> bool:
        return line.startswith(prefix) and line[start : line.find(b'"', start)] in lines

    return drop


def drop_digests(digests: Counter[bytes], digest_of: Callable[[bytes], bytes]) -> Drop:
    """Drop as many lines of each digest as are counted."""
    left = Counter(digests)

    def drop(line: bytes) -> bool:
        digest = digest_of(line)
        if left[digest] > 0:
            left[digest] -= 1
            return True
        return False

    return drop


@contextmanager
def _writing(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportWriteError(shown, error) from error


@contextmanager
def _reading(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportReadError(shown, error) from error


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _what_is_no_file(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    return "is a link" if stat.S_ISLNK(mode) else "is no regular file"


def _open_live(path: Path, shown: str, known: Committed) -> int | None:
    """Open a live file for reading, if it is a regular file of its committed length; None where there is none yet."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if known.size:
            raise ExportTamperedError(shown, "is gone") from None
        return None
    except OSError as error:
        # A socket cannot be opened at all.
        live = _lstat(path)
        if live is not None and (problem := _what_is_no_file(live.st_mode)):
            raise ExportTamperedError(shown, problem) from error
        raise
    try:
        status = os.fstat(descriptor)
        if problem := _what_is_no_file(status.st_mode):
            raise ExportTamperedError(shown, problem)
        if status.st_size != known.size:
            raise ExportTamperedError(shown, f"has {status.st_size} bytes and should have {known.size}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _create(target: Path, like: int | None) -> int:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        if like is not None:
            take_after(descriptor, os.fstat(like))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _stream(
    old: int | None, known: Committed, shown: str, drop: Drop, descriptor: int, pulse: Callable[[], None]
) -> tuple[hashlib._Hash, int, int]:
    """Copy the kept lines; returns the new file's hash and length, and how many lines were dropped."""
    before, after = hashlib.sha256(), hashlib.sha256()
    size = dropped = 0
    rest = b""
    for block in _blocks(old, known.size) if old is not None else ():
        pulse()
        before.update(block)
        data = rest + block
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        lines = _split(data[:end])
        kept = [line for line in lines if not drop(line)]
        dropped += len(lines) - len(kept)
        out = b"".join(kept)
        after.update(out)
        write_all(descriptor, out)
        size += len(out)
    if before.hexdigest() != known.sha256 or rest:
        raise ExportTamperedError(shown, "has other bytes than its last commit")
    return after, size, dropped


def _split(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        data = rest + block
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        yield from _split(data[:end])
    if rest:
        yield rest


def sha_of(descriptor: int, size: int, pulse: Callable[[], None] = lambda: None) -> hashlib._Hash:
    """The running sha256 of the first ``size`` bytes."""
    sha = hashlib.sha256()
    for block in _blocks(descriptor, size):
        pulse()
        sha.update(block)
    return sha


def _blocks(descriptor: int, size: int) -> Iterator[bytes]:
    position = 0
    while position < size:
        block = os.pread(descriptor, min(BLOCK_BYTES, size - position), position)
        if not block:
            return
        position += len(block)
        yield block
