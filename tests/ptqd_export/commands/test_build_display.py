"""What people see of a build: bars on a terminal, and one line for each finished stage anywhere."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from ptqd_export.commands.build_display import BuildDisplay
from ptqd_export.stages.build_estimate import BuildEstimate
from ptqd_export.stages.reporter import BuildProgress

LEFT = ("quantize-w8a8", "quantize-w4a8", "statistics", "check", "pictures", "bundle", "times", "optimize")
ESTIMATE = BuildEstimate({"observe": 10.0, "statistics": 30.0}, 1240, 0.012)


def _progress(done: float, total: float | None, *, finished: bool = False, reused: bool = False) -> BuildProgress:
    return BuildProgress("observe", done, total, finished, reused, 2.4, LEFT, 190.0, ESTIMATE)


def _console(width: int, *, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=width, height=20, force_terminal=terminal, color_system=None, legacy_windows=False)


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(params=[80, 120])
def bars(request: pytest.FixtureRequest) -> Iterator[tuple[BuildDisplay, Console, int]]:
    """A display with an observing stage, on terminals of two widths."""
    console = _console(request.param, terminal=True)
    with BuildDisplay(console) as display:
        yield display, console, request.param


def _lines(display: BuildDisplay, width: int) -> list[str]:
    """The lines that the terminal shows now."""
    console = _console(width, terminal=True)
    console.print(display._bars.get_renderable())
    return _written(console).splitlines()


def test_a_stage_shows_its_work_and_the_stages_to_come(bars: tuple[BuildDisplay, Console, int]) -> None:
    display, _, width = bars
    display(_progress(0, None))
    (stage, build) = _lines(display, width)
    assert "0/" not in stage
    assert stage.split()[-1] == "0:00"
    display(_progress(310, 1240))
    (stage, build) = _lines(display, width)
    assert stage.startswith("         observe ")
    assert " 310/1240 " in stage
    assert build.startswith("           build 0:00, about 3:10 left; then quantize-w8a8, quantize-w4a8")
    assert all(len(line) <= width for line in (stage, build))
    assert build.endswith("…")


def test_a_finished_stage_leaves_a_line_and_no_bar(bars: tuple[BuildDisplay, Console, int]) -> None:
    display, console, width = bars
    display(_progress(310, 1240))
    display(_progress(1240, 1240, finished=True))
    assert "         observe  2.4 s\n" in _written(console)
    assert len(_lines(display, width)) == 1


def test_elsewhere_there_is_one_line_for_each_finished_stage_and_one_for_the_estimate() -> None:
    console = _console(80, terminal=False)
    with BuildDisplay(console) as display:
        display(_progress(0, None))
        for done in range(1, 5):
            display(_progress(done, 4))
        display(_progress(4, 4, finished=True))
        display(_progress(0, None, finished=True, reused=True))
    assert " ".join(_written(console).split()) == (
        "estimate about 40 s: 1,240 network evaluations, 12 ms each at full precision; statistics 30 s, observe 10 s "
        "observe 2.4 s observe as before"
    )
