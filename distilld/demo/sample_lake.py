"""A small sample lakehouse for ``distilld demo`` and the tests: files beside this module, the same each time.

``lake/`` holds three days of nine sources, and the source files that its rows name. ``appended/`` holds the lines that
come later. Most rows are plain. The others, at the ends of the first day's files, show once or twice each what else can
happen to a row: a verdict that a later day reverses, a review that ends well, a run that is scored twice, half a row, a
row without a hash, without a run or without evidence, a run without text, two answers that are the same, answers about
files that do not exist. Every reason of SPEC 3.7 occurs except self_pairing (reserved) and too_many_exports;
hallucinated_file_path occurs only with ``check_source_files`` on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

RESCORED_RUN_ID: Final = "scrum:1772409705640:1:crates/vectord/src/playbook_memory.rs"
"""A run that is exported to all three datasets, and is the chosen side of its task's only pair."""
_RESCORED_FILE: Final = "data/scored-runs/2026/03/02/scrum_reviews.jsonl"
_HERE: Final = Path(__file__).parent


def write_sample_lake(root: Path) -> None:
    """Write the lake below ``root``, which holds none yet."""
    _append(_HERE / "lake", root)


def append_rows(root: Path) -> tuple[Path, ...]:
    """Append some scored rows with their evidence to the last day's partitions; return the files that grew.

    The first two rows are the two sides of a pair.
    """
    return _append(_HERE / "appended", root)


def rescore_in_place(root: Path) -> Path:
    """Turn the row of :data:`RESCORED_RUN_ID` from accepted into rejected in place; return its file.

    Size, inode and mtime stay the same: only the content (and ctime) shows that the verdict changed.
    """
    path = root / _RESCORED_FILE
    before, content = path.stat(), path.read_bytes()
    at = content.index(b"accepted", content.index(f'"evidence_run_id":"{RESCORED_RUN_ID}"'.encode()))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"rejected")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


def _append(source: Path, root: Path) -> tuple[Path, ...]:
    """Append each file below ``source`` to the file of this name, evidence before the scored rows that need it."""
    written = []
    for path in sorted(each for each in source.rglob("*") if each.is_file()):
        grown = root / path.relative_to(source)
        grown.parent.mkdir(parents=True, exist_ok=True)
        with grown.open("ab") as file:
            file.write(path.read_bytes())
        written.append(grown)
    return tuple(written)
