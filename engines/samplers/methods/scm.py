"""Continuous-time consistency models: Lu and Song 2024, arXiv 2410.11081, as SANA-Sprint (arXiv 2503.09641) samples them.

A step denoises to the clean sample, then adds fresh noise up to the next level. TrigFlow's states `cos(t) x0 + sin(t) eps`, divided by
`sin(t) + cos(t)`, are those of a flow, `(1 - sigma) x0 + sigma eps`. SANA-Sprint's network is that of the flow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.arrays import Float64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.table import SamplerTable

_FIRST, _BETWEEN = np.pi / 2, 1.3
"""Angle of the first step, which is noise alone, and that of the second of two steps; more steps divide the quarter turn evenly."""


def compile_scm(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- (1 - sigma_next) x0 + sigma_next z`; the last step ends at `x0`."""
    sigma = _levels(spec.steps) if spec.sigmas is None else spec.sigmas
    following = np.append(sigma[1:], 0.0)
    norm, none = np.hypot(1 - sigma, sigma), np.zeros(spec.steps)
    table = build_table(
        spec, sigma * spec.schedule.num_train_timesteps, ((1 - sigma) / norm) ** 2, C=1 - following, D=none, E=none, sigma=following,
        scale=1 / norm,
    )  # fmt: skip
    return replace(table, input_scale=np.ones(spec.steps))


def _levels(steps: int) -> Float64:
    angles = np.array([_FIRST, _BETWEEN]) if steps == 2 else np.linspace(_FIRST, 0.0, steps + 1)[:-1]
    return np.asarray(np.sin(angles) / (np.sin(angles) + np.cos(angles)))
