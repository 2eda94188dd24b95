"""Messages to systemd: readiness, status, signs of life (sd_notify(3)). Sends none if systemd did not ask for any."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import MutableMapping
from typing import Final

PATIENCE_SECONDS: Final = 2.0
"""How long a message waits for room in the manager's queue, which on Linux holds about ten messages."""
_NAMES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_REST_PER_PATIENCE: Final = 5
"""After a timeout, statuses and kept messages wait this many times the patience: most of the time is for the work."""
_SIGNS_PER_PERIOD: Final = 4
"""How many signs of life are sent within the watchdog's period."""
_SIGN_AGAIN_SECONDS: Final = 0.1
"""When a sign of life that found no room is sent again: it never waits, for the work calls for it all the time."""


class Notifier:
    """Sends datagrams to the service manager, in order.

    A message waits for room in a full queue, but not for long: a manager that does not read must not stop the work.
    After a timeout, a change of state is kept and sent before a later message: without READY, for example, the start
    counts as failed. A status or a sign of life is dropped, because another one follows.
    """

    def __init__(
        self, address: str | None, watchdog_seconds: float | None = None, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._address = address
        self._patience_seconds = patience_seconds
        self._owed: list[str] = []
        self._try_again_at = 0.0
        self._pause = None if watchdog_seconds is None else watchdog_seconds / _SIGNS_PER_PERIOD
        self._sign_at = 0.0
        self._status = ""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Return the notifier that ``environ`` describes. Remove its variables there: no child may send for us."""
        address, period, pid = (environ.pop(name, None) for name in _NAMES)
        watched = pid in (None, str(os.getpid())) and re.fullmatch("[0-9]{1,20}", period or "")
        return cls(address, int(watched[0]) / 1e6 if watched else None)

    def ready(self) -> None:
        """Report that startup, or a reload, is done."""
        self._owe("READY=1")

    def reloading(self) -> None:
        """Report that a reload begins; ``ready`` ends it."""
        self._owe(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Report that the daemon is stopping."""
        self._owe("STOPPING=1")

    def status(self, text: str) -> None:
        """Report one line for ``systemctl status``."""
        if text == self._status or time.monotonic() < self._try_again_at:
            return
        if self._settle() and self._send_patiently("STATUS=" + text.replace("\n", " ")):
            self._status = text

    def alive(self) -> None:
        """Report that the work goes on. Cheap enough for every step: it sends only as often as the watchdog needs."""
        now = time.monotonic()
        if self._owed and now >= self._try_again_at:
            self._settle()
        if self._pause is not None and now >= self._sign_at:
            sent = self._send("WATCHDOG=1", patience_seconds=0.0)
            self._sign_at = now + (self._pause if sent else _SIGN_AGAIN_SECONDS)

    def _owe(self, message: str) -> None:
        self._owed.append(message)
        self._settle()

    def _settle(self) -> bool:
        """Send the kept messages; return whether none is left."""
        while self._owed and self._send_patiently(self._owed[0]):
            del self._owed[0]
        return not self._owed

    def _send_patiently(self, message: str) -> bool:
        sent = self._send(message, patience_seconds=self._patience_seconds)
        if not sent:
            self._try_again_at = time.monotonic() + _REST_PER_PATIENCE * self._patience_seconds
        return sent

    def _send(self, message: str, *, patience_seconds: float) -> bool:
        """Send a datagram; return whether it was accepted, or there is no manager to send it to."""
        if not self._address:
            return True
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                # Limited in time: a manager that hangs must not stop the work.
                channel.settimeout(patience_seconds)
                channel.sendto(message.encode(errors="backslashreplace"), address)
        except OSError:
            return False
        return True
