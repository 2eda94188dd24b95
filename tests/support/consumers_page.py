"""The snippets of docs/consumers.md, and the lake and snapshot that they are run on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.command import REPOSITORY, environment, once
from tests.support.lake_by_formula import write_bench_lake

ROWS: Final = 2_100


class Snippet(NamedTuple):
    """A block of code of the page: its language and the words behind it."""

    kind: str
    code: str


def snippets() -> list[Snippet]:
    """All of them, in order."""
    page = (REPOSITORY / "docs" / "consumers.md").read_text()
    return [Snippet(*found) for found in re.findall(r"^```([^\n]+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)]


class Place:
    """A folder with a lake and whatever the snippets make; they are run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "lakehouse"
        self.snapshot = folder / "snapshot"
        write_bench_lake(self.root, rows=ROWS, partitions=5, text_bytes=300)
        self.bring_up_to_date()
        command = folder / "bin" / "distilld"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m distilld "$@"\n')
        command.chmod(0o755)

    def bring_up_to_date(self) -> None:
        """Run distilld once."""
        ran = once(self.root)
        assert ran.code == 0, ran.err

    def here(self, code: str) -> str:
        """A snippet with the paths of this place."""
        return code.replace("/srv/lakehouse", str(self.root)).replace("/data/snapshot", str(self.snapshot))

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command here; returns what it prints."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hugging-face"), "PATH": path}
        done = subprocess.run(
            command, cwd=self.folder, env=environment(offline), capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def run_shell(self) -> None:
        """Run every shell snippet, in order."""
        commands = [snippet.code for snippet in snippets() if snippet.kind == "sh"]
        assert len(commands) == 3
        for each in commands:
            self.run("sh", "-e", "-c", self.here(each))
