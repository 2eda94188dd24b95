"""What systemd is told, and that no child can speak for the daemon."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distilld.notify import Notifier


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that listens as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def heard(channel: socket.socket) -> list[str]:
    """The messages so far."""
    found = []
    while True:
        try:
            found.append(channel.recv(4096).decode())
        except BlockingIOError:
            return found


def notifier(channel: socket.socket, **environ: str) -> Notifier:
    """One that was asked to speak to the channel."""
    return Notifier.from_environ({"NOTIFY_SOCKET": channel.getsockname(), **environ})


def test_each_state_is_one_datagram(channel: socket.socket) -> None:
    """READY, STATUS and STOPPING are told in the words of sd_notify(3)."""
    told = notifier(channel)
    told.ready()
    told.status("two\nlines")
    told.stopping()
    assert heard(channel) == ["READY=1", "STATUS=two lines", "STOPPING=1"]


def test_reload_tells_the_monotonic_time(channel: socket.socket) -> None:
    """RELOADING comes with the monotonic clock in microseconds, without which systemd ignores it."""
    before = time.monotonic_ns() // 1000
    notifier(channel).reloading()
    (message,) = heard(channel)
    found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", message)
    assert found is not None
    assert before <= int(found[1]) <= time.monotonic_ns() // 1000


def test_status_is_told_when_it_changes(channel: socket.socket) -> None:
    """The same status twice is told once."""
    told = notifier(channel)
    for text in ("a", "a", "b"):
        told.status(text)
    assert heard(channel) == ["STATUS=a", "STATUS=b"]


def test_signs_of_life_are_a_few_a_period(channel: socket.socket) -> None:
    """However often the work calls, the watchdog hears no more than it needs; the first one at once."""
    told = notifier(channel, WATCHDOG_USEC="600000000", WATCHDOG_PID=str(os.getpid()))
    for _ in range(1000):
        told.alive()
    assert heard(channel) == ["WATCHDOG=1"]


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "600", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_nobody_watches_nobody_is_told(channel: socket.socket, environ: dict[str, str]) -> None:
    """Without a watchdog, with one for another process, or with one that cannot be read, no sign of life is sent."""
    notifier(channel, **environ).alive()
    assert heard(channel) == []


def test_children_do_not_inherit_the_address(channel: socket.socket) -> None:
    """What asked to be told is taken out of the environment, so a worker cannot say READY for the daemon."""
    environ = {"NOTIFY_SOCKET": channel.getsockname(), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier.from_environ(environ)
    assert environ == {"HOME": "/"}


def test_abstract_address(tmp_path: Path) -> None:
    """An address that begins with '@' is one in the abstract namespace."""
    name = f"distilld-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.setblocking(False)
        Notifier(f"@{name}").ready()
        assert heard(listening) == ["READY=1"]


@pytest.mark.parametrize("address", [None, "", "/nowhere/notify"])
def test_lost_message_stops_nothing(address: str | None) -> None:
    """Where nobody listens, telling is silent and raises nothing."""
    told = Notifier(address, watchdog_seconds=1)
    told.ready()
    told.alive()
