"""Restores exports that are not what their last commit left (SPEC 6), and puts them into canonical order.

A damaged file is set aside, then rebuilt from those of its lines that are as recorded. The missing rows are queued, and
the next batch writes them again, with their old timestamps.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import orjson
import structlog

from distilld.core.line_facts import key_of
from distilld.core.model import EXPORT_PATHS, TAMPERINGS_AN_HOUR, Committed, Dataset, OperatorError, Options, StatFacts
from distilld.lake.lines import digest_of
from distilld.publish.commit import Committer
from distilld.publish.exports import Exports
from distilld.publish.reading import LONGEST_LINE_BYTES, ROW_ID, ExportTamperedError, file_lines
from distilld.publish.takeover import TakeOver
from distilld.store.connection import Store
from distilld.store.export_lines import ExportLines
from distilld.store.export_records import ExportRecord
from distilld.store.retained import Only, Retained
from distilld.store.withdrawals import Withdrawals

PAUSE_SECONDS: Final = 20.0
"""How long a daemon waits to restore the third damage within an hour: with another writer, it would only restore."""

log = structlog.get_logger()


class AnotherWriterError(OperatorError):
    """Other programs changed the exports again and again within one pass, which ends."""


class Restorer(TakeOver):
    """Makes exports and store agree if they differ."""

    def __init__(self, root: Path, store: Store, exports: Exports, committer: Committer) -> None:
        super().__init__(root, store, exports, committer)
        self._lines = ExportLines(store)
        self._seen: dict[str, ExportRecord] = {}
        self._paths = {name: f"{root}/{path}" for name, path in EXPORT_PATHS.items()}

    # damaged files

    def check(self, now_ns: int, *, patient: bool = False) -> int:
        """Check every export by its stat facts, and by its content if they changed; restore damaged ones.

        If ``patient``, restore nothing before :meth:`pause_left` is 0. Return how many files were damaged.
        """
        self._learn_segments()
        damaged = self.damaged()
        known = self._restoring()
        for error in (error for name, error in damaged.items() if name not in known):
            log.error("export_tampered", path=error.path, problem=error.problem)
        if set(damaged) != known:
            self._count_tampering(damaged, now_ns, again=bool(known))
        if damaged and not (patient and self.pause_left(now_ns)):
            for name in damaged:
                self.restore(name, now_ns)
        return len(damaged)

    def pause_left(self, now_ns: int) -> float:
        """Return for how many more seconds a patient :meth:`check` restores nothing."""
        recent = self._records.recent_tamperings(now_ns)
        waited = (now_ns - recent[-1]) / 1e9 if len(recent) >= TAMPERINGS_AN_HOUR else PAUSE_SECONDS
        return max(PAUSE_SECONDS - waited, 0.0)

    def note_committed(self) -> None:
        """Record the committed state, with which :meth:`disturbed` compares."""
        self._seen = self._records.exports()

    def disturbed(self) -> bool:
        """Return whether an export's stat facts differ from those that :meth:`note_committed` recorded."""
        return not all(self._looks_as_recorded(name, record) for name, record in self._seen.items())

    def damaged(self, *, apart_from: Collection[str] = ()) -> dict[str, ExportTamperedError]:
        """Return the exports that :meth:`check` would restore; record the stat facts of intact ones."""
        found: dict[str, ExportTamperedError] = {}
        for name, record in self._records.exports().items():
            if name in apart_from or self._looks_as_recorded(name, record):
                continue
            try:
                facts = self._exports.check(name, record.committed)
            except ExportTamperedError as error:
                found[name] = error
                continue
            if facts is not None:
                with self._store.transaction():
                    self._records.set_installed(name, facts)
        return found

    def stands_in(self, name: str, number: int) -> bool | None:
        """Return whether a segment of an export has its committed bytes; None if there is no such segment to compare.

        If it has others, the facts of the export no longer count, and the next :meth:`check` reads it.
        """
        record = self._records.exports()[name]
        known = record.committed
        is_over = number * known.segment_bytes >= known.size
        is_changing = record.pending_temp or self._records.overwrites_due()
        if is_over or is_changing or known.segment_bytes != self._exports.segment_bytes:
            return None
        if self._exports.stands_in(name, known, number):
            return True
        self._exports.forget()
        with self._store.transaction():
            self._records.set_installed(name, None)
        self.note_committed()
        return False

    def _learn_segments(self) -> None:
        """Read each export whose digest an older version recorded in another form, and record its segments."""
        for name, record in self._records.exports().items():
            known = record.committed
            if known.segment_bytes == self._exports.segment_bytes or not known.size:
                continue
            try:
                found = self._exports.index(name, known)
            except ExportTamperedError:
                with self._store.transaction():
                    self._records.set_installed(name, None)
                continue
            with self._store.transaction():
                self._records.set_export(name, found.committed(known.rows), found.facts, None)
                self._records.forget_segments(name)
                self._records.add_segments(name, found.segments)

    def _looks_as_recorded(self, name: str, record: ExportRecord) -> bool:
        try:
            status = os.lstat(self._paths[name])
        except FileNotFoundError:
            return record.committed.size == 0
        except OSError:
            return False  # opening it will say why
        # No bytes are as recorded, whose file it may be; before the first row there are no facts to compare.
        is_empty = record.committed.size == status.st_size == 0 and stat.S_ISREG(status.st_mode)
        return is_empty or record.facts == StatFacts.of(status)

    def _count_tampering(self, damaged: Collection[str], now_ns: int, *, again: bool) -> None:
        """Record which exports are to be restored; all damage until that is done counts as one case."""
        with self._store.transaction():
            if damaged and not again:
                self._records.count_tampering(now_ns)
            self._store.remember("restoring", orjson.dumps(sorted(damaged)).decode() if damaged else None)

    def _restoring(self) -> set[str]:
        """Return the exports that are being restored."""
        return set(orjson.loads(self._store.recall("restoring") or "[]"))

    def _restored(self, name: str) -> None:
        left = sorted(self._restoring() - {name})
        self._store.remember("restoring", orjson.dumps(left).decode() if left else None)

    def restore(self, name: str, now_ns: int) -> None:
        """Set a damaged export aside, write its intact rows again, and queue the missing ones."""
        aside = self._committer.set_aside(name, now_ns)
        if name.startswith("withdrawals_"):
            with self._logged(name) as lines:
                rows = self._committer.replace({name: lines}, lambda: self._restored(name))
            log.info("export_restored", path=EXPORT_PATHS[name], rows_kept=rows[name], rows_missing=0)
        else:
            self._restore_rows(name, aside)

    @contextmanager
    def _logged(self, name: str) -> Iterator[Iterator[bytes]]:
        """Give the lines of a log of withdrawals, from the store."""
        # If a fault left the query unfinished, it would lock the table that it reads.
        with closing(Withdrawals(self._store).of(Dataset(name.removeprefix("withdrawals_")))) as published:
            yield (each.line() for each in published)

    def _restore_rows(self, name: str, aside: Path | None) -> None:
        def queue() -> None:
            self._lines.miss_expected(name)
            self._restored(name)

        committed = self._records.exports()[name].committed
        longest = max(LONGEST_LINE_BYTES, self._records.longest_line(name, committed))
        self._lines.expect(name)
        good = (
            line
            for line in file_lines(aside, longest)
            if line.endswith(b"\n") and self._lines.is_expected(digest_of(line))
        )
        rows = self._committer.replace({name: good}, queue)
        missing = self._records.missing_rows(name)
        log.warning("export_restored", path=EXPORT_PATHS[name], rows_kept=rows[name], rows_missing=missing)

    # after a takeover

    def has_undecided_orphans(self) -> bool:
        """Return whether any orphan is undecided."""
        return self._orphans.undecided()

    def settle_orphans(self, options: Options) -> int:
        """Decide on the orphans after all inputs are judged; return how many will be withdrawn."""
        if not self.has_undecided_orphans():
            return 0
        with self._store.transaction():
            gone = self._orphans.settle(options)
        if kept := sum(rows for _, _, rows in Retained(self._store).counts(only=Only.ORPHAN)):
            log.warning("orphan_kept", rows=kept)
        return gone

    # canonical order

    def reorder(self) -> None:
        """Put every dataset and quarantine file into walk order; rewrite logs that have white space between lines.

        Raises:
            ExportTamperedError: A file is not what its last commit left; :meth:`check` restores it.
        """
        for name, record in self._records.exports().items():
            if name.startswith("withdrawals_"):
                if record.committed.spaces:
                    with self._logged(name) as lines:
                        self._committer.replace({name: lines})
            elif record.committed.rows:
                self._reorder(name, record.committed)

    def _reorder(self, name: str, committed: Committed) -> None:
        key_of_row = digest_of if name.startswith("quarantine_") else _sample_key
        with self._exports.reading(name, committed) as file:

            def keys() -> Iterator[tuple[int, int, object]]:
                return ((start, len(row), key_of_row(row)) for start, row in file.rows())

            with self._committer.left_as_found(name):
                if not committed.spaces and self._lines.is_in_order(name, keys()):
                    return
            # If a fault left the query unfinished, it would lock the tables that it reads.
            with closing(self._lines.order_lines(name, keys())) as order:
                self._committer.replace({name: file.pick(order)})


def _sample_key(row: bytes) -> int | None:
    """Return the sample key of a row; None if it is no row of ours, as after a foreign edit."""
    found = ROW_ID.match(row)
    return key_of(found[2].decode()) if found else None
