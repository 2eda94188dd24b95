"""Imports of sqlite-utils without pandas and NumPy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_NOT_NEEDED: Final = ("pandas", "numpy")


@contextmanager
def without_pandas() -> Iterator[None]:
    """Prevent imports of pandas and NumPy in the block, unless they were imported before.

    sqlite-utils imports both if they are installed, for column types that a store does not have. That takes 80 MiB and
    a quarter of a second.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in _NOT_NEEDED if name not in modules]
    # None instead of a module makes its import fail.
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
