"""Consistency models: Song et al. 2023, arXiv 2303.01469, algorithm 1 (multistep consistency sampling).

The state is `x0 + sigma eps`. A step denoises to the clean sample, then adds fresh noise up to the next level. The network is exact at the
lowest level rather than at 0, so the noise added is that of the difference.
"""

from __future__ import annotations

import numpy as np

from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_levels import alpha_bar_of, karras_levels, noise_levels, timesteps_of
from engines.samplers.table import SamplerTable


def compile_consistency(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- x0 + sqrt(sigma_next^2 - sigma_min^2) z`; the last step ends at `x0`."""
    levels = noise_levels(spec.alphas)
    lowest, highest = float(levels[0]), float(levels[-1])
    level = karras_levels(highest, lowest, spec.steps + 1, spec.schedule.rho)[:-1] if spec.sigmas is None else spec.sigmas
    following = np.append(level[1:], lowest)
    a, none = alpha_bar_of(level), np.zeros(spec.steps)
    return build_table(
        spec, timesteps_of(level, levels), a, C=none + 1, D=none, E=none, sigma=np.sqrt(np.maximum(following**2 - lowest**2, 0)),
        scale=np.sqrt(a), init_sigma=float(level[0]), clip=spec.schedule.clip,
    )  # fmt: skip
