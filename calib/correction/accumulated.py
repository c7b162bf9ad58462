"""Brings the mean and the variance of a chain back to those of the full-precision chain, within each channel.

Errors of earlier steps are in the state, and what is fitted at a step's own states does not see them. A full-precision chain from the same
noise does. Where a step ends at `y` and that chain at `y_fp`, the step takes

    y + k_c s + b_c        with        Var(y + k_c s) = Var(y_fp),  E[y + k_c s + b_c] = E[y_fp]
    s = (A + P sum_j H_j) x + (B + Q sum_j H_j) e'

where `s` is `y` itself, or what `y` would be if every prediction in the history were the present one. The output for it is affine in the
output and the state again:

    e'' = e' + (k_c s + b_c) / B

It does not regress `y_fp` on `y`, because a regression shrinks the state towards its mean. That later steps can make up for the error of
earlier ones is the idea of Liu et al. 2025 (arXiv 2508.12094), who derive a factor; here it is measured.
"""

from __future__ import annotations

import numpy as np

from calib.correction.correction_fit import Affine
from calib.correction.moments import Moments
from engines.arrays import Float32, Float64
from engines.errors import UsageError
from engines.samplers.table import SamplerTable, TableStep

ENDS = ("ahead", "end", "exact")
"""`s`, `y` and `y_fp`."""


def look_ahead(x: Float32, corrected: Float32, step: TableStep) -> Float32:
    """Return `s` from states and corrected outputs [batch, channels, ...]."""
    of_state, of_output = _ahead(step)
    return np.asarray(of_state * x + of_output * corrected)


def restored(affine: Affine, step: TableStep, ends: Moments) -> Affine:
    """Return the correction `e''` from the moments of `ENDS`."""
    k, (of_state, of_output) = _scales(ends), _ahead(step)
    b = ends.mean_of("exact") - ends.mean_of("end") - k * ends.mean_of("ahead")
    kept = 1 + k * of_output / step.out_coeff
    return Affine(kept * affine.gain, kept * affine.offset + b / step.out_coeff, kept * affine.state_gain + k * of_state / step.out_coeff)


def obstacle(table: SamplerTable, trajectory: str, policy: str) -> UsageError | None:
    """Return why a chain cannot be corrected for its accumulated error, or None if it can."""
    if policy == "budget":
        return UsageError(
            "A probe of one step has no accumulated error to correct.",
            found='part "chain" with policy "budget"',
            expected='policy "snr" or "fixed", or parts without "chain"',
        )
    if trajectory == "fp":
        return UsageError(
            "The full-precision chain accumulates no error.",
            found='part "chain" with trajectory "fp"',
            expected='trajectory "quantized", or parts without "chain"',
        )
    if table.clip is not None or not table.out_coeff.all():
        return UsageError(
            "The accumulated error cannot be taken out of these steps through the output.",
            found=f"{table.name} with " + ("clipping" if table.clip is not None else "a step that does not use the output"),
            expected='a sampler without clipping, or parts without "chain"',
            mend="set sampler.clip_sample to false, if the model samples well without it" if table.clip is not None else None,
        )
    return None


def _ahead(step: TableStep) -> tuple[float, float]:
    """Return the coefficients of `x` and `e'` in `s`."""
    (P, Q), ahead = step.prediction_coeffs, sum(step.history_coeffs)
    return step.x_coeff + ahead * P, step.out_coeff + ahead * Q


def _scales(ends: Moments) -> Float64:
    """[C] `k`: the root nearer to 0 of `Var(s) k^2 + 2 Cov(y, s) k + Var(y) = Var(y_fp)`; 0 where there is none."""
    square, slope, rest = ends.variance("ahead"), ends.covariance("end", "ahead"), ends.variance("end") - ends.variance("exact")
    within = slope**2 - square * rest
    solvable = (within >= 0) & (slope > 0)
    return np.divide(-rest, slope + np.sqrt(np.maximum(within, 0)), out=np.zeros_like(rest), where=solvable)
