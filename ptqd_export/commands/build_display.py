"""Shows a build's progress: bars while a stage runs (on a terminal only), and a line when the stage is done."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import TaskID
from rich.text import Text

from engines.terminal.duration import clock
from engines.terminal.terminal_bar import TerminalBar
from engines.terminal.verbosity import is_quiet
from ptqd_export.stages.reporter import BuildProgress

NAME_WIDTH = 16


class BuildDisplay:
    """An `on_progress` of `ptqd_export.stages.run_build` that writes to standard error.

    Args:
        console: console to write to instead of standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, quiet=is_quiet())
        self._bars = _BuildBars(self._console)
        self._task: TaskID | None = None
        self._estimated = False

    def __enter__(self) -> BuildDisplay:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def __call__(self, progress: BuildProgress) -> None:
        self._bars.follow(progress)
        if progress.estimate is not None and not self._estimated:
            self._console.print(f"{'estimate':>{NAME_WIDTH}}  {progress.estimate}", highlight=False)
            self._estimated = True
        if not progress.finished:
            self._show(progress)
            return
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        took = "as before" if progress.reused else f"{progress.seconds:.1f} s"
        self._console.print(f"{progress.stage:>{NAME_WIDTH}}  {took}", highlight=False)

    def _show(self, progress: BuildProgress) -> None:
        if self._task is None:
            self._task = self._bars.add_task(progress.stage, total=None, doing="")
        self._bars.update(self._task, completed=progress.done, total=progress.total)


class _BuildBars(TerminalBar):
    """The bar of the current stage, above a line on the whole build."""

    def __init__(self, console: Console) -> None:
        self._begin = time.monotonic()
        self._end: float | None = None
        self._left: tuple[str, ...] = ()
        super().__init__(NAME_WIDTH, console)

    def follow(self, progress: BuildProgress) -> None:
        self._left = progress.stages_left
        self._end = None if progress.seconds_left is None else time.monotonic() + progress.seconds_left

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        now = time.monotonic()
        left = "" if self._end is None else f", about {clock(max(0.0, self._end - now))} left"
        then = f"; then {', '.join(self._left)}" if self._left else ""
        yield Text(f"{'build':>{NAME_WIDTH}} {clock(now - self._begin)}{left}{then}", no_wrap=True, overflow="ellipsis", style="dim")
