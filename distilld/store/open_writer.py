"""Open the store for its one writer; replace a corrupt one by a new one (SPEC 6, 'the state store is corrupt').

Nothing is lost: the first pass on the new store takes the exports over and reads the inputs again. A file that was
never a store is not moved: a ``--state`` that names another file by mistake is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from distilld import __version__
from distilld.core.model import OperatorError
from distilld.core.remedies import remedy_of
from distilld.files.durable import FILE_MODE, closed_after, sync_folder, take_after
from distilld.store.connection import NotAStoreError, Store, StoreCorruptError, begins_as_database
from distilld.store.read_only import SIDES, beside

log = structlog.get_logger()

COPIES_KEPT: Final = 5


@contextmanager
def opened_store(path: Path, root: Path, *, kept: bool = False) -> Iterator[Store]:
    """Yield the open store, and close it at the end; set a corrupt one aside in the same folder.

    If that shows when it is opened, a new one takes its place; a file without SQLite's header counts as a store only if
    it is ``kept``: a lock names it as one.

    Raises:
        NotAStoreError: It is not a store; it is left unchanged.
        StoreTooNewError: A newer distilld wrote it; it is left unchanged.
        StoreOfOtherRootError: It belongs to another root.
        StoreCorruptError: It proved to be corrupt meanwhile: the work can be done again.
        OperatorError: The system refused.
    """
    try:
        store = Store.open(path, root)
    except StoreCorruptError as error:
        if not (kept or begins_as_database(path)):
            raise NotAStoreError(
                f"{path} is no state store, and no SQLite database",
                hint="correct --state; if it was this lake's store, move it away and start again",
            ) from error
        _set_aside(path, error)
        store = Store.open(path, root)
    else:
        if store.was_older:
            log.info("store_migrated", path=str(path), version=__version__)
    try:
        with store.faults():
            yield store
    except StoreCorruptError as error:
        store.close()
        _set_aside(path, error)
        raise
    finally:
        store.close()


def _set_aside(path: Path, corrupt: StoreCorruptError) -> None:
    """Move a store and its side files to names with a stamp that sorts by time; keep at most five copies.

    Leave an empty file in its place, so that the next store has the same mode, owner and group.

    Raises:
        OperatorError: The system refused.
    """
    aside, stamp = f"{path.name}.corrupt-", datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S.%fZ")
    kept = path.with_name(aside + stamp)
    try:
        for suffix in SIDES:
            if (source := beside(path, suffix)).exists():
                source.rename(beside(kept, suffix))
        if kept.exists():
            _leave_empty(path, kept)
        copies = [each for each in path.parent.iterdir() if each.name.startswith(aside)]
        stamps = sorted({each.name[len(aside) :][: len(stamp)] for each in copies})
        for each in copies:
            if each.name[len(aside) :][: len(stamp)] in stamps[:-COPIES_KEPT]:
                each.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise OperatorError(
            f"cannot set the corrupt state store {path} aside: {error.strerror or error}", hint=remedy_of(error)
        ) from error
    log.error("store_set_aside", problem=str(corrupt), copy=str(kept))


def _leave_empty(path: Path, like: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with closed_after(os.open(path, flags, FILE_MODE)) as descriptor:
        take_after(descriptor, os.stat(like))
