"""Latent consistency models: Luo et al. 2023, arXiv 2310.04378, algorithm 3; the boundary condition is of Song et al., arXiv 2303.01469.

A step denoises to the clean sample, then adds fresh noise up to the next level.
"""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.timesteps import distilled_timesteps
from engines.samplers.table import SamplerTable

_SIGMA_DATA = 0.5
"""Standard deviation of the data in the boundary condition; a constant in every implementation, whatever the data."""


def compile_lcm(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- sqrt(a_next) (c_skip x + c_out x0) + sqrt(1 - a_next) z`; the last step ends at `c_skip x + c_out x0`."""
    t = distilled_timesteps(spec.schedule, spec.steps, spec.timesteps)
    a, a_next = spec.alphas[t], np.append(spec.alphas[t[1:]], 1.0)
    c_skip, c_out = _boundary(t.astype(np.float64) * spec.schedule.timestep_scaling)
    return build_table(
        spec, t, a, C=np.sqrt(a_next) * c_out, D=np.sqrt(a_next) * c_skip, E=np.zeros(len(t)), sigma=np.sqrt(1 - a_next),
        clip=spec.schedule.clip,
    )  # fmt: skip


def _boundary(scaled: Float64) -> tuple[Float64, Float64]:
    """Return `(c_skip, c_out)` at scaled timesteps [S]; at timestep 0 the network's prediction has no say."""
    square = scaled**2 + _SIGMA_DATA**2
    return _SIGMA_DATA**2 / square, scaled / np.sqrt(square)
