"""The kinds of values of settings: each class reads a value and says what is allowed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Kind(Protocol):
    """The kind of values that a key allows."""

    @property
    def allowed(self) -> str:
        """Return what is allowed, as the end of a message."""

    def read(self, value: object) -> object:
        """Return the setting for ``value``; raise ValueError if it is not allowed."""

    def from_text(self, text: str) -> object:
        """Return the value that the text of an environment variable spells, or else the text itself."""
        return text


@dataclass(frozen=True, slots=True)
class Switch(Kind):
    """True or false."""

    allowed: str = "true or false"

    def read(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def from_text(self, text: str) -> object:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)


@dataclass(frozen=True, slots=True)
class Whole(Kind):
    """A whole number from ``least`` to ``most``, both included."""

    least: int
    most: int

    @property
    def allowed(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def read(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValueError
        return value

    def from_text(self, text: str) -> object:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A number up to ``most``: from ``least``, or above it if ``least`` itself is not allowed."""

    least: float
    most: float
    least_allowed: bool = True

    @property
    def allowed(self) -> str:
        return f"a number {'from' if self.least_allowed else 'above'} {self.least:g} up to {self.most:g}"

    def read(self, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValueError
        if value == self.least and not self.least_allowed:
            raise ValueError
        return float(value)

    def from_text(self, text: str) -> object:
        return float(text) if re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", text) else text


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """Any text that can be written as UTF-8."""

    allowed: str = "a text, in valid Unicode"

    def read(self, value: object) -> str:
        if not isinstance(value, str) or not _is_unicode(value):
            raise ValueError
        return value


@dataclass(frozen=True, slots=True)
class Address(Kind):
    """The address of a server, with its scheme; or empty for none."""

    scheme: str

    @property
    def allowed(self) -> str:
        return f"{self.scheme}HOST:PORT, or empty for none"

    def read(self, value: object) -> str:
        if value == "":
            return ""
        form = re.escape(self.scheme) + r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})"
        found = re.fullmatch(form, value) if isinstance(value, str) else None
        if found is None or not 0 < int(found[2]) < 1 << 16:
            raise ValueError
        return found[0]


@dataclass(frozen=True, slots=True)
class FilePath(Kind):
    """A path that can be stored, logged and put into a table; empty only if ``empty_means`` says what that means."""

    empty_means: str = ""

    @property
    def allowed(self) -> str:
        empty = f", or empty for {self.empty_means}" if self.empty_means else ", and not empty"
        return f"a path in valid UTF-8 without control characters{empty}"

    def read(self, value: object) -> str:
        text = str(value) if isinstance(value, Path) else value
        if not isinstance(text, str) or not _is_unicode(text) or re.search(r"[\x00-\x1f\x7f-\x9f]", text):
            raise ValueError
        if not text and not self.empty_means:
            raise ValueError
        return text


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return " or ".join(self.words)

    def read(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise ValueError
        return str(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
