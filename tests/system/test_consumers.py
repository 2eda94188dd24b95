"""What a trainer does with the exports: every folder and file of them, loaded as its loader's own documentation says.

The lake is larger than what a loader looks at to guess types, and its early rows have no ``line_offset``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from distilld.core.columns import DIALECTS, columns_of
from distilld.core.documents import WithdrawalRow
from distilld.core.model import CARD, DATASET_PATHS, EXPORT_PATHS, Dataset
from distilld.core.samples import SAMPLES, QuarantineRow
from tests.support.history_lake import HistoryLake, given, history_lake, run

DAYS: Final = 5
TASKS_A_DAY: Final = 300
TEXT_BYTES: Final = 9_000
GUESSED_FROM: Final = 10 << 20
"""Hugging Face datasets infers types from the first ten megabytes."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HistoryLake]:
    """A lake of five days of which only the last has line offsets; then a run is rejected."""
    with history_lake(tmp_path_factory.mktemp("consumers")) as lake:
        for day in range(DAYS):
            offset = {} if day == DAYS - 1 else {"provenance__line_offset": None}
            tasks = range(day * TASKS_A_DAY, (day + 1) * TASKS_A_DAY)
            sides = [(task, category) for task in tasks for category in ("accepted", "rejected")]
            partition = f"2026/05/{day + 1:02}/work.jsonl"
            lake.evidence(
                partition, *(given(f"{task}-{side}", f"{task} {side} " + "x" * TEXT_BYTES) for task, side in sides)
            )
            lake.scored(partition, *(run(f"{task}-{side}", side, f"task-{task}", **offset) for task, side in sides))
        lake.scored(
            "2026/05/09/odd.jsonl", b"null", {**run("odd"), "provenance": "text"}, run("0-accepted", "rejected")
        )
        lake.both("2026/05/09/same.jsonl", run("s1", task_id="same"), run("s2", "rejected", "same"))
        lake.evidence("2026/05/09/same.jsonl", given("s1", "the same"), given("s2", "the same"))
        lake.go()
        lake.scored("2026/05/10/later.jsonl", run("1-accepted", "rejected"))
        lake.go()
        yield lake


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No loader asks the network, or remembers what an earlier test loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hugging-face")))
        yield


def load(script: str, *words: object) -> Any:
    """What a loader in another process says; what it warns of at import is not ours to judge."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


_FOLDER: Final = """
import json, sys
from datasets import load_dataset
folder, name = sys.argv[1], sys.argv[2] or None
found = load_dataset(folder, name, split="train")
streamed = load_dataset(folder, name, split="train", streaming=True)
print(json.dumps({"features": found.features._to_yaml_list(), "rows": found.to_list(), "streamed": len(list(streamed))}))
"""


@pytest.mark.parametrize(
    ("folder", "name", "export", "model"),
    [
        *((DATASET_PATHS[each].rpartition("/")[0], "", each.value, SAMPLES[each]) for each in Dataset),
        *(("exports", each.value, each.value, SAMPLES[each]) for each in Dataset),
        *(("exports/quarantine", each.value, f"quarantine_{each}", QuarantineRow) for each in Dataset),
        *(("exports/withdrawals", each.value, f"withdrawals_{each}", WithdrawalRow) for each in Dataset),
    ],
)
def test_folder_loads_with_hugging_face_datasets(
    lake: HistoryLake, folder: str, name: str, export: str, model: Any
) -> None:
    """Every export folder, and exports/ as a whole, loads by its card with every row and the card's types, streaming too.

    A lake whose first ten megabytes had no line_offset could not be loaded: the type was guessed to be null.
    """
    from distilld.core.columns import card_features

    rows = lake.rows(export)
    assert rows
    answer = load(_FOLDER, lake.root / folder, name)
    assert answer["features"] == card_features(columns_of(model))
    assert answer["streamed"] == len(rows)
    wanted = [{"source_provenance": None, **row} if "exporter" in row else row for row in rows]
    assert answer["rows"] == wanted


def test_lake_is_one_whose_types_cannot_be_guessed(lake: HistoryLake) -> None:
    """More than ten megabytes of each dataset stand before its first line_offset, and without a card it does not load."""
    for dataset in Dataset:
        lines = lake.content(dataset).splitlines(keepends=True)
        first = next(number for number, line in enumerate(lines) if b'"line_offset":null' not in line)
        assert sum(map(len, lines[:first])) > GUESSED_FROM
    script = "import sys, datasets\ndatasets.load_dataset('json', data_files=sys.argv[1], split='train')"
    done = subprocess.run([sys.executable, "-c", script, str(lake.root / EXPORT_PATHS["sft"])], capture_output=True, text=True, check=False)  # fmt: skip
    assert "Couldn't cast" in done.stderr


_WITH_SCHEMA: Final = {
    "hf": """
