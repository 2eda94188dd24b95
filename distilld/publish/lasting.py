"""What to log once: a problem that lasts must not be logged at each try."""

from __future__ import annotations


class Lasting:
    """Remembers the problem that each thing has, so that it is logged once, until it is another one or is over."""

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}

    def is_news(self, of: str, problem: str | None) -> bool:
        """Note the problem of a thing, None if it has none; return whether to log it."""
        if problem is None:
            self._problems.pop(of, None)
            return False
        known, self._problems[of] = self._problems.get(of), problem
        return known != problem
