"""The only module that opens an export for writing (DESIGN 4).

The crash contract. ``append`` and ``rewrite`` may be cut off at any call: an appended file then has a tail behind its
committed length, a rewritten one a temporary file beside it, and both are named by an intent that was committed
before. ``cut_back``, ``discard`` and ``install`` bring either to the state of the last commit. ``overwrite`` does what
a committed batch recorded. Each may be cut off and run again. Nothing here decides which:
:mod:`distilld.publish.commit` and :mod:`distilld.publish.recovery` do.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from distilld.core.model import EXPORT_PATHS, SEGMENT_BYTES, Committed, StatFacts
from distilld.files.durable import FILE_MODE, make_folder, sync_folder, sync_up, write_all
from distilld.files.regular import is_there
from distilld.files.segments import MARK_BYTES, Segment, SegmentHash, Span, hash_of, read_span
from distilld.lake.lines import digest_of
from distilld.publish.overwrite import LEAST_BYTES, OpenExport, Overwriting, overwrite, plan_overwrite
from distilld.publish.reading import (
    CommittedFile,
    ExportTamperedError,
    committed_lines,
    lstat,
    open_live,
    reading_errors,
    split_lines,
    what_is_no_file,
    without_space,
    writing_errors,
)
from distilld.store.segments import Segments

RENAME_ORDER: Final = ("sft", "preference", "rag", *(name for name in EXPORT_PATHS if "_" in name))
"""Rows that must leave are gone from the datasets before anything else is renamed."""

_NOT_PERMITTED: Final = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
"""What says that an owner or a mode cannot be had here: EINVAL, that the user namespace has no number for the owner."""

Drop = Callable[[bytes], bool]
"""Whether a line (line feed included) is left out of a rewritten file."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the whole file's length, digest and stat facts; how many lines were left out.

    ``segments`` are those with new bytes: all of a file that was written anew.
    """

    size: int
    sha256: str
    facts: StatFacts
    dropped: int = 0
    segments: tuple[Segment, ...] = ()
    segment_bytes: int = SEGMENT_BYTES
    spaces: int = 0

    def committed(self, rows: int) -> Committed:
        """What the export is from the next commit on."""
        return Committed(self.size, rows, self.sha256, self.segment_bytes, self.spaces)


class _Output:
    """Bytes on their way into an open file: their digest, and the marks of the lines that end in each segment."""

    def __init__(self, descriptor: int | None, sha: SegmentHash) -> None:
        self.sha = sha
        self._descriptor = descriptor
        self._first = sha.size // sha.segment_bytes
        self._marks: dict[int, bytearray] = {}
        self._rest = b""
        self._line_end = sha.size

    def write(self, block: bytes) -> None:
        self.sha.update(block)
        if self._descriptor is not None:
            write_all(self._descriptor, block)
        data = self._rest + block
        end = data.rfind(b"\n") + 1
        self._rest = data[end:]
        for line in split_lines(data[:end]):
            self._line_end += len(line)
            marks = self._marks.setdefault((self._line_end - 1) // self.sha.segment_bytes, bytearray())
            marks += digest_of(without_space(line))[:MARK_BYTES]

    def written(self, facts: StatFacts, spaces: int = 0) -> Written:
        sha = self.sha
        ends = -(-sha.size // sha.segment_bytes)
        segments = tuple(
            Segment(number, sha.digest_of(number), bytes(self._marks.get(number, b"")))
            for number in range(self._first, ends)
        )
        return Written(sha.size, sha.hexdigest(), facts, 0, segments, sha.segment_bytes, spaces)


class Exports:
    """Writes below one root. Keeps the running digest and the last stat of each file it has touched.

    ``pulse`` is called at every block of what may take long. ``segments`` are those that the store knows.
    """

    def __init__(
        self, root: Path, pulse: Callable[[], None] = lambda: None, *, segments: Segments | None = None
    ) -> None:
        self._root = root
        self._pulse = pulse
        self._segments = segments
        self._hashes: dict[str, tuple[SegmentHash, StatFacts]] = {}
        self.segment_bytes = SEGMENT_BYTES

    def forget(self) -> None:
        """Drop what is held in memory; the next touch reads the files again (after a failure)."""
        self._hashes.clear()

    # looking

    def stands(self, name: str) -> bool:
        """Whether there is anything in the place of an export.

        Raises:
            ExportReadError: The system does not say.
        """
        with reading_errors(EXPORT_PATHS[name]):
            return is_there(self._root / EXPORT_PATHS[name])

    def check(self, name: str, known: Committed) -> StatFacts | None:
        """Make sure that the file is what its last commit left; returns its facts, None where there is no file yet.

        Raises:
            ExportTamperedError: It is not.
            ExportReadError: The system refused.
        """
        with reading_errors(EXPORT_PATHS[name]):
            descriptor = open_live(self._root / EXPORT_PATHS[name], EXPORT_PATHS[name], known)
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
        sha = self._recorded(name, descriptor, known, facts) or self._sha_of(descriptor, known)
        if sha.hexdigest() != known.sha256:
            raise ExportTamperedError(EXPORT_PATHS[name], "has other bytes than its last commit")
        self._hashes[name] = (sha, facts)
        return facts

    def _recorded(self, name: str, descriptor: int, known: Committed, facts: StatFacts) -> SegmentHash | None:
        """The running digest of a file that looks as its last commit left it: only its last segment is read."""
        recorded = self._segments.recorded(name) if self._segments is not None else None
        if recorded is None or not recorded[0].same_file_state(facts):
            return None
        start = known.size // known.segment_bytes * known.segment_bytes
        last = read_span(descriptor, Span(start, known.size - start))
        sha = SegmentHash.of(recorded[1], known.size, last, known.segment_bytes)
        return sha if sha.hexdigest() == known.sha256 else None

    def _sha_of(self, descriptor: int, known: Committed) -> SegmentHash:
        return hash_of(descriptor, known.size, known.segment_bytes, self._pulse)

    def index(self, name: str, known: Committed) -> Written:
        """Read a whole file, and learn its segments; the store knows it in another form.

        Raises:
            ExportTamperedError: It is not what its last commit left.
            ExportReadError: The system refused.
        """
        found = _Output(None, SegmentHash(self.segment_bytes))
        with self._opened(name, known) as descriptor, reading_errors(EXPORT_PATHS[name]):
            for lines in committed_lines(descriptor, known, EXPORT_PATHS[name], self._pulse):
                found.write(b"".join(lines))
            facts = StatFacts.of(os.fstat(descriptor), time.time_ns())
        self._hashes[name] = (found.sha, facts)
        return found.written(facts)

    # writing

    def append(self, name: str, known: Committed, blocks: Iterable[bytes]) -> Written:
        """Append behind the committed length, fsync; there is a file, and the caller has committed an intent.

        Raises:
            ExportTamperedError: The file is not what its last commit left.
            ExportWriteError: The system refused.
        """
        self.check(name, known)
        with writing_errors(EXPORT_PATHS[name]):
            descriptor = os.open(self._root / EXPORT_PATHS[name], os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                output = _Output(descriptor, self._hashes[name][0].copy())
                os.lseek(descriptor, known.size, os.SEEK_SET)
                for block in blocks:
                    output.write(block)
                os.fsync(descriptor)
                facts = StatFacts.of(os.fstat(descriptor), time.time_ns())
            finally:
                os.close(descriptor)
        if facts.size != output.sha.size:
            raise ExportTamperedError(EXPORT_PATHS[name], f"grew to {facts.size} bytes while it was written")
        self._hashes[name] = (output.sha, facts)
        return output.written(facts, known.spaces)

    def rewrite(self, name: str, known: Committed, temp: str, drop: Drop, blocks: Iterable[bytes]) -> Written:
        """Stream the file into a temporary one beside it, without the dropped lines and with new ones behind; fsync.

        White space between its rows is left out, too. The live file is left as it is until :meth:`install`.

        Raises:
            ExportTamperedError: The live file is not what its last commit left.
            ExportWriteError: The system refused.
        """
        dropped = 0

        def kept(old: int) -> Iterator[bytes]:
            nonlocal dropped
            for lines in committed_lines(old, known, EXPORT_PATHS[name], self._pulse):
                rows = [without_space(line) for line in lines] if known.spaces else lines
                staying = [row for row in rows if not drop(row)]
                dropped += len(rows) - len(staying)
                yield b"".join(staying)

        with writing_errors(EXPORT_PATHS[name]):
            old = open_live(self._root / EXPORT_PATHS[name], EXPORT_PATHS[name], known)
            try:
                written = self._beside(name, temp, old, chain(kept(old) if old is not None else (), blocks))
            finally:
                if old is not None:
                    os.close(old)
        return replace(written, dropped=dropped)

    def compose(self, name: str, temp: str, blocks: Iterable[bytes]) -> Written:
        """Write a whole new version of a file into a temporary one beside it; fsync. The live file is left as it is.

        Raises:
            ExportWriteError: The system refused.
        """
        path = self._root / EXPORT_PATHS[name]
        with writing_errors(EXPORT_PATHS[name]):
            live = lstat(path)
            like = None
            if live is not None and stat.S_ISREG(live.st_mode):
                like = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return self._beside(name, temp, like, blocks)
            finally:
                if like is not None:
                    os.close(like)

    def _beside(self, name: str, temp: str, like: int | None, blocks: Iterable[bytes]) -> Written:
        """Write a temporary file beside the live one, with the owner, group and mode of ``like``."""
        folder = (self._root / EXPORT_PATHS[name]).parent
        self._hashes.pop(name, None)
        make_folder(folder)
        descriptor = _create(folder / temp, like)
        try:
            output = _Output(descriptor, SegmentHash(self.segment_bytes))
            for block in blocks:
                self._pulse()
                output.write(block)
            os.fsync(descriptor)
            facts = StatFacts.of(os.fstat(descriptor), time.time_ns())
        finally:
            os.close(descriptor)
        sync_up(folder, self._root)
        self._hashes[name] = (output.sha, facts)
        return output.written(facts)

    # overwriting

    def plan(self, name: str, known: Committed, leaving: Counter[bytes], *, grows: bool) -> Overwriting | None:
        """How the lines with these digests can leave in place; None where the file is to be written anew.

        :meth:`append` goes on from what was planned.

        Raises:
            ExportTamperedError: The file is not what its last commit left.
            ExportReadError: The system refused.
        """
        if self._segments is None or known.size < LEAST_BYTES:
            return None
        facts = self.check(name, known)
        candidates = self._segments.holding(name, {digest[:MARK_BYTES] for digest in leaving})
        with self._opened(name, known) as descriptor, reading_errors(EXPORT_PATHS[name]):
            export = OpenExport(EXPORT_PATHS[name], descriptor, known, self._hashes[name][0])
            segments = partial(self._segments.some, name)
            planned = plan_overwrite(export, leaving, candidates, segments, grows=grows)
        if planned is not None and facts is not None:
            self._hashes[name] = (planned.sha, facts)
        return planned

    def planned(self, name: str, known: Committed, planned: Overwriting, blocks: Iterable[bytes] | None) -> Written:
        """What the file is once it was overwritten, with these blocks appended; they are appended now."""
        if blocks is not None:
            written = self.append(name, known, blocks)
        else:
            sha, facts = self._hashes[name]
            written = Written(sha.size, sha.hexdigest(), facts, segment_bytes=sha.segment_bytes)
        return replace(written, dropped=planned.rows, spaces=planned.spaces)

    def overwrite(
        self, name: str, committed: Committed, spans: list[Span], digests: dict[int, bytes], facts: StatFacts | None
    ) -> StatFacts | None:
        """Overwrite what a committed batch withdrew, fsync; ``facts`` are those of the file as it was committed.

        Returns its facts now; None where it is not that file, which is left as it is, or was touched since.

        Raises:
            ExportWriteError: The system refused.
        """
        path = self._root / EXPORT_PATHS[name]
        held = self._hashes.pop(name, None)
        with writing_errors(EXPORT_PATHS[name]):
            live = lstat(path)
            if live is None or not stat.S_ISREG(live.st_mode):
                return None
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                was_whole = facts is not None and facts.same_file_state(StatFacts.of(os.fstat(descriptor), 0))
                done = overwrite(descriptor, committed, spans, digests)
                now = StatFacts.of(os.fstat(descriptor), time.time_ns())
            finally:
                os.close(descriptor)
        if not (done and was_whole):
            return None
        if held is not None:
            self._hashes[name] = (held[0], now)
        return now

    # after a commit, and after a crash

    def in_the_way(self, name: str, temp: str, *, is_first: bool) -> ExportTamperedError | None:
        """What is wrong with the place of the live file, if a temporary one is to go there.

        It may hold what is no file; or a file with something in it, where there was none before.
        """
        path = self._root / EXPORT_PATHS[name]
        with writing_errors(EXPORT_PATHS[name]):
            live = lstat(path)
            if live is None or lstat(path.with_name(temp)) is None:
                return None
        problem = what_is_no_file(live.st_mode)
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
        with writing_errors(EXPORT_PATHS[name]):
            found = self._is_version(source, name, committed)
            if found:
                os.rename(source, path)
            else:
                found = self._is_version(path, name, committed)
            # Even where it was renamed before: a kill may have come between the rename and this.
            if path.parent.is_dir():
                sync_folder(path.parent)
            live = lstat(path)
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
        status = lstat(path)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != committed.size:
            return False
        held = self._hashes.get(name)
        if held is not None and held[1].same_file_state(StatFacts.of(status, 0)):
            return held[0].hexdigest() == committed.sha256
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return self._sha_of(descriptor, committed).hexdigest() == committed.sha256
        finally:
            os.close(descriptor)

    def cut_back(self, name: str, known: Committed) -> None:
        """Undo an append: cut the file back to its committed length.

        A file that does not begin with the committed bytes is not the one that was appended to. Somebody put it there,
        and what is in it may be needed: it is left whole for :meth:`check` to find.
        """
        self._hashes.pop(name, None)
        with writing_errors(EXPORT_PATHS[name]):
            live = lstat(self._root / EXPORT_PATHS[name])
            if live is not None and stat.S_ISREG(live.st_mode) and live.st_size >= known.size:
                self._cut(name, known)

    def _cut(self, name: str, known: Committed) -> None:
        descriptor = os.open(self._root / EXPORT_PATHS[name], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            sha = self._sha_of(descriptor, known)
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
        with writing_errors(EXPORT_PATHS[name]):
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
        with self._opened(name, known) as descriptor:
            yield CommittedFile(descriptor, EXPORT_PATHS[name], known, self._pulse)

    @contextmanager
    def _opened(self, name: str, known: Committed) -> Iterator[int]:
        shown = EXPORT_PATHS[name]
        with reading_errors(shown):
            descriptor = open_live(self._root / shown, shown, known)
        if descriptor is None:
            raise ExportTamperedError(shown, "is gone")
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def drop_ids(ids: Collection[bytes]) -> Drop:
    """Drop dataset lines by id; every row of ours begins with its schema version and its id."""
    prefix = b'{"schema_version":1,"id":"'
    start = len(prefix)

    def drop(line: bytes) -> bool:
        return line.startswith(prefix) and line[start : line.find(b'"', start)] in ids

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


def _create(target: Path, like: int | None) -> int:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        if like is not None:
            _take_after(descriptor, os.fstat(like))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _take_after(descriptor: int, status: os.stat_result) -> None:
    """Give a file the owner, the group and the mode of another, each where permitted (SPEC 3.10)."""
    new = os.fstat(descriptor)
    if new.st_uid != status.st_uid:
        with _where_permitted():
            os.fchown(descriptor, status.st_uid, -1)
    if new.st_gid != status.st_gid:
        with _where_permitted():
            os.fchown(descriptor, -1, status.st_gid)
    # Last, because a change of owner clears some bits.
    with _where_permitted():
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


@contextmanager
def _where_permitted() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_PERMITTED:
            raise