from datasets import load_dataset
rows = load_dataset("json", data_files=path, split="train", features=features).to_list()
""",
    "arrow": """
import pyarrow.json
rows = pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(explicit_schema=schema)).to_pylist()
""",
    "polars": """
import polars
rows = polars.scan_ndjson(path, schema=schema).collect().to_dicts()
""",
    "duckdb": """
import duckdb
found = duckdb.read_json(path, format="newline_delimited", columns=columns)
rows = [dict(zip(found.columns, row)) for row in found.fetchall()]
""",
}


@pytest.mark.parametrize("dataset", list(Dataset))
@pytest.mark.parametrize("form", list(_WITH_SCHEMA))
def test_file_loads_with_the_printed_types(lake: HistoryLake, dataset: Dataset, form: str) -> None:
    """Each dataset file loads with the types that 'distilld schema --format' prints, every value as it stands there."""
    printed = DIALECTS[form].text(columns_of(SAMPLES[dataset]))
    types = f"columns = {printed}" if form == "duckdb" else printed
    script = f"import json, sys\npath = sys.argv[1]\n{types}\n{_WITH_SCHEMA[form]}\nprint(json.dumps(rows))"
    assert load(script, lake.root / DATASET_PATHS[dataset]) == lake.rows(dataset)


@pytest.mark.parametrize("dataset", list(Dataset))
def test_file_loads_with_pandas(lake: HistoryLake, dataset: Dataset) -> None:
    """Each dataset file loads with pandas, with every row and the same columns."""
    script = """
import json, sys, warnings
warnings.simplefilter("ignore")
import pandas
found = pandas.read_json(sys.argv[1], lines=True)
print(json.dumps({"columns": list(found.columns), "ids": list(found["id"])}))
"""
    rows = lake.rows(dataset)
    answer = load(script, lake.root / DATASET_PATHS[dataset])
    assert answer == {"columns": list(rows[0]), "ids": [row["id"] for row in rows]}


def test_emptied_dataset_streams_as_no_rows(tmp_path: Path) -> None:
    """A dataset that lost all its rows has its types still, and streams as no rows."""
    with history_lake(tmp_path) as lake:
        lake.both("2026/04/27/a.jsonl", run("a"))
        lake.go()
        lake.scored("2026/04/27/a.jsonl", run("a", "rejected"))
        lake.go()
        assert lake.content("rag") == b""
        script = """
import json, sys
from datasets import load_dataset
found = load_dataset(sys.argv[1], split="train", streaming=True)
print(json.dumps([list(found.features), list(found)]))
"""
        assert load(script, lake.root / "exports/rag") == [list(SAMPLES[Dataset.RAG].model_fields), []]


@pytest.mark.parametrize("dataset", list(Dataset))
def test_every_row_has_the_same_keys_and_types(lake: HistoryLake, dataset: Dataset) -> None:
    """Every row of a dataset has the same keys in the same order, and the same type at each, line_offset aside."""

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return [(key, shape(item)) for key, item in value.items() if key != "line_offset"]
        if isinstance(value, list):
            return "list of text" if all(isinstance(item, str) for item in value) else "list"
        return type(value).__name__

    assert len({json.dumps(shape(row)) for row in lake.rows(dataset)}) == 1


def test_dataset_folders_hold_nothing_else(lake: HistoryLake) -> None:
    """Each dataset folder holds its one file and its card, so that a loader that takes all it finds takes just that."""
    for path in DATASET_PATHS.values():
        found = sorted(entry.name for entry in (lake.root / path).parent.iterdir())
        assert found == [CARD, Path(path).name]
