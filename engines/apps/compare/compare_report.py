"""Reports of a comparison: tables for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from engines.apps.compare.compare_result import CompareResult, Decibels, PrecisionFigures, StepFigures
from engines.host.files import write_text
from engines.terminal.fitting_table import FittingTable, result_console

LITTLE_DB = 0.1
"""Largest change of a mean SNR, in dB, that says nothing about corrections."""


def write_report(result: CompareResult, path: Path) -> None:
    """Write the fields of `CompareResult` as a JSON object."""
    write_text(path, json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")


def print_report(result: CompareResult) -> None:
    """Print the tables to standard output: every precision, then every step."""
    console = result_console()
    console.print(_precisions(result))
    console.print(_steps(result))
    for line in lora_lines(result):
        console.print(line, highlight=False)
    console.print(_notes(result), highlight=False)


def _precisions(result: CompareResult) -> FittingTable:
    columns = ("mean SNR", "worst SNR", "at step", "cosine there", "PSNR there", "largest error", "mean corrected SNR", "steps chosen")
    used = f", with {', '.join(result.loras)}" if result.loras else ""
    title = f"against {result.reference}: {result.num} samples, schedule {result.schedule}{used}"
    table = FittingTable(title, ("precision", *columns))
    for name, figures in _beside(result).items():
        table.add_row(name, *_cells(figures))
    return table


def _beside(result: CompareResult) -> Mapping[str, PrecisionFigures]:
    """Return the figures of the precisions, each beside those of the same one without LoRAs."""
    if result.without_lora is None:
        return result.precisions
    without = result.without_lora.precisions
    pairs = ({name: figures, f"{name} without": without[name]} for name, figures in result.precisions.items())
    return {name: figures for pair in pairs for name, figures in pair.items()}


def lora_lines(result: CompareResult) -> list[str]:
    """Return whether the corrections, which were fitted without LoRAs, still help with them; nothing if there are none."""
    if result.without_lora is None:
        return []
    lines = []
    for name, figures in result.precisions.items():
        gained, before = figures.correction_db, result.without_lora.precisions[name].correction_db
        added = f"{gained:+.2f} dB of mean SNR with the LoRA, {before:+.2f} dB without"
        lines.append(f"{name}: the corrections {_verdict(gained, before)} ({added})")
    return [*lines, *result.ignored]


def _verdict(gained: float, before: float) -> str:
    """Return what corrections do with LoRAs, from what they add to the mean SNR with and without them, in dB."""
    if gained < -LITTLE_DB:
        no_longer = "no longer help: sample with --correction off, or build with model.lora"
        return "do not help, with or without the LoRA" if before < -LITTLE_DB else no_longer
    if max(gained, before) < LITTLE_DB:
        return "change little"
    return "help less: build with model.lora to fit them again" if gained < before / 2 else "still help"


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
    compared = _beside(result)
    table = FittingTable("SNR by step, raw and corrected", ("step", "timestep", *compared), keys=2)
    by_step = zip(*(figures.steps for figures in compared.values()), strict=True)
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
