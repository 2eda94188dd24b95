"""Exports that are not what their last commit left: damaged files, and files from before the store (SPEC 3.11, 6).

A damaged file is set aside, then rebuilt from the lines in it that are still as recorded; what is missing is queued
and written again by the next batch, with its old timestamps. The exports of an older exporter, or of a lost store, are
taken in as orphans: the first pass adopts each row that it would write alike, and decides on the rest.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson
import structlog

from distilld.commit import Committer, NewVersion, iso_time
from distilld.decisions import key_of
from distilld.durable import FILE_MODE, make_folder, sync_folder
from distilld.exports import Exports, ExportTamperedError, ExportWriteError
from distilld.json_text import parse_object
from distilld.model import EXPORT_PATHS, Category, Dataset, OperatorError, Options
from distilld.receipt import REPORTS, receipt_path, sha256_of
from distilld.store import Store
from distilld.store.frozen import Frozen, Orphan
from distilld.store.ledger import Ledger
from distilld.tail import digest_of

SET_ASIDE: Final = "exports/.set-aside"
COPIES_KEPT: Final = 5
TAMPERINGS_AN_HOUR: Final = 3
_HOUR_NS: Final = 3600 * 10**9

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
        damaged: dict[str, ExportTamperedError] = {}
        for name, record in self._ledger.exports().items():
            try:
                if not self._looks_as_recorded(name):
                    facts = self._exports.check(name, record.committed)
                    if facts is not None:
                        with self._store.transaction():
                            self._ledger.set_installed(name, facts)
            except ExportTamperedError as error:
                log.error("export_tampered", path=error.path, problem=error.problem)
                damaged[name] = error
        if damaged:
            self._count_tampering(damaged, now_ns)
        for name in damaged:
            self.restore(name, now_ns)
        return len(damaged)

    def _looks_as_recorded(self, name: str) -> bool:
        record = self._ledger.exports()[name]
        try:
            status = os.lstat(self._root / EXPORT_PATHS[name])
        except FileNotFoundError:
            return record.committed.size == 0
        facts = record.facts
        return facts is not None and (
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        ) == facts[:5]  # fmt: skip

    def _count_tampering(self, damaged: dict[str, ExportTamperedError], now_ns: int) -> None:
        """Count what one look found as one time; what a crash kept from being restored was counted before."""
        recent = [each for each in self.recent_tamperings() if now_ns - each < _HOUR_NS]
        restoring = self._restoring()
        if set(damaged) <= restoring:
            return
        if len(recent) < TAMPERINGS_AN_HOUR:
            recent.append(now_ns)
        stops = len(recent) >= TAMPERINGS_AN_HOUR
        with self._store.transaction():
            self._store.remember("tamperings", orjson.dumps(recent).decode())
            self._store.remember("restoring", None if stops else orjson.dumps(sorted({*restoring, *damaged})).decode())
        if stops:
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

    def recent_tamperings(self) -> list[int]:
        """When exports were found damaged, in nanoseconds since the epoch."""
        return [int(each) for each in orjson.loads(self._store.recall("tamperings") or "[]")]

    def restore(self, name: str, now_ns: int) -> None:
        """Set a damaged export aside and put what is left of it in its place; the rest is queued."""
        aside = self._set_aside(name, now_ns)
        if name.startswith("withdrawals_"):
            self._restore_log(name)
        else:
            self._restore_rows(name, aside)
        log.info("export_restored", path=EXPORT_PATHS[name])

    def _restore_log(self, name: str) -> None:
        dataset = Dataset(name.removeprefix("withdrawals_"))
        lines = [each.line() for each in self._ledger.withdrawals(dataset)]
        self._committer.replace([NewVersion(name, iter(lines), lambda: len(lines))], lambda: self._restored(name))

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

    def _set_aside(self, name: str, now_ns: int) -> Path | None:
        """Move what stands in an export's place, or copy it where readers may have it open; None where it is gone."""
        path = self._root / EXPORT_PATHS[name]
        folder = self._root / SET_ASIDE
        target = folder / f"{name}-{iso_time(now_ns).replace(':', '')}"
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        try:
            make_folder(folder)
            if stat.S_ISREG(status.st_mode):
                _copy(path, target)
            else:
                os.rename(path, target)
            sync_folder(folder)
            self._thin_out(folder, name)
        except OSError as error:
            raise ExportWriteError(SET_ASIDE, error) from error
        log.warning("export_set_aside", path=EXPORT_PATHS[name], copy=f"{SET_ASIDE}/{target.name}")
        return target if stat.S_ISREG(status.st_mode) else None

    def _thin_out(self, folder: Path, name: str) -> None:
        copies = sorted(each for each in folder.iterdir() if each.name.startswith(f"{name}-"))
        for old in copies[:-COPIES_KEPT]:
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink()

    # taking over

    def take_over(self, now_ns: int) -> bool:
        """Take in the exports that stand where no store knows of any; returns whether there were some."""
        self._remove_old_quarantines()
        if self._store.recall("taken_over") is not None or self._ledger.last_batch() is not None:
            return False
        there = [name for name, path in EXPORT_PATHS.items() if os.path.lexists(self._root / path)]
        anchor = self._last_receipt()
        if there or anchor:
            log.info("takeover_started", files=len(there))
        orphans = sum(self._adopt_dataset(dataset, now_ns) for dataset in Dataset if dataset.value in there)
        forbidden = [
            each for name in there if name.startswith("quarantine_") for each in _forbidding(self._exports, name)
        ]
        for name in there:
            if name.startswith("withdrawals_"):
                self._adopt_log(name)
            elif name.startswith("quarantine_"):
                self._set_aside(name, now_ns)
        with self._store.transaction():
            for run_id, category in forbidden:
                self._frozen.forbid_orphans(run_id, category)
            if anchor is not None:
                sequence, batch_id, sha256, recorded_at = anchor
                self._ledger.anchor(sequence, batch_id, sha256, recorded_at)
            self._store.remember("taken_over", iso_time(now_ns))
            old = [name for name in there if name.startswith("quarantine_")]
            self._store.remember("old_quarantines", orjson.dumps(old).decode() if old else None)
        self._remove_old_quarantines()
        if there:
            log.info("takeover_finished", rows=orphans)
        return bool(there)

    def _remove_old_quarantines(self) -> None:
        """They are set aside and what they forbid is noted; a crash may have come between that and this."""
        old = orjson.loads(self._store.recall("old_quarantines") or "[]")
        for name in old:
            path = self._root / EXPORT_PATHS[name]
            try:
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
            except OSError as error:
                raise ExportWriteError(EXPORT_PATHS[name], error) from error
        if old:
            with self._store.transaction():
                self._store.remember("old_quarantines", None)

    def _adopt_dataset(self, dataset: Dataset, now_ns: int) -> int:
        """Take a dataset's rows in as orphans; torn, unreadable and doubled rows are removed and reported."""
        name = dataset.value
        if self._ledger.exports()[name].generation:
            return self._ledger.exports()[name].committed.rows  # done before a crash
        path = self._root / EXPORT_PATHS[name]
        if not stat.S_ISREG(os.lstat(path).st_mode):
            self._set_aside(name, now_ns)
            return 0
        orphans: dict[int, Orphan] = {}
        bad = 0

        def good_lines() -> Iterator[bytes]:
            nonlocal bad
            for line in _lines_of(path):
                orphan = _orphan_of(dataset, line)
                if orphan is None or orphan.key in orphans:
                    bad += 1
                else:
                    orphans[orphan.key] = orphan
                    yield line

        self._committer.replace(
            [NewVersion(name, good_lines(), lambda: len(orphans))],
            lambda: self._add_orphans(dataset, orphans),
        )
        if bad:
            log.warning("orphan_kept", path=EXPORT_PATHS[name], rows_removed=bad)
        return len(orphans)

    def _add_orphans(self, dataset: Dataset, orphans: dict[int, Orphan]) -> None:
        self._frozen.add_orphans(dataset, orphans.values())

    def _adopt_log(self, name: str) -> None:
        path = self._root / EXPORT_PATHS[name]
        if self._ledger.exports()[name].generation:
            return
        rows = 0

        def whole_lines() -> Iterator[bytes]:
            nonlocal rows
            for line in _lines_of(path):
                if line.endswith(b"\n"):
                    rows += 1
                    yield line

        self._committer.replace([NewVersion(name, whole_lines(), lambda: rows)], lambda: None)

    def _last_receipt(self) -> tuple[int, str, str, str] | None:
        """The newest receipt on disk: its number, id, sha256 and time; the chain goes on from it."""
        folder = self._root / REPORTS
        try:
            ids = sorted((each.name for each in folder.iterdir() if (each / "receipt.json").is_file()), reverse=True)
        except FileNotFoundError:
            return None
        for batch_id in ids:
            content = (self._root / receipt_path(batch_id)).read_bytes()
            facts = parse_object(content).value or {}
            sequence, recorded_at = facts.get("sequence"), facts.get("recorded_at")
            if facts.get("stage") == "distill" and isinstance(sequence, int) and isinstance(recorded_at, str):
                return sequence, batch_id, sha256_of(content), recorded_at
        return None

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
        """Put every dataset and quarantine file into canonical walk order; the bytes of their lines stay."""
        for name, record in self._ledger.exports().items():
            if name.startswith("withdrawals_") or not record.committed.rows:
                continue
            order = self._frozen.order_lines(name, self._line_keys(name))
            rows = record.committed.rows
            self._committer.replace(
                [NewVersion(name, _pick(self._root / EXPORT_PATHS[name], order), lambda rows=rows: rows)],  # type: ignore[misc]
                lambda: None,
            )

    def _line_keys(self, name: str) -> Iterator[tuple[int, int, object]]:
        start = 0
        for line in self._exports.read_lines(name):
            key: object = digest_of(line)
            if not name.startswith("quarantine_"):
                key = key_of(line.split(b'"id":"', 1)[1].split(b'"', 1)[0].rpartition(b"-")[2].decode())
            yield start, len(line), key
            start += len(line)


