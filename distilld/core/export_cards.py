"""The dataset cards of the export folders; their types come from the models that check each row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from distilld.core.card import CardConfig, card_text
from distilld.core.columns import Column, columns_of
from distilld.core.documents import WithdrawalRow
from distilld.core.model import DATASET_PATHS, EXPORT_PATHS, Dataset
from distilld.core.samples import SAMPLES, QuarantineRow

_ABOUT: Final = {
    Dataset.RAG: ("RAG playbooks", "Playbook passages for retrieval, from runs that were accepted."),
    Dataset.SFT: ("SFT instructions and responses", "Instructions, their context, and the response that was accepted."),
    Dataset.PREFERENCE: ("Preference pairs", "Two answers to one task, the better one chosen."),
}
_LIVE: Final = (
    "These are live files: rows come, and rows leave when their run is rejected. To train, take an immutable copy with"
    " `distilld snapshot DIR`; to keep an index in step, use `distilld changes`."
)


@cache
def export_cards() -> Mapping[str, str]:
    """Return the text of each card by its folder below the root."""
    kinds = {dataset.value: columns_of(SAMPLES[dataset]) for dataset in Dataset}

    def configs(folder: str, names: Mapping[str, str], columns: Mapping[str, tuple[Column, ...]]) -> list[CardConfig]:
        return [
            CardConfig(name, {"train": EXPORT_PATHS[export].removeprefix(f"{folder}/")}, columns[name])
            for name, export in names.items()
        ]

    cards = {}
    for dataset, (title, body) in _ABOUT.items():
        folder, _, file = DATASET_PATHS[dataset].rpartition("/")
        config = CardConfig("default", {"train": file}, kinds[dataset.value])
        cards[folder] = card_text(title, [config], f"{body}\n\n{_LIVE}")
    for folder, prefix, title, body, columns in (
        ("exports", "", "The three training datasets", _LIVE, kinds),
        (
            "exports/quarantine",
            "quarantine_",
            "Rows that are not exported, each with its reason",
            "`reason` is one of a closed list, `source_record` the row as it came.",
            dict.fromkeys(kinds, columns_of(QuarantineRow)),
        ),
        (
            "exports/withdrawals",
            "withdrawals_",
            "Rows that left a dataset, or were replaced under their id",
            "History: nothing leaves these files. An id that stands in its dataset now is in, whatever they say.",
            dict.fromkeys(kinds, columns_of(WithdrawalRow)),
        ),
    ):
        cards[folder] = card_text(title, configs(folder, {name: prefix + name for name in kinds}, columns), body)
    return cards
