"""Identify the current boot of the machine: monotonic times compare only within one boot."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def boot_id() -> str:
    """Return the kernel's id of this boot, or a new random id if there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return str(uuid4())
