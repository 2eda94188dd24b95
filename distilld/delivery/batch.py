"""Reads one committed batch for delivery, and tells an export that may not be read from a damaged one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from distilld.core.model import OperatorError
from distilld.core.remedies import remedy_of
from distilld.files.regular import open_regular
from distilld.publish.committed import CommittedBatch, at_one_batch

T = TypeVar("T")


def at_readable_batch(root: Path, state: Path, look: Callable[[CommittedBatch], T], *, names: Collection[str]) -> T:
    """Call ``look`` with the newest committed batch, as :func:`at_one_batch` does.

    Raises:
        OperatorError: As there; or the system refuses to read an export, which no run restores.
    """

    def checked(batch: CommittedBatch) -> T:
        for export in batch.exports.values():
            if export.problem:
                _refuse_denied(root, export.shown)
        return look(batch)

    return at_one_batch(root, state, checked, names=names)


def _refuse_denied(root: Path, shown: str) -> None:
    try:
        open_regular(root / shown).close()
    except FileNotFoundError:
        return
    except OSError as error:
        # Our own messages ('is no regular file') are about an export that was replaced: a run restores it.
        if error.errno is not None and error.strerror == os.strerror(error.errno):
            raise OperatorError(f"cannot read {shown}: {error.strerror}", hint=remedy_of(error)) from error
