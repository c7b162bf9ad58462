"""`ptqd-export`. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.apps import cluster_options
from engines.host.command_line import CommandLine

if TYPE_CHECKING:
    from engines.backends.tensorrt.flavour import FlavourName

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
RUNTIMES = click.Choice(["target", "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx"])


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names set apart by commas."""
    return None if value is None else tuple(name.strip() for name in value.split(","))


def _parts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """`gain`, `offset` or both, in that order."""
    names = _names(ctx, param, value)
    for name in names or ():
        if name not in ("gain", "offset"):
            raise click.BadParameter(f"{name!r} is not gain or offset.")
    return names


@click.group(cls=CommandLine)
def main() -> None:
    """From a trained diffusion model to corrected, quantized samples."""


@main.command()
@click.option("--model", type=PATH, required=True, help="Folder or file of the trained model, or package.module:function that makes it.")
@click.option("--target", required=True, help="Runtime of the engines, such as onnxruntime.")
@click.option("-o", "--output", type=PATH, default=Path("plan.json"), show_default=True, help="Plan to write.")
@click.option("--force", is_flag=True, help="Overwrite the plan.")
def init(model: Path, target: str, output: Path, force: bool) -> None:
    """Write a starter plan with every default written out."""
    from ptqd_export.commands.starter import write_starter_plan

    write_starter_plan(model, target, output, force=force)
    click.echo(f"wrote {output}; read it through, then: ptqd-export build --plan {output}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of plan.json."""
    import json

    from ptqd_export.plan import Plan

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    click.echo(json.dumps(dialect | Plan.model_json_schema(), indent=2))


@main.command()
@click.option("--plan", "path", type=PATH, required=True, help="Plan to build.")
@click.option("--output", type=PATH, help="Folder of the bundle, instead of the plan's.")
@click.option("--fresh", is_flag=True, help="Start over instead of resuming an interrupted build.")
@cluster_options.ADDRESS
@cluster_options.CPUS
def build(path: Path, output: Path | None, fresh: bool, ray: str | None, ray_cpus: int | None) -> None:
    """Build the bundle that a plan describes."""
    import gc
    from dataclasses import replace

    from ptqd_export.plan import load_plan

    plan_file, cluster = replace(load_plan(path), output=output), cluster_options.chosen_cluster(ray, ray_cpus)
    gc.disable()  # importing makes no garbage
    from ptqd_export.stages.run_build import run_build  # after the plan, so that a wrong plan is told before torch is imported

    gc.freeze()  # modules stay: every later collection would look through all of torch for nothing
    gc.enable()
    run_build(plan_file, fresh=fresh, cluster=cluster)


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--name", required=True, help="Of the schedule, for `ptqd-run sample --schedule NAME`.")
@click.option("--from", "base", default="default", show_default=True, help="Schedule to change.")
@click.option("--sampler", help="Such as ddim.")
@click.option("--steps", type=COUNT, help="Length of the chain.")
@click.option("--eta", type=click.FloatRange(0, 1), help="Share of the ancestral noise.")
@click.option("--guidance", type=click.FloatRange(min=0), help="Guidance scale.")
@click.option("--policy", type=click.Choice(["snr", "budget", "fixed"]), help="How the precision of a step is chosen.")
@click.option("--precisions", callback=_names, help="Such as w4a8,w8a8. With fixed one for all steps or for each, else the candidates.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), help="With budget: cost as a share of full precision's.")
@click.option("--cost", type=click.Choice(["bit_operations", "time"]), help="What a budget is counted in.  [default: bit_operations]")
@click.option("--mode", type=click.Choice(["none", "ptqd", "signed", "joint", "mmse"]), help="Correction of the output.")
@click.option("--parts", callback=_parts, help="Parts of it: gain, offset, or gain,offset.")
@click.option("--variance", type=click.Choice(["schedule", "shift", "none"]), help="What is done about the variance that is added.")
@click.option("--samples", type=COUNT, help="Samples that walk the chain.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of these samples.")
@click.option("--trajectory", type=click.Choice(["quantized", "fp"]), help="Whose states they visit.")
@click.option("--fit", type=click.Choice(["moments", "walk"]), help="From stored moments, which takes seconds, or on a new walk.")
@click.option("--force", is_flag=True, help="Replace a schedule of this name.")
def schedule(bundle: Path, name: str, force: bool, **request: Any) -> None:
    """Add a schedule to a bundle, without quantizing again.

    What is left out is as in the schedule that it starts from. The networks run only where the stored moments do not say enough.
    """
    from ptqd_export.schedules.add_schedule import add_schedule
    from ptqd_export.schedules.settings import ScheduleRequest

    click.echo(add_schedule(bundle, name, ScheduleRequest(**request), force=force))


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--target", type=click.Choice(["tensorrt", "tensorrt-rtx"]), help="Flavour of TensorRT, if not the bundle's own.")
def engines(bundle: Path, target: FlavourName | None) -> None:
    """Build the engines of a bundle for this machine, from its graphs, and check them where there is a device."""
    from ptqd_export.commands.engines_command import build_engines, check_built, print_engines

    built = build_engines(bundle, target)
    print_engines(built)
    click.echo(check_built(bundle, built, target))


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write.  [default: in local/ of the bundle]")
@click.option("--evaluation", "evaluations", type=PATH, multiple=True, help="A file of `ptqd-run evaluate --json`; may be given again.")
@click.option("--comparison", "comparisons", type=PATH, multiple=True, help="A file of `ptqd-run compare --json`; may be given again.")
def report(bundle: Path, output: Path | None, evaluations: tuple[Path, ...], comparisons: tuple[Path, ...]) -> None:
    """Write the report of a bundle as one HTML file, with what was measured on it.

    The bundle's own report/index.html holds no measured times and stays as it is.
    """
    from ptqd_export.report.write_report import write_report

    click.echo(f"wrote {write_report(bundle, output, evaluations, comparisons)}")


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--precision", required=True, help="Of the engine to look into, such as w8a8.")
@click.option("--step", type=click.IntRange(min=0), default=0, show_default=True, help="Step of the schedule whose states go in.")
@click.option(
    "--against",
    type=click.Choice(["oracle", "fp32"]),
    default="oracle",
    show_default=True,
    help="The same graph as written, for faults of the runtime; or full precision, for badly quantized layers.",
)
@click.option("--min-snr-db", type=float, help="A layer below departs.  [default: 25 against oracle, 10 against fp32]")
@click.option("--schedule", default="default", show_default=True, help="Schedule whose full-precision chain gives the states.")
@click.option("--num", type=COUNT, default=4, show_default=True, help="Samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of their noise.")
@click.option("--runtime", type=RUNTIMES, default="target", show_default=True, help="What runs the engine, if not the bundle's target.")
@click.option("--worst", type=COUNT, default=10, show_default=True, help="Layers to show.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write every layer's figures to this file.")
def bisect(bundle: Path, worst: int, json_file: Path | None, **request: Any) -> None:
    """Find the first layer where an engine departs."""
    from engines.host.files import writable_folder
    from ptqd_export.commands.bisect import BisectRequest, bisect_bundle
    from ptqd_export.commands.bisect_report import print_report, write_report

    if json_file is not None:
        writable_folder(json_file.absolute().parent)
    result = bisect_bundle(BisectRequest(bundle, **request))
    if json_file is not None:
        write_report(result, json_file)
    print_report(result, worst)
