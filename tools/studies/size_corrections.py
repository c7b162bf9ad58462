"""Measure how far corrections carry over between sizes: build a plan at several, and sample each with the schedules of all.

    python -m tools.studies.size_corrections tools/coloured/plan.json build/size-corrections --size 32x32 --size 24x40

The samples run at one quantized precision. Finished builds are reused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from engines.apps.chain_options import all_sizes
from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import ImageSize, size_name
from engines.chain.noise import NoiseSource
from engines.chain.schedule import Schedule
from engines.networks.chain_choice import ChainChoice
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.stages.run_build import run_build

STEPS, SAMPLES, NUM, SEED = 10, 48, 32, 77


def build(plan_file: PlanFile, precision: str, sizes: tuple[ImageSize, ...], output: Path) -> Bundle:
    """Build the plan at the sizes, without guidance."""
    plan = plan_file.plan
    wanted = {
        "model": plan.model.model_copy(update={"sizes": sizes}),
        "sampler": plan.sampler.model_copy(update={"steps": STEPS, "eta": 1.0, "guidance": 1.0}),
        "precisions": (precision,),
        "calibration": plan.calibration.model_copy(update={"samples": SAMPLES, "activation_samples": 96, "verify_states": 16}),
        "correction": plan.correction.model_copy(update={"mode": "joint"}),
        "steps": plan.steps.model_copy(update={"policy": "fixed", "precisions": (precision,), "budget": None}),
    }
    run_build(PlanFile(plan.model_copy(update=wanted), plan_file.folder, output))
    return Bundle.open(output)


def psnr(bundle: Bundle, precision: str, schedules: tuple[Schedule, ...]) -> Iterator[float]:
    """Yield the PSNR of samples of a size to those of full precision, in dB: uncorrected, then with each of the schedules."""
    noise, numbers = NoiseSource(SEED, bundle.manifest.model.sample_shape), np.arange(NUM)
    conditioning = bundle.manifest.model.conditioning
    rows = np.zeros_like(numbers) if conditioning is None else numbers % conditioning.rows

    def sampled(name: str, schedule: Schedule | None) -> Float32:
        chain = ChainChoice(precision=name, correction="off" if schedule is None else "on").open(bundle, NUM)
        return (chain if schedule is None else replace(chain, schedule=schedule)).sample(noise, numbers, rows).clip(-1, 1)

    exact = sampled("fp32", None)
    for schedule in (None, *schedules):
        yield 10 * float(np.log10(4 / np.square(sampled(precision, schedule) - exact).mean()))


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--size", "sizes", multiple=True, required=True, callback=all_sizes, help="Height and width, such as 24x40.")
@click.option("--precision", default="w4a8", show_default=True, help="Quantized precision of every step.")
def main(plan: Path, output: Path, sizes: tuple[ImageSize, ...], precision: str) -> None:
    bundles = build(load_plan(plan), precision, sizes, output).at_sizes
    names, schedules = [size_name(size) for size in sizes], tuple(bundle.schedule() for bundle in bundles)
    table = [("samples of", "uncorrected", *(f"corrections of {name}" for name in names)), ("---", *["---:"] * (1 + len(names)))]
    table += [(name, *(f"{one:.1f}" for one in psnr(bundle, precision, schedules))) for name, bundle in zip(names, bundles, strict=True)]
    click.echo("\n".join(f"| {' | '.join(line)} |" for line in table))


if __name__ == "__main__":
    main()
