"""Measure what helps a transformer at four bits: channel scaling, rotations, branches of low rank, noisy layers in float, adapters that
are merged, and learned rounding.

    python -m tools.studies.four_bits tools/dit/plan.json build/four-bits/dit --precision w4a4

Weights are rounded to the nearest unless a row learns. The statistics are taken on the full-precision trajectory, so that all networks
see the same states. Finished stages are reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from engines.api.precision_info import precisions_of
from engines.bundle.bundle import Bundle
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.plan.target import TargetSection
from ptqd_export.stages.run_build import run_build
from tools.studies.step_groups import size, snr

HELP: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "channel scaling": {"channel_scaling": 0.5},
    "rotation": {"rotation": "hadamard"},
    "folded rotation": {"rotation": "folded"},
    "rank 16": {"low_rank": 16},
    "rank 32": {"low_rank": 32},
    "rank 64": {"low_rank": 64},
    "rank 16, channel scaling": {"low_rank": 16, "channel_scaling": 0.5},
    "rank 32, channel scaling": {"low_rank": 32, "channel_scaling": 0.5},
    "rank 16, rotation": {"low_rank": 16, "rotation": "hadamard"},
    "rank 32, rotation": {"low_rank": 32, "rotation": "hadamard"},
    "20 % in float": {"float_share": 0.2},
    "adapters 16": {"adapters": 16},
    "learned rounding": {"rounding": "block"},
    "adapters 16, learned rounding": {"adapters": 16, "rounding": "block"},
    "rank 32, adapters 16": {"low_rank": 32, "adapters": 16},
    "rank 32, learned rounding": {"low_rank": 32, "rounding": "block"},
}
"""Changes of the plan's section `quantization`."""

HEADER = ("help", "SNR, dB", "corrected", "bit ops saved, layers", "bit ops saved, all", "MB")


def build(
    plan_file: PlanFile, precision: str, change: Mapping[str, Any], samples: int, output: Path, target: TargetSection | None = None
) -> Bundle:
    """Build the plan with one precision and this change, with statistics on the states of the full-precision chain.

    Args:
        plan_file: the plan.
        precision: name of the precision.
        change: changes of the plan's section `quantization`.
        samples: samples that the statistics are measured on.
        output: folder of the bundle.
        target: target of the bundle; None keeps the plan's.
    """
    plan = plan_file.plan
    wanted = {
        "precisions": (precision,),
        "target": target or plan.target,
        "quantization": plan.quantization.model_copy(update=dict(change)),
        "calibration": plan.calibration.model_copy(update={"trajectory": "fp", "samples": samples}),
        "correction": plan.correction.model_copy(update={"mode": "signed", "variance": "none"}),
        "steps": plan.steps.model_copy(update={"policy": "fixed", "precisions": (precision,)}),
    }
    run_build(PlanFile(plan.model_copy(update=wanted), plan_file.folder, output))
    return Bundle.open(output)


def row(bundle: Bundle, precision: str, name: str) -> tuple[str, ...]:
    """Return a row of the table."""
    figures = (f"{snr(bundle, precision, figure):.1f}" for figure in ("snr_db", "corrected_snr_db"))
    info = precisions_of(bundle)[precision]
    saved = (f"{info.bit_operations_saved:.1f}x", f"{info.bit_operations_saved_all:.1f}x")
    return name, *figures, *saved, f"{size(bundle, precision):.2f}"


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--precision", default="w4a4", show_default=True, help="Precision to measure.")
@click.option("--target", type=click.Choice(["tensorrt", "tensorrt-rtx"]), help="Build for this target, measured on the CPU.")
@click.option("--samples", default=64, show_default=True, help="Samples that the statistics are measured on.")
@click.option("--only", multiple=True, type=click.Choice(list(HELP)), help="Measure these alone.")
def main(
    plan: Path, output: Path, precision: str, target: Literal["tensorrt", "tensorrt-rtx"] | None, samples: int, only: tuple[str, ...]
) -> None:
    plan_file, folder = load_plan(plan), output / "bundle"
    section = None if target is None else TargetSection(name=target, measure="cpu")
    found = [row(build(plan_file, precision, HELP[name], samples, folder, section), precision, name) for name in only or HELP]
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *found]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (output / f"{precision}.md").write_text(table + "\n")
    click.echo(table)


if __name__ == "__main__":
    main()
