"""Command line of the benchmark, `python -m tools.bench`; see the package."""

from __future__ import annotations

from pathlib import Path

import click

from engines.backends.choice import Runtime
from engines.terminal.command_line import CommandLine

ROOT = Path("build") / "bench"
NAMES = click.Choice(["digits", "ddpm-36m", "dit-s2", "ldm-4"])
COUNT = click.IntRange(min=1)
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(cls=CommandLine)
def main() -> None:
    """Benchmark everything that can sample a diffusion model on this machine."""


@main.command()
@click.argument("models", nargs=-1, type=NAMES)
@click.option("--folder", type=FOLDER, default=ROOT, show_default=True, help="Folder for the models, one subfolder each.")
def build(models: tuple[str, ...], folder: Path) -> None:
    """Make MODELS, their bundles, and the graphs of ONNX Runtime's own tool. Default: the usual three models."""
    from ptqd_export.plan import load_plan
    from ptqd_export.stages.run_build import run_build
    from tools.bench.case import Case
    from tools.bench.models import MODELS, USUAL
    from tools.bench.static_graph import make_static_graphs

    for name in models or USUAL:
        model = MODELS[name]
        run_build(load_plan(model.write(folder / name)))
        make_static_graphs(Case(folder / name, model.calibration["batch_size"]))


@main.command()
@click.argument("model", type=NAMES)
@click.option("--batch", "batches", type=COUNT, multiple=True, default=(1, 8), show_default=True, help="Samples per chain; repeatable.")
@click.option("--rounds", type=COUNT, default=5, show_default=True, help="Rounds of every measurement; medians are reported.")
@click.option("--steps", type=COUNT, help="Take only this many steps of the chain, evenly spaced.")
@click.option("--only", "only", help="Comma-separated names of contestants. Default: all.")
@click.option("--folder", type=FOLDER, default=ROOT, show_default=True, help="Folder of the models.")
def run(model: str, batches: tuple[int, ...], rounds: int, steps: int | None, only: str | None, folder: Path) -> None:
    """Measure MODEL, which must have been built, and write a JSON file per batch to its folder."""
    from tools.bench.case import Case
    from tools.bench.page import table
    from tools.bench.turns import measure

    names = _contestants(only)
    for batch in batches:
        result = measure(model, Case(folder / model, batch, steps), names, rounds, lambda text: click.echo(text, err=True))
        result.save(folder / model / f"batch-{batch}.json")
        click.echo("\n".join(table(result)))


def _contestants(only: str | None) -> tuple[str, ...]:
    """Return the names of the contestants to measure, all of them by default."""
    from engines.errors import UsageError
    from tools.bench.contestants import CONTESTANTS

    names = tuple(CONTESTANTS) if only is None else tuple(name.strip() for name in only.split(","))
    if unknown := set(names) - set(CONTESTANTS):
        raise UsageError("The contestant does not exist.", found=", ".join(sorted(unknown)), expected=", ".join(CONTESTANTS))
    return names


def _counts(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    if not all(part.isdecimal() and int(part) for part in value.split(",")):
        raise click.BadParameter(f"{value}; expected numbers of steps, such as 20,50")
    return tuple(int(part) for part in value.split(","))


@main.command()
@click.argument("models", nargs=-1, type=NAMES)
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Samples per chain.")
@click.option("--steps", callback=_counts, default="20,50", show_default=True, help="Numbers of steps of the chains.")
@click.option("--rounds", type=COUNT, default=5, show_default=True, help="Rounds of every measurement; medians are reported.")
@click.option("--runtime", type=click.Choice(["onnxruntime", "openvino"]), default="onnxruntime", show_default=True, help="Runtime.")
@click.option("--folder", type=FOLDER, default=ROOT, show_default=True, help="Folder for the models, one subfolder each.")
def reuse(models: tuple[str, ...], batch: int, steps: tuple[int, ...], rounds: int, runtime: Runtime, folder: Path) -> None:
    """Time chains of MODELS whose steps reuse features. Builds bundles that are missing. Default: ddpm-36m."""
    from ptqd_export.plan import load_plan
    from ptqd_export.stages.run_build import run_build
    from tools.bench.models import MODELS, REUSE_BUNDLE
    from tools.bench.reuse import Asked, reuse_table, time_reuse

    asked = Asked(batch, steps, rounds, runtime)
    for name in models or ("ddpm-36m",):
        bundle = folder / name / REUSE_BUNDLE
        if not (bundle / "manifest.json").exists():
            run_build(load_plan(MODELS[name].write_reuse(folder / name)))
        times = list(time_reuse(bundle, asked, lambda text: click.echo(text, err=True)))
        click.echo("\n".join(reuse_table(MODELS[name].title, asked, times)))


@main.command()
@click.argument("model", type=NAMES)
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Samples per chain.")
@click.option("--folder", type=FOLDER, default=ROOT, show_default=True, help="Folder of the models.")
def start(model: str, batch: int, folder: Path) -> None:
    """Measure MODEL's start-up time, the cost of an engine swap, and the memory with all engines loaded."""
    from tools.bench.case import Case
    from tools.bench.start import measure_start

    measured = measure_start(Case(folder / model, batch))
    measured.save(folder / model / f"start-{batch}.json")
    click.echo(measured)


@main.command()
@click.argument("model", type=NAMES)
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Samples per call.")
@click.option("--only", help="Comma-separated names of contestants. Default: all on ONNX Runtime.")
@click.option("--folder", type=FOLDER, default=ROOT, show_default=True, help="Folder of the models.")
def profile(model: str, batch: int, only: str | None, folder: Path) -> None:
    """Measure where the time of a network call of MODEL goes, by kind of operator, with ONNX Runtime's profiler."""
    from tools.bench.case import Case
    from tools.bench.page import profile_table
    from tools.bench.profile import measure_profile

    measured = measure_profile(Case(folder / model, batch), _contestants(only), lambda text: click.echo(text, err=True))
    measured.save(folder / model / f"profile-{batch}.json")
    click.echo("\n".join(profile_table(measured)))


@main.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def page(results: tuple[Path, ...]) -> None:
    """Print the results of `run`, `start` and `profile` as a Markdown page."""
    from tools.bench.page import page
    from tools.bench.profile import Profile
    from tools.bench.result import Result
    from tools.bench.start import Start

    starts = {path.parent.name: Start.load(path) for path in results if path.name.startswith("start")}
    profiles = {path.parent.name: Profile.load(path) for path in results if path.name.startswith("profile")}
    click.echo(page([Result.load(path) for path in results if path.name.startswith("batch")], starts, profiles))


if __name__ == "__main__":
    main()
