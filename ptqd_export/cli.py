"""The `ptqd-export` command line. Each command imports what it needs when it runs, so that `--help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from engines.apps import cluster_options
from engines.apps.chain_options import SIZE, all_sizes
from engines.terminal.command_line import Choice, CommandLine
from engines.terminal.verbosity import is_quiet

if TYPE_CHECKING:
    from engines.backends.tensorrt.flavour import FlavourName
    from engines.bundle.image_size import ImageSize

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
RUNTIMES = Choice(["target", "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx"])


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list of names."""
    return None if value is None else tuple(name.strip() for name in value.split(","))


def _parts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list whose names must be `gain`, `offset` or `chain`."""
    names = _names(ctx, param, value)
    for name in names or ():
        if name not in ("gain", "offset", "chain"):
            raise click.BadParameter(f"{name!r} is not gain, offset or chain.")
    return names


def _check_no_more_than(*allowed: str) -> None:
    """Refuse options that add a schedule where none is added."""
    context = click.get_current_context()
    given = [name for name in context.params if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE]
    extra = [param.opts[0] for param in context.command.params if param.name in given and param.name not in allowed]
    if extra:
        raise click.UsageError(f"{', '.join(extra)}: only with --name, which adds a schedule.")


@click.group(cls=CommandLine)
def main() -> None:
    """Turn a trained diffusion model into a bundle of quantized engines and corrected schedules."""


@main.command()
@click.option("--model", type=PATH, required=True, help="Folder or file of the trained model, an ONNX graph, or package.module:function.")
@click.option("--target", help="Runtime that will run the engines, such as onnxruntime.  [default: guessed from this machine]")
@click.option("--compute-capability", help="For TensorRT: that of the GPU that will run the engines.  [default: this machine's]")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    callback=all_sizes,
    metavar="HEIGHTxWIDTH",
    help="Size of the images: HEIGHTxWIDTH, such as 832x1216 for 832 pixels high, 1216 wide. Repeat the option for a bundle of several.  "
    "[default: the model's own]",
)
@click.option("--lora", metavar="FILE[:SCALE]", help="LoRA to fuse into the model. One for few steps decides sampler, steps and guidance.")
@click.option("-o", "--output", type=PATH, default=Path("plan.json"), show_default=True, help="Plan to write.")
@click.option("--force", is_flag=True, help="Overwrite an existing plan.")
@click.option("--quick", is_flag=True, help="Write a plan for a first look, which builds in minutes.")
def init(
    model: Path,
    target: str | None,
    compute_capability: str | None,
    sizes: tuple[ImageSize, ...],
    lora: str | None,
    output: Path,
    force: bool,
    quick: bool,
) -> None:
    """Write a starter plan with every setting."""
    from engines.bundle.image_size import sizes_in_words
    from engines.networks.lora.lora_use import LoraUse
    from ptqd_export.commands.guessed_target import guess_target
    from ptqd_export.commands.starter import write_starter_plan

    guessed = guess_target() if target is None else None
    name = target if guessed is None else guessed.name
    notes = write_starter_plan(
        model, name, output, force=force, first_look=quick, compute_capability=compute_capability, sizes=sizes,
        lora=None if lora is None else LoraUse.parse(lora),
    )  # fmt: skip
    if guessed is not None and not is_quiet():
        click.echo(str(guessed))
    if not is_quiet():
        for note in notes:
            click.echo(note)
        if sizes:
            click.echo(f"size: {sizes_in_words(sizes)}")
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
    import time
    from dataclasses import replace

    from ptqd_export.commands.build_display import BuildDisplay
    from ptqd_export.commands.waiting_threads import wait_without_spinning
    from ptqd_export.plan import load_plan

    wait_without_spinning()
    plan_file, cluster = replace(load_plan(path), output=output), cluster_options.chosen_cluster(ray, ray_cpus)
    gc.disable()  # imports create no garbage
    from ptqd_export.commands.measure_runtimes import measure_runtimes, print_runtimes
    from ptqd_export.stages.run_build import run_build  # after the plan, so that an invalid plan is reported before torch is imported
    from ptqd_export.stages.summary import print_summary

    gc.enable()
    begin = time.monotonic()
    with BuildDisplay() as display:
        run_build(plan_file, fresh=fresh, cluster=cluster, on_progress=display)
    measured = measure_runtimes(plan_file.output_path, to_choose=True)
    print_summary(plan_file, time.monotonic() - begin)
    print_runtimes(measured)


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--name", help="Name of the new schedule, for `ptqd-run sample --schedule NAME`.")
@click.option("--remove", "removed", metavar="NAME", help="Remove this schedule instead of adding one.")
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
@click.option(
    "--psnr",
    type=click.FloatRange(min=0, min_open=True),
    help="Instead of --budget: the cheapest chain predicted to reach this PSNR, in dB.",
)
@click.option("--cost", type=Choice(["bit_operations", "time"]), help="Unit of the budget.  [default: bit_operations]")
@click.option("--mode", type=Choice(["auto", "none", "ptqd", "signed", "bounded", "joint", "mmse"]), help="Correction of the output.")
@click.option("--parts", callback=_parts, help="Parts of the correction: gain, offset, chain, or several, such as gain,offset.")
@click.option(
    "--variance",
    type=Choice(["schedule", "drift", "q-drift", "shift", "none"]),
    help="How to handle the variance that quantization adds.",
)
@click.option("--samples", type=COUNT, help="Number of calibration samples that walk the chain.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the calibration samples.")
@click.option(
    "--trajectory", type=Choice(["quantized", "fp"]), help="Chain whose states the samples visit: quantized, or full precision's."
)
@click.option(
    "--reuse",
    metavar="CUT:STEPS",
    help="Steps that reuse features of the step before them, at a cut of the bundle: skip_3:every=2 computes them at every second step, "
    "skip_3:steps=3-5-7 reuses them at these steps, and :extrapolate behind either extrapolates them; skip_3:auto leaves it to the policy "
    "budget; none: no step does.",
)
@click.option("--fit", type=Choice(["moments", "walk"]), help="Fit from stored moments, which takes seconds, or on a new walk.")
@click.option("--force", is_flag=True, help="Replace an existing schedule of this name.")
@SIZE
def schedule(bundle: Path, name: str | None, removed: str | None, force: bool, size: ImageSize | None, **request: Any) -> None:
    """Add, remove or list the schedules of a bundle. Nothing is quantized again.

    With --name, the command adds a schedule. Options that you leave out are taken from the schedule to start from; the networks run only if
    the stored moments do not suffice. With --remove, it removes one. With the bundle alone, it lists the schedules and their settings.
    """
    if removed is not None:
        _check_no_more_than("bundle", "removed", "size")
        from ptqd_export.schedules.remove_schedule import remove_schedule

        remove_schedule(bundle, removed, size)
        click.echo(f"removed schedule {removed}")
        return
    if name is None:
        _check_no_more_than("bundle", "size")
        from ptqd_export.commands.inspect_command import print_schedules

        print_schedules(bundle, size)
        return
    from ptqd_export.schedules.add_schedule import add_schedule
    from ptqd_export.schedules.settings import ScheduleRequest

    click.echo(add_schedule(bundle, name, ScheduleRequest(**request), force=force, size=size))


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--target", type=Choice(["tensorrt", "tensorrt-rtx"]), help="Flavour of TensorRT.  [default: the bundle's]")
def engines(bundle: Path, target: FlavourName | None) -> None:
    """Build a bundle's engines for this machine, and check them.

    The check needs a device that runs the engines; without one, it is left out. For a CPU, every installed runtime is timed and checked,
    and `ptqd-run --runtime auto` takes the best.
    """
    from ptqd_export.commands.engines_command import build_engines, check_built, print_engines
    from ptqd_export.commands.measure_runtimes import measure_runtimes, print_runtimes

    built = build_engines(bundle, target)
    print_engines(built)
    click.echo(check_built(bundle, built, target))
    if target is None:
        print_runtimes(measure_runtimes(bundle))


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Check a bundle's files, and print what it contains."""
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


