"""Measure the gain of learned rounding: build one plan with every rounding method, and compare the networks' noise step by step.

    python -m tools.studies.rounding_gain tools/digits/rounding.json build/rounding/digits

The statistics are taken on the full-precision trajectory, so that all networks see the same states. Finished builds are reused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from engines.bundle.bundle import Bundle
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.stages.precisions.learned_rounding import SUMMARY
from ptqd_export.stages.run_build import run_build

LEARNED = ("layer", "block")
HEADER = ("precision", "rounding", "SNR, dB", "gain, dB", "least gain of a step, dB", "minutes", "peak memory, GiB")


def build(plan_file: PlanFile, rounding: str, output: Path) -> Bundle:
    """Build the plan with this rounding method, with statistics on the states of the full-precision chain."""
    plan = plan_file.plan
    wanted = {
        "quantization": plan.quantization.model_copy(update={"rounding": rounding}),
        "calibration": plan.calibration.model_copy(update={"trajectory": "fp"}),
    }
    run_build(PlanFile(plan.model_copy(update=wanted), plan_file.folder, output))
    return Bundle.open(output)


def noise(bundle: Bundle, precision: str) -> list[float]:
    """Return the SNR of a precision's output at every step, in dB."""
    statistics = json.loads(bundle.path(f"statistics/{bundle.manifest.placement}/{precision}.json").read_text())
    return [step["snr_db"] for step in statistics["steps"]]


def cost(bundle: Bundle, precision: str) -> Mapping[str, Any]:
    """Return the time and memory that learning took, as the build recorded them."""
    (folder,) = (bundle.folder / "local" / "stages").glob(f"reconstruct-{precision}-*")
    found: Mapping[str, Any] = json.loads((folder / SUMMARY).read_text())
    return found


def rows(bundles: Mapping[str, Bundle], precision: str) -> Iterator[tuple[str, ...]]:
    """Yield the table rows of one precision."""
    nearest = noise(bundles["nearest"], precision)
    yield precision.upper(), "nearest", f"{fmean(nearest):.1f}", "", "", "", ""
    for rounding in LEARNED:
        learned = noise(bundles[rounding], precision)
        gains = [after - before for after, before in zip(learned, nearest, strict=True)]
        took = cost(bundles[rounding], precision)
        figures = (fmean(learned), fmean(gains), min(gains), took["minutes"], took["peak_memory_gib"])
        yield "", rounding, *(f"{figure:.1f}" for figure in figures)


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(plan: Path, output: Path) -> None:
    plan_file = load_plan(plan)
    bundles = {rounding: build(plan_file, rounding, output / rounding) for rounding in ("nearest", *LEARNED)}
    lines = [HEADER, tuple(["---", "---"] + ["---:"] * (len(HEADER) - 2))]
    for precision in plan_file.plan.precisions:
        lines += rows(bundles, precision)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (output / "table.md").write_text(table + "\n")
    click.echo(table)


if __name__ == "__main__":
    main()
