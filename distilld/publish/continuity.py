"""Compares exports that no store knows with the receipts on disk: only if they agree can a copy of a dataset go on.

A copy that is kept by changes alone learns of a row by its time or by its withdrawal (SPEC 7). What a program does to
the exports while there is no store has neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distilld.core.model import EXPORT_PATHS, Dataset
from distilld.files.regular import open_regular
from distilld.files.segments import hash_of
from distilld.publish.receipt_files import receipts_on_disk


def continued(root: Path) -> frozenset[Dataset]:
    """Return the datasets whose rows and withdrawals begin with what the newest receipt that names them recorded.

    What follows is of a batch that was cut off, so it is newer than every copy.

    Raises:
        ReceiptReadError: The receipts cannot be listed or read.
    """
    left = {path: name for name, path in EXPORT_PATHS.items() if not name.startswith("quarantine_")}
    as_recorded = set()
    for _, receipt in receipts_on_disk(root):
        for output in _outputs(receipt):
            name = left.pop(output.path, None)
            if name is not None and _begins_with(root / EXPORT_PATHS[name], output):
                as_recorded.add(name)
        if not left:
            break
    as_recorded |= {name for path, name in left.items() if not (root / path).exists()}
    return frozenset(each for each in Dataset if {each.value, f"withdrawals_{each}"} <= as_recorded)


class _Output(NamedTuple):
    """What a receipt says of a file."""

    path: str
    size: int
    sha256: str
    segment_bytes: int


def _outputs(receipt: Mapping[str, Any]) -> Iterator[_Output]:
    """Yield the files that a receipt names; skip what somebody else wrote there."""
    found = receipt.get("outputs")
    for each in found if isinstance(found, list) else ():
        match each:
            case {"path": str(path), "bytes": int(size), "sha256": str(sha256), "segment_bytes": int(segment_bytes)}:
                if size >= 0 and segment_bytes > 0:
                    yield _Output(path, size, sha256, segment_bytes)
            case {"path": str(path), "bytes": int(size), "sha256": str(sha256)}:
                # Older versions did not digest by segments.
                yield _Output(path, size, sha256, max(size, 1))


def _begins_with(path: Path, output: _Output) -> bool:
    """Return whether a file begins with the bytes that a receipt recorded."""
    try:
        with open_regular(path) as file:
            found = hash_of(file.fileno(), output.size, output.segment_bytes)
    except FileNotFoundError:
        return output.size == 0
    except OSError:
        return False
    return found.size == output.size and found.hexdigest() == output.sha256
