"""Reports of an evaluation: a table for people and JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from engines.apps.evaluate.evaluation_result import EvaluationResult, Figure, infinite_in_words, labelled
from engines.apps.evaluate.metrics.confidence import Estimate, Summary
from engines.apps.evaluate.scores import FRECHET_DISTANCE, SPATIAL_FRECHET_DISTANCE
from engines.host.files import write_text
from engines.terminal.fitting_table import FittingTable, result_console
from engines.terminal.verbosity import is_quiet


def write_report(result: EvaluationResult, path: Path) -> None:
    """Write the fields of `EvaluationResult` as a JSON object. Infinite figures become null."""
    write_text(path, json.dumps(_without_infinity(asdict(result)), indent=1, allow_nan=False) + "\n")


def print_chain(precision: str, seed: int, estimates: Mapping[str, Estimate], extractors: Mapping[str, str | None]) -> None:
    """Print the figures of one chain and seed, and the extractors' names by figure, on one line, unless only the result is wanted."""
    if is_quiet():
        return
    figures = ", ".join(f"{labelled(name, extractors.get(name))} {_number(estimate.value)}" for name, estimate in estimates.items())
    click.echo(f"{precision}, seed {seed}: {figures}")


def print_report(result: EvaluationResult) -> None:
    """Print the table to standard output."""
    console = result_console()
    console.print(_table(result))
    console.print(_notes(result), highlight=False)


def _table(result: EvaluationResult) -> FittingTable:
    seeds = len(result.seeds)
    title = f"{result.num} samples per seed, {seeds} seed{'s' if seeds > 1 else ''}, guidance {result.guidance:g}"
    quantized = f"{result.precision}, correction {result.correction}"
    table = FittingTable(title, ("figure", result.full_precision, quantized, "difference", "95 % interval"))
    for name, figure in result.figures.items():
        shown = figure.difference or figure.quantized
        full_precision = "-" if figure.full_precision is None else _spread(figure.full_precision)
        difference = "-" if figure.difference is None else f"{figure.difference.mean:+.4g}" + _share(name, figure)
        interval = "-" if shown.interval is None else " to ".join(f"{end:+.4g}" for end in shown.interval)
        table.add_row(labelled(name, figure.extractor), full_precision, _spread(figure.quantized), difference, interval)
    for name in result.unavailable:
        table.add_row(labelled(name, None), *["not available"] * 2, "-", "-")
    return table


def _notes(result: EvaluationResult) -> str:
    steps = ", ".join(f"{count} {precision}" for precision, count in result.precision_steps.items())
    lines = [] if result.reference_seed is None else [f"reference: full-precision samples of seed {result.reference_seed}"]
    lines += [f"steps: {steps}; +- is the standard deviation over seeds; the interval is of the difference, or of the paired figure itself"]
    lines += [f"with {', '.join(result.loras)} in the weights of both"] if result.loras else []
    lines += [f"{labelled(name, None)} is not available: {reason}" for name, reason in result.unavailable.items()]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in result.warnings)])


def _spread(summary: Summary) -> str:
    if math.isinf(summary.mean):
        return infinite_in_words(summary)
    deviation = "" if summary.deviation is None else f" +- {summary.deviation:.2g}"
    return _number(summary.mean) + deviation


def _share(name: str, figure: Figure) -> str:
    """Return a distance's difference in percent of full precision's distance, as papers quote it."""
    if figure.difference is None or figure.full_precision is None or name not in (FRECHET_DISTANCE, SPATIAL_FRECHET_DISTANCE):
        return ""
    return f" ({figure.difference.mean / figure.full_precision.mean:+.1%})"


def _number(value: float) -> str:
    return "identical" if math.isinf(value) else f"{value:.4g}"


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinity(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(one) for one in value]
    return None if value == math.inf else value
