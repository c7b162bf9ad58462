"""The contract of `statistics/<placement>/<precision>.json`: what was measured of one precision, step by step and layer by layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from calib.correction_fit import Affine, residual_mean, residual_variance
from calib.moments import Moments
from calib.walk import StepResult

SCHEMA_VERSION = 1


def step_record(result: StepResult, precision: str, guidance: float) -> dict[str, Any]:
    """One step: the paper's split of the noise after guidance, what the correction leaves, and the moments that both follow from."""
    noise, correction = result.noise[precision], result.corrections[precision]
    joint = result.moments[precision]
    return {
        "step": result.step,
        "timestep": result.timestep,
        "n": noise.n,
        "k": noise.k,
        "k_standard_error": _finite(noise.k_standard_error),
        "k_channel": noise.k_channel.tolist(),
        "mu": noise.mu.tolist(),
        "s2": noise.s2,
        "r2": noise.r2,
        "snr_db": _finite(noise.snr_db),
        "corrected_snr_db": _finite(corrected_snr_db(joint.guided(guidance), correction.affine)),
        "residual_variance": correction.residual_variance,
        "moments": joint.to_json(),
    }


def corrected_snr_db(moments: Moments, affine: Affine) -> float:
    """10 log10 of the power of `e` over that of `e' - e`, from the moments of `x, e, d`; infinite where nothing is left."""
    signal = float(np.mean(moments.variance("e") + moments.mean_of("e") ** 2))
    noise = residual_variance(moments, affine) + float(np.mean(residual_mean(moments, affine) ** 2))
    return 10 * math.log10(signal / noise) if noise else math.inf


def statistics(
    precision: str, placement: str, guidance: float, steps: list[dict[str, Any]], layers: list[dict[str, Any]]
) -> dict[str, Any]:
    """The whole file."""
    return {
        "schema_version": SCHEMA_VERSION,
        "precision": precision,
        "placement": placement,
        "guidance": guidance,
        "steps": steps,
        "layers": layers,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: None where nothing was quantized, or where there is one fold only."""
    return value if math.isfinite(value) else None
