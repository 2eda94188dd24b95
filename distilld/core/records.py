"""The inputs: scored runs and evidence, read tolerantly (SPEC 2, 'Types').

A field of the wrong type counts as absent; no input makes this module raise.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeGuard

from distilld.core.json_text import number_text, prints_alike, stringify
from distilld.core.model import Category

_CATEGORIES: Final = {category.value: category for category in Category}
_INT64_END: Final = 2**63
_make: Final = tuple.__new__
"""The same as a NamedTuple's constructor, but faster, for code that runs for each row."""


def category_of(value: Any) -> Category | None:
    """Return the category that a JSON value names, or None."""
    return _CATEGORIES.get(value) if type(value) is str else None


@lru_cache(maxsize=4)
def id_digits(run_id: str, sig_hash: str) -> str:
    """Return the 16 hex digits of the id that the RAG row and the SFT row of this run share (SPEC 3.1, 3.2)."""
    return hashlib.sha256(f"{run_id}|{sig_hash}".encode()).hexdigest()[:16]


class RowJson:
    """The JSON of a scored row and of its provenance, for its quarantine rows: made once, and only when needed."""

    __slots__ = ("_texts", "value")

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self._texts: tuple[bytes, bytes | None] | None = None

    def texts(self) -> tuple[bytes, bytes | None]:
        """Return the row's value, serialized again, and its provenance, or None if the row has none."""
        if self._texts is None:
            value = self.value
            # If both print the row alike, they print each part alike.
            alike = prints_alike(value)
            provenance = stringify(value["provenance"], alike=alike) if "provenance" in value else None
            self._texts = stringify(value, alike=alike), provenance
        return self._texts


class ScoredRun(NamedTuple):
    """One scored row. No string is empty; ``value`` is the row's whole JSON object."""

    value: dict[str, Any]
    run_id: str | None
    task_id: str | None
    category: Category | None
    sig_hash: str | None
    source_file: str | None
    line_offset: int | None
    first_reason: str | None
    marked: bool
    json: RowJson


class EvidenceRecord(NamedTuple):
    """One evidence row. ``text`` and ``task_id`` may be empty; None means absent or of another type."""

    run_id: str | None
    task_id: str | None
    model_role: str | None
    model_name: str | None
    text: str | None
    source_files: tuple[Any, ...] | None
    matrix_corpora: str | None
    pathway_fingerprints: str | None
    contractor: str | None
    source_file: str | None
    marked: bool

    @property
    def first_source_file(self) -> str | None:
        """Return the first of ``source_files``, a non-empty string, or None if the field counts as absent."""
        return self.source_files[0] if self.source_files else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return type(value) is int or type(value) is float


def _line_offset(value: Any) -> int | None:
    if type(value) is int:
        whole = value
    elif type(value) is float and value.is_integer():
        whole = int(value)
    else:
        return None
    if -(2**53) <= whole <= 2**53:
        return whole
    # JavaScript holds it as a double; the printed integer must fit into a loader's 64-bit column.
    whole = int(number_text(float(whole))) if abs(whole) < 10**21 else _INT64_END
    return whole if -_INT64_END <= whole < _INT64_END else None


def scored_run(value: dict[str, Any], *, marked: bool = False) -> ScoredRun:
    """Read a scored row from its JSON object."""
    get = value.get
    run_id, task_id, category, provenance, reasons = (
        get("evidence_run_id"), get("evidence_task_id"), get("category"), get("provenance"), get("reasons")
    )  # fmt: skip
    sig_hash = source_file = line_offset = None
    if type(provenance) is dict:
        get = provenance.get
        sig_hash, source_file, line_offset = get("sig_hash"), get("source_file"), get("line_offset")
    first = reasons[0] if type(reasons) is list and reasons else None
    return _make(
        ScoredRun,
        (
            value,
            run_id if type(run_id) is str and run_id else None,
            task_id if type(task_id) is str and task_id else None,
            _CATEGORIES.get(category) if type(category) is str else None,
            sig_hash if type(sig_hash) is str and sig_hash else None,
            source_file if type(source_file) is str and source_file else None,
            _line_offset(line_offset),
            first if type(first) is str and first else None,
            marked,
            RowJson(value),
        ),
    )


def evidence_record(value: dict[str, Any], *, marked: bool = False) -> EvidenceRecord:
    """Read an evidence row from its JSON object."""
    get = value.get
    run_id, task_id, role, model, text, files = (
        get("run_id"), get("task_id"), get("model_role"), get("model_name"), get("text"), get("source_files")
    )  # fmt: skip
    retrieved, metadata, provenance = get("retrieved_context"), get("metadata"), get("provenance")
    corpora = fingerprints = contractor = source_file = None
    if type(retrieved) is dict:
        corpora = _joined(retrieved.get("matrix_corpora"))
        seen = retrieved.get("pathway_fingerprints_seen")
        fingerprints = number_text(seen) if _is_number(seen) else None
    if type(metadata) is dict:
        contractor = metadata.get("contractor")
    if type(provenance) is dict:
        source_file = provenance.get("source_file")
    return _make(
        EvidenceRecord,
        (
            run_id if type(run_id) is str and run_id else None,
            task_id if type(task_id) is str else None,
            role if type(role) is str and role else None,
            model if type(model) is str and model else None,
            text if type(text) is str else None,
            tuple(files) if type(files) is list and files and type(files[0]) is str and files[0] else None,
            corpora,
            fingerprints,
            contractor if type(contractor) is str and contractor else None,
            source_file if type(source_file) is str else None,
            marked,
        ),
    )


def _joined(corpora: Any) -> str | None:
    if type(corpora) is not list:
        return None
    if len(corpora) == 1 and type(corpora[0]) is str:
        return str(corpora[0])
    wanted = (item for item in corpora if isinstance(item, str) or _is_number(item))
    parts = [item if isinstance(item, str) else number_text(item) for item in wanted]
    return ",".join(parts) if parts else None
