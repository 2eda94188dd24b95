"""Real kills: at random moments while a producer writes, and at system calls of SQLite's own."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distilld.core.model import Category, Trigger
from tests.crash.test_die_at_each_call import start_comes_to
from tests.support.builders import jsonl
from tests.support.committed import accounted, at_rest, committed_and_whole, outcome
from tests.support.deaths import start_child
from tests.support.histories import NINE, History, Inputs, Lake, given, nothing, run

Prepare = Callable[[History], Lake]
REPOSITORY = Path(__file__).parents[2]
PARTITIONS = 3
ROWS = 120
LONGEST_LIFE_SECONDS = 0.06


class Producer:
    """Writes a lake in pieces that end anywhere in a line, and scores runs again in place."""

    def __init__(self, inputs: Inputs, rng: random.Random) -> None:
        self._rng = rng
        self._streams: list[tuple[Path, bytes]] = []
        for number in range(PARTITIONS):
            partition = f"2026/05/{number + 1:02}/producer.jsonl"
            runs = [(f"p{number}-{row}", f"task-{number}-{row // 4}") for row in range(ROWS)]
            rows = [run(run_id, task_id, rng.choice(list(Category))) for run_id, task_id in runs]
            rows += [run(*rng.choice(runs), rng.choice(list(Category))) for _ in range(ROWS // 4)]
            self._streams.append((inputs.scored(partition), jsonl(rows)))
            late = sorted(runs, key=lambda _: rng.random())
            self._streams.append((inputs.evidence(partition), jsonl(given(*each) for each in late)))
        self._written = dict.fromkeys(range(len(self._streams)), 0)

    def step(self) -> None:
        """Write a little."""
        number = self._rng.randrange(len(self._streams))
        self._write(number, self._rng.randrange(1, 2000))
        if self._rng.random() < 0.3:
            self._rescore(self._streams[number][0])

    def finish(self) -> None:
        """Write what is left."""
        for number in self._written:
            self._write(number, 1 << 30)

    def _write(self, number: int, size: int) -> None:
        path, content = self._streams[number]
        start = self._written[number]
        piece = content[start : start + size]
        with path.open("ab", buffering=0) as file:
            file.write(piece)
        self._written[number] = start + len(piece)

    def _rescore(self, path: Path) -> None:
        content = path.read_bytes()
        old = b'"category":"accepted"'
        places = [at for at in range(len(content)) if content.startswith(old, at)] if len(content) < 20_000 else []
        if places:
            with path.open("r+b", buffering=0) as file:
                file.seek(self._rng.choice(places))
                file.write(b'"category":"rejected"')


def passes_until_killed(lake: Lake) -> None:
    """What the daemon does, without its pauses."""
    with lake.opened() as engine:
        engine.committer.recover()
        while True:
            engine.run_pass(Trigger.WATCH)


def kill_many_times(lake: Lake, folder: Path, kills: int) -> None:
    """Kill the program again and again while a producer writes; then all is as in a lake that never knew of it."""
    rng = random.Random(20260427)
    producer = Producer(Inputs(folder / "inputs"), rng)
    for number in range(kills):
        child = start_child(lambda: passes_until_killed(lake))
        ended = os.pidfd_open(child)
        try:
            for _ in range(rng.randrange(1, 4)):
                producer.step()
            poll = select.poll()
            poll.register(ended)
            assert not poll.poll(rng.random() * LONGEST_LIFE_SECONDS * 1000), "the program ended by itself"
        finally:
            os.close(ended)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        try:
            lake.recover()
            committed_and_whole(lake.root)
        except BaseException as error:
            error.add_note(f"after kill {number}")
            raise
    producer.finish()
    lake.start()
    committed_and_whole(lake.root)
    accounted(lake.root)
    killed = at_rest(lake.root)
    shutil.rmtree(lake.root / "exports")
    shutil.rmtree(lake.root / "reports")
    shutil.rmtree(lake.root / "state")
    lake.start()
    assert killed == at_rest(lake.root)


@pytest.fixture
def still_inputs() -> None:
    """Here the inputs are not still, and must not seem to be."""


LIVE = History("live", nothing, before=None, batch_rows=40)


def test_a_few_kills_at_random_moments_lose_nothing(prepare: Prepare, quick_folder: Path) -> None:
    """Killed 20 times while a producer writes, a lake comes to what one comes to that was never disturbed."""
    kill_many_times(prepare(LIVE), quick_folder, 20)


@pytest.mark.slow
def test_many_kills_at_random_moments_lose_nothing(prepare: Prepare, quick_folder: Path) -> None:
    """The same with 300 kills."""
    kill_many_times(prepare(LIVE), quick_folder, 300)


def strace_works() -> bool:
    """Whether this machine lets us kill another process at a system call."""
    probe = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=fdatasync:error=EIO", "true"]
    return shutil.which("strace") is not None and subprocess.run(probe, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not strace_works(), reason="strace is missing, or may not trace here")
@pytest.mark.parametrize(
    ("call", "stride"),
    [("pwrite64", 5), ("fdatasync", 1), ("fsync", 2), ("write", 3), ("rename", 1), ("unlink", 1), ("ftruncate", 1)],
)
def test_a_kill_at_a_system_call_loses_nothing(prepare: Prepare, call: str, stride: int) -> None:
    """A kill in the middle of what SQLite writes, or we: the call is not executed, and the next start makes it good."""
    lake = prepare(NINE)
    lake.reset()
    lake.start()
    expected = outcome(lake.root)
    number = killed = 1
    while killed:
        lake.reset()
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
             "-e", f"inject={call}:signal=SIGKILL:when={number}",
             sys.executable, "-m", "tests.crash.one_pass", str(lake.root)],
            cwd=REPOSITORY, capture_output=True, check=False,
        )  # fmt: skip
        killed = done.returncode != 0
        start_comes_to(lake, expected)
        number += stride
    print(f"killed at {number // stride - 1} of {call}")
