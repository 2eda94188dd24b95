"""The kinds of values of settings: what each allows, and how the environment spells it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value. ``allowed`` says what ``allows`` accepts, as the end of a message.

    ``from_text`` returns the value that the text of an environment variable spells, or else the text itself.
    ``as_setting`` returns the setting for an allowed value.
    """

    allowed: str
    allows: Callable[[Any], bool]
    from_text: Callable[[str], object] = str
    as_setting: Callable[[Any], object] = lambda value: value


_SPELT: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

SWITCH: Final = Kind(
    "true or false",
    lambda value: isinstance(value, bool),
    from_text=lambda text: _SPELT.get(text.lower(), text),
)
TEXT: Final = Kind("a text, in valid Unicode", lambda value: isinstance(value, str) and _is_unicode(value))


def whole(least: int, most: int) -> Kind:
    """Return the kind of whole numbers from ``least`` to ``most``, both included."""
    return Kind(
        f"a whole number from {least} to {most}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        from_text=lambda text: int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text,
    )


def number(least: float, most: float, *, least_allowed: bool = True) -> Kind:
    """Return the kind of numbers up to ``most``: from ``least``, or above it if ``least`` itself is not allowed."""

    def allows(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and least <= value <= most and (least_allowed or value != least)

    return Kind(
        f"a number {'from' if least_allowed else 'above'} {least:g} up to {most:g}",
        allows,
        from_text=lambda text: float(text) if re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", text) else text,
        as_setting=float,
    )


def address(scheme: str) -> Kind:
    """Return the kind of addresses of a server, with their scheme; or empty for none."""
    form = re.compile(re.escape(scheme) + r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")

    def allows(value: object) -> bool:
        found = form.fullmatch(value) if isinstance(value, str) else None
        return value == "" or (found is not None and 0 < int(found[2]) < 1 << 16)

    return Kind(f"{scheme}HOST:PORT, or empty for none", allows)


def file_path(empty_means: str = "") -> Kind:
    """Return the kind of paths that can be stored, logged and put into a table.

    A path may be empty only if ``empty_means`` says what that means.
    """

    def allows(value: object) -> bool:
        text = str(value) if isinstance(value, Path) else value
        if not isinstance(text, str) or not _is_unicode(text) or re.search(r"[\x00-\x1f\x7f-\x9f]", text):
            return False
        return bool(text or empty_means)

    empty = f", or empty for {empty_means}" if empty_means else ", and not empty"
    return Kind(f"a path in valid UTF-8 without control characters{empty}", allows, as_setting=str)


def choice(words: tuple[str, ...]) -> Kind:
    """Return the kind of a few words."""
    return Kind(" or ".join(words), lambda value: isinstance(value, str) and value in words)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
