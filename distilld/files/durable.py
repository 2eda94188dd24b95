"""Bytes and names that outlast a kill and a power cut: the few calls that every durable write is made of.

What a call here has done when it returns is on the disk; cut off in the middle, it may be made again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FOLDER_MODE: Final = 0o750
FILE_MODE: Final = 0o640


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; the entries of those that it made last."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that its entries last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_up(folder: Path, root: Path) -> None:
    """fsync a folder and those above it, up to ``root``: a kill may have come between making one and its fsync."""
    sync_folder(folder)
    while folder not in {root, folder.parent}:
        folder = folder.parent
        sync_folder(folder)


def write_all(descriptor: int, block: bytes) -> None:
    """Write a whole block where the descriptor stands, however many calls that takes."""
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: Path, content: bytes) -> None:
    """Put a file with this content in the place of ``path``, which holds the old or the new content at any moment.

    The temporary file beside it has a name of its own, so a second try takes the place of one that was cut off.
    """
    temp = path.with_name(f".{path.name}.tmp")
    temp.unlink(missing_ok=True)
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temp, path)
    sync_folder(path.parent)
