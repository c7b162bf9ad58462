"""Tables of the page: what a cell says, and what it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what it says.
        key: what its column is sorted by; None where there is nothing, which is sorted last.
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
    """A table; the first cell of a row is its heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
        return cls(caption, tuple(columns), tuple(tuple(row) for row in rows))

    def is_numeric(self, column: int) -> bool:
        """Whether some cell of a column is a number, and no other is words."""
        keys = [row[column].key for row in self.rows if row[column].key is not None]
        return bool(keys) and all(isinstance(key, float) for key in keys)


NOTHING = Cell("-", None)


def words(text: str | None) -> Cell:
    return NOTHING if text is None else Cell(text, text)


def number(value: float | None, form: str = ".4g", unit: str = "") -> Cell:
    """A number in a format of Python's, with its unit behind it."""
    return NOTHING if value is None else Cell(f"{value:{form}}{unit}", float(value))


def decibels(value: float | None) -> Cell:
    return number(value, ".1f", " dB")


def megabytes(size: int) -> Cell:
    return Cell(f"{size / 1e6:.2f} MB", float(size))
