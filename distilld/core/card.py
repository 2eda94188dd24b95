"""The text of a dataset card: what Hugging Face ``datasets`` reads before it opens a file, and a page for people.

Its front matter is JSON, which is YAML too. A card tells types and files, and no counts, so that it stays the same
from batch to batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from distilld.core.columns import Column, card_features, columns_of
from distilld.core.documents import WithdrawalRow
from distilld.core.model import CARD_MARKER, DATASET_PATHS, EXPORT_PATHS, Dataset
from distilld.core.samples import SAMPLES, QuarantineRow


@dataclass(frozen=True, slots=True)
class CardConfig:
    """A part of a folder that is loaded by its name: its files by split, and the types of its rows."""

    name: str
    files: Mapping[str, str]
    columns: tuple[Column, ...]


def card_text(title: str, configs: Sequence[CardConfig], body: str) -> str:
    """A card; the first of its configurations is the one that is loaded without a name."""
    front = {
        "pretty_name": title,
        "configs": [
            {
                "config_name": config.name,
                "data_files": [{"split": split, "path": path} for split, path in config.files.items()],
                **({"default": True} if config is configs[0] else {}),
            }
            for config in configs
        ],
        "dataset_info": [{"config_name": config.name, "features": card_features(config.columns)} for config in configs],
    }
    tables = "\n".join(_table(config) for config in configs)
    return f"---\n{json.dumps(front, indent=1)}\n---\n{CARD_MARKER}\n\n# {title}\n\n{body}\n\n{tables}"


def _table(config: CardConfig) -> str:
    rows = "".join(f"| `{name}` | {kind} |\n" for name, kind in _described(config.columns))
    return f"## {config.name}: {', '.join(config.files.values())}\n\n| key | type |\n|---|---|\n{rows}"


def _described(columns: Sequence[Column], within: str = "") -> list[tuple[str, str]]:
    found = []
    for column in columns:
        kind = f"list of {column.kind}" if column.is_list else column.kind
        found.append((within + column.name, kind + (" or null" if column.nullable else "")))
        found += _described(column.fields, f"{within}{column.name}.")
    return found


_ABOUT: Final = {
    Dataset.RAG: ("RAG playbooks", "Playbook passages for retrieval, from runs that were accepted."),
    Dataset.SFT: ("SFT instructions and responses", "Instructions, their context, and the response that was accepted."),
    Dataset.PREFERENCE: ("Preference pairs", "Two answers to one task, the better one chosen."),
}
_LIVE: Final = (
    "These are live files: rows come, and rows leave when their run is rejected. To train, take a frozen copy with"
    " `distilld snapshot DIR`; to keep an index in step, use `distilld changes`."
)


@cache
def export_cards() -> Mapping[str, str]:
    """The cards of the export folders: folder below the root, text."""
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
            "Rows that do not ship, each with its reason",
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
