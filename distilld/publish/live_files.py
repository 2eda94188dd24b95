"""Compares exports on disk with their last commit, and brings them to that state."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distilld.core.model import EXPORT_PATHS, SEGMENT_BYTES, Committed, StatFacts
from distilld.files.durable import closed_after, open_in_folder, rename_in_folder, sync_folder
from distilld.files.regular import is_there, lstat, regular_stat
from distilld.files.segments import SegmentHash, hash_of, read_segment
from distilld.publish.reading import (
    CommittedFile,
    ExportReadError,
    ExportTamperedError,
    ExportWriteError,
    open_live,
    what_is_no_file,
)
from distilld.store.export_records import ExportRecords


class LiveFiles:
    """The exports below one root. Keeps the running digest and the last stat of each file it has touched.

    ``pulse`` is called at every block of long reads and writes. ``records`` has their segments.
    Methods raise ExportTamperedError if a live file is not what its last commit left, and ExportReadError or
    ExportWriteError if the system refuses to read or write it.
    """

    def __init__(
        self, root: Path, pulse: Callable[[], None] = lambda: None, *, records: ExportRecords | None = None
    ) -> None:
        self._root = root
        self._pulse = pulse
        self._records = records
        self._hashes: dict[str, tuple[SegmentHash, StatFacts]] = {}
        self.segment_bytes = SEGMENT_BYTES

    def forget(self) -> None:
        """Drop the digests in memory, after a failure; the next access reads the files again."""
        self._hashes.clear()

    # checking

    def stands(self, name: str) -> bool:
        """Return whether anything exists at an export's path."""
        with ExportReadError.about(EXPORT_PATHS[name]):
            return is_there(self._root / EXPORT_PATHS[name])

    def check(self, name: str, known: Committed) -> StatFacts | None:
        """Check that the file is what its last commit left; return its stat facts, or None if there is no file yet."""
        shown = EXPORT_PATHS[name]
        with ExportReadError.about(shown), closed_after(open_live(self._root / shown, shown, known)) as descriptor:
            if descriptor is not None:
                return self._check_open(name, descriptor, known)
        self._hashes.pop(name, None)
        return None

    def _check_open(self, name: str, descriptor: int, known: Committed) -> StatFacts:
        facts = StatFacts.of(os.fstat(descriptor))
        held = self._hashes.get(name)
        if held is not None and held[1] == facts:
            return facts
        self._hashes.pop(name, None)
        sha = self._recorded(name, descriptor, known, facts) or hash_of(descriptor, known, self._pulse)
        if sha.hexdigest() != known.sha256:
            raise ExportTamperedError(EXPORT_PATHS[name], "has other bytes than its last commit")
        self._hashes[name] = (sha, facts)
        return facts

    def _recorded(self, name: str, descriptor: int, known: Committed, facts: StatFacts) -> SegmentHash | None:
        """Return the running digest of a file whose stat facts are the committed ones; read only its last segment."""
        recorded = self._records.recorded(name) if self._records is not None else None
        if recorded is None or recorded[0] != facts:
            return None
        last = read_segment(descriptor, known, known.size // known.segment_bytes)
        sha = SegmentHash.of(recorded[1], known.size, last, known.segment_bytes)
        return sha if sha.hexdigest() == known.sha256 else None

    def stands_in(self, name: str, known: Committed, number: int) -> bool:
        """Return whether a segment of the file has its committed bytes."""
        assert self._records is not None  # noqa: S101  only the writer asks
        with self._opened(name, known) as descriptor, ExportReadError.about(EXPORT_PATHS[name]):
            found = hashlib.sha256(read_segment(descriptor, known, number)).digest()
        return all(recorded.sha256 == found for recorded in self._records.segments(name, [number]))

    @contextmanager
    def reading(self, name: str, known: Committed) -> Iterator[CommittedFile]:
        """Open a file of committed rows for reading."""
        with self._opened(name, known) as descriptor:
            yield CommittedFile(descriptor, EXPORT_PATHS[name], known, self._pulse)

    @contextmanager
    def _opened(self, name: str, known: Committed) -> Iterator[int]:
        shown = EXPORT_PATHS[name]
        with ExportReadError.about(shown):
            descriptor = open_live(self._root / shown, shown, known)
        if descriptor is None:
            raise ExportTamperedError(shown, "is gone")
        with closed_after(descriptor):
            yield descriptor

    # after a commit, and after a crash

    def in_the_way(self, name: str, temp: str, *, is_first: bool) -> ExportTamperedError | None:
        """Return what is wrong at the path of the live file, if a temporary one is to be renamed to it.

        There may be something other than a regular file, or a file with content although there was none before.
        """
        path = self._root / EXPORT_PATHS[name]
        with ExportWriteError.about(EXPORT_PATHS[name]):
            live = lstat(path)
            if live is None or lstat(path.with_name(temp)) is None:
                return None
        problem = what_is_no_file(live.st_mode)
        if problem is None and is_first and live.st_size:
            problem = "appeared while it was written"
        return ExportTamperedError(EXPORT_PATHS[name], problem) if problem else None

    def install(self, name: str, temp: str, committed: Committed) -> StatFacts | None:
        """Rename the finished temporary file to the live one, unless that was done before; return its stat facts.

        Return None if neither file is what was committed: another program changed or removed it, and the live one must
        be restored. A temporary file that was changed is not touched.
        """
        path = self._root / EXPORT_PATHS[name]
        source = path.with_name(temp)
        with ExportWriteError.about(EXPORT_PATHS[name]):
            found = self._is_version(source, name, committed)
            if found:
                rename_in_folder(source, path)
            else:
                found = self._is_version(path, name, committed)
            # Even if it was renamed before: a kill may have come between the rename and this.
            if path.parent.is_dir():
                sync_folder(path.parent)
            live = lstat(path)
        if not found or live is None:
            self._hashes.pop(name, None)
            return None
        facts = StatFacts.of(live)
        held = self._hashes.get(name)
        if held is not None:
            self._hashes[name] = (held[0], facts)
        return facts

    def _is_version(self, path: Path, name: str, committed: Committed) -> bool:
        """Return whether a file is the committed version; read it, unless it is as this process left it."""
        status = regular_stat(path)
        if status is None or status.st_size != committed.size:
            return False
        held = self._hashes.get(name)
        if held is not None and held[1] == StatFacts.of(status):
            return held[0].hexdigest() == committed.sha256
        with closed_after(open_in_folder(path, os.O_RDONLY)) as descriptor:
            return hash_of(descriptor, committed, self._pulse).hexdigest() == committed.sha256

    def cut_back(self, name: str, known: Committed) -> None:
        """Undo an append: cut the file back to its committed length.

        A file that does not begin with the committed bytes is not the one that was appended to. Another program put it
        there, and its content may be needed: it is left unchanged for :meth:`check` to find.
        """
        path = self._root / EXPORT_PATHS[name]
        self._hashes.pop(name, None)
        with ExportWriteError.about(EXPORT_PATHS[name]):
            live = regular_stat(path)
            if live is None or live.st_size < known.size:
                return
            with closed_after(open_in_folder(path, os.O_RDWR)) as descriptor:
                sha = hash_of(descriptor, known, self._pulse)
                if sha.hexdigest() == known.sha256:
                    os.ftruncate(descriptor, known.size)
                    os.fsync(descriptor)
                    self._hashes[name] = (sha, StatFacts.of(os.fstat(descriptor)))

    def discard(self, name: str, temp: str) -> None:
        """Undo a rewrite: remove the temporary file."""
        path = self._root / EXPORT_PATHS[name]
        self._hashes.pop(name, None)
        with ExportWriteError.about(EXPORT_PATHS[name]):
            path.with_name(temp).unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_folder(path.parent)
