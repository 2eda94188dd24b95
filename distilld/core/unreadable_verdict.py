"""Find the verdict in a malformed scored line: a rejection that is hard to read must not be lost (SPEC 2).

The bytes of such a line are searched for run ids and for a category that forbids. If there is such a category, it
forbids every run that the line names. Pure.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Final, NamedTuple

from distilld.core.line_facts import LIKE_REJECTED, UNREVIEWED

WINDOW_BYTES: Final = 1 << 18
"""How many bytes are kept from one block to the next: a run id up to this length, less a block, is found."""

_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Possessive: a repeat that can go back takes 140 bytes of memory for each byte of a line. No value is
# consumed: if it is torn, the quote that closes it opens the next key.
_RUN: Final = re.compile(rb'"evidence_run_id"[ \t\n\r]*:[ \t\n\r]*(?=("(?:[^"\\]++|\\.)++"))', re.DOTALL)
_CATEGORY: Final = re.compile(
    rb'"category"[ \t\n\r]*:[ \t\n\r]*"[ \t\n\r]*((?i:rejected|needs_human_review))[ \t\n\r]*(?=")'
)
_UNFINISHED: Final = re.compile(
    rb'(?:"evidence_run_id"[ \t\n\r]*(?::[ \t\n\r]*)?|"category"[ \t\n\r]*(?::[ \t\n\r]*(?:"[ \t\n\r]*'
    rb"(?:(?i:rejected|needs_human_review)[ \t\n\r]*)?)?)?)\Z"
)
"""The start of a run id or a category that the next block may complete; its white space has no meaning."""


class UnreadableVerdict(NamedTuple):
    """The code of a forbidding category, and the runs that a malformed line names."""

    category: int
    run_ids: tuple[str, ...]


class VerdictSearch:
    """Searches a line block by block; memory is bounded by a block and ``WINDOW_BYTES``.

    It searches the bytes without NULs. If the line begins with a UTF-16 byte order mark, it also searches the decoded
    text. So the result does not depend on the length of the line.
    """

    def __init__(self) -> None:
        self._windows = [b"", b""]
        self._start = b""
        self._utf16: codecs.IncrementalDecoder | None = None
        self._begun = False
        self._runs: dict[str, None] = {}
        self._category: int | None = None

    def add(self, block: bytes) -> None:
        """Search the next bytes of the line."""
        self._look(0, block)
        if not self._begun:
            self._start += block
            self._begun = len(self._start) >= len(codecs.BOM_UTF16)
            if self._begun and self._start.startswith(_UTF16):
                self._utf16 = codecs.getincrementaldecoder("utf-16")(errors="replace")
            block = self._start
        if self._utf16 is not None:
            self._look(1, self._utf16.decode(block).encode(errors="replace"))

    def _look(self, window: int, text: bytes) -> None:
        text = (self._windows[window] + text.replace(b"\0", b"")).replace(codecs.BOM_UTF8, b"")
        self._runs |= dict.fromkeys(_text(found) for found in _RUN.findall(text))
        for category in _CATEGORY.findall(text):
            code = LIKE_REJECTED if category.lower() == b"rejected" else UNREVIEWED
            self._category = min(code, self._category or code)
        unfinished = _UNFINISHED.search(text)
        self._windows[window] = b"".join(unfinished[0].split()) if unfinished else text[-WINDOW_BYTES:]

    def found(self) -> UnreadableVerdict | None:
        """Return the verdict found so far; None if no run is forbidden."""
        return UnreadableVerdict(self._category, tuple(self._runs)) if self._category and self._runs else None


def unreadable_verdict(raw: bytes) -> UnreadableVerdict | None:
    """Search a whole malformed line; return None if it forbids no run."""
    search = VerdictSearch()
    search.add(raw)
    return search.found()


def _text(quoted: bytes) -> str:
    """Return the text of a JSON string, U+FFFD for invalid Unicode; an invalid string counts without its quotes."""
    text = quoted.decode("utf-8", errors="replace")
    try:
        text = str(json.loads(text, strict=False))
    except ValueError:
        text = text[1:-1]
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
