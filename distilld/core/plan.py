"""Compare the result of a scan with the recorded files, and list what to read: pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar

from distilld.core.model import InputKind, StatFacts

FileKey = tuple[InputKind, str]
"""An input file: its tree, and its path below the tree."""


class Known(Protocol):
    """The record of a file: its facts at the last reading, and whether it was present."""

    @property
    def facts(self) -> StatFacts:
        """Return the facts of its stat when it was last read."""

    @property
    def present(self) -> bool:
        """Return whether it was in its tree at the last scan."""


K = TypeVar("K", bound=Known)


class Look(StrEnum):
    """Why a file must be read."""

    NEW = "new"
    CHANGED = "changed"
    RETURNED = "returned"


class Plan(NamedTuple):
    """The files to read, in the order of the scan, and the files that are gone, in the order of the records."""

    to_read: tuple[tuple[FileKey, Look], ...]
    gone: tuple[FileKey, ...]


def has_come(known: Known | None, facts: StatFacts) -> bool:
    """Return whether a file is new, there again or changed, as far as its facts show."""
    return known is None or not known.present or known.facts != facts


def compare(
    seen: Mapping[FileKey, StatFacts],
    known: Mapping[FileKey, K],
    is_unknown: Callable[[InputKind, str], bool] = lambda *_: False,
    is_doubtful: Callable[[K], bool] = lambda _: False,
) -> Plan:
    """Compare a scan with the records. A file that ``is_unknown`` names could not be seen: it is not gone (SPEC 2).

    A file counts as unchanged, without being read, only if all its facts are as recorded. ``is_doubtful`` says that its
    bytes may have changed all the same (SPEC 4, 'A change is never trusted to be an append').
    """
    to_read: list[tuple[FileKey, Look]] = []
    new = 0
    for key, facts in seen.items():
        record = known.get(key)
        if record is None:
            to_read.append((key, Look.NEW))
            new += 1
        elif not record.present:
            to_read.append((key, Look.RETURNED))
        elif record.facts != facts or is_doubtful(record):
            to_read.append((key, Look.CHANGED))
    if len(seen) - new == len(known):
        return Plan(tuple(to_read), ())  # every recorded file was seen
    gone = tuple(key for key, record in known.items() if record.present and key not in seen and not is_unknown(*key))
    return Plan(tuple(to_read), gone)
