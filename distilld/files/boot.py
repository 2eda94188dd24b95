"""Which start of the machine this is: monotonic times are of one start alone."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def boot_id() -> str:
    """The kernel's id of this start; where it tells none, one that was never seen before."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return str(uuid4())
