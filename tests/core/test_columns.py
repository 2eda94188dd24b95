"""The tables of types: read off the models, and the same in every loader's words."""

from __future__ import annotations

from typing import Any

import pytest

from distilld.core.columns import DIALECTS, Column, card_features, columns_of
from distilld.core.documents import WithdrawalRow
from distilld.core.export_cards import export_cards
from distilld.core.model import Dataset
from distilld.core.samples import SAMPLES, QuarantineRow

PROVENANCE = Column(
    "provenance",
    "struct",
    fields=(
        Column("source_file"),
        Column("line_offset", "int64", nullable=True),
        Column("sig_hash"),
        Column("recorded_at"),
    ),
)


def test_columns_of_a_dataset_follow_its_model() -> None:
    """The columns have the keys of the model in their order; only line_offset may be null, and tags is a list."""
    columns = {column.name: column for column in columns_of(SAMPLES[Dataset.RAG])}
    assert list(columns) == list(SAMPLES[Dataset.RAG].model_fields)
    assert columns["provenance"] == PROVENANCE
    assert columns["tags"] == Column("tags", is_list=True)
    assert columns["schema_version"] == Column("schema_version", "int64")
    assert [name for name, column in columns.items() if column.nullable] == []


def test_values_of_any_type_are_json() -> None:
    """What may hold anything is a JSON value, and a reason is text."""
    columns = {column.name: column for column in columns_of(QuarantineRow)}
    assert columns["source_record"].kind == columns["source_provenance"].kind == "json"
    assert columns["reason"] == Column("reason")


@pytest.mark.parametrize("model", [*SAMPLES.values(), QuarantineRow, WithdrawalRow])
def test_card_and_module_tell_hugging_face_the_same(model: Any) -> None:
    """The front matter of a card and the printed Python module describe the same features."""
    datasets = pytest.importorskip("datasets")
    columns = columns_of(model)
    names: dict[str, Any] = {}
    exec(DIALECTS["hf"].text(columns), names)
    assert datasets.Features._from_yaml_list(card_features(columns)) == names["features"]


@pytest.mark.parametrize("dialect", ["arrow", "polars"])
def test_no_type_for_any_value_is_an_error(dialect: str) -> None:
    """A loader without a type for JSON values gets no schema that would lie."""
    with pytest.raises(KeyError):
        DIALECTS[dialect].text(columns_of(QuarantineRow))


def test_cards_hold_no_counts() -> None:
    """A card is a constant of the release: it does not change with what stands in the files."""
    export_cards.cache_clear()
    first = dict(export_cards())
    export_cards.cache_clear()
    assert first == dict(export_cards())
    assert set(first) == {
        "exports", "exports/rag", "exports/sft", "exports/preference", "exports/quarantine", "exports/withdrawals",
    }  # fmt: skip
