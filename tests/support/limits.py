"""What bounds the work of a pass in tests."""

from __future__ import annotations

from typing import Any

from distilld.config.settings import EngineLimits

_WHOLE = EngineLimits(
    batch_rows=50_000,
    settle_seconds=0,
    tripwire_rows=1000,
    tripwire_share=0.5,
    receipts_keep=0,
    scrub_hours=24,
    workers=0,
    executor="",
)


def limits(**changes: Any) -> EngineLimits:
    """Return large batches, no wait for files that settle, all receipts kept; and what ``changes`` say."""
    return _WHOLE._replace(**changes)
