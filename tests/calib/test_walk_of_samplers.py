"""Walks of every sampler over Gaussian data with planted quantization noise: corrections bring the chain of full precision back.

With `x0 ~ N(m_c, S^2)` in every pixel, `eps = sqrt(1 - a) (x - sqrt(a) m_c) / (a S^2 + 1 - a)` at unit scale, which is what networks see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calib.policy import FixedPolicy
from calib.step_fit import CorrectionChoice
from calib.step_result import StepResult
from calib.walk import Walk, WalkPlan
from engines.arrays import Float32, Float64, Int64
from engines.noise import NoiseSource
from engines.samplers import SAMPLERS, NoiseSchedule, SamplerTable, compile_sampler

STEPS = 12
SHAPE = (3, 4, 4)
MEAN, S = np.array([0.5, -0.3, 0.0]).reshape(-1, 1, 1), 0.6
K, MU = np.array([-0.15, 0.1, -0.05]).reshape(-1, 1, 1), np.array([0.2, -0.1, 0.05]).reshape(-1, 1, 1)
ALPHA_BAR: Float64 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)
OF_BETAS = [name for name in SAMPLERS if name != "flow-euler"]
STOCHASTIC = [name for name in OF_BETAS if SAMPLERS[name].eta == 1]


def _table(name: str) -> SamplerTable:
    return compile_sampler(name, STEPS, SAMPLERS[name].eta, NoiseSchedule(clip_sample=False, timestep_spacing="trailing"))


@dataclass
class Network:
    """`(1 + k_c) e + mu_c + sqrt(s2) n`; full precision where all of it is 0."""

    planted: bool = False
    s2: float = 0.0

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        a = float(ALPHA_BAR[int(timestep)])
        e = math.sqrt(1 - a) / (a * S**2 + 1 - a) * (x - math.sqrt(a) * MEAN)
        q = (1 + K) * e + MU if self.planted else e
        n = np.random.default_rng(round(timestep)).standard_normal((4096, *SHAPE))[rows] if self.s2 else 0.0
        return np.asarray(q + math.sqrt(self.s2) * n, np.float32)[None]


def _walk(
    table: SamplerTable, network: Network, folder: Path, samples: int = 64, correction: CorrectionChoice | None = None
) -> tuple[list[StepResult], list[Float64]]:
    """Results, and the states after each step."""
    plan = WalkPlan(
        table=table, reference=Network(), quantized={"q": network}, noise=NoiseSource(seed=7, shape=SHAPE),
        rows=np.arange(samples, dtype=np.int64), policy=FixedPolicy(("q",) * table.steps),
        correction=correction or CorrectionChoice("joint"), batch_size=512,
    )  # fmt: skip
    results, states = [], []
    with Walk(plan, folder) as walk:
        for result in walk:
            states.append(np.array(walk.states, np.float64))
            results.append(result)
        return results, [*states[1:], np.array(walk.states, np.float64)]


PLAIN = CorrectionChoice("none", "none")


@pytest.mark.parametrize("name", OF_BETAS)
def test_what_follows_the_output_and_its_mean_is_undone_whatever_the_sampler(name: str, tmp_path: Path) -> None:
    table = _table(name)
    exact, plain, corrected = (
        _walk(table, network, tmp_path, correction=choice)[1][-1]
        for network, choice in ((Network(), PLAIN), (Network(planted=True), PLAIN), (Network(planted=True), None))
    )
    assert np.abs(plain - exact).max() > 0.2
    assert np.abs(corrected - exact).max() < 2e-3


if __name__ == "__main__":
    import tempfile
    for name in STOCHASTIC:
        with tempfile.TemporaryDirectory() as d:
            t=_table(name)
            r0, ex = _walk(t, Network(), Path(d), 4096, PLAIN)
            r1, pl = _walk(t, Network(s2=0.02), Path(d), 4096, PLAIN)
            r2, co = _walk(t, Network(s2=0.02), Path(d), 4096)
            v=lambda xs:np.array([x.var(axis=(0,2,3)).mean() for x in xs])
            print(name); print(np.round(v(pl)/v(ex)-1,4)); print(np.round(v(co)/v(ex)-1,4)); print([round(r.corrections['q'].unabsorbed_variance,4) for r in r2])
