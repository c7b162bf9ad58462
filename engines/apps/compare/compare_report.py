"""Reports of a comparison: tables for people and JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from engines.apps.compare.compare_result import CompareResult, Decibels, PrecisionFigures, StepFigures
from engines.host.files import write_text
from engines.terminal.fitting_table import FittingTable, result_console


def write_report(result: CompareResult, path: Path) -> None:
    """Write the fields of `CompareResult` as a JSON object."""
    write_text(path, json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")


def print_report(result: CompareResult) -> None:
    """Print the tables to standard output: every precision, then every step."""
    console = result_console()
    console.print(_precisions(result))
    console.print(_steps(result))
    console.print(_notes(result), highlight=False)


def _precisions(result: CompareResult) -> FittingTable:
    columns = ("mean SNR", "worst SNR", "at step", "cosine there", "PSNR there", "largest error", "mean corrected SNR", "steps chosen")
    title = f"against {result.reference}: {result.num} samples, schedule {result.schedule}"
    table = FittingTable(title, ("precision", *columns))
    for name, figures in result.precisions.items():
        table.add_row(name, *_cells(figures))
    return table


def _cells(figures: PrecisionFigures) -> list[str]:
    worst = figures.worst
    return [
        _db(figures.mean_snr_db),
        _db(worst.snr_db),
        f"{worst.step} (t {worst.timestep:g})",
        f"{worst.cosine_similarity:.6f}",
        _db(worst.psnr_db),
        f"{max(step.max_absolute_error for step in figures.steps):.3g}",
        _db(figures.mean_corrected_snr_db),
        f"{sum(step.chosen for step in figures.steps)} of {len(figures.steps)}",
    ]


def _steps(result: CompareResult) -> FittingTable:
    """Return a table of the raw and corrected SNR of every precision. The schedule's choice is bold and marked with a star."""
    table = FittingTable("SNR by step, raw and corrected", ("step", "timestep", *result.precisions), keys=2)
    by_step = zip(*(figures.steps for figures in result.precisions.values()), strict=True)
    for steps in by_step:
        table.add_row(str(steps[0].step), f"{steps[0].timestep:g}", *(_step_cell(step) for step in steps))
    return table


def _step_cell(step: StepFigures) -> str:
    text = f"{_db(step.snr_db)}, {_db(step.corrected_snr_db)}"
    return f"[bold]{text} *[/bold]" if step.chosen else f"{text}  "


def _notes(result: CompareResult) -> str:
    return f"guidance {result.guidance:g}, seed {result.seed}; states of the full-precision chain; *: the schedule's choice for the step"


def _db(figure: Decibels) -> str:
    return "same" if figure is None else f"{figure:.2f} dB"
