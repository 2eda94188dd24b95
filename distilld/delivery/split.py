"""Which rows a model is validated on: whole tasks, by a hash of the task, so that none is on both sides, or moves."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import Final

SALT: Final = "distilld"
TRAIN: Final = "train"
VALIDATION: Final = "validation"


def is_validation(task: str, share: float, salt: str = SALT) -> bool:
    """Whether a task's rows are for validation: a share of all tasks, the same ones as long as salt and share are."""
    digest = hashlib.sha256(f"{salt}\0{task}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


@dataclass(slots=True)
class Sides:
    """What stands on each side, as hashes: of many train rows eight bytes each, of few validation rows a set."""

    train: array[int] = field(default_factory=lambda: array("q"))
    validation: set[int] = field(default_factory=set)

    def add(self, side: str, what: str) -> None:
        """Something stands on a side."""
        if side == TRAIN:
            self.train.append(hash(what))
        else:
            self.validation.add(hash(what))

    def on_both(self) -> set[int]:
        """What stands on both sides."""
        return {digest for digest in self.train if digest in self.validation} if self.validation else set()
