"""JSON is read as the contract demands and written as JavaScript writes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilld.core import json_text
from distilld.core.json_text import (
    Malformed,
    ParsedLine,
    cut,
    is_blank,
    number_text,
    parse_object,
    stringify,
    template_text,
    trim,
    utf16_order,
)
from tests.support.builders import PROPERTY

# Texts to read: whatever JSON allows, and what is nearly JSON

WHITE = st.text("\t\n\r ", max_size=2)
STRINGS = st.lists(
    st.one_of(
        st.text("ab :,[]{}\x7f\u00a0\u2028é\uffff😀", max_size=4),
        st.sampled_from(["\\n", '\\"', "\\\\", "\\/", "\\u0000", "\\u00e9", "\\uD83D\\uDE00", ",1.5", ',\\"7\\":']),
    ),
    max_size=4,
).map("".join)
LONE = st.sampled_from(["\\ud800", "x\\uDBFFy", "\\udc00", "\\ude00\\ud83d", "\\ud83d\\u0041"])
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
EDGES = st.sampled_from(
    [
        "-0",
        "-0.0",
        "1e23",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775808",
        "-9223372036854775809",
        "99999999999999999999",
        "5e-324",
        "1e-400",
    ]
)
KEYS = st.one_of(STRINGS, st.sampled_from(["0", "1", "10", "2", "01", "-1", "4294967294", "4294967295", "__proto__"]))
SCALARS = st.one_of(
    STRINGS.map('"{}"'.format), NUMBERS, EDGES, st.sampled_from(["true", "false", "null", "[]", "{}", "[{}]"])
)


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    spaced = st.tuples(WHITE, inner, WHITE).map("".join)
    members = st.tuples(WHITE, KEYS.map('"{}"'.format), WHITE, st.just(":"), spaced).map("".join)
    return st.one_of(
        st.lists(spaced, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.lists(members, max_size=3).map(lambda items: f"{{{','.join(items)}}}"),
    )


OBJECTS = st.lists(
    st.tuples(KEYS.map('"{}"'.format), st.recursive(SCALARS, _containers, max_leaves=6)).map(":".join), max_size=4
).map(lambda items: f"{{{','.join(items)}}}")


@st.composite
def nearly_json(draw: st.DrawFn) -> bytes:
    """The bytes of an object with a few of them changed."""
    raw = bytearray(draw(OBJECTS).encode())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(raw)))
        new = draw(
            st.one_of(st.binary(min_size=0, max_size=2), LONE.map(str.encode), st.sampled_from([b'"', b"{", b"]"]))
        )
        raw[place : place + draw(st.integers(0, 2))] = new
    return bytes(raw)


def is_shallow(raw: bytes) -> bool:
    """Whether the line cannot be nested too deeply, so that the slow path may be asked directly."""
    return raw.count(b"{") + raw.count(b"[") <= json_text.MAX_DEPTH


@PROPERTY
@given(OBJECTS.map(str.encode))
def test_any_object_is_read_and_both_paths_agree(raw: bytes) -> None:
    """What JSON calls an object is read, unmarked, and the fast path gives the very value that the slow path gives."""
    line = parse_object(raw)
    assert line.malformed is None
    assert not line.marked
    assert repr(line) == repr(json_text._parse_slowly(raw))


@PROPERTY
@given(nearly_json())
def test_whatever_a_line_holds_nothing_is_raised_and_both_paths_agree(raw: bytes) -> None:
    """A damaged line is read or refused alike on both paths, and never raises."""
    line = parse_object(raw)
    assert (line.value is None) is (line.malformed is not None)
    if is_shallow(raw):
        slow = json_text._parse_slowly(raw)
        assert repr(line.value) == repr(slow.value)
        assert line.malformed == slow.malformed
        assert line.malformed or line.marked == slow.marked


@PROPERTY
@given(nearly_json())
def test_what_was_read_can_be_written_and_read_again(raw: bytes) -> None:
    """Any value that was read can be written, as valid UTF-8, and what was written reads and writes the same."""
    value = parse_object(raw).value
    if value is not None:
        written = stringify(value)
        again = parse_object(written)
        assert not again.marked
        assert again.value is not None
        assert stringify(again.value) == written
        written.decode()


READ: list[tuple[bytes, Any]] = [
    (b"{}", {}),
    (b' \t\r{ "a" : [ 1 , null ] } \r', {"a": [1, None]}),
    (b'{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}),
    (b'{"a":-0}', {"a": 0}),
    (b'{"a":1E2}', {"a": 100.0}),
    (b'{"a":1e-400}', {"a": 0.0}),
    (b'{"a":1.7976931348623157e308}', {"a": 1.7976931348623157e308}),
    (b'{"a":' + b"9" * 308 + b"}", {"a": 1e308}),
    (b'{"a":18446744073709551616}', {"a": 18446744073709551616.0}),
    (b'{"a":"\\ud83d\\ude00\\u0000\\/"}', {"a": "😀\0/"}),
    (b'{"a":"\x7f"}', {"a": "\x7f"}),
    ('{"\u2028":"\ufeff"}'.encode(), {"\u2028": "\ufeff"}),
    (b'{"":{"":""}}', {"": {"": ""}}),
]


@pytest.mark.parametrize(("raw", "value"), READ, ids=[f"{raw[:24]!r}" for raw, _ in READ])
def test_objects(raw: bytes, value: dict[str, Any]) -> None:
    """These lines are JSON objects, and of duplicate keys the last value counts, in the first one's place."""
    line = parse_object(raw)
    assert line == ParsedLine(value, False, None)
    assert line.value is not None
    assert list(line.value) == list(value)