@main.group()
def extractor() -> None:
    """Export a published network for `ptqd-run evaluate`."""


@extractor.command()
@click.option("--weights", type=PATH, required=True, help="pt_inception-2015-12-05-6726825d.pth, of pytorch-fid or torch-fidelity.")
@click.option("-o", "--output", type=PATH, default=Path("inception.onnx"), show_default=True, help="ONNX file to write.")
def inception(weights: Path, output: Path) -> None:
    """Export the Inception network of published FIDs."""
    from ptqd_export.commands.extractors.inception import inception_graph
    from ptqd_export.commands.extractors.write_extractor import write_extractor

    write_extractor(lambda: inception_graph(weights), output)
    click.echo(f"wrote {output}; use it as: ptqd-run evaluate BUNDLE --features {output} --reference REFERENCE.npz --num 50000")


@extractor.command()
@click.option("--model", type=PATH, required=True, help="Folder of a CLIP model as transformers saves it, with tokenizer and preprocessor.")
@click.option("-o", "--output", type=PATH, default=Path("clip"), show_default=True, help="Folder to write to.")
def clip(model: Path, output: Path) -> None:
    """Export a CLIP model, for CLIP scores."""
    from ptqd_export.commands.extractors.clip import write_clip

    write_clip(model, output)
    click.echo(f"wrote {output}; use it as: ptqd-run evaluate BUNDLE --clip {output} --prompt-file PROMPTS.txt --num 1000")


@extractor.command()
@click.option("--network", type=click.Choice(["alex", "vgg"]), default="alex", show_default=True, help="Network to compare pictures with.")
@click.option("--backbone", type=PATH, required=True, help="torchvision's weights of AlexNet or VGG16, such as alexnet-owt-7be5be79.pth.")
@click.option("--linear", type=PATH, required=True, help="Weights of the layers that LPIPS adds, such as alex.pth of the package lpips.")
@click.option("-o", "--output", type=PATH, default=Path("lpips.onnx"), show_default=True, help="ONNX file to write.")
def lpips(network: Literal["alex", "vgg"], backbone: Path, linear: Path, output: Path) -> None:
    """Export an LPIPS network, for perceptual distances."""
    from ptqd_export.commands.extractors.lpips import lpips_graph
    from ptqd_export.commands.extractors.write_extractor import write_extractor

    write_extractor(lambda: lpips_graph(network, backbone, linear), output)
    click.echo(f"wrote {output}; use it as: ptqd-run evaluate BUNDLE --lpips {output} --num 1000")


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
