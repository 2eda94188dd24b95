"""The dataset cards of the export folders; their types come from the models that check each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    samples = {dataset.value: columns_of(SAMPLES[dataset]) for dataset in Dataset}
    quarantined, withdrawn = columns_of(QuarantineRow), columns_of(WithdrawalRow)
    cards = {}

    def write(folder: str, title: str, body: str, exports: Iterable[tuple[str, str, tuple[Column, ...]]]) -> None:
        """Write a card; of each export it takes the name to load it by, our own name, and the columns."""
        configs = [
            CardConfig(name, {"train": EXPORT_PATHS[own].removeprefix(f"{folder}/")}, columns)
            for name, own, columns in exports
        ]
        cards[folder] = card_text(title, configs, body)

    for dataset, (title, body) in _ABOUT.items():
        folder, of = DATASET_PATHS[dataset].rpartition("/")[0], dataset.value
        write(folder, title, f"{body}\n\n{_LIVE}", [("default", of, samples[of])])
    write("exports", "The three training datasets", _LIVE, [(of, of, columns) for of, columns in samples.items()])
    write(
        "exports/quarantine",
        "Rows that are not exported, each with its reason",
        "`reason` is one of a closed list, `source_record` the row as it came.",
        [(of, f"quarantine_{of}", quarantined) for of in samples],
    )
    write(
        "exports/withdrawals",
        "Rows that left a dataset, or were replaced under their id",
        "History: nothing leaves these files. An id that stands in its dataset now is in, whatever they say.",
        [(of, f"withdrawals_{of}", withdrawn) for of in samples],
    )
    return cards
