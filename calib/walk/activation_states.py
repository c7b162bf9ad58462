"""Real states for the activation ranges, drawn from full-precision chains and spread over the timesteps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.walk.calibration_samples import CalibrationSamples
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.finite import check_output
from engines.chain.sampling import batches
from engines.chain.step import ChainState, Move, advance, evaluate
from engines.samplers.table import SamplerTable

FULL_PRECISION = "full precision"
"""Name of the network in messages."""


@dataclass(frozen=True, eq=False)
class States:
    """Network inputs along a chain: `samples` [N, channels, ...] (after the input scale), `timesteps` [N], `rows` [N]."""

    samples: Float32
    timesteps: Float32
    rows: Int64

    def save(self, path: Path) -> None:
        np.savez(path, samples=self.samples, timesteps=self.timesteps, rows=self.rows)

    @classmethod
    def load(cls, path: Path) -> States:
        with np.load(path) as archive:
            return cls(archive["samples"], archive["timesteps"], archive["rows"])

    def at(self, timesteps: Float64) -> States:
        """Return the states at the given timesteps."""
        chosen = np.isin(self.timesteps, timesteps.astype(np.float32))
        return States(self.samples[chosen], self.timesteps[chosen], self.rows[chosen])

    def first(self, count: int) -> States:
        """Return at most `count` states, still spread over the timesteps."""
        chosen = np.unique(np.linspace(0, len(self.rows) - 1, count).astype(np.int64))
        return States(self.samples[chosen], self.timesteps[chosen], self.rows[chosen])


def draw_states(
    table: SamplerTable,
    network: Denoiser,
    guidance: float,
    samples: CalibrationSamples,
    count: int,
    batch_size: int,
    on_step: Callable[[int], None],
) -> States:
    """Draw about `count` states from full-precision chains, one chain per sample and the same number of states from every step.

    No state is drawn twice, so there are fewer states if there are fewer samples than states per step.

    Args:
        table: coefficients of the sampler.
        network: full-precision network.
        guidance: guidance scale w.
        samples: samples of the chains.
        count: number of states to draw.
        batch_size: number of samples per batch.
        on_step: called after every step of every batch with the number of steps taken so far.
    """
    per_step = min(-(-count // table.steps), samples.count)
    drawn = np.add.outer(np.arange(table.steps) * per_step, np.arange(per_step)) % samples.count  # [steps, per_step] sample numbers
    found = np.empty((*drawn.shape, *samples.noise.shape), np.float32)
    taken = 0
    for numbers in batches(samples.numbers, batch_size):
        state = ChainState(np.float32(table.init_sigma) * samples.noise.start(numbers))
        for i in range(table.steps):
            row, in_batch = table.step(i), np.isin(drawn[i], numbers)
            found[i, in_batch] = np.float32(row.input_scale) * state.x[drawn[i, in_batch] - numbers[0]]
            move = Move(i, row, FULL_PRECISION, guidance, sigma=row.sigma)
            outputs = evaluate(network, state.x, row, samples.rows[numbers])
            check_output(outputs, FULL_PRECISION, row.timestep, i)
            state = advance(state, outputs, move, samples.noise.step(i, numbers) if row.sigma > 0 else None)
            taken += 1
            on_step(taken)
    timesteps = np.repeat(table.timestep.astype(np.float32), per_step)
    return States(found.reshape(-1, *samples.noise.shape), timesteps, samples.rows[drawn.ravel()])
