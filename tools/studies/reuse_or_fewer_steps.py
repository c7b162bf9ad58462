"""Compare two ways to make a chain of one precision faster: steps that reuse features, and fewer steps, at equal time.

    python -m tools.studies.real_images coloured build/coloured-real.npz
    ptqd-export build --plan tools/coloured/reuse.json
    python -m tools.studies.reuse_or_fewer_steps build/coloured-reuse --reference build/coloured-real.npz \\
        --features tools/coloured/classifier.onnx --reuse skip_1:2,skip_1:3,skip_3:2 --output build/reuse-or-fewer

At eta 0, chains of any number of steps and of both samplers start from the same noise and end at the same picture, so that all are compared
with full precision's chain of the bundle's length sample by sample. At eta 1, only chains of this length add the same noise. Frechet
distances are to real images, and to full precision's samples of another seed. The times are those that the build measured for one step.
Each finished row is kept in the output folder.
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
from tools.ablation.__main__ import Study, add_row, open_row, run_row
from tools.ablation.ablation_result import Result
from tools.ablation.ablation_rows import Row

MODES: tuple[AnyMode, AnyMode] = ("none", "auto")
OTHER_SAMPLER = "dpm++2m"
UNCORRECTED_SAMPLES = 8
"""Calibration samples where no correction is fitted."""

ASKED = re.compile(r"(?P<cut>[^:]+):(?P<every>[0-9]{1,5})(?P<extrapolate>:extrapolate)?")

OWN = "full precision"
OWN_DISTANCE = f"{FRECHET_DISTANCE} to {OWN}"


@dataclass(frozen=True)
class Reuse:
    """Every step but each `every`-th reuses features at a cut, as they are or extrapolated."""

    cut: str
    every: int
    extrapolates: bool = False

    @property
    def asked(self) -> str:
        return f"{self.cut}:every={self.every}{':extrapolate' if self.extrapolates else ''}"

    def time(self, steps: int, share: float) -> float:
        """Return the time of a chain in whole steps, given the time of a step that reuses features as a share of a whole step's."""
        whole = -(-steps // self.every)
        return whole + (steps - whole) * share


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        chain: name of the chain.
        precision: precision of every step.
        time: time of the chain, in steps of the whole network at the precision of the study; None at another precision.
        request: request for its schedule.
        paired: compare it with full precision's chain sample by sample.
        reuse: how it reuses features; None if it does not.
    """

    chain: str
    precision: str
    time: float | None
    request: ScheduleRequest
    paired: bool = True
    reuse: Reuse | None = None

    def row(self, eta: float, mode: AnyMode) -> Row:
        name = f"{re.sub('[^a-z0-9.]+', '-', self.chain.lower())}-{mode}"
        return Row(name, self.precision, f"eta{eta:g}", _with(self.request, self.precision, eta, mode))


def _with(request: ScheduleRequest, precision: str, eta: float, mode: AnyMode) -> ScheduleRequest:
    own_eta = eta if request.sampler is None else 0.0
    samples = UNCORRECTED_SAMPLES if mode == "none" else request.samples
    request = replace(request, eta=own_eta, policy="fixed", precisions=(precision,), samples=samples, mode=mode, fit="walk")
    return replace(request, variance="schedule" if own_eta > 0 and mode != "none" else "none")


def lines(bundle: Bundle, precision: str, eta: float, reuses: Sequence[Reuse], lengths: Sequence[int], samples: int) -> Iterator[Line]:
    """Yield the chain of whole steps and, for each way to reuse features, this chain, that of full precision, and chains of fewer steps
    that take as long; at last chains of further lengths.

    Raises:
        UsageError: the networks at a cut were not timed on this machine.
    """
    steps, shorter = len(bundle.schedule().steps), dict[int, None]()
    yield Line(f"DDIM, {steps} steps", precision, steps, ScheduleRequest(reuse="none", samples=samples))
    for reuse in reuses:
        request, name = ScheduleRequest(reuse=reuse.asked, samples=samples), cut_name(precision, reuse.cut)
        costs = costs_of(bundle, (precision, name), "time")
        time = reuse.time(steps, costs[name] / costs[precision])
        yield Line(f"DDIM, {steps} steps, {reuse.asked}", precision, time, request, reuse=reuse)
        yield Line(f"{FULL_PRECISION}, DDIM, {steps} steps, {reuse.asked}", FULL_PRECISION, None, request, reuse=reuse)
        shorter[round(time)] = None
    for count in {**shorter, **dict.fromkeys(lengths)}:
        fewer = ScheduleRequest(reuse="none", steps=count, samples=samples)
        yield Line(f"DDIM, {count} steps", precision, count, fewer, paired=eta == 0)
        if eta == 0:
            yield Line(f"DPM-Solver++, {count} steps", precision, count, replace(fewer, sampler=OTHER_SAMPLER))


def exact_row(eta: float, samples: int) -> Row:
    """Return the row of the full-precision chain, which all others are compared with."""
    request = _with(ScheduleRequest(reuse="none", samples=samples), FULL_PRECISION, eta, "none")
    return Row("full precision", FULL_PRECISION, f"eta{eta:g}", request)


def own_reference(study: Study, exact: Row, extractor: Extractor) -> Reference:
    """Return the features of full precision's samples of another seed, as many as each seed has."""
    add_row(study, exact)
    images = study.images(open_row(study, exact), len(study.seeds))
    one = extractor.check(Bundle.open(study.bundle).manifest.model.image_shape, "the samples")
    return Reference.of_batches(images, study.num, one, extractor)


def table(study: Study, eta: float, found: Sequence[Line]) -> Iterator[str]:
    """Yield the lines of the table in Markdown. The rows must have been measured."""
    exact = Result.load(study.output / f"{exact_row(eta, 1).name}.json")
    yield "| chain | time, in whole steps | uncorrected | corrected |"
    yield "| --- | ---: | ---: | ---: |"
    for line in found:
        cells = " | ".join(_cell(line, _result(study, eta, line, mode), exact) for mode in MODES)
        yield f"| {line.chain} | {'-' if line.time is None else f'{line.time:.1f}'} | {cells} |"


def _cell(line: Line, one: Result, exact: Result) -> str:
    """Return PSNR and the distances to full precision's samples and to real images, divided by those of full precision."""
    psnr = f"{one.summary(POOLED_PSNR).mean:.1f} dB" if line.paired else "-"
    return f"{psnr}, {one.ratio(exact, OWN_DISTANCE):.2f}, {one.ratio(exact, FRECHET_DISTANCE):.2f}"


def undone(study: Study, eta: float, found: Sequence[Line]) -> Iterator[str]:
    """Yield, for each way to reuse features, how the mean square error compares with its parts', and what the correction takes off."""
    whole = next(line for line in found if line.reuse is None)
    for line in (one for one in found if one.reuse is not None and one.precision != FULL_PRECISION):
        alone = next(one for one in found if one.reuse == line.reuse and one.precision == FULL_PRECISION)
        parts = sum(_error(study, eta, one, "none") for one in (whole, alone))
        both, corrected = (_error(study, eta, line, mode) for mode in MODES)
        yield (
            f"{line.chain}: the uncorrected error is {both / parts:.2f} times the sum of those of quantization and of reuse alone; the "
            f"correction takes {1 - corrected / both:.0%} off"
        )


def _error(study: Study, eta: float, line: Line, mode: AnyMode) -> float:
    """Return the mean square error in units of the PSNR's peak."""
    return float(10 ** (-_result(study, eta, line, mode).summary(POOLED_PSNR).mean / 10))


def _result(study: Study, eta: float, line: Line, mode: AnyMode) -> Result:
    return Result.load(study.output / f"{line.row(eta, mode).name}.json")


def _reuses(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[Reuse, ...]:
    found = [ASKED.fullmatch(one) for one in value.split(",")]
    if not all(one is not None and int(one["every"]) > 1 for one in found):
        raise click.BadParameter(f"{value}; expected CUT:EVERY, such as skip_1:2 or skip_1:2:extrapolate, or several")
    return tuple(Reuse(one["cut"], int(one["every"]), one["extrapolate"] is not None) for one in found if one is not None)


@click.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), required=True, help="An .npz file of real images.")
@click.option("--features", type=click.Path(path_type=Path), required=True, help="An ONNX feature extractor.")
@click.option("--precision", default="w8a8", show_default=True, help="Precision of every step.")
@click.option("--eta", type=click.Choice(["0", "1"]), default="0", show_default=True, help="Fresh noise of the DDIM chains.")
@click.option(
    "--reuse", "reuses", callback=_reuses, required=True, help="CUT:EVERY or CUT:EVERY:extrapolate, or several, separated by commas."
)
@click.option("--length", "lengths", type=click.IntRange(min=2), multiple=True, help="Steps of further chains; repeatable.")
@click.option("--samples", default=128, show_default=True, help="Calibration samples of each walk.")
@click.option("--num", default=512, show_default=True, help="Samples per seed.")
@click.option("--seeds", default=1, show_default=True, help="Number of seeds; they are 0, 1, ...")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
def main(
    folder: Path,
    reference: Path,
    features: Path,
    precision: str,
    eta: str,
    reuses: tuple[Reuse, ...],
    lengths: tuple[int, ...],
    samples: int,
    num: int,
    seeds: int,
    output: Path,
) -> None:
    """Print the pooled PSNR to full precision's samples, and the Frechet distances to full precision's samples of another seed and to real
    images, each divided by that of full precision.
    """
    output.mkdir(parents=True, exist_ok=True)
    bundle, extractor = Bundle.open(folder), Extractor(features)
    known = Reference.load(reference, extractor, bundle.manifest.model.image_shape)
    study = Study(folder, output, extractor, known, num, range(seeds))
    found, exact = list(lines(bundle, precision, float(eta), reuses, lengths, samples)), exact_row(float(eta), samples)
    study = replace(study, others={OWN_DISTANCE: own_reference(study, exact, extractor)})
    run_row(study, exact)
    for line in found:
        for mode in MODES:
            run_row(study, line.row(float(eta), mode))
    click.echo("\n".join([*table(study, float(eta), found), "", *undone(study, float(eta), found)]))


if __name__ == "__main__":
    main()
