"""From what a scan saw and what is recorded to what must be looked into: pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar

from distilld.core.model import InputKind, StatFacts

FileKey = tuple[InputKind, str]
"""An input file: its tree and its path below it."""


class Known(Protocol):
    """What is recorded of a file: its facts as of the last reading, and whether it is there."""

    @property
    def facts(self) -> StatFacts:
        """What the stat said when it was last read."""

    @property
    def present(self) -> bool:
        """Whether it stood in its tree when it was last looked for."""


K = TypeVar("K", bound=Known)


class Look(StrEnum):
    """Why a file is to be read."""

    NEW = "new"
    CHANGED = "changed"
    RETURNED = "returned"


class Plan(NamedTuple):
    """The files to read, in the order of the scan, and those that are gone, in the order in which they are known."""

    to_read: tuple[tuple[FileKey, Look], ...]
    gone: tuple[FileKey, ...]


def compare(
    seen: Mapping[FileKey, StatFacts],
    known: Mapping[FileKey, K],
    is_unknown: Callable[[InputKind, str], bool] = lambda *_: False,
    is_doubtful: Callable[[K], bool] = lambda _: False,
) -> Plan:
    """What a scan asks for. Files that ``is_unknown`` names could not be looked for: they are not gone (SPEC 2).

    A file counts as unchanged, without being read, only where all its facts are as recorded. Where they may be so
    although its bytes changed, ``is_doubtful`` says so (SPEC 4, 'A change is never trusted to be an append').
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
        return Plan(tuple(to_read), ())  # all that is known was seen
    gone = tuple(key for key, record in known.items() if record.present and key not in seen and not is_unknown(*key))
    return Plan(tuple(to_read), gone)
