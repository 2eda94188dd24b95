"""The words of the domain, each with one meaning. Pure: no file, clock, log or database.

partition     a path ``a/b/c/name.jsonl`` that can exist in both input trees
scored row    one non-empty line of a scored partition
evidence      the record of a run, in the mirrored evidence partition
dataset       one of the three training files
export        a row's sample is written to a dataset
quarantine    a row is written to a quarantine file, with a reason
withdraw      an exported row is taken out of its dataset
verdict       what a scored row says about its run; the last one is the *current verdict*
revoke        forbid by a later verdict what an earlier one allowed
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

from distilld.core.remedies import remedy_of

RULES_VERSION: Final = 3
"""Increase it when a release changes the outcome of any row: every row is then judged again."""


class Word(StrEnum):
    """A member of a closed set; it equals its text and has the same hash, so either finds the other in a mapping.

    ``text`` is the same as ``value``, and faster to read in code that runs for each row.
    """

    text: str

    def __new__(cls, text: str) -> Self:
        """Make a member from its text."""
        member = str.__new__(cls, text)
        member._value_ = member.text = text
        return member

    __hash__ = str.__hash__


class Category(Word):
    """What the scorer says of a run (SPEC 2)."""

    ACCEPTED = "accepted"
    PARTIALLY_ACCEPTED = "partially_accepted"
    REJECTED = "rejected"
    NEEDS_HUMAN_REVIEW = "needs_human_review"


SFT_NEVER: Final = frozenset({Category.REJECTED, Category.NEEDS_HUMAN_REVIEW})
"""The categories that no option allows in the SFT dataset (SPEC 3.2). Never remove one."""


_ACCEPTED: Final = (Category.ACCEPTED,)
_ACCEPTED_OR_PARTIAL: Final = (Category.ACCEPTED, Category.PARTIALLY_ACCEPTED)
_ALL_BUT_REJECTED: Final = (*_ACCEPTED_OR_PARTIAL, Category.NEEDS_HUMAN_REVIEW)


class Dataset(Word):
    """The three datasets, in the order in which they are renamed and reported."""

    RAG = "rag"
    SFT = "sft"
    PREFERENCE = "preference"


ROW_DATASETS: Final = (Dataset.RAG, Dataset.SFT)
"""The datasets whose rows come from one scored row each; a pair comes from two."""


class Reason(Word):
    """Why a row is quarantined: the closed list of SPEC 3.7."""

    MISSING_PROVENANCE = "missing_provenance"
    MISSING_SOURCE_RUN_ID = "missing_source_run_id"
    EMPTY_CONTENT = "empty_content"
    SCHEMA_VIOLATION = "schema_violation"
    UNSAFE_SFT_CATEGORY = "unsafe_sft_category"
    UNSAFE_RAG_CATEGORY = "unsafe_rag_category"
    INVALID_PREFERENCE_PAIRING = "invalid_preference_pairing"
    HALLUCINATED_FILE_PATH = "hallucinated_file_path"
    DUPLICATE_ID = "duplicate_id"
    SELF_PAIRING = "self_pairing"
    CATEGORY_DISALLOWED = "category_disallowed"
    TOO_MANY_EXPORTS = "too_many_exports"


class InputKind(Word):
    """The two input trees below ``<root>/data``."""

    SCORED = "scored"
    EVIDENCE = "evidence"


class OnDelete(Word):
    """What happens to the rows of an absent partition (SPEC 3)."""

    KEEP = "keep"
    WITHDRAW = "withdraw"


class Trigger(Word):
    """What triggered a batch."""

    STARTUP = "startup"
    WATCH = "watch"
    RESCAN = "rescan"
    ONCE = "once"
    REBUILD = "rebuild"
    RELOAD = "reload"
    RECOVERY = "recovery"
    PRUNE = "prune"
    COMPACT = "compact"


class Cause(Word):
    """Why an exported row left or was replaced: the first cause that applies (SPEC 3.9)."""

    PRUNED = "pruned"
    REVOKED = "revoked"
    RESCORED = "rescored"
    ROW_REMOVED = "row_removed"
    EVIDENCE_CHANGED = "evidence_changed"
    DISPLACED = "displaced"
    OPTIONS_CHANGED = "options_changed"
    LOST = "lost"
    UNDONE = "undone"


class RowRef(NamedTuple):
    """The place of a row: its partition (``a/b/c/name.jsonl``) and its line, non-empty lines counted from 0."""

    partition: str
    line: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A current verdict: its category and the place of its row."""

    category: Category
    at: RowRef


