"""Defines the forms in which trainers read rows: always with the id; but for ``raw``, few columns, all non-null.

``trl`` and ``openai`` are conversations, for a chat template; ``alpaca`` is plain text; ``raw`` is the exported row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from distilld.core.columns import Column, columns_of
from distilld.core.model import Dataset

Row = dict[str, Any]
_MESSAGE: Final = (Column("role"), Column("content"))


@dataclass(frozen=True, slots=True)
class Form:
    """One dataset in one form: its columns, and ``make``, which builds a row (None: the export's own rows).

    ``llama_factory`` is the form's entry in LLaMA-Factory's dataset_info.json, if LLaMA-Factory can read the form.
    """

    dataset: Dataset
    folder: str
    made_of: tuple[Column, ...]
    make: Callable[[Row], Row] | None
    llama_factory: Mapping[str, Any] | None = None

    @property
    def config(self) -> str:
        """Return the name by which the form is loaded."""
        return self.folder.replace("/", "_")

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return the columns of a row, with their types."""
        if self.make is not None:
            return self.made_of
        from distilld.core.samples import SAMPLES  # slow to import, and only this form needs it

        return columns_of(SAMPLES[self.dataset])


def _texts(*names: str) -> tuple[Column, ...]:
    return tuple(map(Column, names))


def _messages(name: str) -> Column:
    return Column(name, "struct", is_list=True, fields=_MESSAGE)


def _user(row: Row) -> Row:
    context = f"\n\n{row['context']}" if row["context"] else ""
    return {"role": "user", "content": row["instruction"] + context}


def _says(role: str, text: str) -> list[Row]:
    return [{"role": role, "content": text}]


_RETRIEVAL: Final = Form(
    Dataset.RAG, "rag",
    (*_texts("id", "title", "text", "embedding_text"), Column("tags", is_list=True), Column("category")),
    lambda row: {
        "id": row["id"], "title": row["title"], "text": row["content"], "embedding_text": row["embedding_text"],
        "tags": row["tags"], "category": row["source_category"],
    },
)  # fmt: skip
_PAIRS_OF_TEXT: Final[Row] = {
    "ranking": True,
    "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
}


def _raw(dataset: Dataset) -> Form:
    known: dict[Dataset, Row] = {
        Dataset.SFT: {"columns": {"prompt": "instruction", "query": "context", "response": "response"}},
        Dataset.PREFERENCE: _PAIRS_OF_TEXT,
    }
    return Form(dataset, f"raw/{dataset}", (), None, known.get(dataset))


FORMS: Final[Mapping[str, tuple[Form, ...]]] = MappingProxyType(
    {
        "trl": (
            _RETRIEVAL,
            Form(
                Dataset.SFT, "sft", (Column("id"), _messages("prompt"), _messages("completion")),
                lambda row: {
                    "id": row["id"], "prompt": [_user(row)], "completion": _says("assistant", row["response"]),
                },
            ),
            Form(
                Dataset.PREFERENCE, "preference",
                (Column("id"), _messages("prompt"), _messages("chosen"), _messages("rejected")),
                lambda row: {
                    "id": row["id"], "prompt": _says("user", row["prompt"]),
                    "chosen": _says("assistant", row["chosen"]), "rejected": _says("assistant", row["rejected"]),
                },
            ),
        ),
        "alpaca": (
            _RETRIEVAL,
            Form(
                Dataset.SFT, "alpaca/sft", _texts("id", "instruction", "input", "output"),
                lambda row: {
                    "id": row["id"], "instruction": row["instruction"], "input": row["context"],
                    "output": row["response"],
                },
                {"columns": {"prompt": "instruction", "query": "input", "response": "output"}},
            ),
            Form(
                Dataset.PREFERENCE, "alpaca/preference", _texts("id", "prompt", "chosen", "rejected"),
                lambda row: {name: row[name] for name in ("id", "prompt", "chosen", "rejected")},
                _PAIRS_OF_TEXT,
            ),
        ),
        "openai": (
            _RETRIEVAL,
            Form(
                Dataset.SFT, "openai/sft", (Column("id"), _messages("messages")),
                lambda row: {"id": row["id"], "messages": [_user(row), *_says("assistant", row["response"])]},
                {
                    "formatting": "sharegpt", "columns": {"messages": "messages"},
                    "tags": {
                        "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                    },
                },
            ),
            Form(
                Dataset.PREFERENCE, "openai/preference",
                (
                    Column("id"), Column("input", "struct", fields=(_messages("messages"),)),
                    _messages("preferred_output"), _messages("non_preferred_output"),
                ),
                lambda row: {
                    "id": row["id"], "input": {"messages": _says("user", row["prompt"])},
                    "preferred_output": _says("assistant", row["chosen"]),
                    "non_preferred_output": _says("assistant", row["rejected"]),
                },
            ),
        ),
        "raw": tuple(map(_raw, Dataset)),
    }
)  # fmt: skip
"""The forms, by their name in ``--format``; RAG is the same in all but ``raw``."""


def chosen_forms(names: tuple[str, ...]) -> dict[Dataset, list[Form]]:
    """Return the forms of each dataset for these names, each folder once."""
    folders = {form.folder: form for name in dict.fromkeys(names) for form in FORMS[name]}
    return {dataset: [form for form in folders.values() if form.dataset is dataset] for dataset in Dataset}


COMPARED: Final = {
    Dataset.SFT: ("response", "instruction", "context"),
    Dataset.PREFERENCE: ("chosen", "rejected", "prompt"),
}
"""The keys whose texts, if all are equal, make two rows duplicates; the first is the answer that a model learns."""
_ELSEWHERE: Final = frozenset(
    {
        "id", "title", "content", "tags", "embedding_text", "instruction", "context", "response", "prompt", "chosen",
        "rejected", "provenance",
    }
)  # fmt: skip


def provenance_of(row: Row) -> Row:
    """Return, as one flat object, all keys of a row that are no text to train on."""
    told = {key: value for key, value in row.items() if key not in _ELSEWHERE}
    told.update(row["provenance"])
    return told
