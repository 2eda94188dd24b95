"""The facts of a line in the state store, and the codes that it uses for words.

They follow from the line alone: its place, its digest, the run and the task that it names. Pure.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, NamedTuple

from distilld.core.json_text import Malformed, ParsedLine, trim
from distilld.core.model import Category, Dataset, InputKind, Options, Reason
from distilld.core.records import category_of, id_digits

LINE_BITS: Final = 26
"""A partition has fewer than 2^26 lines; the bits above hold its place among the partitions."""
LINES_END: Final = 1 << LINE_BITS
Walks = tuple[int, int]
"""Rows of one partition or several in walk order: the base of the first partition, and the place of the last row."""
ALL_WALKS: Final[Walks] = (0, 1 << 62)

EXPORTED: Final = 0
REASON_CODES: Final = {reason: code for code, reason in enumerate(Reason, 1)}
REASONS: Final = {code: reason for reason, code in REASON_CODES.items()}
DUPLICATE: Final = REASON_CODES[Reason.DUPLICATE_ID]
CATEGORY_CODES: Final = {category: code for code, category in enumerate(Category, 1)}
CATEGORIES: Final = {code: category for category, code in CATEGORY_CODES.items()}
LIKE_REJECTED: Final = len(Category) + 1
"""The code of a verdict that forbids as ``rejected`` does, but is spelled differently (SPEC 3.4)."""
UNREVIEWED: Final = LIKE_REJECTED + 1
"""The code of a verdict with none of the four categories: it forbids as needs_human_review does, and never clears."""
VERDICTS: Final = {**CATEGORIES, LIKE_REJECTED: Category.REJECTED, UNREVIEWED: Category.NEEDS_HUMAN_REVIEW}
"""The category that each code stands for."""
MALFORMED_CODES: Final = {kind: code for code, kind in enumerate(Malformed, 1)}

TOO_LONG: Final = ParsedLine(None, False, Malformed.TOO_LONG)
"""The parse result of a line that was not read because of its length."""


ID_PREFIX: Final = {Dataset.RAG: "rag-", Dataset.SFT: "sft-", Dataset.PREFERENCE: "pref-"}
_DIGITS: Final = re.compile("[0-9a-f]{16}")


class Content(NamedTuple):
    """What was read of an input file: the bytes up to its last line feed, how many lines there are, and its end.

    ``tail`` is 'provisional' for an unterminated end that counts as a line, and 'pending' for any other, which has no
    ``tail_digest``.
    """

    size: int
    sha256: str
    lines: int
    tail: str | None
    tail_bytes: int
    tail_digest: bytes | None

    @property
    def end(self) -> tuple[str | None, int, bytes | None]:
        """Return the unterminated end."""
        return self.tail, self.tail_bytes, self.tail_digest

    @property
    def size_of_lines(self) -> int:
        """Return how many bytes its lines take, with an end that counts as one."""
        return self.size + (self.tail_bytes if self.tail_digest else 0)


NO_CONTENT: Final = Content(0, hashlib.sha256().hexdigest(), 0, None, 0, None)
"""Of an empty file."""


class RowFacts(NamedTuple):
    """The facts of one scored row, in the order of the table's columns."""

    line: int
    start: int
    length: int
    digest: bytes
    run_id: str | None
    task_id: str | None
    category: int | None
    malformed: int | None
    sample_key: int | None


class EvidenceFacts(NamedTuple):
    """The facts of one evidence row."""

    run_id: str
    line: int
    start: int
    length: int
    digest: bytes


class TaskRow(NamedTuple):
    """A row that can be in a pair, with its evidence; ``verdict`` is the code of its run's current verdict."""

    walk: int
    task_id: str
    run_id: str
    category: int
    partition_id: int
    start: int
    length: int
    digest: bytes
    evidence_start: int
    evidence_length: int
    evidence_digest: bytes
    verdict: int | None


class OddLines(NamedTuple):
    """Lines of a file that an operator should check: how many, and the number of the first (SPEC 2, 3.4)."""

    kind: InputKind
    path: str
    lines: int
    first_line: int


def row_facts(line: int, start: int, length: int, digest: bytes, parsed: ParsedLine) -> RowFacts:
    """Return the facts of scored line number ``line`` at offset ``start``."""
    value = parsed.value
    if value is None:
        code = MALFORMED_CODES[parsed.malformed or Malformed.NOT_JSON]
        return RowFacts(line, start, length, digest, None, None, None, code, None)
    run_id, task_id, provenance = value.get("evidence_run_id"), value.get("evidence_task_id"), value.get("provenance")
    run_id = run_id if type(run_id) is str and run_id else None
    # A row that names no run says nothing about any.
    category = category_code(value.get("category")) if run_id is not None else None
    signature = provenance.get("sig_hash") if type(provenance) is dict else None
    key = key_of(id_digits(run_id, signature)) if run_id and type(signature) is str and signature else None
    return RowFacts(
        line,
        start,
        length,
        digest,
        run_id,
        task_id if type(task_id) is str and task_id else None,
        category,
        None,
        key,
    )


def category_code(value: Any) -> int:
    """Return the code of what a row's category says about the run that it names, however it is spelled (SPEC 3.4)."""
    category = category_of(value)
    if category is not None:
        return CATEGORY_CODES[category]
    rejected = type(value) is str and trim(value).lower() == Category.REJECTED.value
    return LIKE_REJECTED if rejected else UNREVIEWED


def ignored(dataset: Dataset, options: Options) -> int:
    """Return the code of unreviewed verdicts if they do not count in a dataset, else 0 (SPEC 3.4).

    Where they forbid nothing, they clear nothing either: the verdict before them counts.
    """
    return 0 if options.forbids(dataset, VERDICTS[UNREVIEWED]) else UNREVIEWED


def key_of(digits: str) -> int:
    """Return the 16 hex digits of an id as the signed 64-bit integer in the store."""
    number = int(digits, 16)
    return number - (1 << 64) if number >> 63 else number


def digits_of(key: int) -> str:
    """Return the 16 hex digits of a stored key."""
    return f"{key & (1 << 64) - 1:016x}"


def id_of(dataset: Dataset, key: int) -> str:
    """Return the id of a row in the dataset."""
    return ID_PREFIX[dataset] + digits_of(key)


def dataset_of(row_id: str) -> Dataset | None:
    """Return the dataset whose ids have this form, or None."""
    for dataset, prefix in ID_PREFIX.items():
        if row_id.startswith(prefix) and _DIGITS.fullmatch(row_id.removeprefix(prefix)):
            return dataset
    return None


def run_of_evidence(value: dict[str, Any]) -> str | None:
    """Return the run that an evidence row names, or None."""
    run_id = value.get("run_id")
    return run_id if type(run_id) is str and run_id else None
