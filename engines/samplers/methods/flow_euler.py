"""Euler's method on a flow: Lipman et al. 2022, arXiv 2210.02747.

The state is `(1 - sigma) x0 + sigma eps`. Networks take it unscaled, with the timestep `sigma T`, and predict `eps - x0`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.flow_levels import flow_levels
from engines.samplers.table import SamplerTable


def compile_flow_euler(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- x + (sigma_next - sigma) out`."""
    sigma = flow_levels(spec.schedule, spec.steps, spec.sigmas)
    change = np.diff(sigma, append=0.0)
    norm = np.hypot(1 - sigma, sigma)
    none = np.zeros(spec.steps)
    table = build_table(
        spec, sigma * spec.schedule.num_train_timesteps, ((1 - sigma) / norm) ** 2, C=none, D=none + 1, E=change,
        sigma=none, scale=1 / norm,
    )  # fmt: skip
    return replace(table, input_scale=np.ones(spec.steps))
