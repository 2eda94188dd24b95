"""Completes a batch after COMMIT, and recovers from a crash or a failure (docs/design.md, 'The commit protocol').

| killed or failed | what :meth:`Recovery.recover` does |
|---|---|
| before the intent | nothing |
| before COMMIT | cuts appended files back, removes temporary files, drops the intents |
| after COMMIT | overwrites rows, renames temporary files, sets aside foreign files in their way, writes receipts |

Recovery decides from the store alone, and may itself be killed. A running process also runs it after any failure.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from distilld.core.model import EXPORT_PATHS, SET_ASIDE
from distilld.files.regular import lstat
from distilld.publish import receipt_files as receipts
from distilld.publish.cards import write_cards
from distilld.publish.exports import RENAME_ORDER, Exports
from distilld.publish.lasting import Lasting
from distilld.publish.overwrite import touched
from distilld.publish.pins import Pins
from distilld.publish.reading import ROW_ID, ExportTamperedError, ExportWriteError, file_lines
from distilld.publish.receipt import iso_time
from distilld.publish.set_aside import copy_aside, move_aside
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecord, ExportRecords
from distilld.store.ledger import Ledger
from distilld.store.receipts import Receipts
from distilld.store.withdrawals import Withdrawals

FIRST: Final = ".first"
"""Marks the temporary file of an export that was empty: a live file with content is set aside before the rename."""

log = structlog.get_logger()


class Recovery:
    """Brings the files of one lake to the state that its store has committed."""

    def __init__(
        self,
        root: Path,
        store: Store,
        exports: Exports,
        *,
        clock: Callable[[], int] = time.time_ns,
        receipts_keep: int = 0,
        keep_lock: Callable[[], None] = lambda: None,
    ) -> None:
        """``keep_lock`` is called before anything is written; it raises if this is not the lake's only writer."""
        self._root = root
        self._store = store
        self._ledger = Ledger(store)
        self._receipts = Receipts(store)
        self._records = ExportRecords(store)
        self._withdrawals = Withdrawals(store)
        self._exports = exports
        self._pins = Pins(root)
        self._lasting = Lasting()
        self._clock = clock
        self.receipts_keep = receipts_keep
        self.keep_lock = keep_lock

    def finish(self) -> None:
        """Overwrite and rename what the committed batch recorded, and write its receipt.

        Raises:
            ExportTamperedError: An export to overwrite was changed meanwhile; it must be restored.
            OperatorError: A write failed. The batch stays committed; :meth:`recover` does the rest.
        """
        try:
            changed = self._install()
        finally:
            self._pins.let_in()
        self._report()
        write_cards(self._root, self._lasting)
        if changed:
            raise ExportTamperedError(EXPORT_PATHS[changed[0]], "was changed while a batch was committed")

    def _install(self) -> list[str]:
        """Overwrite and rename, datasets first; return the exports that were changed before they were overwritten."""
        records = self._records.exports()
        changed = self._overwrite(records)
        for name in RENAME_ORDER:
            record = records[name]
            if record.pending_temp is None:
                continue
            tampered = self._make_room(name, record.pending_temp)
            facts = self._exports.install(name, record.pending_temp, record.committed)
            if facts is None:
                self.set_aside(name, self._clock(), temp=record.pending_temp)
            with self._store.transaction():
                self._records.set_installed(name, facts)
                if tampered:
                    self._records.count_tampering(self._clock())
        return changed

    def _overwrite(self, records: dict[str, ExportRecord]) -> list[str]:
        """Overwrite in place what a batch withdrew; return the exports that another program changed or may have."""
        due = self._records.overwrites_due()
        if not due:
            return []
        facts = {}
        for name in (name for name in RENAME_ORDER if name in due):
            record = records[name]
            segments = self._records.segments(name, touched(due[name], record.committed))
            digests = {each.number: each.sha256 for each in segments}
            facts[name] = self._exports.overwrite(name, record.committed, due[name], digests, record.facts)
        with self._store.transaction():
            for name, now in facts.items():
                self._records.set_installed(name, now)
                self._records.overwritten(name)
        return [name for name, now in facts.items() if now is None]

    def _make_room(self, name: str, temp: str) -> bool:
        """Set aside what another program put at the path of a finished file; return whether there was anything."""
        error = self._exports.in_the_way(name, temp, is_first=temp.endswith(f"{FIRST}.tmp"))
        if error is None:
            return False
        log.error("export_tampered", path=error.path, problem=error.problem)
        self.set_aside(name, self._clock())
        return True

    def set_aside(self, name: str, now_ns: int, *, temp: str | None = None) -> Path | None:
        """Set aside what is at an export's path: copy a regular file, which readers may have open; move all else.

        With ``temp``, move the export's temporary file. Return the backup, or None if there was no regular file.

        Raises:
            ExportWriteError: The copy or the move failed.
        """
        path = self._root / EXPORT_PATHS[name]
        path = path.with_name(temp) if temp else path
        with ExportWriteError.about(EXPORT_PATHS[name]):
            live = lstat(path)
        if live is None:
            return None
        regular = stat.S_ISREG(live.st_mode)
        put_aside = copy_aside if regular and not temp else move_aside
        with ExportWriteError.about(SET_ASIDE):
            stamp = iso_time(now_ns).replace(":", "")
            kept = put_aside(path, self._root / SET_ASIDE, name, stamp, partial(self._holds_lost, name))
        shown = f"{SET_ASIDE}/{kept.name}" if kept is not None else None
        log.warning("export_set_aside", path=str(path.relative_to(self._root)), copy=shown)
        return kept if regular else None

    def _holds_lost(self, name: str, copy: Path) -> bool:
        """Return whether a backup holds a row that was published as lost."""
        lost = {each.encode() for each in self._withdrawals.lost_ids(name)}
        with suppress(OSError):
            return any(found[1] in lost for found in map(ROW_ID.match, file_lines(copy)) if found)
        return False

    def _report(self, *, cut_off: bool = False) -> None:
        """Write the receipts of committed batches, and remove those that are no longer kept."""
        for sequence, batch_id, text in self._receipts.unwritten_receipts():
            why_no_page = receipts.write_receipt(self._root, batch_id, text.encode(), cut_off=cut_off)
            if self._lasting.is_news(receipts.LATEST, why_no_page):
                log.warning("page_not_written", path=receipts.LATEST, problem=why_no_page)
            with self._store.transaction():
                self._receipts.mark_written(sequence)
                self._drop_receipts()
            if cut_off:
                log.info("receipt_repaired", batch_id=batch_id, path=receipts.receipt_path(batch_id))
            else:
                log.debug("receipt_written", batch_id=batch_id, path=receipts.receipt_path(batch_id))
        self._retire_receipts()

    def _retire_receipts(self) -> None:
        """Forget the receipts that are no longer kept, and then remove their files.

        So whoever misses a file can ask the store whether it was lost. The store records which files to remove.
        """
        if self._receipts.receipts_beyond(self.receipts_keep):
            with self._store.transaction():
                self._drop_receipts()
        if old := self._receipts.files_to_remove():
            receipts.remove_receipts(self._root, old)
            with self._store.transaction():
                self._receipts.files_removed()

    def _drop_receipts(self) -> None:
        self._receipts.drop_receipts(self._receipts.receipts_beyond(self.receipts_keep))

    def needs_recovery(self) -> bool:
        """Return whether a write was interrupted, or a finish is not complete."""
        return bool(
            self._records.intents()
            or self._receipts.unwritten_receipts()
            or self._receipts.receipts_beyond(self.receipts_keep)
            or self._receipts.files_to_remove()
            or self._records.overwrites_due()
            or any(record.pending_temp for record in self._records.exports().values())
        )

    def recover(self) -> bool:
        """Complete or undo what a crash or a failure left; return whether there was anything.

        Raises:
            OperatorError: The cause of the failure persists. What is done stays done, and a new try is safe.
        """
        self.keep_lock()
        with self._store.at_work():
            recovered = self._recover()
        write_cards(self._root, self._lasting)
        return recovered

    def _recover(self) -> bool:
        self._exports.forget()
        self._pins.let_in()
        if not self.needs_recovery():
            return False
        intents = self._records.intents()
        if intents:
            self._settle_doubt()
        # The exports first: even if the reports cannot be written, no uncommitted row stays in an export.
        self._install()
        records = self._records.exports()
        for intent in intents:
            if intent.temp is None:
                self._exports.cut_back(intent.name, records[intent.name].committed)
            else:
                self._exports.discard(intent.name, intent.temp)
        with self._store.transaction():
            for intent in intents:
                # The file itself may be why the write failed, whatever stat says; the next check reads its content.
                self._records.set_installed(intent.name, None)
            self._records.drop_intents()
        self._report(cut_off=True)
        return True

    def _settle_doubt(self) -> None:
        """Make certain that a batch whose COMMIT failed is undone, before any export is cut back.

        SQLite rolls back a COMMIT that reports an I/O error, but its pages may be in the write-ahead log. A process
        that opens the store after a kill would find it committed. This commit overwrites those pages.
        """
        with self._store.transaction():
            self._store.remember("batch_undone_at", iso_time(self._clock()))
