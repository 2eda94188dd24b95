"""The core gives, byte for byte, what the TypeScript exporters wrote for the lake in tests/data/phase4."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from distilld.core.model import Dataset, Options
from tests.support.builders import Export, export

LAKE = Path(__file__).parent.parent / "data" / "phase4"
STAMP = "2026-01-01T00:00:00.000Z"
EXPECTED = {
    "rag": "rag/playbooks.jsonl",
    "sft": "sft/instruction_response.jsonl",
    "preference": "preference/chosen_rejected.jsonl",
    "-rag": "quarantine/rag.jsonl",
    "-sft": "quarantine/sft.jsonl",
    "-preference": "quarantine/preference.jsonl",
}
_LOCATION = re.compile(rb',"location":\{"partition":"(\d{4}/\d\d/\d\d/[a-z_]+\.jsonl)","line_offset":(\d+)\}\}\n')


def lake() -> dict[str, tuple[bytes, bytes]]:
    """The lake as its partitions' bytes."""
    scored, evidence = LAKE / "data" / "scored-runs", LAKE / "data" / "evidence"
    names = [path.relative_to(scored).as_posix() for path in scored.rglob("*.jsonl")]
    return {name: ((scored / name).read_bytes(), (evidence / name).read_bytes()) for name in names}


@pytest.fixture(scope="module", params=[True, False], ids=["revoke", "seeds"])
def result(request: pytest.FixtureRequest) -> Export:
    """One pass over the lake, with the revocation that is the default, and without, as the older exporters work."""
    return export(lake(), Options(revoke=request.param))


@pytest.mark.parametrize("name", EXPECTED)
def test_each_file_is_byte_identical(result: Export, name: str) -> None:
    """Each of the six files has the bytes that the TypeScript wrote, the location of quarantine rows aside."""
    written = _LOCATION.sub(b"}\n", result.files(STAMP)[name])
    expected = (LAKE / "expected" / EXPECTED[name]).read_bytes()
    assert written.splitlines() == expected.splitlines()
    assert written == expected


def test_every_quarantine_row_names_where_it_stands(result: Export) -> None:
    """A quarantine row's location is a line of a partition, and of RAG and SFT each line is named at most once."""
    lines = {name: sum(1 for line in scored.split(b"\n") if line) for name, (scored, _) in lake().items()}
    for name in ("-rag", "-sft", "-preference"):
        rows = result.files()[name].splitlines(keepends=True)
        places = [match.groups() for row in rows if (match := _LOCATION.search(row))]
        assert len(places) == len(rows)
        assert all(int(line) < lines[partition.decode()] for partition, line in places)
        if name != "-preference":
            assert len(set(places)) == len(places)


def test_the_counts_are_those_of_the_report(result: Export) -> None:
    """The figures of the acceptance report hold: 1,052 rows in, 446, 351 and 83 out, each hold with its reason."""
    assert result.lines == 1052
    assert {dataset.value: len(result.exported(dataset)) for dataset in Dataset} == {
        "rag": 446,
        "sft": 351,
        "preference": 83,
    }
    assert {
        dataset.value: dict(Counter(row["reason"] for row in result.quarantined(dataset))) for dataset in Dataset
    } == {
        "rag": {"category_disallowed": 536, "empty_content": 70},
        "sft": {"unsafe_sft_category": 536, "category_disallowed": 132, "missing_source_run_id": 33},
        "preference": {"invalid_preference_pairing": 16},
    }


def test_the_firewall_held(result: Export) -> None:
    """SFT has accepted rows only, RAG 351 of them and 95 partial ones, no pair is of one run, SFT_NEVER is all held."""
    assert Counter(row["quality_score"] for row in result.exported(Dataset.SFT)) == {"accepted": 351}
    assert Counter(row["success_score"] for row in result.exported(Dataset.RAG)) == {
        "accepted": 351,
        "partially_accepted": 95,
    }
    assert all(row["chosen_run_id"] != row["rejected_run_id"] for row in result.exported(Dataset.PREFERENCE))
    forbidden = sum(
        scored.count(b'"category":"rejected"') + scored.count(b'"category":"needs_human_review"')
        for scored, _ in lake().values()
    )
    unsafe = [row for row in result.quarantined(Dataset.SFT) if row["reason"] == "unsafe_sft_category"]
    assert len(unsafe) == forbidden == 536
