"""What systemd is told: readiness, status, signs of life (sd_notify(3)). Silent where nobody asked to be told."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

_NAMES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_PATIENCE_SECONDS: Final = 2.0
_SIGNS_PER_PERIOD: Final = 4
"""How often within the watchdog's patience a sign of life is sent."""


class Notifier:
    """Sends datagrams to the service manager. One that cannot be sent stops nothing."""

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self._pause = None if watchdog_seconds is None else watchdog_seconds / _SIGNS_PER_PERIOD
        self._last_sign = 0.0
        self._status = ""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Notifier:
        """The notifier that systemd asks for. What asked is taken out of ``environ``: no child may speak for us."""
        address, period, pid = (environ.pop(name, None) for name in _NAMES)
        watched = period is not None and period.isdecimal() and pid in (None, str(os.getpid()))
        return cls(address, int(period) / 1e6 if watched and period else None)

    def ready(self) -> None:
        """Startup, or a reload, is done."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + text.replace("\n", " "))

    def alive(self) -> None:
        """The work goes on. May be called at every step: it is sent no more often than the watchdog needs it."""
        now = time.monotonic()
        if self._pause is not None and now - self._last_sign >= self._pause:
            self._last_sign = now
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                # A queue that is full for a moment must not swallow READY.
                channel.settimeout(_PATIENCE_SECONDS)
                channel.sendto(message.encode(errors="backslashreplace"), address)
        except OSError:
            return
