"""Walks under guidance: statistics of the guided output, and of other scales from the moments of both branches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from calib.correction.moments import GUIDED, Moments
from calib.correction.noise_fit import fit_noise
from calib.walk.walk import WalkPlan
from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoiser
from tests.calib.walk.gaussian_walk import (
    MEAN,
    Exact,
    Planted,
    always,
    take,
    walk_plan,
)


@dataclass
class Guided:
    """A network of two branches, or their combination where a guidance scale is given."""

    conditional: Denoiser
    unconditional: Denoiser
    guidance: float | None = None

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        c, u = self.conditional(x, timestep, rows)[0], self.unconditional(x, timestep, rows)[0]
        return np.stack([c, u]) if self.guidance is None else (u + self.guidance * (c - u))[None]


def _guided_plan(w: float | None) -> WalkPlan:
    here, there = Exact(MEAN), Exact(-MEAN)
    quantized = {"high": Guided(Planted(here), Planted(there, seed=1), w)}
    return replace(walk_plan(policy=always("high")), reference=Guided(here, there, w), quantized=quantized)


def test_guided_statistics_are_those_of_the_guided_output(tmp_path: Path) -> None:
    branches, final = take(replace(_guided_plan(None), guidance=1.5), tmp_path)
    combined, same = take(_guided_plan(1.5), tmp_path)
    np.testing.assert_allclose(final, same, atol=1e-4)
    for one, other in zip(branches, combined, strict=True):
        assert one.moments["high"].variables == GUIDED
        assert one.noise["high"].k == pytest.approx(other.noise["high"].k, abs=1e-4)
        np.testing.assert_allclose(one.corrections["high"].affine.offset, other.corrections["high"].affine.offset, atol=1e-4)


def test_another_guidance_scale_follows_from_the_stored_moments(tmp_path: Path) -> None:
    stored = next(iter(take(replace(_guided_plan(None), guidance=1.5), tmp_path)[0])).moments["high"].to_json()
    direct = next(iter(take(_guided_plan(3.0), tmp_path)[0])).noise["high"]
    refitted = fit_noise(Moments.from_json(stored).guided(3.0))
    assert refitted.k == pytest.approx(direct.k, rel=1e-4)
    np.testing.assert_allclose(refitted.mu, direct.mu, rtol=1e-4)
