"""The outcome of a scored row with its evidence, or of a pair of rows: exported or quarantined. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

from distilld.core.json_text import Malformed, cut, stringify
from distilld.core.model import Dataset, Reason, RowRef
from distilld.core.samples import quarantine_parts

NOT_UNICODE: Final = "text is not valid Unicode"
"""Why a marked row, or a row with marked evidence, fails the schema gate (SPEC 2)."""

RAW_UNITS: Final = 200
"""The maximum length of a malformed line in its quarantine row, in UTF-16 code units."""


class Outcome(NamedTuple):
    """An outcome as plain values, and the bytes of its line around its times, which its batch sets.

    ``gate`` and ``reason`` say why it is quarantined; they are None if it is exported with the ``id``.
    """

    gate: str | None
    reason: Reason | None
    parts: tuple[bytes, ...]
    id: str | None = None

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


def quarantine_malformed(
    dataset: Dataset, head: str, malformed: Malformed, at: RowRef, *, source_file: str, max_line_bytes: int
) -> Outcome:
    """Apply gate 1 of RAG and SFT. ``head`` is the start of the line, ``source_file`` its path below the root."""
    reason, errors = Reason.SCHEMA_VIOLATION, (malformed.text(max_line_bytes),)
    record = stringify({"_raw": cut(head, RAW_UNITS)})
    provenance = stringify({"source_file": source_file, "line_offset": at.line})
    return Outcome("malformed", reason, quarantine_parts(dataset, reason, record, errors, provenance, at))
