"""What systemd is told, and that no child can speak for the daemon."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from distilld.service.systemd import Notifier


class Manager:
    """Listens as systemd does, in a thread of its own: the queue of such a socket is short, and must not fill up."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(address)
        self._heard: list[str] = []
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Manager:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heard()

    def _listen(self) -> None:
        # An empty datagram ends it.
        while message := self._channel.recv(4096):
            self._heard.append(message.decode())
        self._channel.close()

    def heard(self) -> list[str]:
        """The messages so far; it hears no more of them. What was sent before the end stands before it in the queue."""
        if self._thread.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"", self.address)
            self._thread.join()
        return self._heard


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager that hears everything."""
    with Manager(str(tmp_path / "notify")) as listening:
        yield listening


def notifier(manager: Manager, **environ: str) -> Notifier:
    """One that was asked to speak to the manager."""
    return Notifier.from_environ({"NOTIFY_SOCKET": manager.address, **environ})


def test_each_state_is_one_datagram(manager: Manager) -> None:
    """READY, STATUS and STOPPING are told in the words of sd_notify(3)."""
    told = notifier(manager)
    told.ready()
    told.status("two\nlines")
    told.stopping()
    assert manager.heard() == ["READY=1", "STATUS=two lines", "STOPPING=1"]


def test_reload_tells_the_monotonic_time(manager: Manager) -> None:
    """RELOADING comes with the monotonic clock in microseconds, without which systemd ignores it."""
    before = time.monotonic_ns() // 1000
    notifier(manager).reloading()
    (message,) = manager.heard()
    found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", message)
    assert found is not None
    assert before <= int(found[1]) <= time.monotonic_ns() // 1000


def test_status_is_told_when_it_changes(manager: Manager) -> None:
    """The same status twice is told once."""
    told = notifier(manager)
    for text in ("a", "a", "b"):
        told.status(text)
    assert manager.heard() == ["STATUS=a", "STATUS=b"]


def test_signs_of_life_are_a_few_a_period(manager: Manager) -> None:
    """However often the work calls, the watchdog hears no more than it needs; the first one at once."""
    told = notifier(manager, WATCHDOG_USEC="600000000", WATCHDOG_PID=str(os.getpid()))
    for _ in range(1000):
        told.alive()
    assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "600", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "9" * 400}],
)
def test_nobody_watches_nobody_is_told(manager: Manager, environ: dict[str, str]) -> None:
    """Without a watchdog, with one for another process, or with one that cannot be read, no sign of life is sent."""
    notifier(manager, **environ).alive()
    assert manager.heard() == []


def test_children_do_not_inherit_the_address(manager: Manager) -> None:
    """What asked to be told is taken out of the environment, so a worker cannot say READY for the daemon."""
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier.from_environ(environ)
    assert environ == {"HOME": "/"}


def test_abstract_address(tmp_path: Path) -> None:
    """An address that begins with '@' is one in the abstract namespace."""
    name = f"distilld-{os.getpid()}-{tmp_path.name}"
    with Manager("\0" + name) as listening:
        Notifier(f"@{name}").ready()
        assert listening.heard() == ["READY=1"]


def test_more_than_the_queue_holds_is_heard(manager: Manager) -> None:
    """A burst that the queue cannot hold waits for room; nothing of it is lost, and its order stays."""
    told = notifier(manager)
    for number in range(1000):
        told.status(str(number))
    told.ready()
    assert manager.heard() == [*(f"STATUS={number}" for number in range(1000)), "READY=1"]


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[socket.socket]:
    """A manager that stands still, its queue full to the last place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sender.sendto(b"of somebody else", channel.getsockname())
        yield channel


def taken(channel: socket.socket) -> list[str]:
    """What waits in the queue, which is empty afterwards."""
    found = []
    while True:
        try:
            found.append(channel.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.mark.timeout(20)
def test_ready_outlasts_a_manager_that_stands_still(deaf: socket.socket) -> None:
    """READY that finds no room is told when the work goes on and there is some; a status is left out."""
    told = Notifier(deaf.getsockname(), patience_seconds=0.001)
    told.ready()
    told.status("nobody hears it")
    assert set(taken(deaf)) == {"of somebody else"}
    heard: list[str] = []
    while not heard:
        told.alive()
        heard = taken(deaf)
    told.alive()
    told.status("up to date")
    assert heard + taken(deaf) == ["READY=1", "STATUS=up to date"]


def test_silent_manager_costs_its_patience_once(deaf: socket.socket) -> None:
    """Statuses that nobody takes up do not hold the work up one after the other."""
    told = Notifier(deaf.getsockname(), patience_seconds=0.05)
    start = time.monotonic()
    for number in range(1000):
        told.status(str(number))
    assert time.monotonic() - start < 1000 * 0.05 / 10


@pytest.mark.timeout(20)
def test_sign_of_life_never_waits(deaf: socket.socket) -> None:
    """The work goes on beside a manager that stands still; the sign is sent as soon as there is room."""
    told = Notifier(deaf.getsockname(), watchdog_seconds=3600, patience_seconds=0.5)
    told.alive()
    assert set(taken(deaf)) == {"of somebody else"}
    heard: list[str] = []
    while not heard:
        told.alive()
        heard = taken(deaf)
    assert heard == ["WATCHDOG=1"]


@pytest.mark.parametrize("address", [None, "", "/nowhere/notify"])
def test_lost_message_stops_nothing(address: str | None) -> None:
    """Where nobody listens, telling is silent and raises nothing."""
    told = Notifier(address, watchdog_seconds=1)
    told.ready()
    told.alive()
