"""The daemon as a process of its own, listened to as systemd would; and waiting for conditions, never for time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.support.command import command, environment

PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.005

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, seconds: float = PATIENCE_SECONDS) -> T:
    """Ask again and again until the answer is true; returns it. Fails, naming ``what``, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(POLL_SECONDS)
    return answer


class Running:
    """A daemon that runs. Its log goes to a file; what it tells the service manager is ``notified``, line by line."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, notified: list[str]) -> None:
        self.process = process
        self.log = log
        self.notified = notified

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self.process.pid

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The log so far, or its lines of one name; a line that is still being written is left out."""
        whole = self.log.read_bytes().rpartition(b"\n")[0]
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return [line for line in lines if name in (None, line["event"])]

    def wait_for(self, name: str, *, times: int = 1, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait until an event was logged so often; returns the last of them."""

        def enough() -> list[dict[str, Any]]:
            self._alive()
            found = self.events(name)
            return found if len(found) >= times else []

        return until(enough, f"{name}, {times} times", seconds=seconds)[-1]

    def wait_ready(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until it says READY."""
        self.wait_notified("READY=1", seconds=seconds)

    def wait_notified(self, line: str, *, times: int = 1, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the service manager was told this line so often."""

        def told() -> bool:
            self._alive()
            return self.notified.count(line) >= times

        until(told, line, seconds=seconds)

    def _alive(self) -> None:
        code = self.process.poll()
        assert code is None, f"the daemon ended with {code}:\n{self.log.read_text()[-3000:]}"

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stop(self, seconds: float = PATIENCE_SECONDS) -> int:
        """SIGTERM, and wait for the end; returns the exit code."""
        self.send(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def cpu_seconds(self) -> float:
        """Processor time that it has used, all threads."""
        times = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def _listen(channel: socket.socket, notified: list[str]) -> None:
    """Take up every datagram at once, as systemd does: the queue of such a socket is short."""
    while message := channel.recv(65536):
        notified.extend(message.decode().splitlines())


@contextmanager
def daemon(
    root: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    umask: int = -1,
) -> Iterator[Running]:
    """``distilld run`` on a lake; killed at the end if it still runs. ``prefix`` is put before the command line."""
    with tempfile.TemporaryDirectory(prefix="distilld-run-") as name:
        folder = Path(name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, (folder / "log").open("wb") as log:
            channel.bind(str(folder / "notify"))
            notified: list[str] = []
            listener = threading.Thread(target=_listen, args=(channel, notified))
            listener.start()
            process = subprocess.Popen(
                [*prefix, *command("run", "--root", str(root), *arguments)],
                cwd=root.parent,
                env=environment({"NOTIFY_SOCKET": str(folder / "notify"), **(env or {})}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=umask,
            )
            try:
                yield Running(process, folder / "log", notified)
            finally:
                process.kill()
                process.wait()
                # An empty datagram ends the listener.
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"", str(folder / "notify"))
                listener.join()
