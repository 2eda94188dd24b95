"""Find exports that another program changed, also while a writer runs (SPEC 6). Only reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from distilld.config.settings import Settings
from distilld.core.model import EXPORT_PATHS, StatFacts
from distilld.files.regular import open_regular
from distilld.files.segments import hash_of
from distilld.publish.reading import what_is_no_file
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecord, ExportRecords
from distilld.store.queries import reading


def changed_exports(settings: Settings, store: Store, *, beside_writer: bool) -> Iterator[tuple[str, str]]:
    """Yield path and problem of each changed export. Skip those that the writer is writing, or wrote meanwhile."""
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
    for name, (problem, size) in faults.items():
        grown = name in appending and size is not None and size >= appending[name]
        if now[name] == records[name] and not (name in in_hand or now[name].pending_temp or grown):
            yield EXPORT_PATHS[name], problem


def _fault_of(root: Path, record: ExportRecord) -> tuple[str, int | None] | None:
    """Return what is wrong with an export, if anything, and its size in bytes if it is known."""
    path, committed = root / EXPORT_PATHS[record.name], record.committed
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return ("is gone", None) if committed.size else None
    except OSError as error:
        return f"cannot be looked at: {error.strerror}", None
    if problem := what_is_no_file(status.st_mode):
        return problem, None
    if status.st_size != committed.size:
        return f"has {status.st_size} bytes and should have {committed.size}", status.st_size
    if record.facts is None or record.facts == StatFacts.of(status):
        return None
    # chmod, chgrp or touch: if the bytes are the same, the export was not edited
    try:
        with open_regular(path) as file:
            found = hash_of(file.fileno(), committed).hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}", status.st_size
    return None if found == committed.sha256 else ("has other bytes than its last commit", status.st_size)
