"""The oracle's verdicts: what each scored line says about runs, and which verdict is current (SPEC 3.4)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from distilld.core.json_text import trim
from distilld.core.model import Category, Dataset, Options, RowRef
from distilld.core.records import ScoredRun
from distilld.inspection.oracle_lake import Row, digest_of
from distilld.lake.scan import walk_key

_Place = tuple[tuple[str, ...], int]


class AbsentVerdict(NamedTuple):
    """A verdict in an absent partition: it can still forbid, but never allow (SPEC 3)."""

    at: RowRef
    run_id: str
    category: Category
    digest: bytes
    malformed: bool = False
    is_rest: bool = False


class Verdicts:
    """The current verdict of each run (SPEC 3.4): the last present one, or a later absent one that forbids."""

    def __init__(
        self,
        rows: Iterable[Row],
        rests: Iterable[tuple[RowRef, bytes]],
        options: Options,
        *,
        absent: Collection[AbsentVerdict] = (),
        keep_lines: bool = False,
    ) -> None:
        """Index the verdicts. ``rests`` has file ends that are no rows. :meth:`line_stands` needs ``keep_lines``."""
        self._options = options
        self._present: dict[str, tuple[_Place, Category]] = {}
        self._reviewed: dict[str, tuple[_Place, Category]] = {}
        """The same without unreviewed verdicts: of no known category, or needs_human_review in a malformed line."""
        self.rows_naming: Counter[str | None] = Counter()
        """How many present scored rows name a run. Where one does, no orphan of the run stays (SPEC 3.11)."""
        self._lines: set[tuple[str | None, bytes]] = set()
        for row in rows:
            if row.run and row.run.run_id:
                self.rows_naming[row.run.run_id] += 1
            for run_id, category in verdicts_of(row.raw, row.run):
                self._present[run_id] = _place(row.at), category
                if category is not Category.NEEDS_HUMAN_REVIEW or (row.run and row.run.category):
                    self._reviewed[run_id] = _place(row.at), category
            if keep_lines:
                self._lines.add((row.run.run_id if row.run else None, digest_of(row.raw)))
        standing: set[bytes] = set()
        for at, rest in rests:
            for run_id, category in verdicts_of(rest, None):
                standing.add(digest_of(rest))
                is_unreviewed = category is Category.NEEDS_HUMAN_REVIEW
                for known in (self._present,) if is_unreviewed else (self._present, self._reviewed):
                    if run_id not in known or known[run_id][0] < _place(at):
                        known[run_id] = _place(at), category
        self._absent: dict[str, list[AbsentVerdict]] = {}
        self.moved: list[RowRef] = []
        """Absent verdicts whose lines are in a present partition. They count only there, and must not be retained."""
        for each in sorted(absent, key=lambda each: _place(each.at)):
            # A present line that is now too long to name its run does not replace an absent verdict.
            stands = (None if each.malformed else each.run_id, each.digest) in self._lines
            if stands or (each.is_rest and each.digest in standing):
                self.moved.append(each.at)
            else:
                self._absent.setdefault(each.run_id, []).append(each)

    def line_stands(self, run_id: str | None, digest: bytes) -> bool:
        """Return whether a line is also in a present partition, where it may now be too long to name its run."""
        return not self._lines.isdisjoint({(run_id, digest), (None, digest)})

    def of(self, dataset: Dataset, run_id: str | None) -> Category | None:
        """Return the category of the current verdict of a run in a dataset."""
        # An unreviewed verdict forbids where needs_human_review does. Where it does not, it clears nothing either.
        known = self._present if self._options.forbids(dataset, Category.NEEDS_HUMAN_REVIEW) else self._reviewed
        place, category = known.get(run_id or "", (None, None))
        for each in self._absent.get(run_id or "", ()):
            later = place is None or _place(each.at) > place
            if later and self._options.forbids(dataset, each.category):
                category = each.category
        return category

    def of_run(self, run_id: str | None) -> tuple[Category | None, Category | None]:
        """Return what a side of a pair must agree with: the last present verdict, and the current verdict."""
        _, present = self._present.get(run_id or "", (None, None))
        return present, self.of(Dataset.PREFERENCE, run_id)

    def of_side(self, run: ScoredRun) -> Category | None:
        """Return the one of these two that differs from the row's category, or that category if neither does."""
        present, in_force = self.of_run(run.run_id)
        return in_force if present is run.category else present


def _place(at: RowRef) -> _Place:
    return _walk_key(at.partition), at.line


_walk_key: Final = lru_cache(maxsize=8)(walk_key)
"""Cached, since all rows of a partition have the same key."""


_CATEGORY: Final = re.compile(r'"category"[ \t\n\r]*:[ \t\n\r]*"[ \t\n\r]*([A-Za-z_]+)[ \t\n\r]*(?=")')
# Possessive, so that a long line takes little memory. A key is also found within the value before it.
_RUN: Final = re.compile(r'"evidence_run_id"[ \t\n\r]*:[ \t\n\r]*(?="((?:[^"\\]++|\\.)++)")', re.DOTALL)
_NOT_TEXT: Final = str.maketrans("", "", "\0\ufeff")
_FORBIDDING: Final = {"rejected": Category.REJECTED, "needs_human_review": Category.NEEDS_HUMAN_REVIEW}


def verdicts_of(raw: bytes, run: ScoredRun | None) -> list[tuple[str, Category]]:
    """Return what a scored line says about runs: its verdict, or what a malformed one spells out (SPEC 2, 3.4)."""
    if run is not None:
        if not run.run_id:
            return []
        category = run.category
        if category is None:
            said = run.value.get("category")
            word = trim(said).lower() if isinstance(said, str) else ""
            category = Category.REJECTED if word == "rejected" else Category.NEEDS_HUMAN_REVIEW
        return [(run.run_id, category)]
    readings = [raw.replace(b"\0", b"").decode(errors="replace")]
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        readings.append(raw.decode("utf-16", errors="replace"))
    texts = [each.translate(_NOT_TEXT) for each in readings]
    words = {found.group(1).lower() for text in texts for found in _CATEGORY.finditer(text)}
    category = next((_FORBIDDING[word] for word in _FORBIDDING if word in words), None)
    if category is None:
        return []
    return [(_unescaped(found.group(1)), category) for text in texts for found in _RUN.finditer(text)]


def _unescaped(text: str) -> str:
    try:
        text = str(_DECODER.decode(f'"{text}"'))
    except ValueError:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_DECODER: Final = json.JSONDecoder(strict=False)
