"""Heun's method over noise levels: Karras et al. 2022, arXiv 2206.00364, algorithm 1.

The state is Euler's, `x0 + sigma eps`. A step has two rows, and two network calls. The first is Euler's step from `sigma` to `sigma_next`:

    x' = x + (sigma_next - sigma) d        with        d = (x - m) / sigma

The second repeats the step with the mean of `d` and of `d'`, which belongs to `x'`. The first can be solved for `x`, so that nothing but
its prediction is needed from before:

    x + (sigma_next - sigma) (d + d') / 2  =  x' + (sigma_next - sigma) (m - m') / (2 sigma_next)

The last step ends at the clean sample, where `d'` is not defined, and has the first row alone: a chain of S steps has 2 S - 1 rows.
"""

from __future__ import annotations

import numpy as np

from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_levels import alpha_bar_of
from engines.samplers.methods.euler import first_state, visited_levels
from engines.samplers.table import SamplerTable


def rows_of_heun(steps: int) -> int:
    """Return the number of rows: two for every step but the last."""
    return 2 * steps - 1


def row_of_heun(step: int) -> int:
    """Return the first row of a step."""
    return 2 * step


def compile_heun(spec: ChainSpec) -> SamplerTable:
    """Compile both halves of every step."""
    t, level = visited_levels(spec)
    rows = rows_of_heun(len(t))
    level_next = np.append(level[1:], 0.0)
    C, D = np.zeros((rows, 2)), np.ones(rows)
    D[::2] = level_next / level
    C[::2, 0] = 1 - D[::2]
    share = (level_next - level)[:-1] / (2 * level[1:])
    C[1::2] = np.stack([-share, share], axis=1)
    if rows == 1:
        C = C[:, :1]  # nothing to look back on
    at = (np.arange(rows) + 1) // 2
    a = alpha_bar_of(level[at])
    return build_table(
        spec, t[at], a, C=C, D=D, E=np.zeros(rows), sigma=np.zeros(rows), scale=np.sqrt(a), init_sigma=first_state(spec, level),
        clip=spec.schedule.clip,
    )  # fmt: skip
