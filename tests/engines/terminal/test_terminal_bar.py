"""Bars show work done, rate and time left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from engines.terminal.duration import clock, duration
from engines.terminal.terminal_bar import TerminalBar


def _shown(done: float, total: float | None, seconds: float, doing: str = "", width: int = 80) -> str:
    """The line of a bar whose work was done at an even rate."""
    console, now = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None), 0.0
    bar = TerminalBar(console=console)
    bar.get_time = lambda: now
    task = bar.add_task("sampling", total=None, doing=doing)
    for part in range(1, 11):
        now = seconds * part / 10
        bar.update(task, completed=done * part / 10, total=total)
    console.print(bar.get_renderable())
    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().splitlines()
    assert len(line) <= width
    return line


@pytest.mark.parametrize("width", [80, 120])
def test_work_rate_and_time_left(width: int) -> None:
    found = _shown(20, 100, 10.0, width=width).split()
    assert found[0] == "sampling"
    assert found[2:] == ["20/100", "2.0/s", "0:40", "left"]


def test_slow_work_shows_seconds_each() -> None:
    assert "2.5 s each" in _shown(8, 16, 20.0)


def test_work_without_a_total_shows_the_time_so_far_and_no_count() -> None:
    line = _shown(0, None, 75.0)
    assert line.split()[-1] == "1:15"
    assert "/" not in line


def test_fractions_are_percentages_with_a_word_on_the_work() -> None:
    line = _shown(0.5, 1, 10.0, "timing kernels")
    assert " 50 % " in line
    assert line.rstrip().endswith("timing kernels")


@pytest.mark.parametrize(("seconds", "shown"), [(7.4, "0:07"), (754, "12:34"), (3723, "1:02:03")])
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(40.3, "40 s"), (99, "99 s"), (300, "5 min"), (12600, "3.5 h")])
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
