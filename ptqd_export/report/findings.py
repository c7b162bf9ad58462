"""Turn evaluations and comparisons into tables of the page, with the commands that repeat them."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from engines.apps.compare.compare_result import CompareResult, PrecisionFigures
from engines.apps.evaluate.evaluation_result import EvaluationResult, Figure, infinite_in_words, labelled
from engines.apps.evaluate.extractor import SMALL_NAME
from engines.apps.evaluate.metrics.confidence import Summary
from ptqd_export.report.tables import NOTHING, Cell, Table, number, words


@dataclass(frozen=True)
class Finding:
    """One evaluation or comparison.

    Attributes:
        title: what was compared with what.
        tables: tables of the figures.
        notes: what to know before quoting the figures.
        command: command that repeats the measurement.
    """

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    command: str


def evaluation(result: EvaluationResult) -> Finding:
    """Return the figures of `ptqd-run evaluate`."""
    chain = f"schedule {result.schedule}, precision {result.precision}, correction {result.correction}"
    seeds = (
        f"{result.num} samples of each of {len(result.seeds)} seeds"
        if len(result.seeds) > 1
        else f"{result.num} samples of seed {result.seeds[0]}"
    )
    columns = ("figure", result.full_precision, "quantized", "difference", "95 % interval from", "to")
    rows = [_figure_row(name, figure) for name, figure in result.figures.items()]
    steps = ", ".join(f"{count} {name}" for name, count in result.precision_steps.items())
    unavailable = [f"{labelled(name, None)} is not available: {reason}" for name, reason in result.unavailable.items()]
    own = [] if result.reference_seed is None else [f"The reference is full-precision samples of seed {result.reference_seed}."]
    explanation = "The interval is for the difference or, where the figure is paired, for the figure itself."
    return Finding(
        title=f"{chain[0].upper()}{chain[1:]}",
        tables=(Table.of(f"{seeds}, guidance {result.guidance:g}, steps: {steps}", columns, rows),),
        notes=(explanation, *own, *unavailable, *(f"Warning: {warning}" for warning in result.warnings)),
        command=_evaluate_command(result),
    )


def comparison(result: CompareResult) -> Finding:
    """Return the figures of `ptqd-run compare`."""
    lowest = ("lowest SNR", "at step", "cosine similarity there", "PSNR there", "largest error")
    columns = ("precision", "mean SNR", *lowest, "mean corrected SNR", "steps of the chain")
    summary = Table.of(
        f"{result.num} samples of seed {result.seed}, guidance {result.guidance:g}",
        columns,
        [_engine_row(*item) for item in result.precisions.items()],
    )
    return Finding(
        title=f"Schedule {result.schedule}, against {result.reference}" + (f", with {', '.join(result.loras)}" if result.loras else ""),
        tables=(summary, _step_table(result)),
        notes=(
            "Measured at states of the full-precision chain, with outputs before correction unless a column says otherwise. "
            '"same" means that the outputs are equal: the SNR is infinite.',
        ),
        command=shlex.join(
            ["ptqd-run", "compare", "BUNDLE", "--schedule", result.schedule, "--num", str(result.num), "--seed", str(result.seed)]
            + [word for lora in result.loras for word in ("--lora", lora)]
        ),
    )


def _figure_row(name: str, figure: Figure) -> list[Cell]:
    low, high = (figure.difference or figure.quantized).interval or (None, None)
    return [
        words(labelled(name, figure.extractor)),
        _summary(figure.full_precision),
        _summary(figure.quantized),
        NOTHING if figure.difference is None else number(figure.difference.mean, "+.4g"),
        number(low, "+.4g"),
        number(high, "+.4g"),
    ]


def _summary(summary: Summary | None) -> Cell:
    if summary is None:
        return NOTHING
    if math.isinf(summary.mean):
        return Cell(infinite_in_words(summary), math.inf)
    deviation = "" if summary.deviation is None else f" ± {summary.deviation:.2g}"
    return number(summary.mean, ".4g", deviation)


def _evaluate_command(result: EvaluationResult) -> str:
    classes = result.classes if isinstance(result.classes, str) else ",".join(map(str, result.classes or ()))
    options = {
        "--num": result.num, "--seed": result.seeds[0], "--seeds": len(result.seeds), "--schedule": result.schedule,
        "--precision": result.precision, "--correction": result.correction, "--guidance": f"{result.guidance:g}",
    }  # fmt: skip
    files = {"--reference": result.reference_seed is None, "--features": result.extractor_name != SMALL_NAME}
    names = {"--reference": "REFERENCE.npz", "--features": "MODEL.onnx"}
    given = options | {option: names[option] for option, needed in files.items() if needed} | ({"--classes": classes} if classes else {})
    return shlex.join(["ptqd-run", "evaluate", "BUNDLE", *(str(word) for option in given.items() for word in option)])


def _engine_row(name: str, figures: PrecisionFigures) -> list[Cell]:
    worst = figures.worst
    return [
        words(name),
        _decibels(figures.mean_snr_db),
        _decibels(worst.snr_db),
        number(worst.step, "d"),
        number(worst.cosine_similarity, ".6f"),
        _decibels(worst.psnr_db),
        number(max(step.max_absolute_error for step in figures.steps), ".3g"),
        _decibels(figures.mean_corrected_snr_db),
        number(sum(step.chosen for step in figures.steps), "d", f" of {len(figures.steps)}"),
    ]


def _step_table(result: CompareResult) -> Table:
    names = [column for name in result.precisions for column in (f"{name} SNR", f"{name} corrected")]
    by_step = zip(*(figures.steps for figures in result.precisions.values()), strict=True)
    rows = [
        [
            number(steps[0].step, "d"),
            number(steps[0].timestep, "g"),
            *(_decibels(db) for step in steps for db in (step.snr_db, step.corrected_snr_db)),
        ]
        for steps in by_step
    ]
    return Table.of("SNR by step", ("step", "timestep", *names), rows)


def _decibels(value: float | None) -> Cell:
    """None means infinity here: the outputs are the same."""
    return Cell("same", float("inf")) if value is None else number(value, ".2f", " dB")
