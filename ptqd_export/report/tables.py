"""Tables of the page: the text and the sort key of each cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: text of the cell.
        key: sort key in its column; None for an empty cell, which is sorted last.
    """

    text: str
    key: float | str | None

    @property
    def sort_key(self) -> str:
        """The key as the page's script reads it."""
        if isinstance(self.key, float):
            return "Infinity" if self.key == math.inf else f"{self.key:.8g}"
        return self.key or ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is the row's heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
        return cls(caption, tuple(columns), tuple(tuple(row) for row in rows))

    def is_numeric(self, column: int) -> bool:
        """Return whether a column holds at least one number, and no words."""
        keys = [row[column].key for row in self.rows if row[column].key is not None]
        return bool(keys) and all(isinstance(key, float) for key in keys)


NOTHING = Cell("-", None)


def words(text: str | None) -> Cell:
    return NOTHING if text is None else Cell(text, text)


def number(value: float | None, form: str = ".4g", unit: str = "") -> Cell:
    """Return a cell with a number in a Python format, followed by its unit."""
    return NOTHING if value is None else Cell(f"{value:{form}}{unit}", float(value))


def decibels(value: float | None) -> Cell:
    return number(value, ".1f", " dB")


def megabytes(size: int) -> Cell:
    return Cell(f"{size / 1e6:.2f} MB", float(size))
