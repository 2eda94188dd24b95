"""A day's worth of batches, fast-forwarded: memory does not grow with them."""

from __future__ import annotations

import ctypes
import gc
import random
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from distilld.config.load import load
from distilld.service.run_once import writer
from distilld.service.systemd import Notifier
from distilld.store.connection import CACHE_KIB
from tests.service.test_daemon import Script, Scripted
from tests.support.lake_by_formula import append_bench_rows, partition_of, write_bench_lake

pytestmark = pytest.mark.slow

BATCHES = 20_000
WARM = 4_000
PARTITIONS = 200
RESCORED_EVERY = 50
GROWTH_MOST_MIB = 1.0
"""Of memory that is in use, SQLite's apart."""
GROWTH_MOST_BLOCKS = (BATCHES - WARM) // 4
"""Of Python's blocks of memory: one that every batch left behind would be four times as much."""
SQLITE_ITSELF_MIB = 3.0
FREED_MOST_MIB = 12.0
"""What the allocator may keep of memory that nobody uses any more."""
MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """What this process holds: resident; in use by C code, as malloc knows it; by SQLite; in how many Python blocks."""

    resident_mib: float
    in_use_mib: float
    sqlite_mib: float
    python_blocks: int

    @property
    def own_mib(self) -> float:
        """What is in use, SQLite apart."""
        return self.in_use_mib - self.sqlite_mib


class _MallocInfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    )  # fmt: skip


def memory() -> Memory:
    """As of now, without what is only waiting to be collected. What the machine does not tell is 0."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    in_use = 0
    if (mallinfo := getattr(ctypes.CDLL(None), "mallinfo2", None)) is not None:
        mallinfo.restype = _MallocInfo
        found = mallinfo()
        in_use = found.uordblks + found.hblkhd
    sqlite = _sqlite_memory_used() if _sqlite_memory_used is not None else 0
    return Memory(pages * resource.getpagesize() / MIB, in_use / MIB, sqlite / MIB, sys.getallocatedblocks())


def _memory_used_by_sqlite() -> Callable[[], int] | None:
    """SQLite's own account, where the interpreter's sqlite3 is linked with a library that can be asked."""
    assert sqlite3.sqlite_version  # it is loaded
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    library = next((line.split(maxsplit=5)[5] for line in maps if "libsqlite3" in line), None)
    if library is None:
        return None
    asked: Callable[[], int] = ctypes.CDLL(library).sqlite3_memory_used
    asked.restype = ctypes.c_int64  # type: ignore[attr-defined]
    return asked


_sqlite_memory_used = _memory_used_by_sqlite()


class Producer(Script):
    """A producer that writes a row before each look, and rejects an older run now and then."""

    def __init__(self, root: Path, batches: int) -> None:
        super().__init__()
        self._root = root
        self._left = batches
        self._row = 0
        self._dice = random.Random(7)
        self.memory: list[Memory] = []

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        if self._row >= self._left:
            self.stop()
            return False
        self._write(self._row % PARTITIONS)
        self._row += 1
        if self._row % 500 == 0:
            self.memory.append(memory())
            print(f"{self._row:>6} batches: {self.memory[-1]}", flush=True)
        return True

    def _write(self, partition: int) -> None:
        append_bench_rows(self._root, partition_index=partition, first_row=self._row, rows=1, text_bytes=200)
        if self._row % RESCORED_EVERY == 0:
            path = self._root / "data/scored-runs" / partition_of(partition)
            line = self._dice.choice(path.read_bytes().splitlines(keepends=True))
            with path.open("ab") as file:
                file.write(line.replace(b'"accepted"', b'"rejected"'))


def test_memory_does_not_grow_with_batches(tmp_path: Path) -> None:
    """20,000 batches, some with withdrawals, leave a daemon as large as the first 4,000 made it."""
    root = tmp_path / "lake"
    write_bench_lake(root, rows=PARTITIONS, partitions=PARTITIONS, text_bytes=200)
    flags = {"root": root, "metrics_file": tmp_path / "m.prom", "receipts_keep": 100, "settle_seconds": 0}
    settings = load(flags=flags, environ={}, config_file=None, cwd=tmp_path)
    script = Producer(root, BATCHES)
    Scripted.script = script
    made = Scripted(settings, read_settings=lambda: settings, notifier=Notifier(None), clock=script.clock)
    script.stop = lambda: made.signals.on_stop(signal.SIGTERM, None)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    try:
        with made.signals.taken(), writer(settings, pulse=made.pulse) as engine:
            made.run(engine)
            last = engine.receipts.last_batch()
            assert last is not None
            assert last.batch >= BATCHES
    finally:
        structlog.reset_defaults()
    warm, after = script.memory[: WARM // 500], script.memory[-1]
    # SQLite's page cache fills as the store grows, up to what it is allowed. Nothing else grows.
    assert after.sqlite_mib < CACHE_KIB / 1024 + SQLITE_ITSELF_MIB
    assert after.own_mib - max(each.own_mib for each in warm) < GROWTH_MOST_MIB
    grown = after.resident_mib - max(each.resident_mib for each in warm)
    assert grown < CACHE_KIB / 1024 + FREED_MOST_MIB
    assert after.python_blocks - max(each.python_blocks for each in warm) < GROWTH_MOST_BLOCKS
