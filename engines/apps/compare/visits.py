"""The states that a chain visits, as its networks receive them. They are the real inputs on which engines are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoisers
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches
from engines.chain.schedule import Schedule
from engines.chain.step import Move, scaled_input
from engines.chain.stepper import HostStepper
from engines.errors import UsageError
from engines.host.held_states import HeldStates


@dataclass(frozen=True, eq=False)
class Visit:
    """Input of a network at one step.

    Attributes:
        step: step of the chain.
        timestep: training timestep that the network is given.
        x: [batch, *shape] states, times the step's `input_scale`.
        samples: [batch] sample numbers.
        rows: [batch] rows of the conditioning table.
    """

    step: int
    timestep: float
    x: Float32
    samples: Int64
    rows: Int64


def spread_steps(schedule: Schedule, count: int | None) -> tuple[int, ...]:
    """Return `count` steps of a schedule, spread evenly from the first to the last; None takes all.

    Raises:
        UsageError: the schedule has fewer steps.
    """
    total = len(schedule.steps)
    if count is not None and count > total:
        raise UsageError("The schedule has fewer steps.", found=f"--steps {count}", expected=f"1 to {total}")
    return tuple(np.linspace(0, total - 1, count or total).round().astype(int).tolist())


def visits(
    chain: Chain, steps: Sequence[int], noise: NoiseSource, rows: Int64, batch_size: int, on_step: Callable[[], None] = lambda: None
) -> Iterator[Visit]:
    """Walk a chain to the last of the steps, batch by batch, and yield what its networks receive at these steps.

    A temporary file holds the states of a batch, so that memory grows neither with samples nor with steps.

    Args:
        chain: chain to walk.
        steps: step numbers in ascending order.
        noise: noise of the samples 0, 1, ...
        rows: [N] conditioning rows of these samples.
        batch_size: number of samples that are walked together and make up one visit.
        on_step: called after every step.
    """
    samples = np.arange(len(rows), dtype=np.int64)
    for numbers, of_batch in zip(batches(samples, batch_size), batches(rows, batch_size), strict=True):
        with HeldStates(noise.shape) as held:
            timesteps = dict[int, float]()

            def keep(visit: Visit, held: HeldStates = held, timesteps: dict[int, float] = timesteps) -> None:
                if visit.step in steps:
                    held.write(visit.x)
                    timesteps[visit.step] = visit.timestep

            tell_visits(chain, steps[-1] + 1, noise, numbers, of_batch, keep, on_step)
            held.rewind()
            for step, timestep in timesteps.items():
                yield Visit(step, timestep, held.read(len(numbers)), numbers, of_batch)


def tell_visits(
    chain: Chain,
    count: int,
    noise: NoiseSource,
    samples: Int64,
    rows: Int64,
    tell: Callable[[Visit], None],
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Call `tell` with each of a chain's first `count` visits for one batch, before the network runs. The last network never runs."""
    *taken, last = chain.schedule.steps[:count]
    schedule = chain.schedule.model_copy(update={"steps": tuple(taken)})
    stepper = partial(_ReportingStepper, lambda step, x, timestep: tell(Visit(step, timestep, x, samples, rows)))
    x = replace(chain, schedule=schedule, stepper=stepper).sample(noise, samples, rows, on_step)
    step = chain.move(last).step
    tell(Visit(count - 1, step.timestep, scaled_input(x, step), samples, rows))
    on_step()


class _ReportingStepper(HostStepper):
    """A stepper that reports what each step's network is about to receive."""

    def __init__(self, tell: Callable[[int, Float32, float], None], denoisers: Denoisers) -> None:
        super().__init__(denoisers)
        self._tell = tell

    def take(self, move: Move, z: Float32 | None) -> None:
        self._tell(move.index, scaled_input(self.state(), move.step), move.step.timestep)
        super().take(move, z)
