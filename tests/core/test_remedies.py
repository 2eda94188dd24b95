"""Remedies: each error of the system and of SQLite has a sentence of its own."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys

import pytest

from distilld.core.remedies import BY_ERRNO, BY_SQLITE, remedy_of, remedy_of_missing

ROOM_OR_DISK = re.compile("make room|disk checked")
NEITHER = [
    errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ESTALE,
    errno.ENOMEM, errno.EBUSY, errno.EISDIR, errno.ELOOP,
]  # fmt: skip


@pytest.mark.parametrize("number", NEITHER, ids=errno.errorcode.get)
def test_only_a_full_or_broken_disk_is_called_one(number: int) -> None:
    """The story: EROFS, EPERM and EFBIG all advised to make room or mend the disk."""
    sentence = remedy_of(OSError(number, os.strerror(number)))
    assert sentence == BY_ERRNO[number]
    assert not ROOM_OR_DISK.search(sentence)


@pytest.mark.parametrize(
    "name", ["SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PROTOCOL"]
)
def test_a_lock_or_a_permission_of_the_store_is_no_broken_disk(name: str) -> None:
    """The same of SQLite's codes: 'database is locked' is another program's doing."""
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorname = name
    assert remedy_of(error) == BY_SQLITE[name]
    assert not ROOM_OR_DISK.search(remedy_of(error))


def test_an_extra_is_installed_into_the_environment_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: the pip on PATH belonged to another environment than the command that named it."""
    monkeypatch.setattr(sys, "executable", "/opt/my tools/bin/python")
    assert remedy_of_missing("dask") == "'/opt/my tools/bin/python' -m pip install 'distilld[dask]'"


def test_no_two_errors_share_a_sentence() -> None:
    """Otherwise it would be a sentence about the class of the error."""
    for table in (BY_ERRNO, BY_SQLITE):
        assert len(set(table.values())) == len(table)
    assert BY_ERRNO[errno.ENOSPC] != BY_ERRNO[errno.EDQUOT]


def test_every_code_that_the_store_takes_for_the_systems_fault_has_one() -> None:
    """Also those that SQLite has today and did not have before fall back on their primary code."""
    from distilld.store import connection

    for code in connection._REFUSED | connection._CORRUPT:
        names = [name for name, value in vars(sqlite3).items() if name.startswith("SQLITE_") and value == code]
        assert any(name in BY_SQLITE for name in names), names


def test_an_extended_code_falls_back_on_its_primary_one() -> None:
    """SQLITE_IOERR_FSYNC has no sentence of its own, SQLITE_READONLY_DBMOVED has."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
    assert remedy_of(error) == BY_SQLITE["SQLITE_IOERR"]
    error.sqlite_errorname = "SQLITE_READONLY_DBMOVED"
    assert remedy_of(error) == BY_SQLITE["SQLITE_READONLY_DBMOVED"]
    assert remedy_of(OSError("without a number")) == remedy_of(sqlite3.OperationalError("without a name"))
