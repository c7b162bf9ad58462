"""Measure what the choice of corrections costs: the statistics with the mode `auto` beside those with `joint`, on the same engines.

    python -m tools.studies.choice_cost build/digits --samples 64,512 --rounds 3

Both are measured in turn, in one process, and the median counts. Processor time is that of all threads, so it says more than the clock on
a machine that does other work. A row is a state that a network was given; guidance gives two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import click
import numpy as np

from calib.walk.end_choice import choose_by_end, round_size
from calib.walk.fit import FitNetworks, fit_on_walk
from engines.arrays import Float32, Int64
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import Denoiser
from ptqd_export.measuring.bundle_backend import measuring_decoder
from ptqd_export.measuring.judged_pictures import pictured_by
from ptqd_export.schedules.add_schedule import measured_networks
from ptqd_export.schedules.settings import ScheduleRequest, resolve

HEADER = ("samples", "mode", "processor time, s", "time, s", "rows", "processor time / joint", "rows / joint")

MODES: tuple[Literal["joint", "auto"], ...] = ("joint", "auto")


@dataclass
class Counted:
    """A network that counts the rows that it is given."""

    network: Denoiser
    rows: int = 0

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        out = self.network(x, timestep, rows)
        self.rows += out.shape[0] * out.shape[1]
        return out


@dataclass(frozen=True)
class Cost:
    """What a fit took: processor time and time in seconds, and rows through networks."""

    processor: float
    clock: float
    rows: float

    @classmethod
    def median(cls, costs: list[Cost]) -> Cost:
        return cls(
            *(statistics.median(values) for values in zip(*((cost.processor, cost.clock, cost.rows) for cost in costs), strict=True))
        )


def cost_of(bundle: Bundle, mode: Literal["joint", "auto"], samples: int, steps: int | None = None) -> Cost:
    """Fit the statistics of the bundle's default chain anew, as a build does."""
    settings = resolve(ScheduleRequest(mode=mode, samples=samples, steps=steps, fit="walk"), bundle)
    walked, walk_rows = counted(measured_networks(bundle, settings, settings.fit.batch_size))
    judging, judged_rows = counted(measured_networks(bundle, settings, round_size(settings.fit)))
    for networks in (walked, judging):  # engines are opened by their first run
        for network in networks.networks.values():
            network(settings.fit.samples.noise.start(np.zeros(1, np.int64)), 1.0, np.zeros(1, np.int64))
    judging = replace(judging, pictured=pictured_by(measuring_decoder(bundle), bundle.manifest.model.image_shape))
    before, processor, clock = sum(one.rows for one in (*walk_rows, *judged_rows)), time.process_time(), time.perf_counter()
    fitted = fit_on_walk(walked, settings.fit, bundle.folder / "local", lambda: None)
    if settings.fit.proposals:
        choose_by_end(judging, fitted)
    taken = time.process_time() - processor, time.perf_counter() - clock
    return Cost(*taken, sum(one.rows for one in (*walk_rows, *judged_rows)) - before)


def counted(measured: FitNetworks) -> tuple[FitNetworks, list[Counted]]:
    """Return the same networks, which count their rows."""
    networks: Mapping[str, Counted] = {name: Counted(network) for name, network in measured.networks.items()}
    return replace(measured, networks=networks), [*networks.values()]


def row(samples: int, mode: str, cost: Cost, joint: Cost) -> tuple[str, ...]:
    """Format one row of the table."""
    return (
        str(samples), mode, f"{cost.processor:.1f}", f"{cost.clock:.1f}", f"{cost.rows:.0f}",
        f"{cost.processor / joint.processor:.2f}", f"{cost.rows / joint.rows:.2f}",
    )  # fmt: skip


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--samples", default="64", show_default=True, help="Comma-separated numbers of calibration samples.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Measurements of each mode; the median counts.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the chain. [default: the bundle's]")
def main(bundle: Path, samples: str, rounds: int, steps: int | None) -> None:
    opened = Bundle.open(bundle)
    click.echo(f"| {' | '.join(HEADER)} |\n|{' ---: |' * len(HEADER)}")
    for count in map(int, samples.split(",")):
        turns = [{mode: cost_of(opened, mode, count, steps) for mode in MODES} for _ in range(rounds)]
        costs = {mode: Cost.median([turn[mode] for turn in turns]) for mode in MODES}
        for mode, cost in costs.items():
            click.echo(f"| {' | '.join(row(count, mode, cost, costs['joint']))} |")


if __name__ == "__main__":
    main()
