"""Find exports that another program changed, also while a writer runs (SPEC 6). Only reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from distilld.config.settings import Settings
from distilld.core.model import EXPORT_PATHS, StatFacts
from distilld.core.remedies import remedy_of
from distilld.files.regular import open_regular
from distilld.files.segments import hash_of
from distilld.publish.reading import what_is_no_file
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecord, ExportRecords
from distilld.store.queries import reading


class ExportFault(NamedTuple):
    """What is wrong with an export, its size in bytes if that is known, and the remedy if it cannot be read."""

    problem: str
    size: int | None = None
    remedy: str | None = None


def changed_exports(settings: Settings, store: Store, *, beside_writer: bool) -> Iterator[tuple[str, ExportFault]]:
    """Yield path and fault of each changed export. Skip those that the writer is writing, or wrote meanwhile."""
    records = ExportRecords(store).exports()
    if not (faults := {name: why for name, record in records.items() if (why := _fault_of(settings.root, record))}):
        return
    with ExitStack() as later:
        if beside_writer:
            store = later.enter_context(reading(settings.state, settings.root))
        export_records = ExportRecords(store)
        in_hand = set(export_records.overwrites_due())
        appending = {intent.name: intent.base_bytes for intent in export_records.intents() if intent.temp is None}
        now = export_records.exports()
    for name, fault in faults.items():
        grown = name in appending and fault.size is not None and fault.size >= appending[name]
        if now[name] == records[name] and not (name in in_hand or now[name].pending_temp or grown):
            yield EXPORT_PATHS[name], fault


def _fault_of(root: Path, record: ExportRecord) -> ExportFault | None:
    """Return what is wrong with an export, if anything."""
    path, committed = root / EXPORT_PATHS[record.name], record.committed
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return ExportFault("is gone") if committed.size else None
    except OSError as error:
        return ExportFault(f"cannot be looked at: {error.strerror}", remedy=remedy_of(error))
    if problem := what_is_no_file(status.st_mode):
        return ExportFault(problem)
    if status.st_size != committed.size:
        return ExportFault(f"has {status.st_size} bytes and should have {committed.size}", status.st_size)
    if record.facts is None or record.facts == StatFacts.of(status):
        return None
    # chmod, chgrp or touch: if the bytes are the same, the export was not edited
    try:
        with open_regular(path) as file:
            found = hash_of(file.fileno(), committed).hexdigest()
    except OSError as error:
        return ExportFault(f"cannot be read: {error.strerror}", status.st_size, remedy_of(error))
    return None if found == committed.sha256 else ExportFault("has other bytes than its last commit", status.st_size)
