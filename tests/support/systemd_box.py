"""A real systemd as process 1, over a throw-away copy of this machine's own files.

An overlay of the machine's root is booted by systemd-nspawn in less than a second; what is written stays in memory and
goes with it. That needs root, systemd-nspawn (Debian: systemd-container) and overlay mounts; where one is missing the
tests that need it are skipped, by name.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.command import REPOSITORY
from tests.support.running import until

TARGET = """\
[Unit]
Requires=basic.target dbus.service
After=basic.target dbus.service
AllowIsolate=yes
"""
SITE = Path("/opt/distilld-test-packages")
SOURCE = Path("/opt/distilld-test-source")


class Box:
    """A machine that runs; ``root`` is where its files are seen from here."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def run(self, *command: str, check: bool = True, input_text: str | None = None) -> str:
        """Run a command in it; returns what it printed."""
        inside = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"]
        done = subprocess.run(
            [*inside, *command], input=input_text, capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def property(self, name: str) -> str:
        """A property of the service, as systemd shows it."""
        return self.run("systemctl", "show", "--value", "-p", name, "distilld").strip()


@contextmanager
def booted(folder: Path) -> Iterator[Box]:
    """A machine with this interpreter, its packages and this source in it; skips where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("a real systemd needs root, to mount an overlay and to boot")
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("a real systemd needs systemd-nspawn, which is not installed (Debian: systemd-container)")
    memory = folder / "memory"
    memory.mkdir()
    with _mounted("-t", "tmpfs", "-o", "size=1g", "tmpfs", str(memory)):
        for name in ("upper", "work", "root"):
            (memory / name).mkdir()
        layers = f"lowerdir=/,upperdir={memory / 'upper'},workdir={memory / 'work'}"
        with _mounted("-t", "overlay", "overlay", "-o", layers, str(memory / "root")):
            root = memory / "root"
            _furnish(root)
            with _started(root, folder / "console.log") as leader:
                yield Box(root, leader)


@contextmanager
def _mounted(*arguments: str) -> Iterator[None]:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a real systemd needs mounts, which are refused here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


def _furnish(root: Path) -> None:
    (root / "etc/fstab").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    (root / "etc/systemd/system/test.target").write_text(TARGET)
    for place in (SITE, SOURCE):
        (root / place.relative_to("/")).mkdir(parents=True)
    # The service's user must come to the interpreter, wherever that is.
    for path in Path(sys.executable).resolve().parents:
        inside = root / path.relative_to("/")
        inside.chmod(inside.stat().st_mode | 0o055)


@contextmanager
def _started(root: Path, console: Path) -> Iterator[int]:
    packages = sysconfig.get_path("purelib")
    arguments = [
        "systemd-nspawn", "--quiet", "--boot", "--directory", str(root), "--register=no", "--keep-unit",
        "--console=pipe", "--private-network", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
        "--machine=distilld-test",
        f"--bind-ro={packages}:{SITE}", f"--bind-ro={REPOSITORY}:{SOURCE}", "systemd.unit=test.target",
    ]  # fmt: skip
    with console.open("wb") as out:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        leader = _wait_booted(process, console)
        yield leader
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def _wait_booted(process: subprocess.Popen[bytes], console: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.skip(f"systemd-nspawn cannot boot here: {console.read_text(errors='replace')[-500:].strip()}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        if children and _is_up(int(children[0])):
            return int(children[0])
        time.sleep(0.05)
    pytest.skip(f"no systemd came up here: {console.read_text(errors='replace')[-500:].strip()}")


def _is_up(leader: int) -> bool:
    inside = ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"]
    asked = subprocess.run([*inside, "systemctl", "is-system-running"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() in ("running", "degraded")


def wait_state(box: Box, name: str, value: str, seconds: float = 30) -> None:
    """Wait until a property of the service has a value."""
    until(lambda: box.property(name) == value, f"{name}={value}", seconds=seconds)
