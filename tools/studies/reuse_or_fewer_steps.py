"""Compare two ways to make a chain of one precision faster: steps that reuse features, and fewer steps, at equal time.

    python -m tools.studies.real_images coloured build/coloured-real.npz
    ptqd-export build --plan tools/coloured/reuse.json
    python -m tools.studies.reuse_or_fewer_steps build/coloured-reuse --reference build/coloured-real.npz \\
        --features tools/coloured/classifier.onnx --reuse skip_1:2,skip_1:3,skip_3:2 --output build/reuse-or-fewer

Every chain is deterministic, so that chains of any number of steps and of both samplers start from the same noise and end at the same
picture. The times are those that the build measured for one step. Each finished row is kept in the output folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from calib.correction.proposals import AnyMode
from engines.apps.evaluate.extractor import Extractor
from engines.apps.evaluate.reference import Reference
from engines.apps.evaluate.scores import FRECHET_DISTANCE, POOLED_PSNR
from engines.bundle.bundle import Bundle
from engines.chain.features import cut_name
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.schedules.costs import costs_of
from ptqd_export.schedules.settings import ScheduleRequest
from tools.ablation.__main__ import Study, run_row
from tools.ablation.ablation_result import Result
from tools.ablation.ablation_rows import Row

SETTING = "eta0"
MODES: tuple[AnyMode, AnyMode] = ("none", "auto")
OTHER_SAMPLER = "dpm++2m"


@dataclass(frozen=True)
class Reuse:
    """Every step but each `every`-th reuses features at a cut."""

    cut: str
    every: int

    @property
    def asked(self) -> str:
        return f"{self.cut}:every={self.every}"

    def time(self, steps: int, share: float) -> float:
        """Return the time of a chain in whole steps, given the time of a step that reuses features as a share of a whole step's."""
        whole = -(-steps // self.every)
        return whole + (steps - whole) * share


@dataclass(frozen=True)
class Line:
    """A line of the table: a chain, and its time in steps of the whole network."""

    chain: str
    time: float
    request: ScheduleRequest

    def row(self, precision: str, mode: AnyMode) -> Row:
        name = f"{re.sub('[^a-z0-9.]+', '-', self.chain.lower())}-{mode}"
        return Row(name, precision, SETTING, _with(self.request, precision, mode))


def _with(request: ScheduleRequest, precision: str, mode: AnyMode) -> ScheduleRequest:
    return replace(request, eta=0.0, policy="fixed", precisions=(precision,), mode=mode, variance="none", fit="walk")


def lines(bundle: Bundle, precision: str, reuses: Sequence[Reuse], samples: int) -> Iterator[Line]:
    """Yield the chain of whole steps and, for each way to reuse features, this chain and those of fewer steps that take as long.

    Raises:
        UsageError: the networks at a cut were not timed on this machine.
    """
    steps = len(bundle.schedule().steps)
    yield Line(f"DDIM, {steps} steps", steps, ScheduleRequest(reuse="none", samples=samples))
    shorter = dict[int, float]()
    for reuse in reuses:
        name = cut_name(precision, reuse.cut)
        costs = costs_of(bundle, (precision, name), "time")
        time = reuse.time(steps, costs[name] / costs[precision])
        yield Line(f"DDIM, {steps} steps, {reuse.asked}", time, ScheduleRequest(reuse=reuse.asked, samples=samples))
        shorter[round(time)] = time
    for count in shorter:
        yield Line(f"DDIM, {count} steps", count, ScheduleRequest(reuse="none", steps=count, samples=samples))
        other = ScheduleRequest(sampler=OTHER_SAMPLER, reuse="none", steps=count, samples=samples)
        yield Line(f"DPM-Solver++, {count} steps", count, other)


def exact_row(samples: int) -> Row:
    """Return the row of the full-precision chain, which all others are compared with."""
    return Row("full precision", FULL_PRECISION, SETTING, _with(ScheduleRequest(reuse="none", samples=samples), FULL_PRECISION, "none"))


def table(study: Study, precision: str, found: Sequence[Line]) -> Iterator[str]:
    """Yield the lines of the table in Markdown. The rows must have been measured."""
    exact = Result.load(study.output / f"{exact_row(1).name}.json")
    yield f"| {precision} | time, in whole steps | uncorrected | corrected |"
    yield "| --- | ---: | ---: | ---: |"
    for line in found:
        measured = (Result.load(study.output / f"{line.row(precision, mode).name}.json") for mode in MODES)
        cells = (f"{one.summary(POOLED_PSNR).mean:.1f} dB, {one.ratio(exact, FRECHET_DISTANCE):.2f}" for one in measured)
        yield f"| {line.chain} | {line.time:.1f} | {' | '.join(cells)} |"


def _reuses(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[Reuse, ...]:
    pairs = [one.rpartition(":") for one in value.split(",")]
    if not all(cut and every.isdecimal() and int(every) > 1 for cut, _, every in pairs):
        raise click.BadParameter(f"{value}; expected CUT:EVERY, such as skip_1:2, or several")
    return tuple(Reuse(cut, int(every)) for cut, _, every in pairs)


@click.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), required=True, help="An .npz file of real images.")
@click.option("--features", type=click.Path(path_type=Path), required=True, help="An ONNX feature extractor.")
@click.option("--precision", default="w8a8", show_default=True, help="Precision of every step.")
@click.option("--reuse", "reuses", callback=_reuses, required=True, help="CUT:EVERY, or several, separated by commas.")
@click.option("--samples", default=128, show_default=True, help="Calibration samples of each walk.")
@click.option("--num", default=512, show_default=True, help="Samples per seed.")
@click.option("--seeds", default=1, show_default=True, help="Number of seeds; they are 0, 1, ...")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
def main(
    folder: Path,
    reference: Path,
    features: Path,
    precision: str,
    reuses: tuple[Reuse, ...],
    samples: int,
    num: int,
    seeds: int,
    output: Path,
) -> None:
    """Print pooled PSNR to full precision's samples, and the Frechet distance to real images divided by that of full precision."""
    output.mkdir(parents=True, exist_ok=True)
    bundle, extractor = Bundle.open(folder), Extractor(features)
    known = Reference.load(reference, extractor, bundle.manifest.model.image_shape)
    study = Study(folder, output, extractor, known, num, range(seeds))
    found = list(lines(bundle, precision, reuses, samples))
    run_row(study, exact_row(samples))
    for line in found:
        for mode in MODES:
            run_row(study, line.row(precision, mode))
    click.echo("\n".join(table(study, precision, found)))


if __name__ == "__main__":
    main()
