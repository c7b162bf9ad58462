"""Walks over Gaussian data, for which the exact noise prediction is known, with planted instead of real quantization noise.

With `x0 ~ N(m_c, S^2)` in every pixel, `eps = sqrt(1 - a) (x - sqrt(a) m_c) / (a S^2 + 1 - a)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from calib.correction.correction_fit import Mode
from calib.correction.step_fit import CorrectionChoice
from calib.walk.policy import FixedPolicy, Policy, SnrPolicy
from calib.walk.walk import StepResult, Walk, WalkPlan
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.samplers.table import SamplerTable

STEPS = 20
SHAPE = (3, 4, 4)
MEAN, S = np.array([0.5, -0.3, 0.0]), 1.0
K, MU, S2 = np.array([-0.15, 0.1, -0.05]), np.array([0.2, -0.1, 0.05]), 0.01
ALPHA_BAR: Float64 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)


def ddim(eta: float = 1.0, steps: int = STEPS) -> SamplerTable:
    """DDIM (arXiv 2010.02502, equation 12), implemented independently of the sampler under test."""
    timestep = np.arange(steps)[::-1] * (1000 // steps)
    a = ALPHA_BAR[timestep]
    previous = np.append(a[1:], 1.0)
    sigma = eta * np.sqrt((1 - previous) / (1 - a) * (1 - a / previous))
    A = np.sqrt(previous / a)
    B = np.sqrt(np.maximum(1 - previous - sigma**2, 0)) - A * np.sqrt(1 - a)
    return SamplerTable(
        name="ddim", timestep=timestep.astype(np.float64), alpha_bar=a, x_coeff=A, out_coeff=B,
        prediction_coeffs=np.stack([1 / np.sqrt(a), -np.sqrt(1 - a) / np.sqrt(a)], axis=1),
        epsilon_coeffs=np.tile([0.0, 1.0], (steps, 1)), history_coeffs=np.empty((steps, 0)),
        sigma=sigma, input_scale=np.ones(steps), init_sigma=1.0, clip=None, state_scale=np.ones(steps),
    )  # fmt: skip


def clipped(table: SamplerTable, clip: float, history: int = 1) -> SamplerTable:
    """Rewrite `x <- A x + B out` so that its `C x0` part becomes `C` times a weighted sum of the last `history` clipped predictions."""
    C = np.sqrt(np.append(table.alpha_bar[1:], 1.0))
    weights = np.array([1.0]) if history == 1 else np.array([1.5, -0.5])
    return replace(
        table, clip=clip, history_coeffs=C[:, None] * weights,
        x_coeff=table.x_coeff - C * table.prediction_coeffs[:, 0], out_coeff=table.out_coeff - C * table.prediction_coeffs[:, 1],
    )  # fmt: skip


def column(per_channel: Float64) -> Float64:
    return per_channel.reshape(-1, 1, 1)


def slope(alpha_bar: float) -> float:
    """The factor `c` in `eps = c (x - sqrt(a) m)`."""
    return math.sqrt(1 - alpha_bar) / (alpha_bar * S**2 + 1 - alpha_bar)


@dataclass
class Exact:
    """The full-precision network: `eps` in closed form. Records the timestep and rows of every call."""

    mean: Float64 = field(default_factory=lambda: MEAN)
    calls: list[tuple[float, Int64]] = field(default_factory=list)

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        self.calls.append((timestep, rows))
        a = float(ALPHA_BAR[int(timestep)])
        return (slope(a) * (x - math.sqrt(a) * column(self.mean)))[None].astype(np.float32)


@cache
def _noise_of(timestep: float, seed: int) -> Float64:
    """Planted noise at a timestep, [samples, *SHAPE]; it is indexed by row, so that it does not depend on the batch."""
    return np.random.default_rng([int(timestep), seed]).standard_normal((2048, *SHAPE))


@dataclass
class Planted:
    """A quantized network, `q = (1 + k_c) e + mu_c + sqrt(s2) n`."""

    reference: Denoiser
    s2: float = S2
    seed: int = 0
    calls: list[tuple[float, Int64]] = field(default_factory=list)

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        self.calls.append((timestep, rows))
        e = self.reference(x, timestep, rows)
        q: Float64 = column(1 + K) * e + column(MU) + math.sqrt(self.s2) * _noise_of(timestep, self.seed)[rows]
        return q.astype(np.float32)


def walk_plan(
    samples: int = 48,
    table: SamplerTable | None = None,
    mode: Mode = "signed",
    policy: Policy = SnrPolicy(("low", "high")),  # noqa: B008 - frozen
) -> WalkPlan:
    return WalkPlan(
        table=table or ddim(),
        reference=Exact(),
        quantized={"low": Planted(Exact(), s2=0.04, seed=1), "high": Planted(Exact())},
        noise=NoiseSource(seed=7, shape=SHAPE),
        rows=np.arange(samples, dtype=np.int64),
        policy=policy,
        correction=CorrectionChoice(mode),
        batch_size=32,
    )


def always(name: str) -> Policy:
    return FixedPolicy((name,) * STEPS)


def take(
    plan: WalkPlan, folder: Path, observe: Callable[[StepResult, Float32], None] = lambda *_: None
) -> tuple[list[StepResult], Float32]:
    """Take the walk; return all results and the final states. `observe` receives each result and the states it was fitted on."""
    results = []
    with Walk(plan, folder) as walk:
        for result in walk:
            observe(result, walk.states)
            results.append(result)
        return results, np.array(walk.states)


def take_with_states(plan: WalkPlan, folder: Path) -> tuple[list[StepResult], Float64]:
    """Take the walk; return all results, and the states after each step, [steps, samples, ...]."""
    before: list[Float32] = []
    results, last = take(plan, folder, lambda _, states: before.append(np.array(states)))
    return results, np.stack([*before[1:], last], dtype=np.float64)
