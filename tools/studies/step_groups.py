"""Measure what groups of steps are worth: build one plan with 1, 2, 4 and 8 of them, and compare the networks' noise.

    python -m tools.studies.step_groups tools/dit/plan.json build/step-groups/dit --precisions w8a8,w4a8,w4a6,w4a4

The statistics are taken on the full-precision trajectory, so that all networks see the same states. Finished builds are reused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import click

from engines.bundle.bundle import Bundle
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.stages.run_build import run_build

COUNTS = (1, 2, 4, 8)
HEADER = (
    "precision",
    *(f"{count}" for count in COUNTS),
    *(f"{count}, corrected" for count in COUNTS),
    *(f"{count}, MB" for count in COUNTS),
)


def build(plan_file: PlanFile, precisions: Sequence[str], count: int, samples: int, output: Path) -> Bundle:
    """Build the plan with these precisions and this number of groups, with statistics on the states of the full-precision chain."""
    plan = plan_file.plan
    wanted = {
        "precisions": tuple(precisions),
        "quantization": plan.quantization.model_copy(update={"step_groups": count}),
        "calibration": plan.calibration.model_copy(update={"trajectory": "fp", "samples": samples}),
        "correction": plan.correction.model_copy(update={"mode": "signed", "variance": "none"}),
        "steps": plan.steps.model_copy(update={"policy": "fixed", "precisions": (precisions[0],)}),
    }
    run_build(PlanFile(plan.model_copy(update=wanted), plan_file.folder, output))
    return Bundle.open(output)


def snr(bundle: Bundle, precision: str, figure: str) -> float:
    """Return the mean SNR of a precision's output over the steps, in dB; `figure` is the statistics' name for it."""
    statistics = json.loads(bundle.path(f"statistics/{bundle.manifest.placement}/{precision}.json").read_text())
    return fmean(step[figure] for step in statistics["steps"])


def size(bundle: Bundle, precision: str) -> float:
    """Return the megabytes of a precision's graphs on disk, weights included."""
    files = (name for name in bundle.manifest.files if name.startswith(f"graphs/{bundle.manifest.placement}/{precision}."))
    return sum(bundle.path(name).stat().st_size for name in files) / 1e6


def rows(bundles: Mapping[int, Bundle], precisions: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the table rows, one a precision."""
    for precision in precisions:
        plain, corrected = ([snr(bundle, precision, figure) for bundle in bundles.values()] for figure in ("snr_db", "corrected_snr_db"))
        sizes = [size(bundle, precision) for bundle in bundles.values()]
        yield precision.upper(), *(f"{decibels:.1f}" for decibels in (*plain, *corrected)), *(f"{one:.2f}" for one in sizes)


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--precisions", default="w8a8,w4a8,w4a6,w4a4", show_default=True, help="Precisions in the order of the table.")
@click.option("--samples", default=64, show_default=True, help="Samples that the statistics are measured on.")
def main(plan: Path, output: Path, precisions: str, samples: int) -> None:
    plan_file, names = load_plan(plan), precisions.split(",")
    bundles = {count: build(plan_file, names, count, samples, output / f"{count}") for count in COUNTS}
    table = [HEADER, ("---", *(["---:"] * (len(HEADER) - 1))), *rows(bundles, names)]
    lines = "\n".join(f"| {' | '.join(line)} |" for line in table)
    (output / "table.md").write_text(lines + "\n")
    click.echo(lines)


if __name__ == "__main__":
    main()
