"""Tables and counts for people: as values, and as aligned plain text for whatever is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from distilld.logs import printable

Cell = str | int | None

_GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the columns' names and the rows. A column that holds numbers alone stands to the right."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers alone."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, int) for cell in cells)


def counted(number: int, noun: str) -> str:
    """A number and what it counts, in the plural but of one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def text_of(cell: Cell) -> str:
    """A cell as it is shown: on one line, nothing in it that a terminal would obey, thousands apart."""
    if cell is None:
        return "-"
    return f"{cell:,}" if isinstance(cell, int) else printable(cell)


def plain_text(table: Table) -> str:
    """The table as lines of text, columns aligned by spaces."""
    texts = [table.columns, *(tuple(map(text_of, row)) for row in table.rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(table.columns))]
    right = [table.is_number(column) for column in range(len(table.columns))]
    lines = [printable(table.title), *(_line(row, widths, right) for row in texts)]
    return "\n".join(lines)


def _line(cells: tuple[str, ...], widths: list[int], right: list[bool]) -> str:
    parts = [
        cell.rjust(width) if to_the_right else cell.ljust(width)
        for cell, width, to_the_right in zip(cells, widths, right, strict=True)
    ]
    return (_GAP + _GAP.join(parts)).rstrip()
