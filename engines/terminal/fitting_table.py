"""Tables of results that show every header and cell whole at any width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 160
"""Columns of the output if it is not a terminal: wide enough for most tables."""

_BORDER, _FRAME = 3, 1
"""Width of a column's padding and border, and of the last border."""

_LEAST_FOLDED = 20
"""Least width of a column whose cells may be folded."""


def result_console() -> Console:
    """Return a console on standard output."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


@dataclass
class FittingTable:
    """A table for `Console.print`. Where it is too wide, headers are wrapped; columns that still do not fit follow in further tables,
    beside the keys again.

    Attributes:
        title: title of the table.
        columns: headers. The first columns are the keys.
        keys: number of keys.
        left: headers of columns of text, besides the keys; the others are figures, aligned to the right.
        folded: headers of columns whose cells may take several lines.
    """

    title: str
    columns: Sequence[str]
    keys: int = 1
    left: Sequence[str] = ()
    folded: Sequence[str] = ()
    _rows: list[tuple[Sequence[Text], str | None]] = field(default_factory=list)

    def add_row(self, *cells: str, style: str | None = None) -> None:
        """Add a row of cells with rich's markup."""
        self._rows.append(([Text.from_markup(cell) for cell in cells], style))

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Table]:
        room = options.max_width - _FRAME
        if sum(self._whole(place) for place in range(len(self.columns))) <= room:
            yield self._table([*range(len(self.columns))], room, self.title, wrapped=False)
            return
        for number, places in enumerate(self._groups(room)):
            yield self._table(places, room, self.title if number == 0 else None, wrapped=True)

    def _groups(self, room: int) -> Iterator[list[int]]:
        """Return the columns of each table, as many as fit."""
        keys = [*range(self.keys)]
        group = list(keys)
        for place in range(self.keys, len(self.columns)):
            if len(group) > len(keys) and sum(map(self._least, [*group, place])) > room:
                yield group
                group = list(keys)
            group.append(place)
        yield group

    def _table(self, places: Sequence[int], room: int, title: str | None, *, wrapped: bool) -> Table:
        spare = room - sum(map(self._least, places))
        table = Table(title=title, title_justify="left")
        for place in places:
            name, folds = self.columns[place], self.columns[place] in self.folded
            left = place < self.keys or name in self.left
            width = min(self._cells(place), self._least(place) - _BORDER + max(spare, 0)) if folds and wrapped else None
            header = self._header(place) if wrapped else name
            table.add_column(header, justify="left" if left else "right", no_wrap=not folds, overflow="fold", width=width)
        for cells, style in self._rows:
            table.add_row(*(cells[place] for place in places), style=style)
        return table

    def _whole(self, place: int) -> int:
        """Width of a column with its header on one line."""
        return max(len(self.columns[place]), self._cells(place)) + _BORDER

    def _least(self, place: int) -> int:
        """Width of a column with its header wrapped and its cells folded."""
        cells = self._cells(place)
        folded = min(cells, _LEAST_FOLDED) if self.columns[place] in self.folded else cells
        return max(folded, *map(len, self._header(place).split("\n"))) + _BORDER

    def _header(self, place: int) -> str:
        """Wrap a header at spaces to the width of the cells, or of its longest word."""
        name = self.columns[place]
        return "\n".join(textwrap.wrap(name, max(self._cells(place), *map(len, name.split())), break_on_hyphens=False))

    def _cells(self, place: int) -> int:
        return max((cells[place].cell_len for cells, _ in self._rows), default=0)
