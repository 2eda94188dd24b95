"""The state store for people: docs/state.md is true, its questions work, and Datasette shows them (docs/state.md)."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from distilld.model import EXPORT_PATHS
from tests.system.command import REPOSITORY, another_writer, bring, phase4, rows

DOCS = REPOSITORY / "docs" / "state.md"
METADATA = REPOSITORY / "inspect" / "metadata.yaml"
QUESTION = re.compile(r"\*\*(\d+)\. ([^*]+)\*\*(?:(?!\n\*\*)[\s\S])*?```sh\n([\s\S]*?)```")


def questions() -> list[tuple[str, str, str]]:
    """The number, the words and the command of each question."""
    return [(number, words, command) for number, words, command in QUESTION.findall(DOCS.read_text())]


def sql_of(command: str) -> str:
    """The query in a command."""
    return textwrap.dedent(command.split('"', 1)[1].rsplit('"', 1)[0].strip("\n")).strip()


def described() -> dict[str, list[str]]:
    """Every table and view that the page describes, with its columns."""
    tables = DOCS.read_text().split("\n## The tables\n")[1]
    sections = re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", tables, flags=re.MULTILINE | re.DOTALL)
    return {name: re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE) for name, text in sections}


def test_page_describes_the_schema(done: Path) -> None:
    """docs/state.md names every table and view with every column, in the order of the schema, and no other."""
    with closing(sqlite3.connect(done / "state/distilld.db")) as store:
        found = {
            name: [row[1] for row in store.execute(f"PRAGMA table_info({name})")]
            for (name,) in store.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
                " AND name <> '_sqlite_migrations' ORDER BY type, rowid"
            )
        }
    assert described() == found


def test_page_names_every_fact_of_the_lake() -> None:
    """docs/state.md names every fact that the program keeps in the table lake."""
    kept: set[str] = set()
    for path in (REPOSITORY / "distilld").rglob("*.py"):
        text = path.read_text()
        constants = dict(re.findall(r'^([A-Z_]+): Final = "(\w+)"', text, flags=re.MULTILINE))
        kept |= set(re.findall(r'(?:remember|recall)\(\s*"(\w+)"', text))
        kept |= {constants[name] for name in re.findall(r"(?:remember|recall)\(([A-Z_]+)", text) if name in constants}
    assert {"options_in_hand", "tamperings", "last_scan_at"} <= kept
    described_here = DOCS.read_text().split("### `lake`")[1].split("### ")[0]
    assert {name for name in kept if f"`{name}`" not in described_here} == set()


def test_there_are_ten_questions() -> None:
    """The page has ten questions, numbered, each once, and the metadata for Datasette has the same."""
    assert [number for number, _, _ in questions()] == [str(number) for number in range(1, 11)]
    metadata = " ".join(METADATA.read_text().split())
    for _, words, command in questions():
        assert " ".join(f'title: "{words}" sql: |- {sql_of(command)}'.split()) in metadata
    assert METADATA.read_text().count("sql: |-") == 10


@pytest.fixture(scope="module")
def lake_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake in which every question but the last has an answer."""
    root = phase4(tmp_path_factory.mktemp("all"))
    bring(root)
    (root / "data/scored-runs/2026/03/03/audits.jsonl").unlink()
    some = root / "data/scored-runs/2026/03/01/audits.jsonl"
    some.write_bytes(some.read_bytes().replace(b'"category":"accepted"', b'"category":"rejected"', 3) + b'{"torn":')
    os.utime(some, (1, 1))
    bring(root)
    return root


def values(root: Path) -> dict[str, str]:
    """What to look for, by the word that stands for it in the commands."""
    row = rows(root / EXPORT_PATHS["rag"])[0]
    with closing(sqlite3.connect(root / "state/distilld.db")) as store:
        (batch_id,) = store.execute("SELECT batch_id FROM batches ORDER BY batch DESC").fetchone()
    return {"RUN_ID": row["source_run_id"], "ID": row["id"], "BATCH_ID": batch_id}


@pytest.mark.parametrize(("number", "words", "command"), questions(), ids=[number for number, _, _ in questions()])
def test_question_works_in_sqlite_utils(lake_of_all: Path, number: str, words: str, command: str) -> None:
    """Each question, typed as it stands, has an answer from sqlite-utils, beside a running writer."""
    assert words.endswith("?")
    for word, value in values(lake_of_all).items():
        command = command.replace(f" {word} ", f" '{value}' ")
    with another_writer(lake_of_all):
        ran = subprocess.run(
            ["bash", "-c", command.replace(" -t ", " ")],
            cwd=lake_of_all,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found
    if number == "10":
        assert {row["how_many"] for row in found} == {0}
    if number == "9":
        assert {row["kind"] for row in found} == {"absent"}
    if number == "7":
        assert {row["cause"] for row in found} == {"revoked"}


# Datasette


@contextmanager
def datasette(store: Path) -> Iterator[str]:
    """Datasette on the store as ``make inspect`` starts it, on a free port; gives its address."""
    options = ["--metadata", str(METADATA), "--plugins-dir", str(METADATA.parent / "plugins")]
    process = subprocess.Popen(
        [sys.executable, "-m", "datasette", "serve", str(store), *options, "--host", "127.0.0.1", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                return
        raise AssertionError("datasette did not start")
    finally:
        process.terminate()
        process.communicate()


def fetched(address: str, path: str) -> str:
    """A page, which must be there."""
    with urllib.request.urlopen(f"{address}{path}", timeout=30) as response:
        assert response.status == 200
        return str(response.read().decode())


HAS_DATASETTE = importlib.util.find_spec("datasette") is not None


@pytest.mark.skipif(not HAS_DATASETTE, reason="datasette (the extra 'inspect') is not installed")
def test_datasette_shows_the_store_beside_a_writer(lake_of_all: Path) -> None:
    """Datasette opens the store read-only beside a running writer: every table, the questions, and what is new."""
    store = lake_of_all / "state/distilld.db"
    asked = values(lake_of_all)
    parameters = {
        "run_id": asked["RUN_ID"],
        "batch_id": asked["BATCH_ID"],
        "id": asked["ID"],
        "reason": "empty_content",
    }
    before = store.read_bytes()
    with datasette(store) as address:
        with another_writer(lake_of_all):
            assert "What became of a run?" in fetched(address, "/distilld")
            assert "The time that it stamped on its rows" in fetched(address, "/distilld/batches")
            for name in described():
                fetched(address, f"/distilld/{name}")
            for name in re.findall(r"^      (\w+):\n        title:", METADATA.read_text(), flags=re.MULTILINE):
                assert json.loads(fetched(address, f"/distilld/{name}.json?_shape=array&{urlencode(parameters)}")), name
        assert store.read_bytes() == before
        batches = json.loads(fetched(address, "/distilld/batches.json?_shape=array"))
        with (lake_of_all / "data/scored-runs/2026/03/02/audits.jsonl").open("ab") as file:
            file.write(b"no JSON\n")
        bring(lake_of_all)
        newer = json.loads(fetched(address, "/distilld/batches.json?_shape=array"))
        assert len(newer) == len(batches) + 1
        assert newer[0]["batch"] > batches[0]["batch"]
