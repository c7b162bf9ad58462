"""Compare chains that mix 4-bit and 8-bit floats with chains of either, by the time that published ratios predict.

    python -m tools.studies.mixed_floats tools/dit/plan.json build/mixed-floats/dit

The policy `budget` chooses among `nvfp4` and `fp8`. Real chains are walked from the same noise as full precision's: uniform ones, those of
the frontier, and uniform ones of half the steps where the sampler draws no noise. Finished stages are reused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from engines.bundle.bundle import Bundle
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.plan.steps import StepsSection
from ptqd_export.plan.target import TargetSection
from ptqd_export.stages.run_build import run_build

PRECISIONS = ("nvfp4", "fp8")
HEADER = ("chain", "predicted time, share of float16's", "measured end error", "predicted")


def build(plan_file: PlanFile, budget: float, samples: int, output: Path) -> Bundle:
    """Build the plan for TensorRT-RTX with this budget of time, and eta 0.

    Args:
        plan_file: the plan.
        budget: time of the chain as a share of float16's.
        samples: samples that the statistics are measured on.
        output: folder of the bundle.
    """
    plan = plan_file.plan
    wanted = {
        "precisions": PRECISIONS,
        "sampler": plan.sampler.model_copy(update={"eta": 0.0}),
        "target": TargetSection(name="tensorrt-rtx", measure="cpu"),
        "calibration": plan.calibration.model_copy(update={"samples": samples}),
        "correction": plan.correction.model_copy(update={"mode": "signed", "variance": "none"}),
        "steps": StepsSection(policy="budget", cost="time", budget=budget),
    }
    run_build(PlanFile(plan.model_copy(update=wanted), plan_file.folder, output))
    return Bundle.open(output)


def rows(frontier: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for every real chain but the random ones, the cheapest first."""
    chains = {(tuple(one["precisions"])): one for one in frontier["chains"] if one["measured"] is not None and one["kind"] != "mixture"}
    for chain in sorted(chains.values(), key=lambda one: float(one["cost"])):
        yield _named(chain["precisions"]), f"{chain['cost']:.3f}", f"{chain['measured']['error']:.3g}", f"{chain['predicted_error']:.3g}"
    for chain in frontier["fewer_steps"]:
        name = f"{chain['precision']}, {chain['steps']} steps of {chain['sampler']}"
        yield name, f"{chain['cost']:.3f}", f"{chain['measured']['error']:.3g}", "-"


def _named(precisions: list[str]) -> str:
    """Name a chain by its runs of equal precisions."""
    runs: list[list[str]] = []
    for name in precisions:
        if runs and runs[-1][0] == name:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(f"{len(run)} {run[0]}" for run in runs)


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--budget", default=0.6, show_default=True, help="Time of the chosen chain as a share of float16's.")
@click.option("--samples", default=64, show_default=True, help="Samples that the statistics are measured on.")
def main(plan: Path, output: Path, budget: float, samples: int) -> None:
    bundle = build(load_plan(plan), budget, samples, output / "bundle")
    frontier = bundle.json(f"{bundle.statistics_folder}/frontier.json")
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *rows(frontier)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (output / "table.md").write_text(table + "\n")
    click.echo(table)


if __name__ == "__main__":
    main()
