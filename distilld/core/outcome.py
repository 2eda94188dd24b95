"""What a joined row, or a pair of rows, comes to: exported or quarantined. Pure functions, one module per dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from distilld.core.json_text import Malformed, cut, stringify
from distilld.core.model import Dataset, Reason, RowRef
from distilld.core.samples import quarantine_line, quarantine_parts, sample_line, sample_parts

UNSTAMPED = "-"
"""Stands in a sample's two timestamps until its batch stamps them."""

NOT_UNICODE = "text is not valid Unicode"
"""Why a marked row, or a row on marked evidence, fails the schema gate (SPEC 2)."""

RAW_UNITS = 200
"""How much of a malformed line goes into its quarantine row, in UTF-16 code units."""


class Exported(NamedTuple):
    """A sample that stands in its dataset; ``digits`` are the 16 hex digits of its id."""

    digits: str
    sample: dict[str, Any]

    def line(self, created_at: str, recorded_at: str | None = None) -> bytes:
        """The dataset's line, line feed included."""
        return sample_line(self.sample, created_at, recorded_at)

    def parts(self) -> tuple[bytes, ...]:
        """The same around its two times."""
        return sample_parts(self.sample)


class Quarantined(NamedTuple):
    """A row or pair that stands in quarantine, and the gate that it fails; ``record`` gives the source record."""

    gate: str
    dataset: Dataset
    reason: Reason
    errors: tuple[str, ...]
    at: RowRef
    record: Callable[[], bytes]
    provenance: Callable[[], bytes | None]

    def line(self, recorded_at: str, _: str | None = None) -> bytes:
        """The quarantine file's line, line feed included."""
        return quarantine_line(
            self.dataset, self.reason, self.record(), self.errors, self.provenance(), self.at, recorded_at
        )

    def parts(self) -> tuple[bytes, ...]:
        """The same around its time."""
        return quarantine_parts(self.dataset, self.reason, self.record(), self.errors, self.provenance(), self.at)


Outcome = Exported | Quarantined


class Rendered(NamedTuple):
    """An outcome as it is handed over: its gate, none where it is exported; its reason; its line around its times."""

    gate: str | None
    reason: Reason | None
    parts: tuple[bytes, ...]

    def line(self, created_at: str, recorded_at: str | None = None) -> bytes:
        """The finished line, line feed included; only a line of a dataset has two times."""
        created = created_at.encode()
        if self.gate is not None:
            return self.parts[0] + created + self.parts[1]
        head, middle, tail = self.parts
        if recorded_at is None:
            return b"".join((head, created, middle, created, tail))
        # Times that an older exporter wrote, whatever it wrote.
        created, recorded = (orjson.dumps(each)[1:-1] for each in (created_at, recorded_at))
        return b"".join((head, created, middle, recorded, tail))


def rendered(outcome: Outcome) -> Rendered:
    """An outcome as plain values."""
    if isinstance(outcome, Exported):
        return Rendered(None, None, outcome.parts())
    return Rendered(outcome.gate, outcome.reason, outcome.parts())


def no_provenance() -> None:
    """For the quarantine rows that quote none."""
    return


def quarantine_malformed(
    dataset: Dataset, head: str, malformed: Malformed, at: RowRef, *, source_file: str, max_line_bytes: int
) -> Quarantined:
    """Gate 1 of RAG and SFT. ``head`` is the line's text, or enough of it; ``source_file`` its path below the root."""
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
