"""Measure how far the mean of the states drifts from that of full precision at every step of a chain, uncorrected and corrected.

    python -m tools.studies.mean_drift build/coloured-ablation --schedules w8a8-eta1-joint-plus-variance,w3a8-eta1-joint-plus-variance

A constant error of the network's output accumulates over the chain. All chains start from the same noise and get the same fresh noise, so
that only this error makes the means differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from engines.arrays import Float32, Float64, Int64
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import Denoisers
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, rows_of
from engines.chain.step import Move
from engines.chain.stepper import HostStepper
from engines.networks.engine_bank import EngineBank
from ptqd_export.plan import FULL_PRECISION


@dataclass
class MeanRecorder:
    """Creates steppers that record the mean of each channel after every step."""

    means: list[Float64] = field(default_factory=list)

    def __call__(self, denoisers: Denoisers) -> HostStepper:
        means = self.means

        class Recording(HostStepper):
            def take(self, move: Move, z: Float32 | None) -> None:
                super().take(move, z)
                means.append(self.state().mean(axis=(0, *range(2, self.state().ndim)), dtype=np.float64))

        return Recording(denoisers)


def channel_means(bundle: Bundle, schedule: str, samples: Int64, *, precision: str | None, corrected: bool) -> Float64:
    """Return the channel means [steps, channels] of the states after every step of a schedule's chain."""
    found, model = bundle.schedule(schedule), bundle.manifest.model
    noise, recorder = NoiseSource(0, model.sample_shape), MeanRecorder()
    rows = np.zeros_like(samples) if model.conditioning is None else rows_of(samples, noise, model.conditioning.rows, None)
    bank = EngineBank(bundle, found.sampler.guidance, batch=len(samples))
    chain = Chain(found, bank, precision, corrected=corrected, stepper=recorder)
    chain.sample(noise, samples, rows)
    return np.stack(recorder.means)


def drift(bundle: Bundle, schedule: str, samples: Int64, *, corrected: bool) -> Float64:
    """Return, for every step, the signed deviation [steps] of the channel whose mean is farthest from that of full precision."""
    exact = channel_means(bundle, schedule, samples, precision=FULL_PRECISION, corrected=False)
    apart = channel_means(bundle, schedule, samples, precision=None, corrected=corrected) - exact
    largest: Float64 = np.take_along_axis(apart, np.abs(apart).argmax(axis=1)[:, None], axis=1)[:, 0]
    return largest


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--schedules", required=True, help="Comma-separated names of schedules.")
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="Number of samples.")
def main(bundle: Path, schedules: str, num: int) -> None:
    opened, samples, names = Bundle.open(bundle), np.arange(num, dtype=np.int64), schedules.split(",")
    drifts = {name: [drift(opened, name, samples, corrected=corrected) for corrected in (False, True)] for name in names}
    click.echo("| step |" + "".join(f" {name}, uncorrected | corrected |" for name in names))
    click.echo("| ---: |" + " ---: | ---: |" * len(names))
    for step in range(max(len(both[0]) for both in drifts.values())):
        cells = (f" {of_chain[step]:+.4f} |" for both in drifts.values() for of_chain in both)
        click.echo(f"| {step} |" + "".join(cells))


if __name__ == "__main__":
    main()
