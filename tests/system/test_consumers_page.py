"""docs/consumers.md: what it tells people to type works. Trainers and vector stores: tests/consumers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.builders import jsonl
from tests.support.consumers_page import Place, snippets
from tests.support.history_lake import given, run

CHECKS: Final = {
    "datasets": """
assert len(train) > 100 and len(held) > 100
assert len(list(pairs)) > 50
assert live.to_list() == same.to_list()
""",
    "types": """
wanted = [__import__("json").loads(line) for line in open(path)]
assert hf.to_list() == frame.to_dicts() == table.to_pylist() == wanted
assert [row[1] for row in rows] == [row["id"] for row in wanted]
""",
    "frames": """
assert len(frame) == by_task.sum()
assert sum(count for _, count in categories) > 100
""",
    "changes": """
assert deletes == []
path = "/srv/lakehouse/exports/rag/playbooks.jsonl"
assert upserts == [json.loads(line) for line in open(path)]
assert changes("rag", through) == ([], [], through)
""",
}
"""What must hold behind each snippet."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A lake on which every shell snippet of the page was run, in order."""
    place = Place(tmp_path_factory.mktemp("page"))
    place.run_shell()
    return place


def test_every_snippet_is_run() -> None:
    """There is no snippet on the page that no test knows of."""
    light = {kind.split()[2] for kind, _ in snippets() if kind.startswith("python light")}
    assert light == set(CHECKS)
    others = {kind for kind, _ in snippets() if not kind.startswith("python light")}
    heavy = (Path(__file__).parents[1] / "consumers" / "test_page.py").read_text()
    for kind in others - {"sh"}:
        assert re.fullmatch(r"python heavy \w+|yaml [\w-]+", kind)
        assert f'"{kind.split()[-1]}"' in heavy


@pytest.mark.parametrize("name", list(CHECKS))
def test_snippet_works(place: Place, name: str) -> None:
    """A snippet runs as it stands, and gives what the page says."""
    (code,) = [code for kind, code in snippets() if kind == f"python light {name}"]
    place.run(
        sys.executable, "-W", "ignore", "-c", place.here(f"import sys\nsys.path.insert(0, '.')\n{code}{CHECKS[name]}")
    )


def test_types_are_for_long_rows_too(place: Place) -> None:
    """pyarrow reads one MiB at a time, and refused a row that is longer."""
    partition = "2027/01/01/long.jsonl"
    for tree, row in (("scored-runs", run("long")), ("evidence", given("long", "a word " * 300_000))):
        path = place.root / "data" / tree / partition
        path.parent.mkdir(parents=True)
        path.write_bytes(jsonl([row]))
    place.bring_up_to_date()
    test_snippet_works(place, "types")


def test_openai_rows_have_the_documented_fields(place: Place) -> None:
    """OpenAI's documentation: messages of role and content; for preference an input and two lists of one answer."""
    for line in (place.snapshot / "openai/sft/train.jsonl").read_bytes().splitlines():
        user, assistant = json.loads(line)["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
    for line in (place.snapshot / "openai/preference/train.jsonl").read_bytes().splitlines():
        row = json.loads(line)
        assert [message["role"] for message in row["input"]["messages"]] == ["user"]
        for answers in (row["preferred_output"], row["non_preferred_output"]):
            assert [(message["role"], bool(message["content"])) for message in answers] == [("assistant", True)]


def test_card_mends_a_live_folder_and_names_every_config(place: Place) -> None:
    """The snapshot's card has a config for each form of each dataset."""
    front = json.loads((place.snapshot / "README.md").read_text().split("---\n")[1])
    assert {each["config_name"] for each in front["configs"]} == {
        "sft", "preference", "rag", "alpaca_sft", "alpaca_preference", "openai_sft", "openai_preference", "raw_rag",
        "raw_sft", "raw_preference",
    }  # fmt: skip
