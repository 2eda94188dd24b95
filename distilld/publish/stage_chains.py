"""The receipts of other stages (SPEC 4). No store knows them, so only their chains show whether they are as written.

Each receipt names one before it; the oldest names one that is no longer kept. No receipt names the newest yet, so only
its form is checked. Folders are listed as a whole, for their names alone; a receipt is read where it is asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Any, Final, NamedTuple

import orjson

from distilld.files.regular import read_regular
from distilld.publish.receipt_files import ids_by_stage, receipt_bytes, receipt_path, sha256_of


class StageReceipt(NamedTuple):
    """The receipt of another stage, and what is wrong with it or with its link to the one before it."""

    batch_id: str
    stage: str
    exit_code: int | None
    duration_ms: int | None
    problem: str | None


def broken_stage_chains(root: Path) -> list[str]:
    """Return what is wrong with the receipts of other stages: those that were edited or are gone, the oldest first.

    Raises:
        OSError: The folder of the receipts cannot be listed.
    """
    broken = [each for each in stage_receipts(root) if each.problem is not None]
    return [f"{receipt_path(each.batch_id)}: {each.problem}" for each in reversed(broken)]


def stage_receipts(root: Path) -> Iterator[StageReceipt]:
    """Yield the receipts of other stages, newest first. Of the older ones, only what checks these is read.

    Raises:
        OSError: The folder of the receipts cannot be listed.
    """
    chains = [_Chain(root, stage, batch_ids).receipts() for stage, batch_ids in ids_by_stage(root).items()]
    return heapq.merge(*chains, key=attrgetter("batch_id"), reverse=True)


def stage_anchors(root: Path) -> set[str]:
    """Return every sha256 in the chains of other stages: of their receipts, and of the receipts that these name.

    Raises:
        OSError: A receipt cannot be read.
    """
    found: set[str] = set()
    for batch_ids in ids_by_stage(root).values():
        for path in map(receipt_path, batch_ids):
            with suppress(FileNotFoundError):
                content = read_regular(root / path)
                facts = _facts_in(content) or {}
                found.update((sha256_of(content), str(facts.get("previous_receipt_sha256"))))
    return found


class _Found(NamedTuple):
    """A receipt on disk. ``sha256`` is None if it cannot be read, ``facts`` if it is not as distilld writes one."""

    batch_id: str
    sha256: str | None
    facts: dict[str, Any] | None
    problem: str | None


class _Chain:
    """The receipts of one stage."""

    def __init__(self, root: Path, stage: str, batch_ids: Sequence[str]) -> None:
        """``batch_ids`` are in order, oldest first."""
        self._stage = stage
        self._unread = (found for each in reversed(batch_ids) if (found := _find(root, each)) is not None)
        self._read: list[_Found] = []
        self._places: dict[str | None, int] = {}
        """Of each digest, its place in what was read."""

    def receipts(self) -> Iterator[StageReceipt]:
        """Yield the receipts, newest first."""
        place = 0
        while place < len(self._read) or self._read_on():
            batch_id, _, facts, problem = self._read[place]
            if facts is None:
                yield StageReceipt(batch_id, self._stage, None, None, problem)
            else:
                if not self._stands_behind(place, facts["previous_receipt_sha256"]):
                    problem = "the receipt before it is gone, or is not as it was written"
                yield StageReceipt(batch_id, self._stage, facts["exit_code"], facts["duration_ms"], problem)
            place += 1

    def _stands_behind(self, place: int, sha256: str | None) -> bool:
        """Return whether a receipt that is older than the one at this place has this digest."""
        while self._places.get(sha256, place) <= place:
            if not self._read_on():
                # Two concurrent runs of a stage may follow the same receipt, even one that is no longer kept.
                oldest = next((each.facts for each in reversed(self._read) if each.sha256 is not None), None)
                return oldest is not None and oldest["previous_receipt_sha256"] == sha256
        return True

    def _read_on(self) -> bool:
        """Read one more receipt; return whether there was one."""
        found = next(self._unread, None)
        if found is None:
            return False
        if found.sha256 is not None:
            self._places[found.sha256] = len(self._read)
        self._read.append(found)
        return True


def _find(root: Path, batch_id: str) -> _Found | None:
    """Read a receipt; return None if there is no file: its stage is about to write it, or was killed."""
    try:
        content = read_regular(root / receipt_path(batch_id))
    except FileNotFoundError:
        return None
    except OSError as error:
        return _Found(batch_id, None, None, f"cannot be read: {error.strerror}")
    facts = _facts_in(content)
    return _Found(batch_id, sha256_of(content), facts, None if facts is not None else "is not as it was written")


def _facts_in(content: bytes) -> dict[str, Any] | None:
    """Return what a receipt says, or None if it is not byte for byte as distilld writes it."""
    try:
        facts = orjson.loads(content)
    except ValueError:
        return None
    if not isinstance(facts, dict) or receipt_bytes(facts) != content:
        return None
    right = all(type(facts.get(key)) in types for key, types in _TYPES.items())
    return facts if right else None


_TYPES: Final = {"previous_receipt_sha256": (str, NoneType), "exit_code": (int,), "duration_ms": (int,)}
