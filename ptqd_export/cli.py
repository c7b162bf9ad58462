"""The `ptqd-export` command line. Each command imports what it needs when it runs, so that `--help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.apps import cluster_options
from engines.host.command_line import Choice, CommandLine
from engines.host.verbosity import is_quiet

if TYPE_CHECKING:
    from engines.backends.tensorrt.flavour import FlavourName

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
RUNTIMES = Choice(["target", "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx"])


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list of names."""
    return None if value is None else tuple(name.strip() for name in value.split(","))


def _parts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list whose names must be `gain` or `offset`."""
    names = _names(ctx, param, value)
    for name in names or ():
        if name not in ("gain", "offset"):
            raise click.BadParameter(f"{name!r} is not gain or offset.")
    return names


@click.group(cls=CommandLine)
def main() -> None:
    """Turn a trained diffusion model into a bundle of quantized engines and corrected schedules."""


@main.command()
@click.option("--model", type=PATH, required=True, help="Folder or file of the trained model, or package.module:function that creates it.")
@click.option("--target", help="Runtime that will run the engines, such as onnxruntime.  [default: guessed from this machine]")
@click.option("-o", "--output", type=PATH, default=Path("plan.json"), show_default=True, help="Plan to write.")
@click.option("--force", is_flag=True, help="Overwrite an existing plan.")
def init(model: Path, target: str | None, output: Path, force: bool) -> None:
    """Write a starter plan that spells out every default."""
    from ptqd_export.commands.guessed_target import guess_target
    from ptqd_export.commands.starter import write_starter_plan

    guessed = guess_target() if target is None else None
    write_starter_plan(model, target if guessed is None else guessed.name, output, force=force)
    if guessed is not None and not is_quiet():
        click.echo(str(guessed))
    click.echo(f"wrote {output}; review it, then run: ptqd-export build --plan {output}")


@main.command()
@click.option("--plan", "path", type=PATH, required=True, help="Plan to build.")
@click.option("--output", type=PATH, help="Folder of the bundle. Overrides the plan's output.")
@click.option("--fresh", is_flag=True, help="Start over instead of resuming an interrupted build.")
@cluster_options.ADDRESS
@cluster_options.CPUS
def build(path: Path, output: Path | None, fresh: bool, ray: str | None, ray_cpus: int | None) -> None:
    """Build the bundle that a plan describes."""
    import gc
    from dataclasses import replace

    from ptqd_export.plan import load_plan

    plan_file, cluster = replace(load_plan(path), output=output), cluster_options.chosen_cluster(ray, ray_cpus)
    gc.disable()  # imports create no garbage
    from ptqd_export.stages.run_build import run_build  # after the plan, so that an invalid plan is reported before torch is imported

    gc.freeze()  # modules stay loaded: without this, every later collection would scan all of torch for nothing
    gc.enable()
    run_build(plan_file, fresh=fresh, cluster=cluster)


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--name", required=True, help="Name of the new schedule, for `ptqd-run sample --schedule NAME`.")
@click.option("--from", "base", default="default", show_default=True, help="Schedule to start from.")
@click.option("--sampler", help="Sampler, such as ddim.")
@click.option("--steps", type=COUNT, help="Number of sampling steps.")
@click.option("--eta", type=click.FloatRange(0, 1), help="Share of the ancestral noise: 0 is deterministic, 1 is ancestral.")
@click.option("--guidance", type=click.FloatRange(min=0), help="Guidance scale.")
@click.option("--policy", type=Choice(["snr", "budget", "fixed"]), help="How the precision of each step is chosen.")
@click.option(
    "--precisions",
    callback=_names,
    help="Comma-separated, such as w4a8,w8a8. Policy fixed: one for all steps, or one for each step. Other policies: the candidates.",
)
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), help="For policy budget: cost of the chain as a fraction of full precision's."
)
@click.option("--cost", type=Choice(["bit_operations", "time"]), help="Unit of the budget.  [default: bit_operations]")
@click.option("--mode", type=Choice(["none", "ptqd", "signed", "joint", "mmse"]), help="Correction of the network output.")
@click.option("--parts", callback=_parts, help="Parts of the correction: gain, offset, or gain,offset.")
@click.option("--variance", type=Choice(["schedule", "shift", "none"]), help="How to handle the variance that quantization adds.")
@click.option("--samples", type=COUNT, help="Number of calibration samples that walk the chain.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the calibration samples.")
@click.option(
    "--trajectory", type=Choice(["quantized", "fp"]), help="Chain whose states the samples visit: quantized, or full precision's."
)
@click.option("--fit", type=Choice(["moments", "walk"]), help="Fit from stored moments, which takes seconds, or on a new walk.")
@click.option("--force", is_flag=True, help="Replace an existing schedule of this name.")
def schedule(bundle: Path, name: str, force: bool, **request: Any) -> None:
    """Add a schedule to a bundle without quantizing again.

    Options that you leave out are taken from the schedule to start from. The networks run only if the stored moments do not suffice.
    """
    from ptqd_export.schedules.add_schedule import add_schedule
    from ptqd_export.schedules.settings import ScheduleRequest

    click.echo(add_schedule(bundle, name, ScheduleRequest(**request), force=force))


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--target", type=Choice(["tensorrt", "tensorrt-rtx"]), help="Flavour of TensorRT.  [default: the bundle's]")
def engines(bundle: Path, target: FlavourName | None) -> None:
    """Build a bundle's engines for this machine, and check them.

    The check needs a device that runs the engines; without one, it is left out.
    """
    from ptqd_export.commands.engines_command import build_engines, check_built, print_engines

    built = build_engines(bundle, target)
    print_engines(built)
    click.echo(check_built(bundle, built, target))


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Print a bundle's schedules, precisions and layers."""
    from ptqd_export.commands.inspect_command import inspect_bundle, print_inspection

    found = inspect_bundle(bundle)
    if as_json:
        click.echo(found.json())
    else:
        print_inspection(found)


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write.  [default: in the bundle's local/]")
@click.option("--evaluation", "evaluations", type=PATH, multiple=True, help="File written by `ptqd-run evaluate --json`. Can be repeated.")
@click.option("--comparison", "comparisons", type=PATH, multiple=True, help="File written by `ptqd-run compare --json`. Can be repeated.")
def report(bundle: Path, output: Path | None, evaluations: tuple[Path, ...], comparisons: tuple[Path, ...]) -> None:
    """Write a bundle's report as one HTML file.

    It includes the times measured on this machine. The bundle's own report/index.html, which has none, is left unchanged.
    """
    from ptqd_export.report.write_report import write_report

    click.echo(f"wrote {write_report(bundle, output, evaluations, comparisons)}")


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--precision", required=True, help="Precision of the engine to examine, such as w8a8.")
@click.option("--step", type=click.IntRange(min=0), default=0, show_default=True, help="Schedule step whose states the layers get.")
@click.option(
    "--against",
    type=Choice(["oracle", "fp32"]),
    default="oracle",
    show_default=True,
    help="Reference: the same graph run as written, to find faults of the runtime; or full precision, to find badly quantized layers.",
)
@click.option("--min-snr-db", type=float, help="A layer with a lower SNR departs.  [default: 25 against oracle, 10 against fp32]")
@click.option("--schedule", default="default", show_default=True, help="Schedule whose full-precision chain provides the states.")
@click.option("--num", type=COUNT, default=4, show_default=True, help="Number of samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the samples' noise.")
@click.option("--runtime", type=RUNTIMES, default="target", show_default=True, help="Runtime of the engine; target is the bundle's own.")
@click.option("--worst", type=COUNT, default=10, show_default=True, help="Number of worst layers to show.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write every layer's figures to this file.")
def bisect(bundle: Path, worst: int, json_file: Path | None, **request: Any) -> None:
    """Find the first layer where an engine departs from a reference."""
    from engines.host.files import writable_folder
    from ptqd_export.commands.bisect import BisectRequest, bisect_bundle
    from ptqd_export.commands.bisect_report import print_report, write_report

    if json_file is not None:
        writable_folder(json_file.absolute().parent)
    result = bisect_bundle(BisectRequest(bundle, **request))
    if json_file is not None:
        write_report(result, json_file)
    print_report(result, worst)


@main.command()
def schema() -> None:
    """Print the JSON Schema of plan.json."""
    import json

    from ptqd_export.plan import Plan

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    click.echo(json.dumps(dialect | Plan.model_json_schema(), indent=2))
