"""The progress bar of both command lines: work done, rate, and time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from engines.terminal.duration import clock

WIDEST_BAR = 40


class WorkColumn(ProgressColumn):
    """Shows how much of the work is done: pieces of work, or a percentage if the work is 1."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        return Text(f"{task.percentage:.0f} %" if task.total == 1 else f"{task.completed:.0f}/{task.total:.0f}")


class RateColumn(ProgressColumn):
    """Shows pieces of work per second, or seconds per piece if it takes longer than one."""

    def render(self, task: Task) -> Text:
        if task.total in (None, 1) or not task.speed:
            return Text()
        return Text(f"{task.speed:.{int(task.speed < 10)}f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")


class TimeColumn(ProgressColumn):
    """Shows the time left, or the time taken so far while the time left is unknown."""

    def render(self, task: Task) -> Text:
        left = None if task.total is None else task.time_remaining
        return Text(clock(task.elapsed or 0.0) if left is None else f"{clock(left)} left")


class TerminalBar(Progress):
    """Bars on standard error, which disappear when their work is done. On anything but a terminal nothing is shown.

    A task without a total pulses, so that something moves while the work cannot be counted.

    Args:
        description: width of the column with the description.
        console: console to write to instead of standard error.
    """

    def __init__(self, description: int = 1, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        super().__init__(
            TextColumn("{task.description}", justify="right", table_column=Column(no_wrap=True, min_width=description)),
            BarColumn(bar_width=None, table_column=Column(max_width=WIDEST_BAR)),
            WorkColumn(_narrow(9)),
            RateColumn(_narrow(10)),
            TimeColumn(_narrow(12)),
            TextColumn("{task.fields[doing]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )


def _narrow(width: int) -> Column:
    return Column(no_wrap=True, min_width=width, justify="right")
