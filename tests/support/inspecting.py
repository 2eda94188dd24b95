"""``distilld inspect`` as a process, and its pages."""

from __future__ import annotations

import importlib.util
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.command import command, environment

needs_datasette: Final = pytest.mark.skipif(
    importlib.util.find_spec("datasette") is None, reason="datasette (the extra 'inspect') is not installed"
)


@contextmanager
def inspecting(store: Path, *arguments: str, start: Sequence[str] = (), package: Path | None = None) -> Iterator[str]:
    """``distilld inspect`` on a store, on a free port; gives the address that it prints.

    ``start`` is another command line than the usual one, ``package`` another place to find distilld in.
    """
    process = subprocess.Popen(
        start or command("inspect", "--state", str(store), "--port", "0", *arguments),
        cwd=store.parent,
        env=environment({"PYTHONPATH": str(package)} if package else None),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), address
        yield address
    finally:
        process.terminate()
        process.communicate()


def fetched(address: str, path: str) -> str:
    """A page, which must be there."""
    with urllib.request.urlopen(f"{address}{path}", timeout=30) as response:
        assert response.status == 200
        return str(response.read().decode())
