"""Shows a build's progress: a bar while a stage runs (on a terminal only), and a line when the stage is done."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from engines.host.verbosity import is_quiet
from ptqd_export.stages.reporter import BuildProgress


class Progress:
    """A `ptqd_export.stages.stage_cache.Reporter` that writes to standard error."""

    def __init__(self, on_progress: Callable[[BuildProgress], None] | None = None) -> None:
        self._tell = on_progress or (lambda _: None)
        self._stage = ""
        self._console = Console(stderr=True, quiet=is_quiet())
        self._bar = Bar(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", visible=False)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def start(self, stage: str) -> None:
        self._stage = stage
        self._tell(BuildProgress(stage))
        self._bar.reset(self._task, description=stage, total=None, visible=True)

    def advance(self, done: int, total: int) -> None:
        self._tell(BuildProgress(self._stage, done, total))
        self._bar.update(self._task, completed=done, total=total)

    def finish(self, stage: str, seconds: float, *, reused: bool) -> None:
        self._tell(BuildProgress(stage, finished=True, reused=reused, seconds=seconds))
        self._bar.update(self._task, visible=False)
        self._console.print(f"{stage:>16}  " + ("as before" if reused else f"{seconds:.1f} s"), highlight=False)
