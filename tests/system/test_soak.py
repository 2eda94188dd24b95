"""A day's worth of batches, fast-forwarded: memory does not grow with them."""

from __future__ import annotations

import os
import random
import resource
import signal
from pathlib import Path

import pytest
import structlog

from distilld.config import load
from distilld.once import writer
from distilld.watch import Wake
from tests.bench.lake_by_formula import append_bench_rows, partition_of, write_bench_lake
from tests.unit.test_daemon import Heard, Script, Scripted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BATCHES = 20_000
WARM = 4_000
PARTITIONS = 200
RESCORED_EVERY = 50
GROWTH_MOST_MIB = 8.0


def resident_mib() -> float:
    """This process's memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / (1 << 20)


class Producer(Script):
    """A producer that writes a row before each look, and rejects an older run now and then."""

    def __init__(self, root: Path, batches: int) -> None:
        super().__init__()
        self._root = root
        self._left = batches
        self._row = 0
        self._dice = random.Random(7)
        self.resident: list[float] = []

    def wait(self, seconds: float) -> Wake:
        self.now += seconds
        if self._row >= self._left:
            self.stop()
            return Wake.TICK
        self._write(self._row % PARTITIONS)
        self._row += 1
        if self._row % 500 == 0:
            self.resident.append(resident_mib())
        return Wake.CHANGED

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
    made = Scripted(settings, read_settings=lambda: settings, environ={}, notifier=Heard([]), clock=script.clock)
    script.stop = lambda: made._on_stop(signal.SIGTERM, None)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    try:
        with made.signals(), writer(settings, pulse=made.pulse) as engine:
            made.run(engine)
            last = engine.ledger.last_batch()
            assert last is not None
            assert last.batch >= BATCHES
    finally:
        structlog.reset_defaults()
    before = max(script.resident[: WARM // 500])
    after = script.resident[-1]
    print(f"{os.linesep}resident: {before:.1f} MiB after {WARM} batches, {after:.1f} MiB after {BATCHES}")
    assert after - before < GROWTH_MOST_MIB