REFUSED = {
    "nothing": b"",
    "a space": b" ",
    "a carriage return": b"\r",
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "minus Infinity": b'{"a":-Infinity}',
    "nan": b'{"a":nan}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "NUL before": b"\x00{}",
    "NUL behind": b"{}\x00",
    "only NULs": b"\x00" * 64,
    "NUL in a string": b'{"a":"\x00"}',
    "tab in a string": b'{"a":"\t"}',
    "no-break space as white space": "{\u00a0}".encode(),
    "line separator as white space": "{}\u2028".encode(),
    "vertical tab as white space": b"{\x0b}",
    "form feed as white space": b"\x0c{}",
    "leading zero": b'{"a":01}',
    "plus sign": b'{"a":+1}',
    "bare point": b'{"a":1.}',
    "no digit before the point": b'{"a":.5}',
    "hexadecimal": b'{"a":0x10}',
    "digits of another script": '{"a":١}'.encode(),
    "single quotes": b"{'a':1}",
    "bare key": b"{a:1}",
    "trailing comma": b'{"a":1,}',
    "comment": b'{"a":1}//x',
    "two objects": b"{}{}",
    "half an object": b'{"a":"b',
    "bad escape": b'{"a":"\\x41"}',
    "short escape": b'{"a":"\\u12"}',
    "capital literal": b'{"a":True}',
    "undefined": b'{"a":undefined}',
    "bad UTF-8 outside of strings": b'{"a":1}\xff',
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_no_json(raw: bytes) -> None:
    """These lines are no JSON at all."""
    line = parse_object(raw)
    assert (line.value, line.malformed) == (None, Malformed.NOT_JSON)


@pytest.mark.parametrize(
    "raw", [b"null", b"true", b"0", b"1.5", b'"x"', b"[]", b"[{}]", b' "{}" ', b'"\\ud800"', b'"\xff"']
)
def test_no_object(raw: bytes) -> None:
    """JSON that is no object is refused by that name, badly written text or not."""
    line = parse_object(raw)
    assert (line.value, line.malformed) == (None, Malformed.NOT_AN_OBJECT)


@pytest.mark.parametrize(
    "number", ["1e309", "-1e309", "1E400", "1.7976931348623159e308", "9" * 309, "-" + "9" * 400, "9" * 5000]
)
def test_a_number_beyond_a_double_is_refused(number: str) -> None:
    """A number that no double holds makes the line malformed, however it is written and wherever it stands."""
    for raw in (f'{{"a":{number}}}', f'{{"a":[[{number}]]}}', f'{{"a":"\\ud800","b":{number}}}', f"[{number}]"):
        line = parse_object(raw.encode())
        assert (line.value, line.malformed) == (None, Malformed.OUT_OF_RANGE)


# Depth


def nested(levels: int, kind: str = "[") -> bytes:
    """An object with so many levels, itself included, at least two."""
    if kind == "[":
        return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize("kind", ["[", "{"])
def test_two_hundred_levels_and_no_more(kind: str) -> None:
    """200 levels are read and written again; 201 are refused, and so are more than any parser bears."""
    for levels in (2, 3, 199, 200):
        line = parse_object(nested(levels, kind))
        assert line.malformed is None
        assert line.value is not None
        assert stringify(line.value) == nested(levels, kind)
    for levels in (201, 202, 255, 256, 1024, 1025, 5000):
        assert parse_object(nested(levels, kind)) == ParsedLine(None, False, Malformed.TOO_DEEP)
    assert parse_object(nested(201, kind), max_depth=201).value is not None
    assert parse_object(nested(202, kind), max_depth=201).malformed is Malformed.TOO_DEEP


def test_a_number_that_needs_care_is_written_at_the_last_level() -> None:
    """The slow way of writing bears 200 levels too."""
    raw = b'{"a":' + b"[" * 199 + b"1.0" + b"]" * 199 + b"}"
    line = parse_object(raw)
    assert line.value is not None
    assert stringify(line.value) == raw.replace(b"1.0", b"1")


def test_many_brackets_are_not_many_levels() -> None:
    """Brackets that stand side by side, or in strings, behind escaped quotes too, do not count as depth."""
    side_by_side = b'{"a":[' + b"[]," * 1000 + b"{}]}"
    in_strings = b'{"a":"' + b"[{" * 1000 + b'","b\\"[":"\\\\","c":"\\"' + b"[" * 500 + b'"}'
    for raw in (side_by_side, in_strings):
        assert parse_object(raw).malformed is None
    assert (
        parse_object(b'{"a":"' + b"[" * 500 + b'","b":' + b"[" * 200 + b"]" * 200 + b"}").malformed
        is Malformed.TOO_DEEP
    )


def test_brackets_do_not_keep_bad_text_from_being_marked() -> None:
    """A line with many brackets and bad text is read and marked like any other."""
    raw = b'{"a":[' + b"[]," * 300 + b'{}],"b":"\\ud800","c":"\xff"}'
    line = parse_object(raw)
    assert line.marked
    assert line.value is not None
    assert (line.value["b"], line.value["c"]) == ("\ufffd", "\ufffd")


HEAVY = {
    "100,000 levels": nested(100_000),
    "100,000 levels of objects": nested(100_000, "{"),
    "only opening brackets": b"[" * 4_000_000,
    "brackets side by side": b'{"a":[' + b"[]," * 500_000 + b"1]}",
    # A torn row full of quotes: the search for its depth once began anew at each of them, minutes for a megabyte.
    "torn, with quotes": b'{"a":[' + b"[]," * 300 + b'1],"text":"' + b'\\"' * 500_000,
    "torn, with backslashes": b'{"a":[' + b"[]," * 300 + b'1],"text":"' + b"\\\\" * 500_000 + b"\\",
    "digits": b'{"a":' + b"1" * 1_000_000 + b"}",
    "one long string": b'{"a":"' + b"x" * 4_000_000 + b'"}',
    "bad text": b'{"a":"' + b"\xff" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("raw", HEAVY.values(), ids=HEAVY)
def test_no_line_takes_long(raw: bytes) -> None:
    """The time for a line is in proportion to its length, whatever it holds."""
    started = time.process_time()
    parse_object(raw)
    assert time.process_time() - started < 5


# Text that is no valid Unicode

MARKED: list[tuple[bytes, dict[str, Any]]] = [
    (b'{"a":"\\ud800"}', {"a": "\ufffd"}),
    (b'{"a":"x\\udfffy"}', {"a": "x\ufffdy"}),
    (b'{"a":"\\ude00\\ud83d"}', {"a": "\ufffd\ufffd"}),
    (b'{"a":"\\ud83d\\ud83d\\ude00"}', {"a": "\ufffd😀"}),
    (b'{"\\ud800":1}', {"\ufffd": 1}),
    (b'{"\\ud800":1,"\\udfff":2}', {"\ufffd": 2}),
    (b'{"a":[{"b":["\\ud800"]}]}', {"a": [{"b": ["\ufffd"]}]}),
    (b'{"a":{"\\ud800":"x"}}', {"a": {"\ufffd": "x"}}),
    # The line is marked, though the bad value does not count.
    (b'{"a":"\\ud800","a":"x"}', {"a": "x"}),
    (b'{"\\ud800":1,"\xef\xbf\xbd":2,"\\ud800":3}', {"\ufffd": 3}),
    (b'{"a":"\xff"}', {"a": "\ufffd"}),
    (b'{"\xc3":1}', {"\ufffd": 1}),
    (b'{"a":"\xed\xa0\x80"}', {"a": "\ufffd\ufffd\ufffd"}),
    (b'{"a":"\xf4\x90\x80\x80"}', {"a": "\ufffd\ufffd\ufffd\ufffd"}),
    (b'{"a":"\xe2\x82"}', {"a": "\ufffd"}),
    (b'{"a":"\xc0\xaf"}', {"a": "\ufffd\ufffd"}),
    (b'{"a":"\xff","b":18446744073709551615,"c":-9223372036854775809,"d":1.0}',
     {"a": "\ufffd", "b": 18446744073709551615, "c": -9223372036854775808.0, "d": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "value"), MARKED, ids=[f"{raw!r}" for raw, _ in MARKED])
def test_bad_text_is_replaced_and_marked(raw: bytes, value: dict[str, Any]) -> None:
    """Bad UTF-8 and lone surrogates read as U+FFFD, in keys and values, and mark the line; it can be written again."""
    assert parse_object(raw) == ParsedLine(value, True, None)
    written = parse_object(stringify(value))
    assert (written.marked, written.malformed) == (False, None)


def test_a_replacement_character_is_good_text() -> None:
    """U+FFFD that a producer wrote does not mark its line, and neither does an escaped backslash before 'ud800'."""
    for raw in ('{"a":"\ufffd"}'.encode(), b'{"a":"\\ufffd"}', b'{"a":"\\\\ud800"}'):
        assert not parse_object(raw).marked


def test_a_rejection_in_bad_text_is_read() -> None:
    """A row with bad text in one field keeps its other fields, so that no rejection is lost with it."""
    line = parse_object(b'{"evidence_run_id":"r","category":"rejected","note":"\xff"}')
    assert line.value is not None
    assert (line.value["evidence_run_id"], line.value["category"]) == ("r", "rejected")


def test_the_texts_of_malformed_lines() -> None:
    """The five texts are these, and one of them names the limit."""
    assert [kind.text(4096) for kind in Malformed] == [
        "not JSON",
        "not a JSON object",
        "nested deeper than 200",
        "number out of range",
        "longer than 4096 bytes",
    ]


# Numbers

NUMBER_TEXTS: list[tuple[int | float, str]] = [
    (0, "0"),
    (-0.0, "0"),
    (1.0, "1"),
    (-1, "-1"),
    (0.1, "0.1"),
    (-1.5, "-1.5"),
    (100.0, "100"),
    (123.456, "123.456"),
    (0.1 + 0.2, "0.30000000000000004"),
    (1e16, "10000000000000000"),
    (1e20, "100000000000000000000"),
    (123456789012345680000, "123456789012345680000"),
    (123456789012345678901, "123456789012345680000"),
    (999999999999999900000.0, "999999999999999900000"),
    (1e21, "1e+21"),
    (1.5e21, "1.5e+21"),
    (-1e21, "-1e+21"),
    (1.5e300, "1.5e+300"),
    (1.7976931348623157e308, "1.7976931348623157e+308"),
    (0.00001, "0.00001"),
    (0.000001, "0.000001"),
    (0.0000012345, "0.0000012345"),
    (1e-7, "1e-7"),
    (1.5e-7, "1.5e-7"),
    (-1e-7, "-1e-7"),
    (5e-324, "5e-324"),
    (2.2250738585072014e-308, "2.2250738585072014e-308"),
    (2**53 - 1, "9007199254740991"),
    (2**53, "9007199254740992"),
    (2**53 + 1, "9007199254740992"),
    (-(2**53) - 1, "-9007199254740992"),
    (2**53 + 2, "9007199254740994"),
    (2**63 - 1, "9223372036854776000"),
    (-(2**63), "-9223372036854776000"),
    (2**64 - 1, "18446744073709552000"),
    (2**64, "18446744073709552000"),
    (2**70, "1.1805916207174113e+21"),
    (4.35, "4.35"),
    (1e23, "1e+23"),
]


@pytest.mark.parametrize(("number", "text"), NUMBER_TEXTS, ids=[repr(number) for number, _ in NUMBER_TEXTS])
def test_number_text(number: int | float, text: str) -> None:
    """A number prints as JavaScript prints it, alone, inside a row, and as part of a text."""
    assert number_text(number) == text
    assert template_text(number) == text
    if isinstance(number, float) or number < 2**64:
        assert stringify(number) == text.encode()
        assert stringify({"a": number}) == f'{{"a":{text}}}'.encode()
        assert stringify({"a": [0, number], "b": "x"}) == f'{{"a":[0,{text}],"b":"x"}}'.encode()


@PROPERTY
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_printed_number_is_the_same_number(number: float) -> None:
    """What is printed reads back as the same double, in no more digits than Python needs."""
    text = number_text(number)
    assert float(text) == number
    digits = [character for character in text.partition("e")[0] if character.isdigit()]
    assert len("".join(digits).strip("0")) <= 17


@PROPERTY
@given(st.integers(-(2**63), 2**64 - 1))
def test_an_integer_prints_as_its_double(number: int) -> None:
    """Every number is a double: an integer prints the text of the nearest one."""
    assert number_text(number) == number_text(float(number))
    assert float(number_text(number)) == float(number)


# Writing

WRITTEN: list[tuple[Any, str]] = [
    ({"a": "é😀\u2028\x7f/"}, '{"a":"é😀\u2028\x7f/"}'),
    ({"a": '"\\\b\f\n\r\t\0\x1f'}, '{"a":"\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f"}'),
    ({"b": 1, "a": {}, "c": []}, '{"b":1,"a":{},"c":[]}'),
    ({"b": 1, "10": 2, "a": 3, "9": 4, "01": 5}, '{"9":4,"10":2,"b":1,"a":3,"01":5}'),
    ({"4294967295": 1, "4294967294": 2, "-1": 3}, '{"4294967294":2,"4294967295":1,"-1":3}'),
    ({"a": {"1": {"0": 1, "x": 2}, "0": 3}}, '{"a":{"0":3,"1":{"0":1,"x":2}}}'),
    ({"": 1, "0": True, "1.5": None}, '{"0":true,"":1,"1.5":null}'),
    ({"a": [True, False, None, 1.0, "1.0"]}, '{"a":[true,false,null,1,"1.0"]}'),
    ({"a": ",1.5", "b": ':12345678901234567890{"7":'}, '{"a":",1.5","b":":12345678901234567890{\\"7\\":"}'),
    ({"__proto__": 1, "a": 2}, '{"__proto__":1,"a":2}'),
    ("x", '"x"'),
    (None, "null"),
    (True, "true"),
    ([], "[]"),
    ([1.0], "[1]"),
    (1.0, "1"),
    (-0.0, "0"),
    (12345678901234567890, "12345678901234567000"),
]


@pytest.mark.parametrize(("value", "text"), WRITTEN, ids=[ascii(text)[:40] for _, text in WRITTEN])
def test_stringify(value: Any, text: str) -> None:
    """Values print as JSON.stringify prints them: no spaces, few escapes, index keys first, in ascending order."""
    assert stringify(value) == text.encode()


TEMPLATES: list[tuple[Any, str]] = [
    ("x", "x"),
    ("", ""),
    (None, "null"),
    (True, "true"),
    (False, "false"),
    (0, "0"),
    (1e21, "1e+21"),
    ([], ""),
    ([None], ""),
    ([1.0, None, "x", [True, []], {}], "1,,x,true,,[object Object]"),
    ({}, "[object Object]"),
    ({"a": 1}, "[object Object]"),
]


@pytest.mark.parametrize(("value", "text"), TEMPLATES, ids=[repr(value) for value, _ in TEMPLATES])
def test_template_text(value: Any, text: str) -> None:
    """A value shows in a text as it would in a template literal; a missing one as undefined."""
    assert template_text(value) == text
    assert template_text() == "undefined"


# White space, cuts and order

JAVASCRIPT_WHITE = {0x9, 0xA, 0xB, 0xC, 0xD, 0x20, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F}
JAVASCRIPT_WHITE |= {0x3000, 0xFEFF}


def test_white_space_is_javascripts() -> None:
    """Of all characters these 25 are trimmed: Python's idea differs by U+FEFF, U+0085 and U+001C to U+001F."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    assert {ord(one) for one in characters if not trim(one)} == JAVASCRIPT_WHITE
    assert {ord(one) for one in characters if is_blank(one)} == JAVASCRIPT_WHITE
    python = {ord(one) for one in characters if not one.strip()}
    assert python ^ JAVASCRIPT_WHITE == {0xFEFF, 0x85, 0x1C, 0x1D, 0x1E, 0x1F}
    separators = {ord(one) for one in characters if unicodedata.category(one) == "Zs"}
    assert separators <= JAVASCRIPT_WHITE


def test_trim_and_blank() -> None:
    """trim() takes white space off both ends and leaves what is inside; blank is what it leaves nothing of."""
    assert trim("\ufeff a\u00a0b \u2029\n") == "a\u00a0b"
    assert trim("\u0085x\u001c") == "\u0085x\u001c"
    assert is_blank("")
    assert is_blank(" \u00a0\ufeff\n")
    assert not is_blank(" x ")
    assert not is_blank("\u0085")


def units(text: str) -> list[int]:
    """The UTF-16 code units of a text, counted by hand."""
    found: list[int] = []
    for code in map(ord, text):
        found += [code] if code < 0x10000 else [0xD7C0 + (code >> 10), 0xDC00 + (code & 0x3FF)]
    return found


TEXTS = st.text(
    st.sampled_from(["a", "é", "\ud7ff", "\ue000", "\uffff", "😀", "\U00010000", "\U0010ffff"]), max_size=12
)


@PROPERTY
@given(TEXTS, st.integers(0, 14))
def test_cut(text: str, limit: int) -> None:
    """A cut is the longest prefix of whole characters that has no more UTF-16 units than allowed."""
    head = cut(text, limit)
    assert text.startswith(head)
    assert len(units(head)) <= limit
    if head != text:
        assert len(units(text[: len(head) + 1])) > limit


@PROPERTY
@given(st.lists(TEXTS, max_size=6))
def test_order(texts: list[str]) -> None:
    """Strings sort by UTF-16 code units."""
    assert sorted(texts, key=utf16_order) == sorted(texts, key=units)


def test_order_is_not_that_of_code_points() -> None:
    """A character beyond U+FFFF stands before the last ones below it, as in JavaScript."""
    assert sorted(["\uffff", "😀", "\ue000", "z"], key=utf16_order) == ["z", "😀", "\ue000", "\uffff"]


# The same once more, asked of JavaScript itself

ENGINE = r"""
const operations = {
  number: text => String(JSON.parse(text)),
  rewrite: text => { try { return JSON.stringify(JSON.parse(text)); } catch { return null; } },
  template: text => `${JSON.parse(text)}`,
  trim: text => text.trim(),
  blanks: () => Array.from({length: 65536}, (_, code) => code).filter(code => !String.fromCharCode(code).trim()),
  slice: ([text, units]) => text.slice(0, units),
  sort: texts => texts.sort(),
};
require("readline").createInterface({input: process.stdin}).on("line", line => {
  const [name, argument] = JSON.parse(line);
  console.log(JSON.stringify({answer: operations[name](argument)}));
});
"""

Ask = Callable[..., Any]
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="module")
def javascript() -> Iterator[Ask]:
    """Asks a JavaScript engine for the result of an operation."""
    process = subprocess.Popen(
        ["node", "-e", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", errors="strict"
    )
    assert process.stdin is not None
    assert process.stdout is not None
    questions, answers = process.stdin, process.stdout

    def ask(name: str, argument: Any = None) -> Any:
        questions.write(json.dumps([name, argument]) + "\n")
        questions.flush()
        return json.loads(answers.readline())["answer"]

    yield ask
    questions.close()
    answers.close()
    assert process.wait(10) == 0


@needs_node
def test_the_tables_are_javascripts(javascript: Ask) -> None:
    """JavaScript itself prints the tables above, trims the same characters, and refuses the same lines."""
    for number, text in NUMBER_TEXTS:
        assert javascript("number", json.dumps(number)) == text
    for value, text in WRITTEN:
        assert javascript("rewrite", json.dumps(value)) == text
    for value, text in TEMPLATES:
        assert javascript("template", json.dumps(value)) == text
    assert set(javascript("blanks")) == JAVASCRIPT_WHITE
    for raw in REFUSED.values():
        assert javascript("rewrite", raw.decode(errors="replace")) is None


@needs_node
@PROPERTY
@given(st.one_of(NUMBERS, EDGES, st.floats(allow_nan=False, allow_infinity=False).map(repr)))
def test_numbers_print_as_in_javascript(javascript: Ask, number: str) -> None:
    """A number in a line prints as JavaScript prints it, whatever the spelling that it came in."""
    value = parse_object(f'{{"a":{number}}}'.encode()).value
    assert value is not None
    assert number_text(value["a"]) == javascript("number", number)


@needs_node
@PROPERTY
@given(OBJECTS)
def test_rows_print_as_in_javascript(javascript: Ask, text: str) -> None:
    """A row read and written again has the bytes of JSON.stringify(JSON.parse(row))."""
    value = parse_object(text.encode()).value
    assert value is not None
    assert stringify(value).decode() == javascript("rewrite", text)


@needs_node
@PROPERTY
@given(nearly_json())
def test_javascript_refuses_what_is_no_json(javascript: Ask, raw: bytes) -> None:
    """JavaScript reads and refuses the same lines, and where nothing was replaced it writes the same bytes."""
    line = parse_object(raw)
    if line.malformed in {Malformed.TOO_DEEP, Malformed.OUT_OF_RANGE}:
        return
    written = javascript("rewrite", raw.decode(errors="replace"))
    assert (written is None) is (line.malformed is Malformed.NOT_JSON)
    if line.value is not None and not line.marked:
        assert stringify(line.value).decode() == written


@needs_node
@PROPERTY
@given(OBJECTS)
def test_texts_show_as_in_javascript(javascript: Ask, text: str) -> None:
    """Values show in a text as in a template literal, where JavaScript can show them at all."""
    value = parse_object(text.encode()).value
    assert value is not None
    items = [item for item in value.values() if not isinstance(item, dict)]
    plain = [item for item in items if "{" not in json.dumps(item)]
    assert template_text(plain) == javascript("template", stringify(plain).decode())


@needs_node
@PROPERTY
@given(
    st.text(st.sampled_from(["a", "\u00a0", "\ufeff", "\u0085", "\u001c", "\u200b", "\n", "\u3000", "😀"]), max_size=8)
)
def test_trim_is_javascripts(javascript: Ask, text: str) -> None:
    """trim() leaves what JavaScript's leaves."""
    assert trim(text) == javascript("trim", text)


@needs_node
@PROPERTY
@given(TEXTS, st.integers(0, 14))
def test_a_cut_is_a_slice_without_half_a_pair(javascript: Ask, text: str, limit: int) -> None:
    """A cut is JavaScript's slice, less the half of a pair that it may end in."""
    sliced = javascript("slice", [text, limit])
    assert cut(text, limit) == (sliced[:-1] if sliced and 0xD800 <= ord(sliced[-1]) < 0xE000 else sliced)


@needs_node
@PROPERTY
@given(st.lists(TEXTS, max_size=6))
def test_order_is_javascripts(javascript: Ask, texts: list[str]) -> None:
    """Strings sort as JavaScript's sort() sorts them."""
    assert sorted(texts, key=utf16_order) == javascript("sort", texts)
