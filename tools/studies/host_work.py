"""Measure what a step costs besides its network: noise, correction, update and the copies of inputs, as a share of the runtime's time.

    python -m tools.studies.host_work build/bench/ddpm-36m/bundle --precision w8a8 --batch 1,8

Everything runs in one thread of one process, in the same chain, so that other work on the machine slows both parts alike. Processor time is
that of this thread. The median of the chains counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.backends.base import Engine
from engines.backends.choice import on_onnxruntime
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.networks.engine_bank import EngineBank
from engines.networks.engine_denoiser import EngineDenoiser

HEADER = ("batch", "runtime, ms", "noise, ms", "the rest of the host, ms", "host / runtime")


@dataclass
class Clock:
    """Adds up processor time of this thread in seconds."""

    seconds: float = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that this clock times."""

        def run(*arguments: Any) -> Any:
            begin = time.thread_time()
            found = function(*arguments)
            self.seconds += time.thread_time() - begin
            return found

        return run


class TimedEngine(Engine):
    """Runs another engine and times its runtime, not the checks of the base class."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        super().__init__(engine.label, engine.inputs, engine.output)
        self._timed = clock.timed(engine._run)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        found: list[Float32] = self._timed(feeds)
        return found


@dataclass(frozen=True)
class TimedNoise:
    """A noise source that a clock times."""

    source: NoiseSource
    clock: Clock = field(default_factory=Clock)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def start(self, samples: Int64) -> Float32:
        found: Float32 = self.clock.timed(self.source.start)(samples)
        return found

    def step(self, step: int, samples: Int64) -> Float32:
        found: Float32 = self.clock.timed(self.source.step)(step, samples)
        return found


@dataclass(frozen=True)
class StepTime:
    """Processor time of a step in seconds."""

    runtime: float
    noise: float
    rest: float

    @property
    def share(self) -> float:
        """Time of the host in units of the runtime's."""
        return (self.noise + self.rest) / self.runtime


def measured(bundle: Bundle, precision: str, batch: int, rounds: int) -> StepTime:
    """Return the median time of a step of the bundle's default chain at one precision. The start of the chain counts in equal parts."""
    runtime, noise = Clock(), TimedNoise(NoiseSource(0, bundle.manifest.model.sample_shape))
    bank = EngineBank(bundle, bundle.manifest.guidance, batch=batch, backend=on_onnxruntime(bundle, 1))
    chain = Chain(bundle.schedule(), {precision: _timed(bank[precision], runtime)}, precision)
    samples, steps, times = np.arange(batch), len(bundle.schedule().steps), list[StepTime]()
    rows = np.zeros(batch, dtype=np.int64)
    for _ in range(rounds + 1):  # the first chain warms up
        runtime.seconds = noise.clock.seconds = 0.0
        begin = time.thread_time()
        chain.sample(noise, samples, rows)
        total = time.thread_time() - begin
        times.append(
            StepTime(runtime.seconds / steps, noise.clock.seconds / steps, (total - runtime.seconds - noise.clock.seconds) / steps)
        )
    return StepTime(*(statistics.median(getattr(one, name) for one in times[1:]) for name in ("runtime", "noise", "rest")))


def _timed(denoiser: EngineDenoiser, clock: Clock) -> EngineDenoiser:
    embeddings = {name: one.run_by(TimedEngine(one.engine, clock)) for name, one in denoiser.embeddings.items()}
    return replace(denoiser, engine=TimedEngine(denoiser.engine, clock), embeddings=embeddings)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", default="w8a8", show_default=True, help="Precision of every step.")
@click.option("--batch", "batches", default="1,8", show_default=True, help="Comma-separated numbers of samples.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Chains; the median counts.")
def main(bundle: Path, precision: str, batches: str, rounds: int) -> None:
    opened = Bundle.open(bundle)
    click.echo(f"| {' | '.join(HEADER)} |\n|{' ---: |' * len(HEADER)}")
    for batch in map(int, batches.split(",")):
        found = measured(opened, precision, batch, rounds)
        cells = (batch, *(f"{1000 * value:.3f}" for value in (found.runtime, found.noise, found.rest)), f"{100 * found.share:.2f} %")
        click.echo(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
