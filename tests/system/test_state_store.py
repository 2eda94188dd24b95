"""The state store for people: docs/state.md is true, its questions work, and Datasette shows them (docs/state.md)."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from distilld.core.model import EXPORT_PATHS
from distilld.store.queries import reading
from distilld.store.retained import Retained
from tests.support.command import REPOSITORY, bring, phase4, rows
from tests.support.inspecting import fetched, inspecting, needs_datasette
from tests.support.lake_by_formula import append_bench_rows
from tests.support.running import daemon, until

DOCS = REPOSITORY / "docs" / "state.md"
METADATA = REPOSITORY / "distilld" / "inspection" / "datasette" / "metadata.yaml"
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


def lake_with_answers(folder: Path) -> Path:
    """A lake in which every question but the last has an answer."""
    root = phase4(folder)
    bring(root)
    (root / "data/scored-runs/2026/03/03/audits.jsonl").unlink()
    (root / "data/evidence/2026/03/02/audits.jsonl").unlink()
    some = root / "data/scored-runs/2026/03/01/audits.jsonl"
    some.write_bytes(some.read_bytes().replace(b'"category":"accepted"', b'"category":"rejected"', 3) + b'{"torn":')
    os.utime(some, (1, 1))
    bring(root)
    return root


@pytest.fixture(scope="module")
def lake_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a lake, at rest; tests only look at it."""
    return lake_with_answers(tmp_path_factory.mktemp("all"))


def values(root: Path) -> dict[str, str]:
    """What to look for, by the word that stands for it in the commands."""
    row = rows(root / EXPORT_PATHS["rag"])[0]
    with closing(sqlite3.connect(root / "state/distilld.db")) as store:
        (batch_id,) = store.execute("SELECT batch_id FROM batches ORDER BY batch DESC").fetchone()
    return {"RUN_ID": row["source_run_id"], "ID": row["id"], "BATCH_ID": batch_id}


class Shift:
    """A daemon that writes as long as this lasts: a producer gives it a row every hundredth of a second."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._over = threading.Event()
        self._producer = threading.Thread(target=self._produce)

    def _produce(self) -> None:
        row = 0
        while not self._over.wait(0.01):
            append_bench_rows(self._root, partition_index=0, first_row=row, rows=1, text_bytes=200)
            row += 1

    def __enter__(self) -> Shift:
        self._producer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._producer.join()


def batches(root: Path) -> int:
    """How many batches the store has."""
    with closing(sqlite3.connect(f"file:{root / 'state/distilld.db'}?mode=ro", uri=True)) as store:
        return int(store.execute("SELECT count(*) FROM batches").fetchone()[0])


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Another such lake, beside a daemon that commits one batch after the other."""
    root = lake_with_answers(tmp_path_factory.mktemp("writing"))
    with daemon(root) as running:
        running.wait_for("scan_finished")
        before = batches(root)
        with Shift(root):
            until(lambda: batches(root) > before, "a batch")
            yield root
            between = batches(root)
            until(lambda: batches(root) > between, "another batch")
        assert running.stop() == 0


def answer(root: Path, command: str) -> list[dict[str, Any]]:
    """What a command of the page prints, typed as it stands, as JSON in the place of a table."""
    for word, value in values(root).items():
        command = command.replace(f" {word} ", f" '{value}' ")
    ran = subprocess.run(
        ["bash", "-c", command.replace(" -t ", " ")],
        cwd=root,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


QUESTIONS = pytest.mark.parametrize(
    ("number", "words", "command"), questions(), ids=[number for number, _, _ in questions()]
)


@QUESTIONS
def test_question_works_at_rest(lake_of_all: Path, number: str, words: str, command: str) -> None:
    """Each question has the answer from sqlite-utils that the lake's history gives."""
    assert words.endswith("?")
    found = answer(lake_of_all, command)
    assert found
    if number == "10":
        assert {row["how_many"] for row in found} == {0}
    if number == "9":
        with reading(lake_of_all / "state/distilld.db", lake_of_all) as store:
            retained = Retained(store).counts()
        told = Counter[tuple[str, str]]()
        for row in found:
            for dataset, column in (("rag", "rag"), ("sft", "sft"), ("preference", "pairs")):
                told[dataset, row["kind"]] += row[column]
        assert +told == {(each.dataset, each.kind): each.rows for each in retained}
        assert {row["kind"] for row in found} == {"absent", "evidence absent"}
    if number == "7":
        assert {row["cause"] for row in found} == {"revoked"}


@QUESTIONS
def test_question_works_beside_a_writer(writing: Path, number: str, words: str, command: str) -> None:
    """Each question has an answer from sqlite-utils while the daemon commits batches."""
    assert answer(writing, command), words


# Datasette


@needs_datasette
def test_datasette_changes_nothing(lake_of_all: Path) -> None:
    """'distilld inspect' opens the store read-only: pages are fetched, and no byte of it is another."""
    store = lake_of_all / "state/distilld.db"
    before = store.read_bytes()
    with inspecting(store) as address:
        assert "batch_id" in fetched(address, "distilld/batches")
    assert store.read_bytes() == before


@needs_datasette
def test_datasette_shows_the_store_beside_a_writer(writing: Path) -> None:
    """Beside a daemon that writes, every table, view and question has its page, and what is new is seen."""
    asked = values(writing)
    parameters = {
        "run_id": asked["RUN_ID"],
        "batch_id": asked["BATCH_ID"],
        "id": asked["ID"],
        "reason": "empty_content",
    }
    with inspecting(writing / "state/distilld.db") as address:
        assert "What became of a run?" in fetched(address, "distilld")
        assert "The time that it stamped on its rows" in fetched(address, "distilld/batches")
        for name in described():
            fetched(address, f"distilld/{name}")
        named = re.findall(r"^      (\w+):\n        title:", METADATA.read_text(), flags=re.MULTILINE)
        assert len(named) == 10
        for name in named:
            assert json.loads(fetched(address, f"distilld/{name}.json?_shape=array&{urlencode(parameters)}")), name

        def newest() -> int:
            found = json.loads(fetched(address, "distilld/batches.json?_shape=array"))
            return int(found[0]["batch"])

        before = newest()
        until(lambda: newest() > before, "a batch that is new")
