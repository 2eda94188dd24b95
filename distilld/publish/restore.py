"""Exports that are not what their last commit left: damaged files, and files from before the store (SPEC 3.11, 6).

A damaged file is set aside, then rebuilt from the lines in it that are still as recorded; what is missing is queued
and written again by the next batch, with its old timestamps. The exports of an older exporter, or of a lost store, are
taken in as orphans: the first pass adopts each row that it would write alike, and decides on the rest.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from distilld.core.decisions import PublishedWithdrawal, key_of
from distilld.core.json_text import QUOTED_DEPTH, parse_object
from distilld.core.line_facts import LINES_END
from distilld.core.model import (
    EXPORT_PATHS,
    SFT_NEVER,
    TAMPERINGS_AN_HOUR,
    Committed,
    Dataset,
    InputChanged,
    InputKind,
    OperatorError,
    Options,
    Reason,
    RowRef,
    UnreadableError,
)
from distilld.core.records import category_of
from distilld.core.samples import faults_of
from distilld.lake.lines import digest_of
from distilld.lake.scan import is_partition, open_partition
from distilld.publish.commit import FIRST, Committer, NewVersion
from distilld.publish.exports import ExportReadError, Exports, ExportTamperedError, ExportWriteError
from distilld.publish.receipt import iso_time
from distilld.publish.receipt_files import BATCH_ID, Link, newest_receipt
from distilld.store.connection import Store
from distilld.store.frozen import Frozen, Orphan, ToldVerdict
from distilld.store.ledger import ExportRecord, Ledger

_REASONS: Final = {reason.value: reason for reason in Reason}
_ROW_ID: Final = re.compile(rb'\{"schema_version":1,"id":"[a-z]+-([0-9a-f]{16})"')

log = structlog.get_logger()


class AnotherWriterError(OperatorError):
    """The exports are changed from outside again and again: writing stops until somebody finds out who does it."""


class Restorer:
    """Brings exports and store together again where they differ."""

    def __init__(self, root: Path, store: Store, exports: Exports, committer: Committer) -> None:
        self._root = root
        self._store = store
        self._exports = exports
        self._committer = committer
        self._ledger = Ledger(store)
        self._frozen = Frozen(store)

    # damaged files

    def check(self, now_ns: int) -> int:
        """Look at every export by its stat facts, by its content where they changed; restore what is damaged.

        Returns how many files were damaged.

        Raises:
            AnotherWriterError: It is the third time within an hour.
        """
        damaged = self.damaged()
        for error in damaged.values():
            log.error("export_tampered", path=error.path, problem=error.problem)
        if damaged:
            self._count_tampering(damaged, now_ns)
        for name in damaged:
            self.restore(name, now_ns)
        return len(damaged)

    def damaged(self, *, apart_from: Collection[str] = ()) -> dict[str, ExportTamperedError]:
        """The exports that :meth:`check` would restore; the facts of those that are whole are noted."""
        found: dict[str, ExportTamperedError] = {}
        for name, record in self._ledger.exports().items():
            if name in apart_from or self._looks_as_recorded(name, record):
                continue
            try:
                facts = self._exports.check(name, record.committed)
            except ExportTamperedError as error:
                found[name] = error
                continue
            if facts is not None:
                with self._store.transaction():
                    self._ledger.set_installed(name, facts)
        return found

    def _looks_as_recorded(self, name: str, record: ExportRecord) -> bool:
        try:
            status = os.lstat(self._root / EXPORT_PATHS[name])
        except FileNotFoundError:
            return record.committed.size == 0
        except OSError:
            return False  # opening it will say why
        facts = record.facts
        return facts is not None and (
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        ) == facts[:5]  # fmt: skip

    def _count_tampering(self, damaged: dict[str, ExportTamperedError], now_ns: int) -> None:
        """Count what one look found as one time. What was counted and is yet to be restored is not counted again."""
        with self._store.transaction():
            if not set(damaged) <= self._restoring():
                self._ledger.count_tampering(now_ns)
            self._store.remember("restoring", orjson.dumps(sorted(damaged)).decode())
        if len(self._ledger.recent_tamperings(now_ns)) >= TAMPERINGS_AN_HOUR:
            error = next(iter(damaged.values()))
            raise AnotherWriterError(
                f"another writer: {error.path} {error.problem}, the third time within an hour",
                hint="find out who writes below exports/; nothing is written until an hour after the first time",
            )

    def _restoring(self) -> set[str]:
        """The exports that are being restored."""
        return set(orjson.loads(self._store.recall("restoring") or "[]"))

    def _restored(self, name: str) -> None:
        left = sorted(self._restoring() - {name})
        self._store.remember("restoring", orjson.dumps(left).decode() if left else None)

    def restore(self, name: str, now_ns: int) -> None:
        """Set a damaged export aside and put what is left of it in its place; the rest is queued."""
        aside = self._committer.set_aside(name, now_ns)
        if name.startswith("withdrawals_"):
            self._restore_log(name)
        else:
            self._restore_rows(name, aside)

    def _restore_log(self, name: str) -> None:
        dataset = Dataset(name.removeprefix("withdrawals_"))
        lines = [each.line() for each in self._ledger.withdrawals(dataset)]
        self._committer.replace([NewVersion(name, iter(lines), lambda: len(lines))], lambda: self._restored(name))
        log.info("export_restored", path=EXPORT_PATHS[name], rows_kept=len(lines), rows_missing=0)

    def _restore_rows(self, name: str, aside: Path | None) -> None:
        kept = 0
        missing = 0

        def good_lines() -> Iterator[bytes]:
            nonlocal kept
            for line in _lines_of(aside):
                if line.endswith(b"\n") and self._frozen.is_expected(digest_of(line)):
                    kept += 1
                    yield line

        def queue() -> None:
            nonlocal missing
            missing = self._frozen.miss_expected(name)
            self._restored(name)

        self._frozen.expect(name)
        self._committer.replace([NewVersion(name, good_lines(), lambda: kept)], queue)
        log.warning("export_restored", path=EXPORT_PATHS[name], rows_kept=kept, rows_missing=missing)

    # taking over

    def take_over(self, now_ns: int) -> bool:
        """Take in the exports that stand where no store knows of any; returns whether there were some.

        Raises:
            ExportReadError: A folder or a file cannot be looked at; what was not taken over yet is at the next try.
        """
        if self._store.recall("taken_over") is not None or self._ledger.last_batch() is not None:
            return False
        there = [name for name in EXPORT_PATHS if self._exports.stands(name)]
        leftovers = self._leftovers()
        anchor = newest_receipt(self._root)
        if there or anchor:
            log.info("takeover_started", files=len(there))
        self._remove(leftovers)
        rows = removed = 0
        for name in there:
            if (
                not name.startswith("quarantine_") and not self._ledger.exports()[name].generation
            ):  # else: before a crash
                good, bad = self._adopt(name, now_ns)
                rows, removed = rows + good, removed + bad
        self._leave_quarantines([name for name in there if name.startswith("quarantine_")], anchor, now_ns)
        if there:
            log.info("takeover_finished", rows=rows, rows_removed=removed)
        return bool(there)

    def _leftovers(self) -> list[Path]:
        """Temporary files of a batch that was cut off, and that nobody remembers, below the root."""
        found: list[Path] = []
        for path in map(Path, EXPORT_PATHS.values()):
            ours = re.compile(rf"\.{re.escape(path.name)}\.{BATCH_ID.pattern}({re.escape(FIRST)})?\.tmp")
            try:
                with os.scandir(self._root / path.parent) as entries:
                    names = [
                        each.name
                        for each in entries
                        if ours.fullmatch(each.name) and each.is_file(follow_symlinks=False)
                    ]
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise ExportReadError(str(path.parent), error) from error
            found += (path.with_name(name) for name in names)
        return found

    def _remove(self, leftovers: list[Path]) -> None:
        for path in leftovers:
            try:
                (self._root / path).unlink()
            except OSError as error:
                raise ExportWriteError(str(path), error) from error

    def _adopt(self, name: str, now_ns: int) -> tuple[int, int]:
        """Take the rows of a file in: a dataset's as orphans, a log's as history. Returns how many, and how many not.

        Torn, unreadable, faulty and doubled rows are removed; the file as it was is set aside then.
        """
        path = self._root / EXPORT_PATHS[name]
        if not stat.S_ISREG(os.lstat(path).st_mode):
            self._committer.set_aside(name, now_ns)
            return 0, 0
        good = bad = 0
        take = self._take_withdrawal if name.startswith("withdrawals_") else self._take_orphan
        dataset = Dataset(name.removeprefix("withdrawals_"))

        def good_lines() -> Iterator[bytes]:
            nonlocal good, bad
            for line in _lines_of(path):
                if take(dataset, line):
                    good += 1
                    yield line
                else:
                    bad += 1

        def settle() -> None:
            if bad:
                self._committer.set_aside(name, now_ns)
            if name == dataset:
                self._frozen.add_orphans(dataset)
            else:
                self._frozen.add_history(dataset)

        self._frozen.stage_arrivals()
        self._committer.replace([NewVersion(name, good_lines(), lambda: good)], settle)
        return good, bad

    def _take_orphan(self, dataset: Dataset, line: bytes) -> bool:
        orphan = _orphan_of(dataset, line)
        return orphan is not None and self._frozen.stage_orphan(orphan)

    def _take_withdrawal(self, dataset: Dataset, line: bytes) -> bool:
        withdrawal = _withdrawal_of(dataset, line)
        if withdrawal is not None:
            self._frozen.stage_history(withdrawal)
        return withdrawal is not None

    def _leave_quarantines(self, names: list[str], anchor: Link | None, now_ns: int) -> None:
        """Old quarantine files are set aside and written anew; with that the take-over is done.

        What they say of runs that were rejected or never reviewed is known again: no orphan of such a run may stay, and
        until the row's own partition is read its verdict is an absent one and forbids. A lost store does not bring a
        run back whose rejection was deleted (SPEC 3). Where that partition is gone the row's line stays, as that of any
        held row of an absent partition, and says it again when this store is lost, too.
        """
        copies = {name: self._committer.set_aside(name, now_ns) for name in names}
        kept: Counter[str] = Counter()
        self._frozen.stage_verdicts()

        def lines_that_stay(name: str, copy: Path) -> Iterator[bytes]:
            gone: dict[str, bool] = {}
            for line in _lines_of(copy):
                verdict = _forbidding(line)
                if verdict is None:
                    continue
                stays = verdict.at is not None and self._is_gone(verdict.at.partition, gone) and line.endswith(b"\n")
                digest = digest_of(line) if stays else None
                is_first = self._frozen.stage_verdict(Dataset(name.removeprefix("quarantine_")), verdict, digest)
                if stays and is_first:
                    kept[name] += 1
                    yield line

        def settle() -> None:
            self._frozen.add_verdicts()
            if anchor is not None:
                self._ledger.anchor(*anchor)
            self._store.remember("taken_over", iso_time(now_ns))

        versions = [
            NewVersion(name, lines_that_stay(name, copy), partial(kept.__getitem__, name))
            for name, copy in copies.items()
            if copy is not None
        ]
        self._committer.replace(versions, settle)

    def _is_gone(self, partition: str, known: dict[str, bool]) -> bool:
        """Whether no file of a scored partition can be opened; each is looked for once."""
        if partition not in known:
            try:
                with open_partition(self._root, InputKind.SCORED, partition):
                    known[partition] = False
            except (InputChanged, UnreadableError):
                known[partition] = True
        return known[partition]

    def settle_orphans(self, options: Options) -> int:
        """Decide on the orphans once every input was judged; returns how many are to leave."""
        if not self._frozen.unsettled_orphans():
            return 0
        with self._store.transaction():
            gone = self._frozen.settle_orphans(options)
        kept = self._frozen.frozen_counts().get("orphan", 0)
        if kept:
            log.warning("orphan_kept", rows=kept)
        return gone

    # canonical order

    def reorder(self) -> None:
        """Put every dataset and quarantine file into canonical walk order; the bytes of their lines stay.

        Raises:
            ExportTamperedError: A file is not what its last commit left; :meth:`check` restores it.
        """
        for name, record in self._ledger.exports().items():
            if name.startswith("withdrawals_") or not record.committed.rows:
                continue
            self._reorder(name, record.committed)

    def _reorder(self, name: str, committed: Committed) -> None:
        keys = _digests if name.startswith("quarantine_") else _sample_keys
        with (
            self._exports.reading(name, committed) as file,
            # A question that is left half answered, by a fault in the middle, would lock the tables that it reads.
            closing(self._frozen.order_lines(name, keys(file.lines()))) as order,
        ):
            self._committer.replace([NewVersion(name, file.pick(order), lambda: committed.rows)], lambda: None)


def _digests(lines: Iterable[bytes]) -> Iterator[tuple[int, int, object]]:
    """Offset, length and digest of each line."""
    start = 0
    for line in lines:
        yield start, len(line), digest_of(line)
        start += len(line)


def _sample_keys(lines: Iterable[bytes]) -> Iterator[tuple[int, int, object]]:
    """Offset, length and sample key of each line; no key where it is no row of a dataset, as after an outside edit."""
    start = 0
    for line in lines:
        found = _ROW_ID.match(line)
        yield start, len(line), key_of(found[1].decode()) if found else None
        start += len(line)


def _lines_of(path: Path | None) -> Iterator[bytes]:
    if path is not None:
        with open(path, "rb") as file:
            yield from file


def _orphan_of(dataset: Dataset, line: bytes) -> Orphan | None:
    """A row of an older export, or None for one that is torn, unreadable, or no row of this dataset by its schema."""
    if not line.endswith(b"\n"):
        return None
    row, marked, _ = parse_object(line[:-1])
    if row is None or marked or faults_of(dataset, _with_line_offset(row)):
        return None
    prefix, _, digits = row["id"].rpartition("-")
    expected = {Dataset.RAG: "rag", Dataset.SFT: "sft", Dataset.PREFERENCE: "pref"}[dataset]
    hexadecimal = len(digits) == 16 and all(sign in "0123456789abcdef" for sign in digits)
    starts = line.startswith(f'{{"schema_version":1,"id":"{row["id"]}",'.encode())
    if prefix != expected or not hexadecimal or not starts:
        return None
    if dataset is Dataset.PREFERENCE:
        run_id, other_run_id = row["chosen_run_id"], row["rejected_run_id"]
        task = row["prompt"].removeprefix("Task: ").split(" · file=", 1)[0]
    else:
        run_id, other_run_id, task = row["source_run_id"], None, None
    return Orphan(
        key_of(digits), digest_of(line), run_id, other_run_id, task, row["created_at"], row["provenance"]["recorded_at"]
    )


def _with_line_offset(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it is checked: the older exporters left the key out where the scored row had none."""
    provenance = row.get("provenance")
    return {**row, "provenance": {"line_offset": None, **provenance}} if isinstance(provenance, dict) else row


