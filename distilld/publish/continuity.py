"""Compares exports that no store knows with the receipts on disk: only if they agree can a copy of a dataset go on.

A copy that is kept by changes alone learns of a row by its time or by its withdrawal (SPEC 7). What a program does to
the exports while there is no store has neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from distilld.core.model import EXPORT_PATHS, WHOLE_FILE, Committed, Dataset
from distilld.files.regular import open_regular
from distilld.files.segments import hash_of
from distilld.publish.receipt_files import Link, receipts_on_disk

_TIME: Final = re.compile(rb'"(?:created_at|withdrawn_at)":"([^"]*)"')


def copies_begin_after(root: Path) -> dict[str, str]:
    """Return by dataset the last batch from which a copy cannot go on, by the newest receipt and the exports.

    A copy can go on if the dataset's rows and withdrawals begin with what the newest receipt that names them recorded.
    What follows must be of a batch that was cut off: newer than every copy.

    Raises:
        ReceiptReadError: The receipts cannot be listed or read.
    """
    newest: tuple[Link, dict[str, Any]] | None = None
    left = {path: name for name, path in EXPORT_PATHS.items() if not name.startswith("quarantine_")}
    as_recorded = set()
    for link, receipt in receipts_on_disk(root):
        newest = newest or (link, receipt)
        for path, output in _outputs(receipt):
            name = left.pop(path, None)
            if name is not None and _begins_with(root / EXPORT_PATHS[name], output, newest[0].recorded_at):
                as_recorded.add(name)
        if not left:
            break
    if newest is None:
        return {}
    as_recorded |= {name for path, name in left.items() if not (root / path).exists()}
    changed = {each.value for each in Dataset if not {each.value, f"withdrawals_{each}"} <= as_recorded}
    return _told_before(newest[1]) | dict.fromkeys(changed, newest[0].batch_id)


def _told_before(receipt: Mapping[str, Any]) -> dict[str, str]:
    """Return what an earlier store that was lost, too, recorded in its receipts."""
    told = receipt.get("copies_begin_after")
    found = told.items() if isinstance(told, dict) else ()
    return {name: batch_id for name, batch_id in found if isinstance(batch_id, str)}


def _outputs(receipt: Mapping[str, Any]) -> Iterator[tuple[str, Committed]]:
    """Yield the files that a receipt names, as it left them; skip what somebody else wrote there."""
    found = receipt.get("outputs")
    for each in found if isinstance(found, list) else ():
        match each:
            case {"path": str(path), "bytes": int(size), "sha256": str(sha256), "segment_bytes": int(segment_bytes)}:
                if size >= 0 and segment_bytes > 0:
                    yield path, Committed(size, 0, sha256, segment_bytes)
            case {"path": str(path), "bytes": int(size), "sha256": str(sha256)}:
                # Older versions did not digest by segments.
                yield path, Committed(size, 0, sha256, WHOLE_FILE)


def _begins_with(path: Path, output: Committed, recorded_at: str) -> bool:
    """Return whether a file begins with the bytes that a receipt recorded, and each line behind them is newer."""
    try:
        with open_regular(path) as file:
            found = hash_of(file.fileno(), output)
            file.seek(output.size)
            for line in file:
                time = _TIME.search(line) if line.endswith(b"\n") else None
                if time is not None and time[1] <= recorded_at.encode():
                    return False
    except FileNotFoundError:
        return output.size == 0
    except OSError:
        return False
    return found.size == output.size and found.hexdigest() == output.sha256
