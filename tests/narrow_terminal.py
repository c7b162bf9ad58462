"""Results printed to a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

WIDTHS = (80, 120)


def narrow(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Give results as many columns as a terminal of this width does."""
    monkeypatch.setattr("engines.terminal.fitting_table.PLAIN_WIDTH", width)


def check_whole(printed: str, width: int, words: Iterable[str]) -> None:
    """Check that tables fit, and that nothing in them was cut."""
    tables = [line for line in printed.splitlines() if line[:1] in "┃│"]
    assert tables
    assert max(map(len, tables)) <= width
    assert "…" not in printed
    for word in words:
        assert f" {word} " in printed, word
