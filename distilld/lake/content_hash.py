"""The sha256 of content that may have holes.

A run of at least ``NUL_RUN_BYTES`` NUL bytes counts by its place and length, not by its bytes. So the hole of a sparse
file costs nothing, and the same content has the same hash whether or not its NULs are on the disk. Without such a run
the hash is the plain sha256.
"""

from __future__ import annotations

import hashlib
from typing import Final

NUL_RUN_BYTES: Final = 1 << 17
_sha256: Final = hashlib.sha256


class ContentHash:
    """Hashes bytes and holes in order; NULs give the same hash as bytes or as a hole."""

    __slots__ = ("_length", "_nuls", "_runs", "_sha")

    def __init__(self, data: bytes = b"") -> None:
        self._sha = _sha256()
        self._runs: hashlib._Hash | None = None
        self._length = self._nuls = 0
        self.update(data)

    def update(self, data: bytes | int) -> None:
        """Add the next bytes; a number stands for so many NULs."""
        if isinstance(data, int):
            self._nuls += data
            return
        for start in range(0, len(data), NUL_RUN_BYTES):
            # A piece of this size has no long run in its middle, only at its ends.
            piece = data[start : start + NUL_RUN_BYTES]
            body = piece.lstrip(b"\0")
            self._nuls += len(piece) - len(body)
            if body:
                self._end_run()
                text = body.rstrip(b"\0")
                self._sha.update(text)
                self._length += len(text)
                self._nuls = len(body) - len(text)

    def copy(self) -> ContentHash:
        """Return an independent copy."""
        other = ContentHash()
        other._sha, other._runs = self._sha.copy(), self._runs and self._runs.copy()
        other._length, other._nuls = self._length, self._nuls
        return other

    def digest(self) -> bytes:
        """Return the hash of all content so far."""
        whole = self.copy()
        whole._end_run()
        if whole._runs is None:
            return whole._sha.digest()
        return _sha256(b"\0runs\0" + whole._sha.digest() + whole._runs.digest()).digest()

    def _end_run(self) -> None:
        if self._nuls >= NUL_RUN_BYTES:
            self._runs = self._runs or _sha256()
            self._runs.update(b"%d+%d " % (self._length, self._nuls))
        elif self._nuls:
            self._sha.update(bytes(self._nuls))
        self._length += self._nuls
        self._nuls = 0
