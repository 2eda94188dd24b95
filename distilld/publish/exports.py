"""The only module that opens an export for writing (docs/design.md, 'The commit protocol').

The crash contract: ``append`` and ``rewrite`` may be interrupted at any call. An appended file then has a tail after
its committed length, and a rewritten file has a temporary file in its folder. An intent that was committed before
names both. ``cut_back``, ``discard`` and ``install`` bring either file to the state of the last commit. ``overwrite``
carries out what a committed batch recorded. All four may be interrupted and run again.
:mod:`distilld.publish.commit` and :mod:`distilld.publish.recovery` decide which of them to call.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Final

from distilld.core.model import EXPORT_PATHS, MARK_BYTES, Committed, MarkedLines, Marks, Pieces, StatFacts
from distilld.files.durable import closed_after, make_folder, open_in_folder, sync_up, take_after
from distilld.files.regular import regular_stat, without_space
from distilld.files.segments import SegmentHash, Span
from distilld.lake.lines import digest_of
from distilld.publish.live_files import LiveFiles
from distilld.publish.new_file import Output, Written
from distilld.publish.overwrite import LEAST_BYTES, OpenExport, Overwriting, overwrite, plan_overwrite
from distilld.publish.reading import (
    ExportReadError,
    ExportTamperedError,
    ExportWriteError,
    committed_blocks,
    open_live,
    split_lines,
    whole_lines,
)

RENAME_ORDER: Final = ("sft", "preference", "rag", *(name for name in EXPORT_PATHS if "_" in name))
"""Datasets first: withdrawn rows are out of them before any other file is renamed."""


class Exports(LiveFiles):
    """Writes the exports below one root; methods raise as those of :class:`LiveFiles`."""

    def index(self, name: str, known: Committed) -> Written:
        """Read a whole file and return its segments; the store has its digest in another form."""
        found = Output(None, SegmentHash(self.segment_bytes))
        with self._opened(name, known) as descriptor, ExportReadError.about(EXPORT_PATHS[name]):
            for block in whole_lines(committed_blocks(descriptor, known, EXPORT_PATHS[name], self._pulse)):
                found.write(block)
            facts = StatFacts.of(os.fstat(descriptor))
        self._hashes[name] = (found.sha, facts)
        return found.written(facts)

    # writing

    def append(self, name: str, known: Committed, blocks: Pieces, after: SegmentHash | None = None) -> Written:
        """Append after the committed length, and fsync. The file exists, and the caller has committed an intent.

        The digest continues from ``after``, the planned state of the committed bytes, if they are to be overwritten.
        """
        self.check(name, known)
        shown = EXPORT_PATHS[name]
        with (
            ExportWriteError.about(shown),
            closed_after(open_in_folder(self._root / shown, os.O_WRONLY)) as descriptor,
        ):
            output = Output(descriptor, (after or self._hashes[name][0]).copy())
            os.lseek(descriptor, known.size, os.SEEK_SET)
            for block in blocks:
                output.write(block)
            os.fsync(descriptor)
            facts = StatFacts.of(os.fstat(descriptor))
        if facts.size != output.sha.size:
            raise ExportTamperedError(shown, f"grew to {facts.size} bytes while it was written")
        self._hashes[name] = (output.sha, facts)
        return output.written(facts, known.spaces)

    def rewrite(self, name: str, known: Committed, temp: str, leaving: Counter[bytes], blocks: Pieces) -> Written:
        """Stream the file into a temporary one in its folder, then the new lines; fsync.

        Of each digest, omit as many lines as ``leaving`` counts, the first ones. Omit the white space between rows. The
        live file does not change until :meth:`install`.
        """
        left = Counter(leaving)

        def stays(digest: bytes) -> bool:
            if left.get(digest, 0) <= 0:
                return True
            left[digest] -= 1
            return False

        def kept(old: int) -> Iterator[MarkedLines]:
            for block in whole_lines(committed_blocks(old, known, EXPORT_PATHS[name], self._pulse)):
                lines = split_lines(block)
                rows = [without_space(line) for line in lines] if known.spaces else lines
                staying = [(row, digest) for row in rows if stays(digest := digest_of(row))]
                content = [row for row, _ in staying]
                yield MarkedLines(b"".join(content), Marks.of(content, (digest for _, digest in staying)))

        shown = EXPORT_PATHS[name]
        with ExportWriteError.about(shown), closed_after(open_live(self._root / shown, shown, known)) as old:
            written = self._beside(name, temp, old, chain(kept(old) if old is not None else (), blocks))
        return replace(written, dropped=leaving.total() - left.total())

    def compose(self, name: str, temp: str, blocks: Pieces) -> Written:
        """Write a new version of a file into a temporary one beside it, and fsync. The live file does not change."""
        path, shown = self._root / EXPORT_PATHS[name], EXPORT_PATHS[name]
        with (
            ExportWriteError.about(shown),
            closed_after(open_in_folder(path, os.O_RDONLY) if regular_stat(path) else None) as like,
        ):
            return self._beside(name, temp, like, blocks)

    def _beside(self, name: str, temp: str, like: int | None, blocks: Pieces) -> Written:
        """Write a temporary file in the live one's folder, with the owner, group and mode of ``like`` if permitted."""
        folder = (self._root / EXPORT_PATHS[name]).parent
        self._hashes.pop(name, None)
        make_folder(folder)
        with closed_after(open_in_folder(folder / temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL)) as descriptor:
            if like is not None:
                take_after(descriptor, os.fstat(like))
            output = Output(descriptor, SegmentHash(self.segment_bytes))
            for block in blocks:
                self._pulse()
                output.write(block)
            os.fsync(descriptor)
            facts = StatFacts.of(os.fstat(descriptor))
        sync_up(folder, self._root)
        self._hashes[name] = (output.sha, facts)
        return output.written(facts)

    # overwriting

    def plan(self, name: str, known: Committed, leaving: Counter[bytes], *, grows: bool) -> Overwriting | None:
        """Plan how to overwrite the lines with these digests; return None if the file must be rewritten instead."""
        if self._records is None or known.size < LEAST_BYTES:
            return None
        self.check(name, known)
        candidates = self._records.holding(name, {digest[:MARK_BYTES] for digest in leaving})
        with self._opened(name, known) as descriptor, ExportReadError.about(EXPORT_PATHS[name]):
            export = OpenExport(EXPORT_PATHS[name], descriptor, known, self._hashes[name][0])
            segments = partial(self._records.segments, name)
            return plan_overwrite(export, leaving, candidates, segments, grows=grows)

    def planned(self, name: str, known: Committed, planned: Overwriting, blocks: Pieces | None) -> Written:
        """Append these blocks now; return what the file is after they and the planned spaces are written."""
        if blocks is not None:
            written = self.append(name, known, blocks, planned.sha)
        else:
            sha, facts = planned.sha, self._hashes[name][1]
            self._hashes[name] = (sha, facts)
            written = Written(sha.size, sha.hexdigest(), facts, segment_bytes=sha.segment_bytes)
        return replace(written, dropped=planned.rows, spaces=planned.spaces)

    def overwrite(
        self, name: str, committed: Committed, spans: list[Span], digests: dict[int, bytes], facts: StatFacts | None
    ) -> StatFacts | None:
        """Overwrite what a committed batch withdrew, and fsync; ``facts`` are the committed file's stat facts.

        Return its new facts. Return None if it is another file, which is not changed, or was touched since.
        """
        path = self._root / EXPORT_PATHS[name]
        held = self._hashes.pop(name, None)
        with ExportWriteError.about(EXPORT_PATHS[name]):
            if regular_stat(path) is None:
                return None
            with closed_after(open_in_folder(path, os.O_RDWR)) as descriptor:
                # The length before rows are cut off is not recorded; overwrite() checks it.
                before = StatFacts.of(os.fstat(descriptor))
                was_whole = facts is not None and facts == before._replace(size=facts.size)
                done = overwrite(descriptor, committed, spans, digests)
                now = StatFacts.of(os.fstat(descriptor))
        if not (done and was_whole):
            return None
        if held is not None:
            self._hashes[name] = (held[0], now)
        return now
