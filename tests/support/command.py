"""Running the real command as a process, and looking at a folder to the last byte."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from distilld.config.load import load
from distilld.service.run_once import bring_up_to_date, writer

REPOSITORY = Path(__file__).parents[2]
PHASE4 = REPOSITORY / "tests" / "data" / "phase4"
LOCK_FILE = "exports/.distilld.lock"


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit code and its two streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, read as JSON."""
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]

    @property
    def errors(self) -> list[str]:
        """The lines of standard error that are no log lines."""
        return [line for line in self.err.splitlines() if not line.startswith("{")]


Cli = Callable[..., Ran]
"""Runs a command in the test's own process."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without distilld's variables; the package is found whether it is installed or not."""
    kept = {name: value for name, value in os.environ.items() if "DISTILL" not in name and name != "PYTHONPATH"}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", **(extra or {})}


def command(*arguments: str) -> list[str]:
    """The command line that starts distilld."""
    return [sys.executable, "-m", "distilld", *arguments]


def distilld(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, most_file_bytes: int | None = None
) -> Ran:
    """Run distilld to its end; with ``most_file_bytes`` it cannot write more to a file, as on a full disk."""

    def limit() -> None:
        if most_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_file_bytes, most_file_bytes))

    # Python would cut its bytecode files off, too, and believe them the next time.
    limited = {} if most_file_bytes is None else {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command(*map(str, arguments)),
        cwd=cwd,
        env=environment({**(env or {}), **limited}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        preexec_fn=limit,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@contextmanager
def python(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs until it is told to stop, which closing its standard input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


HOLD_LOCK = """
import sys
from pathlib import Path
from distilld.service.lock import writer_lock
with writer_lock(Path(sys.argv[1]), Path(sys.argv[2])) as held:
    held.bind()
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(root: Path, state: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lake and the store as a running distilld does."""
    with python(HOLD_LOCK, root, state or root / "state" / "distilld.db") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def phase4(folder: Path) -> Path:
    """The lake of tests/data/phase4, to be written to."""
    root = folder / "lake"
    shutil.copytree(PHASE4 / "data", root / "data")
    return root


Facts = tuple[int, int, int, int, bytes]


def snapshot(folder: Path, *, leave_out: frozenset[str] = frozenset()) -> dict[str, Facts]:
    """Everything below a folder: inode, mode, size, mtime in nanoseconds, content."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        name = path.relative_to(folder).as_posix()
        if name in leave_out:
            continue
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[name] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def put(path: Path, content: str = "") -> Path:
    """Write a file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def once(root: Path, *arguments: str, **env: str) -> Ran:
    """``run --once`` on a lake."""
    return distilld("run", "--once", "--root", root, *arguments, cwd=root.parent, env=env)


def bring(root: Path) -> None:
    """One run in this process, to begin a test with."""
    settings = load(flags={"root": root}, environ={}, config_file=None, cwd=root)
    with capture_logs(), writer(settings) as engine:
        bring_up_to_date(engine)
