"""What to do about an error of the system or of SQLite: one sentence each, used by every message (SPEC 6)."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_OTHER: Final = "look for the error in the kernel's log (journalctl -k, dmesg)"

BY_ERRNO: Final[Mapping[int, str]] = MappingProxyType(
    {
        errno.ENOSPC: "make room on that file system (df -h, and df -i for its inodes)",
        errno.EDQUOT: "raise the disk quota of distilld's user, or make room within it (quota -u)",
        errno.EROFS: "mount it for writing, or add the folder to ReadWritePaths= of the unit",
        errno.EACCES: "give distilld's user the permission: see owner, group and mode of it and of the folders above",
        errno.EPERM: "remove what forbids it: an immutable or append-only flag (lsattr), or another owner",
        errno.EIO: "have the disk checked (smartctl, dmesg)",
        errno.EFBIG: "raise the limit on file sizes (LimitFSIZE= of the unit, ulimit -f), or use another disk",
        errno.EMFILE: "raise LimitNOFILE= of the unit (ulimit -n)",
        errno.ENFILE: "raise fs.file-max, or find what holds so many files open (lsof)",
        errno.ENOLCK: "the file system cannot lock files: start its lock service (rpc.statd), or use a local disk",
        errno.ESTALE: "mount the network file system again: its server no longer knows the file",
        errno.ENOMEM: "free memory, or raise MemoryMax= of the unit",
        errno.EBUSY: "end what is using it (fuser, lsof), or unmount what is mounted there",
        errno.ETXTBSY: "end the program that runs from it",
        errno.ENAMETOOLONG: "give it a shorter name",
        errno.ELOOP: "put the file itself in place of the link",
        errno.ENOTDIR: "a file stands where a folder belongs: move it away",
        errno.EISDIR: "a folder stands where a file belongs: move it away",
        errno.ENOTEMPTY: "something stands in the folder that is to go: move it away",
        errno.EEXIST: "something stands in its place: move it away",
        errno.ENOENT: "it, or a folder above it, was removed or is not mounted: put it back",
        errno.EXDEV: "two file systems meet there: keep exports/ and reports/ on one each",
        errno.EOPNOTSUPP: "the file system cannot do that: use a local disk",
        errno.ENODEV: "the device is gone: attach it, and mount it again",
        errno.ENXIO: "the device does not answer: attach it, and mount it again",
        errno.ENOTCONN: "the file system's own program has ended: mount it again",
        errno.ETIMEDOUT: "the file server does not answer: look at it and at the network",
        errno.EHOSTDOWN: "the file server is down: start it",
        errno.ECONNREFUSED: "the file server refuses: start its service",
    }
)  # fmt: skip

BY_SQLITE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SQLITE_BUSY": "another program keeps the store locked: end its transaction (fuser shows which program)",
        "SQLITE_BUSY_RECOVERY": "another program is recovering the store: wait until it is done",
        "SQLITE_LOCKED": "a statement of this process holds the table: run it again, and report it",
        "SQLITE_READONLY": "the store is read-only: check owner and mode of the store, of its -wal and -shm files"
        " and of its folder, and whether the file system is mounted for writing",
        "SQLITE_READONLY_DBMOVED": "the store was moved or removed while it was open: put it back, or restart",
        "SQLITE_FULL": "make room where the store lies (df -h)",
        "SQLITE_IOERR": "have the disk of the store checked (smartctl, dmesg); a disk quota or a limit on"
        " file sizes shows like this, too",
        "SQLITE_IOERR_LOCK": "the file system of the store cannot lock: keep the store on a local disk",
        "SQLITE_IOERR_NOMEM": "free memory, or raise MemoryMax= of the unit: the store could not be mapped",
        "SQLITE_CORRUPT": "the next run sets the store aside and builds it again; have the disk checked",
        "SQLITE_NOTADB": "it is no state store: correct --state; if it was one, the next run builds it again",
        "SQLITE_CANTOPEN": "let distilld's user enter the store's folder, and read and write the files in it",
        "SQLITE_PROTOCOL": "SQLite's locks do not work there: keep the store on a local disk, not on a network share",
        "SQLITE_NOLFS": "the file system takes no files of that size: keep the store on another one",
        "SQLITE_PERM": "SQLite may not set the file's mode: make distilld's user the owner of the store",
        "SQLITE_NOMEM": "free memory, or raise MemoryMax= of the unit",
        "SQLITE_TOOBIG": "a value is larger than SQLite takes: lower max_line_bytes",
        "SQLITE_INTERRUPT": "it was interrupted: run it again",
    }
)


BY_EVENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "batch_undone": "none for this event alone: the line before or after it says why",
        "batch_failed": "report the exception as a bug; distilld tries again",
        "stage_finished": "see what the command printed",
        "scan_failed": "mount the input trees, or make them readable",
        "folder_not_listed": "make the folder readable, or mount what is missing",
        "not_a_partition": "name partitions *.jsonl, below YYYY/MM/DD; nothing else is read",
        "lines_left_out": "see 'distilld status'; the first lines of this pass name examples",
        "file_unreadable": "make it a regular file that distilld's user can read, rename it, or take it away",
        "odd_partition_name": "name partition folders YYYY/MM/DD; the rows are read all the same",
        "malformed_scored": "check the producer; distilld explain RUN_ID names a line that still rejects a run",
        "unreviewed_verdict": "check the scorer: the category is none of the four",
        "malformed_evidence": "check the producer: the runs on these lines have no evidence",
        "input_changed": "none: the file is read again",
        "partition_absent": "restore the files; if they were removed on purpose, see distilld prune",
        "tripwire_tripped": "distilld prune --vanished --yes withdraws them, distilld prune --accept --yes keeps them",
        "export_tampered": "find out who writes below exports/ and stop it (ls -l, fuser, auditctl)",
        "export_set_aside": "look at the copy, then remove it",
        "export_restored": "none: rows that are missing are judged again",
        "card_not_written": "make the folder writable for distilld's user",
        "orphan_kept": "distilld prune --orphans shows them, and withdraws them with --yes",
        "store_set_aside": "if it was corrupt, have the disk checked (smartctl, dmesg); then remove the copy",
        "recovery_failed": "do what batch_failed says; the next try or start completes or undoes the batch",
        "page_not_written": "move away what is at its path",
        "withdrawal_overdue": "do what batch_failed says; do not train until failure_over",
        "lock_taken_again": "find out who removed the lock file, and leave it alone",
        "reload_refused": "correct the configuration and reload again",
        "watch_fallback": "none, if scans are enough; see 'Many partitions' in docs/operations.md",
        "retry_scheduled": "do what the line before says; failure_over marks the end",
        "metrics_failed": "make the file's folder writable for distilld's user",
    }
)
"""What to do about a log event that warns, unless the line itself has a hint."""


def remedy_of_missing(extra: str) -> str:
    """Return the command that installs an extra into the environment that this process runs in, whatever PATH says."""
    return f"{shlex.quote(sys.executable or 'python3')} -m pip install 'distilld[{extra}]'"


def remedy_of(error: BaseException) -> str:
    """Return what to do about an error, by its errno or SQLite code; an extended code precedes its primary code."""
    if isinstance(error, OSError):
        return BY_ERRNO.get(error.errno or 0, _OTHER)
    name = getattr(error, "sqlite_errorname", None) or ""
    parts = name.split("_")
    return BY_SQLITE.get(name) or BY_SQLITE.get("_".join(parts[:2])) or _OTHER