@dataclass(frozen=True, slots=True)
class Options:
    """The settings that change the target state (SPEC 5.1); every receipt has their sha256."""

    include_partial: bool = False
    include_review: bool = False
    revoke: bool = True
    on_delete: OnDelete = OnDelete.KEEP
    check_source_files: bool = False
    source_files_root: str = ""
    missing_source_file: str = ""
    max_line_bytes: int = 8_388_608
    max_exports_per_run: int = 1000
    rules_version: int = RULES_VERSION

    @property
    def rag_allowed(self) -> tuple[Category, ...]:
        """Return the categories that RAG accepts, in the order in which messages name them."""
        return _ALL_BUT_REJECTED if self.include_review else _ACCEPTED_OR_PARTIAL

    @property
    def sft_allowed(self) -> tuple[Category, ...]:
        """Return the categories that SFT accepts; an earlier gate quarantines those of SFT_NEVER."""
        return _ACCEPTED_OR_PARTIAL if self.include_partial else _ACCEPTED

    def forbids(self, dataset: Dataset, category: Category) -> bool:
        """Return whether a current verdict of this category revokes its run's rows in ``dataset`` (SPEC 3.4)."""
        if dataset is Dataset.RAG:
            return category is Category.REJECTED or (
                category is Category.NEEDS_HUMAN_REVIEW and not self.include_review
            )
        return category in SFT_NEVER

    def as_json(self) -> dict[str, object]:
        """Return the options as a receipt shows them."""
        return {key: str(value) if isinstance(value, StrEnum) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Read the options from a receipt; a missing option has its default."""
        known = {each.name: told[each.name] for each in fields(cls) if each.name in told}
        return cls(**{**known, "on_delete": OnDelete(known.get("on_delete", OnDelete.KEEP))})

    @property
    def sha256(self) -> str:
        """Return a digest of all options; it stays the same in a release that does not change them."""
        text = "\n".join(f"{key}={value!r}" for key, value in sorted(self.as_json().items()))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


HOUR_NS: Final = 3600 * 10**9


_make: Final = tuple.__new__
"""The same as a NamedTuple's constructor, but faster: a scan calls it for each file."""
_SIGNED: Final = 1 << 63
_NOT_NEGATIVE: Final = _SIGNED - 1
_OF_A_PART: Final = -2


class StatFacts(NamedTuple):
    """The result of a stat of a file; times in nanoseconds since the epoch, by the clock of the file's server.

    All are signed 64-bit integers, for the store holds no others. A larger number, such as a time after the year 2262,
    is taken modulo 2^64. ``ctime_ns`` is taken modulo 2^63 if it is negative or too large: a negative one is a mark.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: Any) -> StatFacts:
        """Make the facts from an ``os.stat_result``."""
        device, inode, mtime_ns, ctime_ns = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
        if (device | inode | mtime_ns | ctime_ns) >> 63:
            device, inode, mtime_ns = ((each + _SIGNED) % (2 * _SIGNED) - _SIGNED for each in (device, inode, mtime_ns))
            ctime_ns &= _NOT_NEGATIVE
        return _make(cls, (device, inode, status.st_size, mtime_ns, ctime_ns))

    def doubted(self) -> StatFacts:
        """Return facts that equal no real stat, so that the next scan reads the file."""
        return self if self.ctime_ns < 0 else self._replace(ctime_ns=-1)

    def of_a_part(self) -> StatFacts:
        """Return the same for a file of which only the beginning was read."""
        return self._replace(ctime_ns=_OF_A_PART)

    @property
    def are_of_a_part(self) -> bool:
        """Return whether only the beginning of the file was read."""
        return self.ctime_ns == _OF_A_PART


DATASET_PATHS: Final = {
    Dataset.RAG: "exports/rag/playbooks.jsonl",
    Dataset.SFT: "exports/sft/instruction_response.jsonl",
    Dataset.PREFERENCE: "exports/preference/chosen_rejected.jsonl",
}
SET_ASIDE: Final = "exports/.set-aside"
"""The folder for files that were found in place of an export."""
TAMPERINGS_AN_HOUR: Final = 3
"""After this many changes from outside within an hour, exports are taken to have another writer."""
REPORTS: Final = "reports/distillation"

EXPORT_PATHS: Final[dict[str, str]] = {
    **{dataset.value: path for dataset, path in DATASET_PATHS.items()},
    **{f"quarantine_{dataset}": f"exports/quarantine/{dataset}.jsonl" for dataset in Dataset},
    **{f"withdrawals_{dataset}": f"exports/withdrawals/{dataset}.jsonl" for dataset in Dataset},
}
"""The nine export files by name; paths are below the root."""


SEGMENT_BYTES: Final = 1 << 19
"""The length of a segment of an export, in bytes; each segment has its own digest."""
WHOLE_FILE: Final = 1 << 62
"""A segment length in bytes that is larger than any export: the one segment is the file, as in version 0.1."""
MARK_BYTES: Final = 4
"""The length of a line's mark in bytes: the beginning of its digest."""


class Marks(NamedTuple):
    """The lengths of some lines, and their marks, concatenated."""

    lengths: array[int]
    marks: bytes

    @classmethod
    def of(cls, lines: Sequence[bytes], digests: Iterable[bytes]) -> Marks:
        """Make the marks of lines from their digests."""
        return cls(array("L", map(len, lines)), b"".join([digest[:MARK_BYTES] for digest in digests]))


class MarkedLines(NamedTuple):
    """Finished lines, concatenated, with their marks."""

    content: bytes
    marks: Marks


Pieces = Iterable[bytes | MarkedLines]
"""The lines to write to an export: whole lines, with their marks where these are known."""
CARD: Final = "README.md"
"""The file name of the dataset card in each export folder."""
CARD_MARKER: Final = "<!-- written by distilld; take this line out, and distilld leaves the file alone -->"
"""The line that marks a card as written by distilld; a card without it is not overwritten."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The committed state of an export: its length in bytes, its rows, its digest in hex.

    The digest of a file of one segment is the sha256 of its bytes. The digest of a longer file is the sha256 of the
    concatenated sha256s of its segments; each segment but the last has ``segment_bytes`` bytes. ``spaces`` counts the
    bytes of white space that replaced withdrawn rows.
    """

    size: int
    rows: int
    sha256: str
    segment_bytes: int = SEGMENT_BYTES
    spaces: int = 0


class DistilldError(Exception):
    """The base class of all errors that the program raises on purpose; ``hint`` says what to do."""

    hint: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.hint


class OperatorError(DistilldError):
    """The operator must act: a full disk, a missing permission, a second writer."""


class UsageError(DistilldError):
    """The command or the configuration is wrong (exit code 2)."""


class WriterBusy(OperatorError):
    """Another distilld holds the lake or the store (exit code 75)."""

    def __init__(self, message: str, *, pid: int | None) -> None:
        super().__init__(message, hint="stop it, or wait until it is done")
        self.pid = pid


class InputChanged(DistilldError):
    """An input file changed while a batch used it: the batch is undone and planned again."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} changed while it was read")
        self.path = path


class UnreadableError(OperatorError):
    """An input file could not be read."""

    def __init__(self, path: str, cause: OSError, *, hint: str = "") -> None:
        self.why = cause.strerror or str(cause)
        self.errno = cause.errno
        super().__init__(f"cannot read {path}: {self.why}", hint=hint or remedy_of(cause))
        self.path = path


class ProgramError(DistilldError):
    """An internal check failed: a bug. The batch is undone."""
