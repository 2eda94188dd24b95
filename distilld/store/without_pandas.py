"""sqlite-utils without what it takes along."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_NOT_NEEDED: Final = ("pandas", "numpy")


@contextmanager
def without_pandas() -> Iterator[None]:
    """Within it, pandas and NumPy cannot be imported, unless they were before.

    sqlite-utils imports both where they are installed, for the types of columns that a store has none of: 80 MiB and
    a quarter of a second at each start of a writer.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in _NOT_NEEDED if name not in modules]
    # None in place of a module is how Python notes that there is none.
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
