"""Tables and counts for people: as values, and as aligned plain text for output that is not a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from distilld.logs import printable

Cell = str | int | None

_GAP: Final = "  "
_LEAST_ROOM: Final = 20
"""The minimum width in characters to wrap the last column of a table; if there is less, each row is a block."""


class Size(int):
    """A number of bytes."""

    def __str__(self) -> str:
        """Return the size with its unit, for people."""
        if self < 1 << 10:
            return counted(int(self), "byte")
        power = min((self.bit_length() - 1) // 10, 4)
        return f"{self / (1 << 10 * power):,.1f} {('', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the columns' names and the rows. A column of numbers is aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]

    def is_number(self, column: int) -> bool:
        """Return whether a column has only numbers."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, int) for cell in cells)


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def text_of(cell: Cell) -> str:
    """Return a cell for display: on one line, without control sequences, thousands separated."""
    if cell is None:
        return "-"
    if isinstance(cell, Size):
        return str(cell)
    return f"{cell:,}" if isinstance(cell, int) else printable(cell)


def plain_text(table: Table, width: int | None = None) -> str:
    """Return the table as lines of text, columns aligned by spaces.

    If the table is wider than ``width``, its last column is wrapped; if it has too little room, each row is a block.
    """
    texts = [table.columns, *(tuple(map(text_of, row)) for row in table.rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(table.columns))]
    right = [table.is_number(column) for column in range(len(table.columns))]
    if width is not None and sum(widths) + len(_GAP) * len(widths) > width:
        room = width - sum(widths[:-1]) - len(_GAP) * len(widths)
        if right[-1] or room < _LEAST_ROOM:
            blocks = ["\n".join(labelled(list(zip(table.columns, row, strict=True)), width)) for row in texts[1:]]
            return "\n".join((printable(table.title), "\n\n".join(blocks)))
        texts = [line for row in texts for line in _wrapped(row, room)]
        widths[-1] = room
    lines = [printable(table.title), *(_line(row, widths, right) for row in texts)]
    return "\n".join(lines)


def _wrapped(row: tuple[str, ...], room: int) -> Iterator[tuple[str, ...]]:
    """Return a row as several rows, each with a part of the last cell."""
    first, *more = textwrap.wrap(row[-1], room) or [""]
    yield (*row[:-1], first)
    for part in more:
        yield (*[""] * (len(row) - 1), part)


def _line(cells: tuple[str, ...], widths: list[int], right: list[bool]) -> str:
    parts = [
        cell.rjust(width) if to_the_right else cell.ljust(width)
        for cell, width, to_the_right in zip(cells, widths, right, strict=True)
    ]
    return (_GAP + _GAP.join(parts)).rstrip()


def labelled(parts: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """Return indented ``label text`` lines; texts are aligned, and wrapped to ``width`` characters if it is given."""
    indent = max((len(label) for label, _ in parts), default=0) + 2 * len(_GAP)
    lines = []
    for label, text in parts:
        head = f"{_GAP}{label}".ljust(indent)
        wrapped = textwrap.wrap(printable(text), max(width - indent, 20)) if width else [printable(text)]
        lines += [f"{head}{wrapped[0] if wrapped else ''}".rstrip(), *(" " * indent + more for more in wrapped[1:])]
    return lines