def _withdrawal_of(dataset: Dataset, line: bytes) -> PublishedWithdrawal | None:
    """A line of an older log of withdrawals, or None for one that is torn or no such line."""
    row = parse_object(line[:-1]).value if line.endswith(b"\n") else None
    if row is None or set(row) != {*PublishedWithdrawal._fields} - {"dataset"}:
        return None
    texts = ("id", "cause", "withdrawn_batch", "withdrawn_at")
    may_miss = ("source_run_id", "chosen_run_id", "rejected_run_id", "shipped_batch")
    whole = type(row["replaced"]) is bool and all(isinstance(row[name], str) for name in texts)
    if not whole or not all(row[name] is None or isinstance(row[name], str) for name in may_miss):
        return None
    found = PublishedWithdrawal(dataset, **row)
    return found if found.line() == line else None


def _forbidding(line: bytes) -> ToldVerdict | None:
    """What a quarantine row tells of a run that was rejected or never reviewed; None for any other row."""
    row = parse_object(line.rstrip(b"\n"), max_depth=QUOTED_DEPTH).value or {}
    record, location = row.get("source_record"), row.get("location")
    if not isinstance(record, dict) or not isinstance(record.get("evidence_run_id"), str):
        return None
    category = category_of(record.get("category"))
    if category not in SFT_NEVER or not record["evidence_run_id"]:
        return None
    reason = _REASONS.get(row["reason"]) if isinstance(row.get("reason"), str) else None
    at = None
    if isinstance(location, dict) and reason is not None:
        partition, number = location.get("partition"), location.get("line_offset")
        if isinstance(partition, str) and is_partition(partition) and type(number) is int and 0 <= number < LINES_END:
            at = RowRef(partition, number)
    return ToldVerdict(record["evidence_run_id"], category, at, reason)
