"""Takes over exports from before the store: of an older exporter, or of a lost store (SPEC 3.11).

Their rows become orphans: the first pass adopts each row that it would write the same, and decides on the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from distilld.core.model import EXPORT_PATHS, Dataset, InputChanged, InputKind, Options, UnreadableError
from distilld.files.regular import regular_stat
from distilld.lake.lines import digest_of
from distilld.lake.scan import open_partition
from distilld.publish.commit import Committer
from distilld.publish.continuity import copies_begin_after
from distilld.publish.exports import Exports
from distilld.publish.legacy import forbidding, orphan_of, withdrawal_of
from distilld.publish.reading import LONGEST_LINE_BYTES, ExportReadError, ExportWriteError, file_lines
from distilld.publish.receipt import iso_time
from distilld.publish.receipt_files import BATCH_ID, Link, newest_receipt
from distilld.publish.recovery import FIRST
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecords
from distilld.store.orphans import Orphans
from distilld.store.receipts import Receipts

_MOST_REPEATED: Final = 16
"""How many times as long as an input line an exported line can be: it repeats parts, and prints numbers in full."""

log = structlog.get_logger()


class TakeOver:
    """Takes over the exports of a root whose store has no record of any."""

    def __init__(self, root: Path, store: Store, exports: Exports, committer: Committer) -> None:
        self._root = root
        self._store = store
        self._exports = exports
        self._committer = committer
        self._records = ExportRecords(store)
        self._receipts = Receipts(store)
        self._orphans = Orphans(store)
        self._longest = LONGEST_LINE_BYTES

    def take_over(self, now_ns: int, options: Options) -> bool:
        """Take over existing exports if the store has no record of any; return whether there were some.

        Raises:
            ExportReadError: A folder or a file cannot be read; the next try takes over the rest.
        """
        if self._store.recall("taken_over") is not None or self._receipts.last_batch() is not None:
            return False
        self._longest = max(LONGEST_LINE_BYTES, _MOST_REPEATED * options.max_line_bytes)
        there = [name for name in EXPORT_PATHS if self._exports.stands(name)]
        leftovers = self._leftovers()
        anchor = newest_receipt(self._root)
        self._note_discontinued(anchor)
        if there or anchor:
            log.info("takeover_started", files=len(there))
        self._remove(leftovers)
        rows = removed = 0
        for name in there:
            if (
                not name.startswith("quarantine_") and not self._records.exports()[name].generation
            ):  # else: taken over before a crash
                good, bad = self._adopt(name, now_ns)
                rows, removed = rows + good, removed + bad
        self._leave_quarantines([name for name in there if name.startswith("quarantine_")], anchor, now_ns)
        if there:
            log.info("takeover_finished", rows=rows, rows_removed=removed)
        return bool(there)

    def _note_discontinued(self, anchor: Link | None) -> None:
        """Record, before anything is written, which datasets are not as the receipts say: their copies begin again."""
        if anchor is None or self._receipts.copies_begin_after() is not None:
            return
        found = copies_begin_after(self._root)
        with self._store.transaction():
            self._receipts.begin_copies_after(found)

    def _leftovers(self) -> list[Path]:
        """Return the temporary files of an interrupted batch that no store records, as paths below the root."""
        found: list[Path] = []
        for path in map(Path, EXPORT_PATHS.values()):
            ours = re.compile(rf"\.{re.escape(path.name)}\.{BATCH_ID.pattern}({re.escape(FIRST)})?\.tmp")
            with (
                ExportReadError.about(str(path.parent)),
                suppress(FileNotFoundError, NotADirectoryError),
                os.scandir(self._root / path.parent) as entries,
            ):
                found += [
                    path.with_name(each.name)
                    for each in entries
                    if ours.fullmatch(each.name) and each.is_file(follow_symlinks=False)
                ]
        return found

    def _remove(self, leftovers: list[Path]) -> None:
        for path in leftovers:
            with ExportWriteError.about(str(path)):
                (self._root / path).unlink()

    def _adopt(self, name: str, now_ns: int) -> tuple[int, int]:
        """Take over the rows of a file, a dataset's as orphans, a log's as history; return rows taken and removed.

        Torn, unreadable, faulty and duplicate rows are removed; the original file is then set aside.
        """
        path = self._root / EXPORT_PATHS[name]
        if regular_stat(path) is None:
            self._committer.set_aside(name, now_ns)
            return 0, 0
        bad = 0
        take = self._take_withdrawal if name.startswith("withdrawals_") else self._take_orphan
        dataset = Dataset(name.removeprefix("withdrawals_"))

        def good_lines() -> Iterator[bytes]:
            nonlocal bad
            for line in file_lines(path, self._longest):
                if take(dataset, line):
                    yield line
                else:
                    bad += 1

        def settle() -> None:
            if bad:
                self._committer.set_aside(name, now_ns)
            if name == dataset:
                self._orphans.take_rows(dataset)
            else:
                self._orphans.take_withdrawals()

        self._orphans.stage()
        return self._committer.replace({name: good_lines()}, settle)[name], bad

    def _take_orphan(self, dataset: Dataset, line: bytes) -> bool:
        orphan = orphan_of(dataset, line)
        return orphan is not None and self._orphans.add_row(orphan)

    def _take_withdrawal(self, dataset: Dataset, line: bytes) -> bool:
        withdrawal = withdrawal_of(dataset, line)
        if withdrawal is not None:
            self._orphans.add_withdrawal(withdrawal)
        return withdrawal is not None

    def _leave_quarantines(self, names: list[str], anchor: Link | None, now_ns: int) -> None:
        """Set old quarantine files aside and write new ones, which completes the takeover.

        Verdicts in them on rejected or never reviewed runs are recorded: no orphan of such a run may stay. Until the
        row's own partition is read, its verdict is an absent one and forbids. So a run whose rejection was deleted does
        not come back when a store is lost (SPEC 3). If that partition is absent, the quarantine row stays, as any such
        row does, so that the verdict survives the loss of this store, too.
        """
        copies = {name: self._committer.set_aside(name, now_ns) for name in names}
        self._orphans.stage_verdicts()

        def lines_that_stay(name: str, copy: Path) -> Iterator[bytes]:
            gone: dict[str, bool] = {}
            for line in file_lines(copy, self._longest):
                verdict = forbidding(line)
                if verdict is None:
                    continue
                stays = verdict.at is not None and self._is_gone(verdict.at.partition, gone) and line.endswith(b"\n")
                dataset = Dataset(name.removeprefix("quarantine_"))
                if self._orphans.add_verdict(dataset, verdict, digest_of(line), stays=stays) and stays:
                    yield line

        def settle() -> None:
            self._orphans.take_verdicts()
            if anchor is not None:
                self._receipts.anchor(*anchor)
            self._store.remember("taken_over", iso_time(now_ns))

        versions = {name: lines_that_stay(name, copy) for name, copy in copies.items() if copy is not None}
        self._committer.replace(versions, settle)

    def _is_gone(self, partition: str, known: dict[str, bool]) -> bool:
        """Return whether a scored partition has no file that can be opened; check each partition once."""
        if partition not in known:
            try:
                with open_partition(self._root, InputKind.SCORED, partition):
                    known[partition] = False
            except (InputChanged, UnreadableError):
                known[partition] = True
        return known[partition]
