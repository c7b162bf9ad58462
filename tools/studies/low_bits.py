"""Measure the noise of low-bit precisions on one trained model: integers, 8-bit floats, floats in blocks, scales of groups, and attention
in 8 bits.

    python -m tools.studies.low_bits tools/dit/plan.json build/low-bits/dit

The graphs are those for TensorRT-RTX with a float16 float part; a stand-in of standard operators runs the floats in blocks. The
statistics are taken on the full-precision trajectory, so that all networks see the same states. Without a GPU the study takes minutes on a
small model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from engines.api.layer_info import layers_of
from engines.bundle.bundle import Bundle
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.plan.target import TargetSection
from ptqd_export.stages.run_build import run_build
from tools.studies.step_groups import size, snr

PRECISIONS = ("w8a8", "fp8", "mxfp8", "w4a16", "nvfp4a8", "w4a8", "nvfp4", "w4a4")
GROUPED, GROUPS = "w4a16", (128, 64, 32)
"""Precision whose weights get scales of groups, and the groups."""

ATTENDED, ATTENTION = ("w8a8", "fp8"), ("fp8", "int8")
"""Precisions whose attention gets 8-bit products, and what they compute with."""

HEADER = ("precision", "SNR, dB", "corrected", "bit ops saved", "MB", "layers without blocks")


def build(
    plan_file: PlanFile, precisions: tuple[str, ...], group: int | None, samples: int, output: Path, attention: str = "float"
) -> Bundle:
    """Build the plan for TensorRT-RTX with these precisions, groups and attention. Stages of an earlier build in the folder are reused."""
    plan = plan_file.plan
    wanted = {
        "precisions": precisions,
        "target": TargetSection(name="tensorrt-rtx", measure="cpu"),
        "quantization": plan.quantization.model_copy(update={"weight_group": group, "attention": attention}),
        "calibration": plan.calibration.model_copy(update={"trajectory": "fp", "samples": samples}),
        "correction": plan.correction.model_copy(update={"mode": "signed", "variance": "none"}),
        "steps": plan.steps.model_copy(update={"policy": "fixed", "precisions": (precisions[0],)}),
    }
    run_build(PlanFile(plan.model_copy(update=wanted), plan_file.folder, output))
    return Bundle.open(output)


def rows(bundle: Bundle, precisions: tuple[str, ...], suffix: str = "") -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each precision."""
    for name in precisions:
        figures = (f"{snr(bundle, name, figure):.1f}" for figure in ("snr_db", "corrected_snr_db"))
        saved = bundle.manifest.precisions[name].bit_operations_saved_all
        reasons = [str(layer.precisions[name].reason) for layer in layers_of(bundle)]
        without = sum("without blocks" in reason or "one weight scale for each output channel" in reason for reason in reasons)
        yield f"{name}{suffix}", *figures, f"{saved:.1f}x", f"{size(bundle, name):.2f}", f"{without} of {len(reasons)}" if without else "-"


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--samples", default=64, show_default=True, help="Samples that the statistics are measured on.")
def main(plan: Path, output: Path, samples: int) -> None:
    plan_file, folder = load_plan(plan), output / "bundle"
    found = {row[0]: row for row in rows(build(plan_file, PRECISIONS, None, samples, folder), PRECISIONS)}
    for group in GROUPS:
        bundle = build(plan_file, (GROUPED,), group, samples, folder)
        found |= {row[0]: row for row in rows(bundle, (GROUPED,), f", groups of {group}")}
    for form in ATTENTION:
        bundle = build(plan_file, ATTENDED, None, samples, folder, form)
        found |= {row[0]: row for row in rows(bundle, ATTENDED, f", attention in {form}")}
    order = sorted(found, key=lambda name: [*PRECISIONS].index(name.partition(",")[0]))
    table = [HEADER, ("---", *(["---:"] * (len(HEADER) - 1))), *(found[name] for name in order)]
    lines = "\n".join(f"| {' | '.join(line)} |" for line in table)
    (output / "table.md").write_text(lines + "\n")
    click.echo(lines)


if __name__ == "__main__":
    main()
