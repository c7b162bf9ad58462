"""Shows a build's progress: a bar while a stage runs (on a terminal only), and a line when the stage is done."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ptqd_export.stages.reporter import BuildProgress


class BuildDisplay:
    """A callback of `ptqd_export.stages.run_build` that writes to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", visible=False)

    def __enter__(self) -> BuildDisplay:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, progress: BuildProgress) -> None:
        if not progress.finished:
            self._bar.update(self._task, description=progress.stage, completed=progress.done, total=progress.total, visible=True)
            return
        self._bar.update(self._task, visible=False)
        took = "as before" if progress.reused else f"{progress.seconds:.1f} s"
        self._console.print(f"{progress.stage:>16}  {took}", highlight=False)
