"""What a sampler compiles."""

from __future__ import annotations

from dataclasses import dataclass

from engines.arrays import Float64
from engines.samplers.levels.noise_schedule import NoiseSchedule


@dataclass(frozen=True, eq=False)
class ChainSpec:
    """A chain to compile.

    Attributes:
        name: of the sampler.
        steps: length of the chain.
        eta: share of the ancestral noise.
        schedule: what the model was trained with.
        alphas: [T] cumulative alphas; a flow has no use for them.
    """

    name: str
    steps: int
    eta: float
    schedule: NoiseSchedule
    alphas: Float64