def _pick(path: Path, order: list[tuple[int, int]]) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        for start, length in order:
            yield os.pread(file.fileno(), length, start)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as old:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        with open(descriptor, "wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())


def _lines_of(path: Path | None) -> Iterator[bytes]:
    if path is not None:
        with open(path, "rb") as file:
            yield from file


def _orphan_of(dataset: Dataset, line: bytes) -> Orphan | None:
    """A row of an older export, or None for one that is torn, unreadable, or no row of this dataset."""
    if not line.endswith(b"\n"):
        return None
    row = parse_object(line[:-1]).value
    if row is None or not line.startswith(b'{"schema_version":1,"id":"'):
        return None
    prefix, _, digits = str(row.get("id")).rpartition("-")
    provenance = row.get("provenance")
    stamps = (row.get("created_at"), provenance.get("recorded_at") if isinstance(provenance, dict) else None)
    runs = (
        (row.get("chosen_run_id"), row.get("rejected_run_id"))
        if dataset is Dataset.PREFERENCE
        else (row.get("source_run_id"), None)
    )
    expected = {Dataset.RAG: "rag", Dataset.SFT: "sft", Dataset.PREFERENCE: "pref"}[dataset]
    hexadecimal = len(digits) == 16 and all(sign in "0123456789abcdef" for sign in digits)
    if prefix != expected or not hexadecimal or not isinstance(runs[0], str):
        return None
    if not all(isinstance(stamp, str) for stamp in stamps):
        return None
    task = str(row.get("prompt", "")).removeprefix("Task: ").split(" · file=", 1)[0]
    return Orphan(
        key_of(digits), digest_of(line), runs[0], runs[1] if isinstance(runs[1], str) else None,
        task if dataset is Dataset.PREFERENCE else None, str(stamps[0]), str(stamps[1]),
    )  # fmt: skip


def _forbidding(exports: Exports, name: str) -> Iterator[tuple[str, Category]]:
    """The runs that rows of an old quarantine file call rejected, or never reviewed."""
    for line in exports.read_lines(name):
        row = parse_object(line.rstrip(b"\n")).value or {}
        record = row.get("source_record")
        if isinstance(record, dict) and isinstance(record.get("evidence_run_id"), str):
            category = record.get("category")
            if category in (Category.REJECTED, Category.NEEDS_HUMAN_REVIEW):
                yield record["evidence_run_id"], Category(category)
