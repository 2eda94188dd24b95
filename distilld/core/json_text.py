"""JSON as the contract reads it and as JavaScript writes it (SPEC 2 and 3.8).

Two promises: :func:`parse_object` accepts exactly the lines that SPEC 2 calls a JSON object, and :func:`stringify`
returns the bytes of ``JSON.stringify(JSON.parse(line))``. The fast path is orjson. The slow path is the reference; it
takes all that orjson refuses, or may print differently from JavaScript.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from enum import StrEnum
from itertools import accumulate
from typing import Any, Final, NamedTuple

import orjson

MAX_DEPTH: Final = 200
"""The maximum nesting depth of containers, the outermost object included."""
QUOTED_DEPTH: Final = MAX_DEPTH + 1
"""The maximum depth of a quarantine line, which quotes a row as one of its values."""

WHITESPACE: Final = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
"""The characters that JavaScript's trim() removes; Python's strip() differs in six characters."""

_MAX_SAFE: Final = 2**53
_make: Final = tuple.__new__
"""The same as a NamedTuple's constructor, but faster, for code that runs for each line."""
# The closing quote is optional: otherwise a torn line would be searched again from each of its quotes.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKET: Final = bytes(set(range(256)) - set(b"[{]}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one level down, one level up, as signed bytes
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ARRAY_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,9}")


class Malformed(StrEnum):
    """Why a line is not a JSON object: the texts for quarantine rows (SPEC 3.7)."""

    NOT_JSON = "not JSON"
    NOT_AN_OBJECT = "not a JSON object"
    TOO_DEEP = f"nested deeper than {MAX_DEPTH}"
    OUT_OF_RANGE = "number out of range"
    TOO_LONG = "longer than the limit"

    def text(self, max_line_bytes: int) -> str:
        """Return the text for a quarantine row; only TOO_LONG names the limit."""
        return f"longer than {max_line_bytes} bytes" if self is Malformed.TOO_LONG else self.value


class ParsedLine(NamedTuple):
    """A parsed line: ``value`` is None if it is malformed; ``marked`` means that U+FFFD replaced invalid text."""

    value: dict[str, Any] | None
    marked: bool
    malformed: Malformed | None


class _OutOfRangeError(ValueError):
    pass


def parse_object(raw: bytes, *, max_depth: int = MAX_DEPTH) -> ParsedLine:
    """Parse one line without its line feed as SPEC 2 demands; no content of a line makes it raise.

    ``max_depth`` is larger for a line that quotes a row: :data:`QUOTED_DEPTH` for a quarantine line.
    """
    # The number of opening brackets; removing them is several times as fast as counting them.
    opening = 2 * len(raw) - len(raw.replace(b"{", b"")) - len(raw.replace(b"[", b""))
    if opening > max_depth and _depth(raw) > max_depth:
        return ParsedLine(None, False, Malformed.TOO_DEEP)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _parse_slowly(raw)
    if type(value) is dict:
        return _make(ParsedLine, (value, False, None))
    return ParsedLine(None, False, Malformed.NOT_AN_OBJECT)


def _parse_slowly(raw: bytes) -> ParsedLine:
    marked = False
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text, marked = raw.decode(errors="replace"), True

    def repaired(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Check all pairs: a lone surrogate marks the line even if a later duplicate of its key overrides the value.
        nonlocal marked
        whole = [(_without_surrogates(key), _without_surrogates(item)) for key, item in pairs]
        marked = marked or whole != pairs
        return dict(whole)

    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, parse_int=_integer, object_pairs_hook=repaired
        )
    except _OutOfRangeError:
        return ParsedLine(None, marked, Malformed.OUT_OF_RANGE)
    except ValueError:
        return ParsedLine(None, marked, Malformed.NOT_JSON)
    if type(value) is not dict:
        return ParsedLine(None, marked, Malformed.NOT_AN_OBJECT)
    return ParsedLine(value, marked, None)


def _depth(raw: bytes) -> int:
    brackets = _STRING.sub(b"", raw).translate(_STEPS, _NO_BRACKET)
    return max(accumulate(memoryview(brackets).cast("b")), default=0)


