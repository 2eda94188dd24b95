"""A COMMIT that fails with an I/O error may still be found in the store later: nothing is undone before it is certain.

The story: an fsync of the write-ahead log failed with EIO. SQLite took the transaction back, the batch's appended bytes
were cut off again, and the process was killed before its next commit. Whoever opened the store then found the batch
committed after all, for its pages stood in the log; the exports were shorter than the store said, and the rows lost.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distilld.core.model import Trigger
from distilld.store.connection import StoreFaultError
from tests.crash.test_die_at_each_call import start_comes_to
from tests.fault.test_failing_calls import BROKEN
from tests.support.calls import Call, calls
from tests.support.committed import outcome
from tests.support.histories import APPEND, NINE, History, Lake

Prepare = Callable[[History], Lake]
REPOSITORY = Path(__file__).parents[2]


def strace_works() -> bool:
    """Whether this machine lets us make another process's calls fail."""
    probe = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=fdatasync:error=EIO", "true"]
    return shutil.which("strace") is not None and subprocess.run(probe, check=False).returncode == 0


@pytest.mark.parametrize("history", [APPEND, NINE], ids=History.__str__)
def test_the_store_is_written_once_more_before_an_export_is_undone(prepare: Prepare, history: History) -> None:
    """After a COMMIT that failed, another one succeeds before any file is cut back or removed."""
    lake = prepare(history)
    made: list[Call] = []

    failing = True

    def fail(call: Call) -> None:
        made.append(call)
        written = any("exports.Exports" in earlier.place for earlier in made)
        if failing and call.name == "sql COMMIT" and written:
            raise BROKEN()

    with calls(fail), lake.opened() as engine:
        with pytest.raises(StoreFaultError):
            engine.run_pass(Trigger.ONCE)
        failing = False
        made.clear()
        assert engine.committer.recover()
    names = [call.name for call in made]
    undone = next(at for at, name in enumerate(names) if name in ("os.ftruncate", "os.unlink"))
    assert "sql COMMIT done" in names[:undone]


@pytest.mark.slow
@pytest.mark.skipif(not strace_works(), reason="strace is missing, or may not trace here")
@pytest.mark.parametrize("history", [APPEND, NINE], ids=History.__str__)
def test_no_commit_in_doubt_loses_rows(prepare: Prepare, history: History) -> None:
    """Each sync of the store fails in turn, the process undoes its batch and is killed: the next start sees to it."""
    lake = prepare(history)
    lake.reset()
    lake.start()
    expected = outcome(lake.root)
    said: set[str] = set()
    for number in range(1, 60):
        lake.reset()
        run = subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync",
             "-e", f"inject=fdatasync:error=EIO:when={number}",
             sys.executable, "-m", "tests.fault.commit_in_doubt", str(lake.root)],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in run.stderr, run.stderr
        said.update(line.partition(":")[0] for line in run.stdout.splitlines())
        start_comes_to(lake, expected)
        if "failed" not in run.stdout and number > 40:
            break
    assert said >= {"failed", "undone", "done"}
