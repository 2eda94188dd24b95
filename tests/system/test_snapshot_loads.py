"""Every form of a snapshot, JSON lines and Parquet, loaded by each loader with the types of the card."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from distilld.core.columns import card_features
from distilld.delivery.forms import FORMS, chosen_forms
from tests.support.command import distilld
from tests.support.consumers_page import Place

CONFIGS: Final = [form for forms in chosen_forms(tuple(FORMS)).values() for form in forms]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A lake with two snapshots of all forms."""
    place = Place(tmp_path_factory.mktemp("loads"))
    formats = [word for form in FORMS for word in ("--format", form)]
    for name, more in (("jsonl", ()), ("parquet", ("--parquet",))):
        folder = place.folder / name
        ran = distilld(
            "snapshot", folder, *formats, *more, "--validation", "0.2", "--root", place.root, cwd=place.folder
        )
        assert ran.code == 0, ran.err
    return place


def load(place: Place, script: str, folder: Path) -> Any:
    """What a loader in a process of its own says of all forms."""
    told = {form.config: form.folder for form in CONFIGS}
    code = f"import json, sys, warnings\nwarnings.simplefilter('ignore')\n{script}"
    return json.loads(place.run(sys.executable, "-c", code, str(folder), json.dumps(told)).splitlines()[-1])


_DATASETS: Final = """
from datasets import load_dataset
found = {}
for name in json.loads(sys.argv[2]):
    loaded, streamed = load_dataset(sys.argv[1], name), load_dataset(sys.argv[1], name, streaming=True)
    found[name] = {
        "features": loaded["train"].features._to_yaml_list(),
        "rows": {split: rows.to_list() for split, rows in loaded.items()},
        "streamed": {split: len(list(rows)) for split, rows in streamed.items()},
    }
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_loads_with_hugging_face_datasets(place: Place, kind: str) -> None:
    """Every form, dataset and split loads by its name, streaming too, with the card's types; Parquet holds the same rows."""
    answer = load(place, _DATASETS, place.folder / kind)
    for form in CONFIGS:
        found = answer[form.config]
        assert found["features"] == card_features(form.columns)
        splits = {"train"} if form.dataset == "rag" else {"train", "validation"}
        assert set(found["rows"]) == splits
        for split, rows in found["rows"].items():
            path = place.folder / "jsonl" / form.folder / f"{split}.jsonl"
            assert rows == [json.loads(line) for line in path.read_bytes().splitlines()]
            assert found["streamed"][split] == len(rows)


_FILES: Final = """
import duckdb, pandas, polars, pyarrow.json, pyarrow.parquet
found = {}
for name, folder in json.loads(sys.argv[2]).items():
    path = f"{sys.argv[1]}/{folder}/train."
    if sys.argv[1].endswith("parquet"):
        path += "parquet"
        read = pandas.read_parquet(path), polars.read_parquet(path), pyarrow.parquet.read_table(path)
    else:
        path += "jsonl"
        read = pandas.read_json(path, lines=True), polars.read_ndjson(path), pyarrow.json.read_json(path)
    ids = duckdb.sql(f"SELECT id FROM '{path}'").fetchall()
    found[name] = [list(read[0]["id"]), read[1]["id"].to_list(), read[2]["id"].to_pylist(), [row[0] for row in ids]]
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_loads_with_pandas_polars_pyarrow_and_duckdb(place: Place, kind: str) -> None:
    """Every train file loads with four other loaders, each with all rows."""
    answer = load(place, _FILES, place.folder / kind)
    for form in CONFIGS:
        lines = (place.folder / "jsonl" / form.folder / "train.jsonl").read_bytes().splitlines()
        assert answer[form.config] == [[json.loads(line)["id"] for line in lines]] * 4
