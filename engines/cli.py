"""The `ptqd-run` command line. Each command imports what it needs only when it runs, so that `--help` is fast."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from engines.apps import cluster_options
from engines.apps.chain_options import RUNTIME, SIZE, chain_options
from engines.terminal.command_line import Choice, CommandLine

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
UPDATES = Choice(["host", "device"])


def _loras(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    """Parse the LoRAs of an option that can be repeated."""
    from engines.networks.lora.lora_use import LoraUse

    return tuple(map(LoraUse.parse, values))


LORA = click.option(
    "--lora",
    "loras",
    callback=_loras,
    metavar="FILE[:SCALE]",
    multiple=True,
    help="LoRA to apply, as FILE[:SCALE]. Repeat the option to apply several.",
)


def _classes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...] | str | None:
    """Parse `all` or comma-separated class numbers."""
    if value is None or value == "all":
        return value
    try:
        return tuple(int(number) for number in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither 'all' nor a list of class numbers such as 3,7,7") from error


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Parse comma-separated names."""
    return None if value is None else tuple(name.strip() for name in value.split(","))


@click.group(cls=CommandLine)
def main() -> None:
    """Sample from a bundle built by ptqd-export, and measure its quality and speed."""


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--num", type=COUNT, required=True, help="Number of samples.")
@click.option("--seed", type=int, required=True, help="Seed of the noise. A sample depends only on the seed, its number and its class.")
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the first sample.")
@click.option("--batch-size", type=COUNT, default=64, show_default=True, help="Number of samples that the networks process at once.")
@click.option(
    "--classes", callback=_classes, help="Class of each sample: a list used in turn, such as 3,7,7, or `all`. Default: drawn from the seed."
)
@click.option(
    "--prompt", "prompts", multiple=True, help="Prompt for a text model. Repeat the option to use several; samples take them in turn."
)
@click.option("--prompt-file", type=click.Path(path_type=Path), help="File with one prompt per line, instead of --prompt.")
@click.option("--negative-prompt", help="Prompt that guidance steers away from; needs --prompt or --prompt-file.")
@click.option("--image", type=PATH, help="PNG file that all samples start from, or a folder with one for each sample, in order of names.")
@click.option(
    "--strength", type=float, help="Share of the steps to take from --image: above 0, at most 1. Default: 0.8; 1 for inpainting networks."
)
@click.option("--mask", type=PATH, help="PNG file, white where --image is repainted; the rest is kept.")
@LORA
@click.option("--control-image", type=PATH, help="PNG file for the bundle's control network, or a folder with one for each sample.")
@chain_options
@click.option(
    "--update", type=UPDATES, default="host", show_default=True, help="Where the sampler's steps are computed; `device` needs TensorRT."
)
@click.option("--output", type=PATH, required=True, help="Folder to write to; it must not hold the samples of another run.")
@click.option("--overwrite", is_flag=True, help="Remove the samples of another run from the folder.")
@click.option(
    "--format",
    "kind",
    type=Choice(["png", "npz"]),
    default="png",
    show_default=True,
    help="`png` writes pictures. `npz` writes the final states and, for latent models, the decoded images.",
)
@cluster_options.ADDRESS
@cluster_options.CPUS
def sample(
    bundle: Path,
    output: Path,
    overwrite: bool,
    num: int,
    seed: int,
    first: int,
    batch_size: int,
    classes: Any,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    negative_prompt: str | None,
    image: Path | None,
    strength: float | None,
    mask: Path | None,
    control_image: Path | None,
    kind: Literal["png", "npz"],
    ray: str | None,
    ray_cpus: int | None,
    **chain: Any,
) -> None:
    """Sample pictures from a bundle."""
    from engines.apps.asked.control_images import AskedControl
    from engines.apps.asked.edit import Edit
    from engines.apps.sample.sample_command import SampleRequest, sample_bundle
    from engines.networks.chain_choice import ChainChoice
    from engines.networks.prompts import chosen_prompts

    texts = chosen_prompts(prompts, prompt_file)
    edit, control = Edit.of(image, mask), AskedControl.of(control_image)
    cluster, choice = cluster_options.chosen_cluster(ray, ray_cpus), ChainChoice(**chain, strength=strength)
    choice = choice if cluster is None else choice.on_workers
    numbers = (num, seed, first, batch_size)
    request = SampleRequest(bundle, output, *numbers, classes, kind, choice, texts, negative_prompt, cluster, overwrite, edit, control)
    click.echo(sample_bundle(request))


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--batch-size", type=COUNT, default=8, show_default=True, help="Number of samples in a chain.")
@click.option("--rounds", type=COUNT, default=5, show_default=True, help="How many times each chain is timed; the report gives the median.")
@click.option("--steps", type=COUNT, help="Time only this many steps, spread evenly over the chain.")
@LORA
@SIZE
@RUNTIME
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file.")
def bench(bundle: Path, json_file: Path | None, **request: Any) -> None:
    """Time whole chains and compare the precisions."""
    from engines.apps.bench.bench import BenchRequest, bench_bundle
    from engines.apps.bench.bench_report import print_report, write_report
    from engines.host.files import writable_folder

    if json_file is not None:
        writable_folder(json_file.absolute().parent)
    result = bench_bundle(BenchRequest(bundle, **request))
    if json_file is not None:
        write_report(result, json_file)
    print_report(result)


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--num", type=COUNT, required=True, help="Number of samples per seed, such as 50000.")
@click.option(
    "--reference",
    type=PATH,
    help="An .npz file of real images, or of statistics of their features. Default: full-precision samples of another seed.",
)
@click.option(
    "--features", type=PATH, help="An ONNX feature extractor, see `ptqd-export extractor`. Default: a small one for a first look."
)
@click.option("--seed", type=int, default=0, show_default=True, help="First seed of the noise.")
@click.option("--seeds", type=COUNT, default=1, show_default=True, help="Number of consecutive seeds.")
@click.option("--batch-size", type=COUNT, default=64, show_default=True, help="Number of samples that the networks process at once.")
@click.option(
    "--classes",
    callback=_classes,
    help="Class of each sample: a list used in turn, such as 3,7,7, or `all` for balance. Default: drawn from the seed.",
)
@click.option("--prompt", "prompts", multiple=True, help="Prompt for a text model. Repeat the option to use several.")
@click.option("--prompt-file", type=PATH, help="File with one prompt per line, instead of --prompt.")
@click.option("--clip", type=PATH, help="Folder written by `ptqd-export extractor clip`: adds the CLIP score of images and prompts.")
@click.option("--lpips", type=PATH, help="File written by `ptqd-export extractor lpips`: adds the LPIPS distance from full precision.")
@LORA
@chain_options
@cluster_options.ADDRESS
@cluster_options.CPUS
@click.option("--shards", type=PATH, help="Folder that keeps finished work, so that an interrupted run can resume.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file.")
def evaluate(
    bundle: Path,
    num: int,
    reference: Path | None,
    features: Path | None,
    seed: int,
    seeds: int,
    batch_size: int,
    classes: Any,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    clip: Path | None,
    lpips: Path | None,
    ray: str | None,
    ray_cpus: int | None,
    shards: Path | None,
    json_file: Path | None,
    **chain: Any,
) -> None:
    """Score a bundle's chain and full precision against a reference.

    Without --reference and --features this is a first look: how far the chain's samples are from full precision's.
    """
    from engines.apps.evaluate.evaluate_command import EvaluateRequest, evaluate_bundle
    from engines.apps.evaluate.evaluation_report import print_chain, print_report, write_report
    from engines.apps.evaluate.extractor import SMALL
    from engines.host.files import writable_folder
    from engines.networks.chain_choice import ChainChoice
    from engines.networks.prompts import chosen_prompts

    if json_file is not None:
        writable_folder(json_file.absolute().parent)
    texts = chosen_prompts(prompts, prompt_file)
    cluster, choice = cluster_options.chosen_cluster(ray, ray_cpus), ChainChoice(**chain)
    choice = choice if cluster is None else choice.on_workers
    judges = (reference, features or SMALL)
    request = EvaluateRequest(bundle, *judges, num, seed, seeds, batch_size, classes, choice, cluster, shards, texts, clip, lpips)
    result = evaluate_bundle(request, tell=print_chain)
    if json_file is not None:
        write_report(result, json_file)
    print_report(result)


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--schedule", default="default", show_default=True, help="Schedule that provides the states and the corrections.")
@click.option("--num", type=COUNT, default=16, show_default=True, help="Number of samples; numbering starts at 0.")
@click.option("--steps", type=COUNT, help="Compare at only this many steps, spread evenly over the chain.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@click.option("--precisions", callback=_names, help="Precisions to compare, such as w8a8,w4a8. Default: all except full precision.")
@click.option("--batch-size", type=COUNT, default=16, show_default=True, help="Number of samples that the networks process at once.")
@LORA
@SIZE
@RUNTIME
@click.option("--min-snr-db", type=float, help="Exit with code 1 if any precision has a lower SNR at any step.")
@click.option(
    "--save", type=click.Path(file_okay=False, path_type=Path), help="Folder to save inputs and outputs to, for `polygraphy run`."
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file.")
def compare(bundle: Path, min_snr_db: float | None, json_file: Path | None, **request: Any) -> None:
    """Compare every engine with full precision, step by step."""
    from engines.apps.compare.compare_command import CompareRequest, compare_bundle
    from engines.apps.compare.compare_report import print_report, write_report
    from engines.host.files import writable_folder

    if json_file is not None:
        writable_folder(json_file.absolute().parent)
    result = compare_bundle(CompareRequest(bundle, **request))
    if json_file is not None:
        write_report(result, json_file)
    print_report(result)
    if min_snr_db is not None:
        result.check(min_snr_db)


@main.command()
@click.argument("images", type=PATH)
@click.option(
    "--features", type=PATH, help="An ONNX feature extractor, see `ptqd-export extractor`. Default: a small one for a first look."
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .npz file to write the statistics to.")
def reference(images: Path, features: Path | None, output: Path) -> None:
    """Compute statistics of real images once, for many evaluations."""
    from engines.apps.evaluate.extractor import SMALL, Extractor
    from engines.apps.evaluate.image_archive import ImageArchive
    from engines.apps.evaluate.reference import Reference
    from engines.host.files import writable_folder

    writable_folder(output.absolute().parent)
    extractor = Extractor(features or SMALL)
    found = Reference.of_images(ImageArchive.open(images), extractor)
    found.save(output, extractor)
    click.echo(f"{found.count} images, {len(found.features.mean)} features; see {output}")


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option("--replicas", type=COUNT, default=1, show_default=True, help="Number of sampling processes, each with its own engines.")
@click.option(
    "--batch-size", type=COUNT, default=16, show_default=True, help="Maximum number of pictures in a batch; requests share batches."
)
@click.option(
    "--batch-wait", type=click.FloatRange(min=0), default=0.05, show_default=True, help="Seconds that a batch waits for more pictures."
)
@click.option(
    "--max-num", "--max-number", "max_num", type=COUNT, default=64, show_default=True, help="Maximum number of pictures per request."
)
@click.option("--max-body", type=COUNT, help="Maximum bytes of a request body. Default: 65536, and room for the pictures that it may hold.")
@click.option("--max-waiting", type=COUNT, default=512, show_default=True, help="Maximum number of pictures requested but not yet sent.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="Maximum requests per second of one client.",
)
@click.option("--loras", type=PATH, help="Folder with LoRAs that requests may name: safetensors files, or folders of PEFT or diffusers.")
@chain_options
@cluster_options.ADDRESS
@cluster_options.CPUS
def serve(
    bundle: Path,
    host: str,
    port: int,
    replicas: int,
    batch_size: int,
    batch_wait: float,
    max_num: int,
    max_body: int | None,
    max_waiting: int,
    rate: float,
    loras: Path | None,
    ray: str | None,
    ray_cpus: int | None,
    **chain: Any,
) -> None:
    """Serve pictures over HTTP with Ray Serve."""
    from engines.apps.serve.image_request import body_bytes
    from engines.apps.serve.request_limits import Limits
    from engines.apps.serve.serve_command import ServeRequest, serve_bundle
    from engines.bundle.bundle import Bundle
    from engines.cluster.session import Cluster
    from engines.networks.chain_choice import ChainChoice

    limits = Limits(max_body or body_bytes(Bundle.open(bundle)), max_num, max_waiting, rate)
    cluster = Cluster(ray or "", ray_cpus)
    serve_bundle(
        ServeRequest(bundle, limits, host, port, replicas, batch_size, batch_wait, ChainChoice(**chain).on_workers, cluster, loras),
        click.echo,
        partial(click.echo, err=True),
    )
