"""The chain of a lake's own receipts: is each as it was written, and does it follow the one before it? Only reads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Final, NamedTuple

from distilld.files.regular import read_regular
from distilld.publish.receipt_files import receipt_path, sha256_of
from distilld.store.connection import Store
from distilld.store.queries import KeptReceipt, Views, reading
from distilld.store.receipts import BatchRecord, Receipts

WHOLE: Final = "ok"
MISSING: Final = "missing"
NOT_WRITTEN: Final = "not written yet"
"""The batch is committed, and its receipt's file is yet to be written: a fault only if nobody is writing it."""

_NEEDED: Final = {"previous_receipt_sha256", "record_counts", "validation_pass"}


class CheckedReceipt(NamedTuple):
    """A batch, what its receipt says of it, and what is wrong with the receipt."""

    batch: BatchRecord
    checks: str
    """Whether its checks passed."""
    replaced: int | None
    """How many of the rows that it withdrew were replaced under their id; None if that is unknown."""
    faults: tuple[str, ...]

    @property
    def state(self) -> str:
        """Return 'ok', or what is wrong first of all."""
        return next(iter(self.faults), WHOLE)


def checked_receipts(store: Store, root: Path, limit: int | None = None) -> list[CheckedReceipt]:
    """Return the newest receipts, newest first, up to ``limit``; None for all. For the link one more is read.

    A writer may have removed the oldest ones meanwhile. It forgets them first, so they are left out.
    """
    found = list(_checked(store, root, limit))
    if any(MISSING in each.faults for each in found):
        with reading(store.path, root) as later:
            oldest = Receipts(later).oldest_kept()
        found = [each for each in found if each.batch.batch >= oldest or MISSING not in each.faults]
    return found


def _checked(store: Store, root: Path, limit: int | None) -> Iterator[CheckedReceipt]:
    anchor = store.recall("receipt_anchor_sha256")
    kept = Views(store).receipts(None if limit is None else limit + 1)
    for receipt, before in islice(pairwise(chain(kept, (None,))), limit):
        assert receipt is not None  # noqa: S101  only the last one is
        facts = receipt.facts()
        if not facts.keys() >= _NEEDED:
            facts = {}
        faults = [] if facts else ["changed in the store" if receipt.is_changed() else "no receipt"]
        faults += _faults_of_file(root, receipt)
        if facts and facts["previous_receipt_sha256"] != (before.sha256 if before else anchor):
            faults.append("names another receipt before it")
        checks, replaced = "unknown", None
        if facts:
            checks = "passed" if facts["validation_pass"] else "failed"
            replaced = sum(each.get("replaced", 0) for each in facts["record_counts"]["per_exporter"].values())
        yield CheckedReceipt(receipt.batch, checks, replaced, tuple(faults))


def _faults_of_file(root: Path, receipt: KeptReceipt) -> Iterator[str]:
    try:
        if sha256_of(read_regular(root / receipt_path(receipt.batch.batch_id))) != receipt.sha256:
            yield "changed"
    except FileNotFoundError:
        yield MISSING if receipt.written else NOT_WRITTEN
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
