"""Hashes the exports again although their stat facts are as recorded, while the daemon has nothing else to do (SPEC 4).

Another program may change a file in the moment in which a batch appends to it, or a disk may give back other bytes. The
facts then show nothing. A round hashes every segment of every export, one by one, and compares it with the store.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from distilld.core.model import Committed
from distilld.engine.engine import Engine
from distilld.publish.reading import ExportReadError, ExportTamperedError
from distilld.service.recheck import SCRUB_REST, SLICE_SECONDS

LEAST_SECONDS_A_ROUND: Final = 60.0


class ExportRecheck:
    """Hashes the exports in rounds: one soon after they changed, then one per scrub period."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: list[str] = []
        """The exports that the round has yet to hash, the current one first."""
        self._segment = 0
        """The next segment of the current one."""
        self._seen: dict[str, Committed] = {}
        """The exports as of the start of the last round."""
        self._began_at = float("-inf")
        self._next_at = float("-inf")
        self.found = False
        """Whether an export has other bytes than its last commit; the next pass restores it."""

    def step(self) -> float:
        """Hash for a moment; return in how many seconds the next step is due.

        Raises:
            StoreFaultError: The store cannot be used; the round goes on with the next step.
        """
        began = monotonic()
        if began >= self._next_at and self._engine.scrub_ns:
            with self._engine.store.faults():
                self._hash_until(began + SLICE_SECONDS)
            ended = monotonic()
            self._next_at = ended + (ended - began) * SCRUB_REST if self._left else ended + LEAST_SECONDS_A_ROUND
        return max(0.0, self._next_at - monotonic()) if self._engine.scrub_ns else LEAST_SECONDS_A_ROUND

    def _hash_until(self, end: float) -> None:
        if not self._left:
            self._begin_if_due(monotonic())
        while self._left and monotonic() < end:
            if self._check(self._left[0], self._segment):
                self._segment += 1
            else:
                del self._left[0]
                self._segment = 0

    def _begin_if_due(self, now: float) -> None:
        committed = {name: record.committed for name, record in self._engine.export_records.exports().items()}
        if committed != self._seen or now >= self._began_at + self._engine.scrub_ns / 1e9:
            self._began_at, self._seen, self._left = now, committed, list(committed)

    def _check(self, name: str, number: int) -> bool:
        """Check a segment; return whether the export had one with this number, and it was as committed."""
        try:
            stands = self._engine.restorer.stands_in(name, number)
        except (ExportTamperedError, ExportReadError):
            return False  # the next pass, and whoever reads it, will see why
        self.found |= stands is False
        return bool(stands)
