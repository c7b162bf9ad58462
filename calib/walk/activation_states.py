"""Real states for the activation ranges: drawn from full-precision chains, spread over the timesteps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.correction.step_fit import CorrectionChoice
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.policy import FixedPolicy
from calib.walk.walk import Walk, WalkPlan
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.samplers.table import SamplerTable


@dataclass(frozen=True, eq=False)
class States:
    """Network inputs met on the way: `samples` [N, channels, ...] (scaled as the network takes them), `timesteps` [N], `rows` [N]."""

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
        """Those of some timesteps."""
        chosen = np.isin(self.timesteps, timesteps.astype(np.float32))
        return States(self.samples[chosen], self.timesteps[chosen], self.rows[chosen])

    def first(self, count: int) -> States:
        """At most `count` of them, still spread over the timesteps."""
        chosen = np.unique(np.linspace(0, len(self.rows) - 1, count).astype(np.int64))
        return States(self.samples[chosen], self.timesteps[chosen], self.rows[chosen])


def draw_states(
    table: SamplerTable,
    network: Denoiser,
    guidance: float,
    samples: CalibrationSamples,
    count: int,
    batch_size: int,
    folder: Path,
    on_step: Callable[[int], None],
) -> States:
    """About `count` states, the same number from every step of full-precision chains, one chain for each of the samples.

    No state is drawn twice: there are fewer than asked for where there are fewer chains than states a step.
    """
    name = "fp32"
    plan = WalkPlan(
        table,
        network,
        {name: network},
        samples.noise,
        samples.rows,
        FixedPolicy((name,) * table.steps),
        CorrectionChoice("none", "none"),
        guidance=guidance,
        trajectory="fp",
        batch_size=batch_size,
    )
    a_step = min(-(-count // table.steps), len(samples.rows))
    kept: list[States] = []
    with Walk(plan, folder) as walk:
        for result in walk:
            chosen = (result.step * a_step + np.arange(a_step)) % len(samples.rows)
            scale = np.float32(table.input_scale[result.step])
            timesteps = np.full(a_step, result.timestep, dtype=np.float32)
            kept.append(States(scale * walk.states[chosen], timesteps, samples.rows[chosen]))
            on_step(result.step)
    return States(*(np.concatenate([getattr(part, name) for part in kept]) for name in ("samples", "timesteps", "rows")))
