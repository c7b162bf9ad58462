"""Tables at narrow and wide consoles: every header and cell is there, whole."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from engines.terminal.fitting_table import FittingTable

LAYER = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0"


def table() -> FittingTable:
    columns = ("precision", "size", "bit ops saved (layers / all)", "time per step", "noise SNR", "corrected SNR", "layer")
    made = FittingTable("a title", columns, left=("layer",), folded=("layer",))
    made.add_row("fp32", "143.20 MB (1.00x)", "1.0x / 1.0x", "123.4 ms (1.00x)", "-", "-", "conv_in")
    made.add_row("w8a8", "35.20 MB (0.25x)", "16.0x / 12.1x", "[bold]63.4 ms (2.00x)[/bold]", "32.1 dB", "34.5 dB", LAYER, style="bold")
    return made


def printed(shown: FittingTable, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(shown)
    return console.export_text().splitlines()


def rows(lines: list[str]) -> list[list[list[str]]]:
    """The tables, each as rows of cells, the header first; cells of several lines are joined."""
    tables: list[list[list[str]]] = []
    for line in lines:
        if line.startswith("┏"):
            tables.append([])
        elif line[:1] in "┃│" and line.strip():
            cells = [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]
            header = line[0] == "┃"
            if header and tables[-1]:
                tables[-1][0] = [f"{above} {below}".strip() for above, below in zip(tables[-1][0], cells, strict=True)]
            elif not header and not cells[0]:
                tables[-1][-1] = [above + below for above, below in zip(tables[-1][-1], cells, strict=True)]
            else:
                tables[-1].append(cells)
    return tables


@pytest.mark.parametrize("width", [48, 60, 80, 100, 120, 200])
def test_every_header_and_cell_is_whole_at_any_width(width: int) -> None:
    lines = printed(table(), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    found = rows(lines)
    assert all(one[0][0] == "precision" and [row[0] for row in one[1:]] == ["fp32", "w8a8"] for one in found)
    header, first, second = (
        [cell for one in found for cell in one[place][1:]] for place in range(3)
    )  # columns in their order, each of them once
    assert header == ["size", "bit ops saved (layers / all)", "time per step", "noise SNR", "corrected SNR", "layer"]
    assert first == ["143.20 MB (1.00x)", "1.0x / 1.0x", "123.4 ms (1.00x)", "-", "-", "conv_in"]
    assert second == ["35.20 MB (0.25x)", "16.0x / 12.1x", "63.4 ms (2.00x)", "32.1 dB", "34.5 dB", LAYER]


def test_wide_console_gets_one_table_with_headers_on_one_line() -> None:
    lines = printed(table(), 200)
    assert sum(line.startswith("┃") for line in lines) == 1
    assert lines[0].strip() == "a title"


def test_title_stands_above_the_first_of_several_tables() -> None:
    assert [line.strip() for line in printed(table(), 60)].count("a title") == 1


def test_several_keys_are_repeated() -> None:
    made = FittingTable("", ("step", "timestep", *"abc"), keys=2)
    made.add_row("0", "980", *(["x" * 20] * 3))
    assert [one[0][:2] for one in rows(printed(made, 60))] == [["step", "timestep"]] * 3


def test_table_without_rows_shows_its_headers() -> None:
    assert rows(printed(FittingTable("", ("a", "b c")), 80)) == [[["a", "b c"]]]
