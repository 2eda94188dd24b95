"""A real browser: Debian's chromium without a window, spoken to through a pair of pipes (the DevTools protocol)."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium: Final = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"
)
_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server"),
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a browser. ``complaints`` are the errors on its console since the last visit began."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = os.fdopen(orders, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._last = 0
        self._loaded = False
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        """Close the pipes, which ends the browser."""
        self._orders.close()
        self._answers.close()

    def visit(self, address: str, width: int) -> None:
        """Open a page in a window of some width, and wait until it is loaded."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.complaints.clear()
        self._loaded = False
        self._call("Page.navigate", url=address)
        while not self._loaded:
            self._take()

    def ask(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """The whole page as a picture."""
        size = self.ask("[Math.max(innerWidth, document.body.scrollWidth), document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        order = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            order["sessionId"] = self._session
        self._orders.write(json.dumps(order).encode() + b"\0")
        while True:
            message = self._take()
            if message.get("id") == self._last:
                assert "error" not in message, message
                return dict(message["result"])

    def _take(self) -> dict[str, Any]:
        """The next message; events are noted on the way."""
        content = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser ended"
            content += byte
        message: dict[str, Any] = json.loads(content)
        match message.get("method"), message.get("params", {}):
            case "Page.loadEventFired", _:
                self._loaded = True
            case "Runtime.exceptionThrown", said:
                self.complaints.append(str(said["exceptionDetails"]))
            case "Runtime.consoleAPICalled", said if said["type"] == "error":
                self.complaints.append(str(said["args"]))
            case "Log.entryAdded", said if said["entry"]["level"] == "error":
                self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        return message


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with an empty profile; killed at the end."""
    assert CHROMIUM is not None
    read_orders, orders = os.pipe()
    answers, write_answers = os.pipe()
    # It takes its orders from 3 and answers on 4: what is handed on must not stand there before.
    handed = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (read_orders, write_answers)]
    with tempfile.TemporaryDirectory(prefix="distilld-chromium-", ignore_cleanup_errors=True) as profile:
        words = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{handed[0]} 4>&{handed[1]}', "bash", *words],
            pass_fds=handed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"HOME": profile, "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TZ": "UTC"},
        )
        for each in (read_orders, write_answers, *handed):
            os.close(each)
        try:
            page = Browser(orders, answers)
            try:
                yield page
            finally:
                page.close()
        finally:
            process.kill()
            process.wait()
