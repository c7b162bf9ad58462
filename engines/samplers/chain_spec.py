"""The input of every sampler's compile function."""

from __future__ import annotations

from dataclasses import dataclass

from engines.arrays import Float64
from engines.samplers.levels.noise_schedule import NoiseSchedule


@dataclass(frozen=True, eq=False)
class ChainSpec:
    """A chain to compile.

    Attributes:
        name: name of the sampler.
        steps: length of the chain.
        eta: share of the ancestral noise.
        schedule: noise schedule that the model was trained with.
        alphas: [T] cumulative alphas; unused for flow models.
        timesteps: [S] training timesteps to visit, decreasing; None visits those of the schedule.
        sigmas: [S] noise levels to visit, decreasing; None visits those of the schedule.
        first: step that the chain starts at: there are no predictions of earlier ones to look back on.
    """

    name: str
    steps: int
    eta: float
    schedule: NoiseSchedule
    alphas: Float64
    timesteps: Float64 | None = None
    sigmas: Float64 | None = None
    first: int = 0
