"""The outcome of a scored row with its evidence, or of a pair of rows: exported or quarantined. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from distilld.core.json_text import Malformed, cut, stringify
from distilld.core.model import Dataset, Reason, RowRef
from distilld.core.samples import quarantine_line, quarantine_parts, sample_line, sample_parts

UNSTAMPED = "-"
"""The placeholder for a sample's two timestamps until its batch sets them."""

NOT_UNICODE = "text is not valid Unicode"
"""Why a marked row, or a row with marked evidence, fails the schema gate (SPEC 2)."""

RAW_UNITS = 200
"""The maximum length of a malformed line in its quarantine row, in UTF-16 code units."""


class Exported(NamedTuple):
    """A sample for its dataset; ``digits`` are the 16 hex digits of its id."""

    digits: str
    sample: dict[str, Any]

    def line(self, created_at: str, recorded_at: str | None = None) -> bytes:
        """Return the line for the dataset, line feed included."""
        return sample_line(self.sample, created_at, recorded_at)

    def parts(self) -> tuple[bytes, ...]:
        """Return the bytes of the line around its two times."""
        return sample_parts(self.sample)


class Quarantined(NamedTuple):
    """A quarantined row or pair, and the gate that it fails; ``record`` returns the source record."""

    gate: str
    dataset: Dataset
    reason: Reason
    errors: tuple[str, ...]
    at: RowRef
    record: Callable[[], bytes]
    provenance: Callable[[], bytes | None]

    def line(self, recorded_at: str, _: str | None = None) -> bytes:
        """Return the line for the quarantine file, line feed included."""
        return quarantine_line(
            self.dataset, self.reason, self.record(), self.errors, self.provenance(), self.at, recorded_at
        )

    def parts(self) -> tuple[bytes, ...]:
        """Return the bytes of the line around its time."""
        return quarantine_parts(self.dataset, self.reason, self.record(), self.errors, self.provenance(), self.at)


Outcome = Exported | Quarantined


class Rendered(NamedTuple):
    """An outcome as plain values: gate and reason (None if exported), and the bytes of its line around its times."""

    gate: str | None
    reason: Reason | None
    parts: tuple[bytes, ...]

    def line(self, created_at: str, recorded_at: str | None = None) -> bytes:
        """Return the finished line, line feed included; only a dataset line has two times."""
        created = created_at.encode()
        if self.gate is not None:
            return self.parts[0] + created + self.parts[1]
        head, middle, tail = self.parts
        if recorded_at is None:
            return b"".join((head, created, middle, created, tail))
        # An older exporter may have written any text as its times.
        created, recorded = (orjson.dumps(each)[1:-1] for each in (created_at, recorded_at))
        return b"".join((head, created, middle, recorded, tail))


def rendered(outcome: Outcome) -> Rendered:
    """Return an outcome as plain values."""
    if isinstance(outcome, Exported):
        return Rendered(None, None, outcome.parts())
    return Rendered(outcome.gate, outcome.reason, outcome.parts())


def no_provenance() -> None:
    """Return None, for quarantine rows that quote no provenance."""
    return


def quarantine_malformed(
    dataset: Dataset, head: str, malformed: Malformed, at: RowRef, *, source_file: str, max_line_bytes: int
) -> Quarantined:
    """Apply gate 1 of RAG and SFT. ``head`` is the start of the line, ``source_file`` its path below the root."""
    raw = cut(head, RAW_UNITS)
    return Quarantined(
        "malformed",
        dataset,
        Reason.SCHEMA_VIOLATION,
        (malformed.text(max_line_bytes),),
        at,
        lambda: stringify({"_raw": raw}),
        lambda: stringify({"source_file": source_file, "line_offset": at.line}),
    )
