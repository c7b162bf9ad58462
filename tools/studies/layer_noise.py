"""Print how much each layer contributes to a precision's noise, and to its work.

    python -m tools.studies.layer_noise tools/digits/learned.json --precision w4a8

The plan must have been built, because its stages are read. A layer with much of the noise and little of the work is a candidate for
`keep_8bit_weights`; `float_share` makes the choice itself.
"""

from __future__ import annotations

from pathlib import Path

import click

from calib.quantizers.rules.precision import Precision
from engines.bundle.bundle import UNFINISHED_BUILD as STAGES
from engines.errors import UsageError
from ptqd_export.plan import load_plan
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.precisions.nearest_rounding import Sources
from ptqd_export.stages.precisions.noisy_layers import measured_noise

HEADER = ("layer", "share of the noise", "share of the multiply-accumulates")


def stage(output: Path, name: str) -> Path | None:
    """Return the folder of a stage of the bundle's build, or None."""
    return next((output / STAGES).glob(f"{name}-*"), None)


def built_sources(output: Path) -> Sources:
    """Return the stages that the bundle's graphs were made from.

    Raises:
        UsageError: the plan has not been built, or its stages were removed.
    """
    prepared, states, seen = stage(output, "prepare") or stage(output, "trace"), stage(output, "states"), stage(output, "observe")
    if prepared is None or states is None or seen is None:
        raise UsageError("The plan has not been built.", found=f"no stages in {output}", mend="run ptqd-export build first")
    return Sources(prepared, states, seen)


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--precision", default="w4a8", show_default=True)
@click.option("--top", default=12, show_default=True, help="Number of layers to print.")
def main(plan: Path, precision: str, top: int) -> None:
    plan_file = load_plan(plan)
    layers, noise = measured_noise(BuildContext(plan_file), Precision.parse(precision), built_sources(plan_file.output_path))
    macs = {layer.layer.name: layer.layer.macs for layer in layers}
    rows = [
        (name, f"{noise[name] / sum(noise.values()):.1%}", f"{macs[name] / sum(macs.values()):.1%}")
        for name in sorted(noise, key=noise.__getitem__, reverse=True)[:top]
    ]
    for line in (HEADER, ("---", "---:", "---:"), *rows):
        click.echo(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
