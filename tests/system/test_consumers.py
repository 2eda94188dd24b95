"""What a trainer does with the exports: load each folder with Hugging Face datasets, each file with pandas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distilld.core.model import DATASET_PATHS, Dataset, Options, Trigger
from distilld.demo.sample_lake import append_rows, rescore_in_place, write_sample_lake
from distilld.engine.engine import Engine
from distilld.store.connection import Store

# In a process of its own: what a loader warns of at import is not ours to judge.
_LOAD_FOLDER = """
import json, sys
from datasets import load_dataset
found = load_dataset(sys.argv[1], split="train", cache_dir=sys.argv[2])
print(json.dumps({"rows": found.num_rows, "types": {name: str(kind) for name, kind in found.features.items()},
                  "ids": found["id"][:]}))
"""
_LOAD_FILE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import pandas
found = pandas.read_json(sys.argv[1], lines=True)
print(json.dumps({"rows": len(found), "types": {name: str(kind) for name, kind in found.dtypes.items()},
                  "ids": list(found["id"])}))
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lake after two passes: rows that came, rows that left."""
    root = tmp_path_factory.mktemp("consumers")
    sample = write_sample_lake(root)
    store = Store.open(root / "state/distilld.db", root)
    engine = Engine(root, store, Options(), batch_rows=50, settle_seconds=0)
    engine.run_pass(Trigger.ONCE)
    append_rows(sample)
    rescore_in_place(sample, sample.rescored_run_id)
    engine.run_pass(Trigger.ONCE)
    yield root
    store.close()


def load(script: str, *words: str) -> dict[str, object]:
    """What a loader in another process says of a file or folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("dataset", list(Dataset))
def test_folder_loads_with_hugging_face_datasets(lake: Path, tmp_path: Path, dataset: Dataset) -> None:
    """Each dataset folder loads as a whole, as a user would name it, with every row of its file and one type a key."""
    path = lake / DATASET_PATHS[dataset]
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    answer = load(_LOAD_FOLDER, str(path.parent), str(tmp_path))
    assert answer["ids"] == [row["id"] for row in rows]
    assert list(answer["types"]) == list(rows[0])  # type: ignore[call-overload]


@pytest.mark.parametrize("dataset", list(Dataset))
def test_file_loads_with_pandas(lake: Path, dataset: Dataset) -> None:
    """Each dataset file loads with pandas, with every row and the same columns."""
    path = lake / DATASET_PATHS[dataset]
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    answer = load(_LOAD_FILE, str(path))
    assert answer["ids"] == [row["id"] for row in rows]
    assert list(answer["types"]) == list(rows[0])  # type: ignore[call-overload]


@pytest.mark.parametrize("dataset", list(Dataset))
def test_every_row_has_the_same_keys_and_types(lake: Path, dataset: Dataset) -> None:
    """Every row of a dataset has the same keys in the same order, and the same type at each."""

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return [(key, shape(item)) for key, item in value.items()]
        if isinstance(value, list):
            return "list of text" if all(isinstance(item, str) for item in value) else "list"
        return type(value).__name__

    rows = [json.loads(line) for line in (lake / DATASET_PATHS[dataset]).read_bytes().splitlines()]
    assert len({json.dumps(shape(row)) for row in rows}) == 1


def test_dataset_folders_hold_nothing_else(lake: Path) -> None:
    """Each dataset folder holds its one file, so that a loader that takes all it finds takes just that."""
    for path in DATASET_PATHS.values():
        assert [entry.name for entry in (lake / path).parent.iterdir()] == [Path(path).name]