def _refuse(_: str) -> Any:
    raise ValueError("NaN and Infinity are no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise _OutOfRangeError
    return number


def _integer(digits: str) -> int | float:
    # Beyond 64 bits the value is a double, as in orjson and as in JavaScript.
    if len(digits) <= 20:
        whole = int(digits)
        if -(2**63) <= whole < 2**64:
            return whole
    return _finite(digits)


def _without_surrogates(value: Any) -> Any:
    # Inner objects were repaired when they were parsed.
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    return [_without_surrogates(item) for item in value] if isinstance(value, list) else value


def stringify(value: Any, *, alike: bool = False) -> bytes:
    """Return the bytes of ``JSON.stringify(value)`` for a value from :func:`parse_object`.

    ``alike`` says that it, or a value that contains it, is known to :func:`print alike <prints_alike>`.
    """
    if type(value) is int or type(value) is float:
        return number_text(value).encode()
    return orjson.dumps(value if alike or prints_alike(value) else _as_javascript(value))


def prints_alike(value: Any) -> bool:
    """Return whether orjson and JavaScript print a value alike: no float, integer beyond 2^53, or integer-like key."""
    inside = [value]
    for each in inside:
        kind = type(each)
        if kind is dict:
            for key in each:
                # In text order, a key that begins with a digit is between these two.
                if "0" <= key < ":":
                    return False
            items = each.values()
        elif kind is list:
            items = each
        else:
            items = (each,)
        for item in items:
            kind = type(item)
            if kind is str or item is None or kind is bool:
                continue
            if kind is int:
                if not -_MAX_SAFE <= item <= _MAX_SAFE:
                    return False
            elif kind is float:
                return False
            else:
                inside.append(item)
    return True


def _as_javascript(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return orjson.Fragment(number_text(value))
    if isinstance(value, list):
        return [_as_javascript(item) for item in value]
    indices = sorted((key for key in value if _is_array_index(key)), key=int)
    order = [*indices, *(key for key in value if not _is_array_index(key))] if indices else value
    return {key: _as_javascript(value[key]) for key in order}


def _is_array_index(key: str) -> bool:
    return _ARRAY_INDEX.fullmatch(key) is not None and int(key) < 2**32 - 1


def number_text(number: int | float) -> str:
    """Return a finite number as JavaScript prints it: a double with the fewest digits, an exponent from 1e21 on."""
    if isinstance(number, int) and -_MAX_SAFE <= number <= _MAX_SAFE:
        return str(number)
    double = float(number)
    if double == 0:
        return "0"
    sign, digit_tuple, exponent = Decimal(repr(double)).normalize().as_tuple()
    digits = "".join(map(str, digit_tuple))
    point = len(digits) + int(exponent)  # the position of the decimal point, counted from the first digit
    if len(digits) <= point <= 21:
        body = digits + "0" * (point - len(digits))
    elif 0 < point <= 21:
        body = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        body = "0." + "0" * -point + digits
    else:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        body = f"{digits[0]}{fraction}e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return "-" + body if sign else body


_ABSENT: Final = object()


def template_text(value: Any = _ABSENT) -> str:
    """Return a value as a JavaScript template literal shows it; without an argument, ``undefined``."""
    match value:
        case str():
            return value
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return number_text(value)
        case list():
            return ",".join("" if item is None else template_text(item) for item in value)
        case dict():
            return "[object Object]"
        case _:
            return "undefined"


def escaped(name: str) -> str:
    """Return a name or a command line argument as valid Unicode for JSON: bytes that are not UTF-8 are escaped."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def trim(text: str) -> str:
    """Return the text after JavaScript's ``trim()``."""
    return text.strip(WHITESPACE)


def is_blank(text: str) -> bool:
    """Return whether ``trim()`` would leave an empty text."""
    return not text or (text[0] in WHITESPACE and not text.lstrip(WHITESPACE))


def cut(text: str, units: int) -> str:
    """Return the first ``units`` UTF-16 code units, or one fewer rather than split a surrogate pair."""
    head = text[:units]
    # No character has more UTF-16 units than UTF-8 bytes, and those are fast to count.
    if head.isascii() or 2 * len(head) <= units or len(head.encode(errors="surrogatepass")) <= units:
        return head
    wide = head.encode("utf-16-le")
    return head if len(wide) <= 2 * units else wide[: 2 * units].decode("utf-16-le", errors="ignore")


def utf16_order(text: str) -> bytes:
    """Return a sort key for JavaScript's order of strings: by UTF-16 code units."""
    return text.encode("utf-16-be", errors="surrogatepass")
