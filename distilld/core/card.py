"""The text of a dataset card: Hugging Face ``datasets`` reads it before it opens a file, and people read it as a page.

Its front matter is JSON, which is also valid YAML. A card lists types and files but no counts, so that it stays the
same from batch to batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distilld.core.columns import Column, card_features
from distilld.core.model import CARD_MARKER


@dataclass(frozen=True, slots=True)
class CardConfig:
    """A configuration that is loaded by name: its files by split, and the types of its rows."""

    name: str
    files: Mapping[str, str]
    columns: tuple[Column, ...]


def card_text(title: str, configs: Sequence[CardConfig], body: str) -> str:
    """Return a card; its first configuration is loaded if no name is given."""
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
