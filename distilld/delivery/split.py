"""Splits rows into train and validation by a hash of the task: no task is on both sides, or changes sides."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import Final

SALT: Final = "distilld"
TRAIN: Final = "train"
VALIDATION: Final = "validation"


def is_validation(task: str, share: float) -> bool:
    """Return whether a task is for validation: a share of all tasks, the same for the same share."""
    digest = hashlib.sha256(f"{SALT}\0{task}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


@dataclass(slots=True)
class Sides:
    """What is on each side, as hashes: an array (8 bytes each) for the many of train, a set for validation."""

    train: array[int] = field(default_factory=lambda: array("q"))
    validation: set[int] = field(default_factory=set)

    def add(self, side: str, what: str) -> None:
        """Record that ``what`` is on a side."""
        if side == TRAIN:
            self.train.append(hash(what))
        else:
            self.validation.add(hash(what))

    def on_both(self) -> set[int]:
        """Return the hashes of what is on both sides."""
        return {digest for digest in self.train if digest in self.validation} if self.validation else set()
