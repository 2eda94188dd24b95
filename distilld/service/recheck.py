"""Hashes files again although their stat facts are as recorded, while the daemon has nothing else to do (SPEC 4).

Soon after a file was indexed, this proves that its facts and its bytes match; later it finds changes that the facts do
not show. Files are hashed block by block: a long file delays nothing, and is not started again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator
from time import monotonic, monotonic_ns, time_ns
from typing import Final

from distilld.core.model import InputChanged, OperatorError, StatFacts
from distilld.engine.engine import Engine
from distilld.lake.lines import PartitionReader, end_of
from distilld.lake.scan import open_partition, tree_path
from distilld.store.inputs import FileRecord

SLICE_SECONDS: Final = 0.02
"""How long a step hashes, and so how long new work may have to wait."""
SCRUB_REST: Final = 49
"""A scrub rests this many times as long as it reads: it costs 2 % of a core."""
LONGEST_PAUSE_SECONDS: Final = 60.0

_Outcome = tuple[FileRecord, bool]


class Recheck:
    """Hashes files in short steps while the daemon rests."""

    def __init__(self, engine: Engine) -> None:
        engine.believes_facts = True
        self._engine = engine
        self._inputs = engine.inputs
        self._waiting: deque[FileRecord] = deque()
        self._reading: Generator[None, None, _Outcome] | None = None
        self._scrubs = False
        self._scrub_at: float | None = None
        """When to hash the next file (monotonic seconds), so that each file is hashed once per scrub period."""
        self.found = False
        """Whether a file had other bytes than recorded; the next pass reads it."""

    def step(self) -> float:
        """Hash for a moment; return in how many seconds the next step is due.

        Raises:
            OperatorError: The store cannot be used; the files of this step are hashed again.
        """
        began = monotonic()
        done: list[_Outcome] = []
        while monotonic() - began < SLICE_SECONDS and (reading := self._reading or self._begin(more=not done)):
            try:
                next(reading)
            except StopIteration as end:
                self._reading = None
                done.append(end.value)
        if done:
            with self._engine.store.transaction():
                self.found |= self._inputs.note_hashed(done)
        if done or self._reading:
            return (monotonic() - began) * SCRUB_REST if self._scrubs else 0.0
        return self._pause()

    @property
    def is_busy(self) -> bool:
        """Return whether files wait to be hashed; the pause between two steps then counts for the pace."""
        return self._reading is not None or bool(self._waiting)

    def close(self) -> None:
        """Close the file that is being hashed."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _begin(self, *, more: bool) -> Generator[None, None, _Outcome] | None:
        """Begin with the next file. ``more``: get due files from the store, if all finished files are recorded."""
        if not self._waiting and more:
            with self._engine.store.faults():
                self._waiting.extend(self._due())
        if self._waiting:
            self._reading = self._hash(self._waiting.popleft())
        return self._reading

    def _due(self) -> list[FileRecord]:
        unsure = self._inputs.unsure(monotonic_ns())
        self._scrubs = not unsure
        scrub_ns = self._engine.scrub_ns
        if unsure or not scrub_ns:
            return unsure
        if overdue := self._inputs.hashed_before(time_ns() - scrub_ns):
            return overdue
        now, turn_at = monotonic(), self._scrub_at
        if turn_at is not None and now < turn_at:
            return []
        files, _ = self._inputs.oldest_hash()
        self._scrub_at = now + scrub_ns / 1e9 / max(1, files)
        return [] if turn_at is None else self._inputs.hashed_before(time_ns(), 1)

    def _pause(self) -> float:
        with self._engine.store.faults():
            sure_at_ns = self._inputs.sure_at_ns()
        sure_in = LONGEST_PAUSE_SECONDS if sure_at_ns is None else (sure_at_ns - monotonic_ns()) / 1e9
        scrub_in = self._scrub_at - monotonic() if self._engine.scrub_ns and self._scrub_at else sure_in
        return max(0.0, min(sure_in, scrub_in, LONGEST_PAUSE_SECONDS))

    def _hash(self, record: FileRecord) -> Generator[None, None, _Outcome]:
        began_ns = monotonic_ns()
        try:
            with open_partition(self._engine.root, *record.key) as (descriptor, facts):
                shown, limit = tree_path(*record.key), self._engine.options.max_line_bytes
                reader = PartitionReader(descriptor, facts.size, limit, shown)
                same = facts == record.facts and (yield from reader.proof(record.content.size, record.content.sha256))
                if same:
                    for lines in reader.blocks():
                        same = same and not lines
                        yield
                    same = same and end_of(reader.tail) == record.content.end
                same = same and StatFacts.of(os.fstat(descriptor)) == facts
        except (InputChanged, OperatorError):
            same = False
        if same:
            record.note_hashed(record.facts, began_ns)
        return record, same
