"""Bytes that count how many of them are copied when two are added: work that shows without a clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

PIECES: Final = 200
PIECE_BYTES: Final = 50


class Copied(bytes):
    """Bytes that stay such when they are cut or added; ``Copied.total`` has the bytes of all sums."""

    total = 0

    def _sum(self, left: bytes, right: bytes) -> Copied:
        Copied.total += len(left) + len(right)
        return Copied(b"".join((left, right)))

    def __add__(self, other: Any) -> Copied:
        return self._sum(self, other)

    def __radd__(self, other: Any) -> Copied:
        return self._sum(other, self)

    def __getitem__(self, which: Any) -> Any:
        found = super().__getitem__(which)
        return Copied(found) if isinstance(found, bytes) else found

    def __bytes__(self) -> bytes:
        return self


def long_line() -> Iterator[Copied]:
    """One line in many pieces."""
    Copied.total = 0
    for number in range(PIECES):
        yield Copied((b"x" * PIECE_BYTES)[:-1] + (b"\n" if number == PIECES - 1 else b"x"))
