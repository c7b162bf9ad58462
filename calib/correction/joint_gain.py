"""Gains of the `joint` correction, in which the quantization noise depends on the state as well as on the output.

With `d = k_c e + m_c x + r` in every channel, `e' = (q - m_c x - mu_c) / (1 + k_c)`. Rounded weights and clipped activations attenuate the
image and the noise in the state by different amounts. A slope on the output alone, which is mostly noise, cannot tell them apart.
The correction inverts this split. It does not regress `e` on `q` and `x`, because a regression shrinks the image towards its mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calib.correction.held_out import borne_out, held_out_square
from calib.correction.moments import Moments
from calib.correction.noise_fit import ratio
from calib.correction.signed_gain import LEAST_SIGNAL, signed_gain
from engines.arrays import Float64

D = 2
"""Column of `d` in `PLAIN` moments, after `x` and `e`."""


def joint_gains(moments: Moments) -> tuple[Float64, Float64]:
    """[C] gain and [C] state gain. Channels where held-out folds do not confirm the state get the `signed` gain and a state gain of 0."""
    gain, state_gain = _inverted(joint_slopes(moments))
    helps = _state_helps(moments)
    return np.where(helps, gain, signed_gain(moments)), np.where(helps, state_gain, 0.0)


def joint_slopes(moments: Moments) -> Float64:
    """[C, 2] least-squares slopes `m_c, k_c` of `d` on `x` and `e` within each channel; of minimum norm if `x` and `e` are collinear.

    `x` and `e` are first scaled to unit variance, because the state of a sampler may have a variance of thousands.
    """
    covariance = moments.covariance_matrix()
    gram, target = covariance[:, :D, :D], covariance[:, :D, D]
    unit = np.sqrt(gram.diagonal(axis1=1, axis2=2))
    unit = np.where(unit > 0, unit, 1.0)
    correlation = gram / (unit[:, :, None] * unit[:, None, :])
    slopes: Float64 = (np.linalg.pinv(correlation, rcond=1e-12, hermitian=True) @ (target / unit)[:, :, None])[:, :, 0]
    return slopes / unit


def _inverted(slopes: Float64) -> tuple[Float64, Float64]:
    m, k = slopes.T
    gain = np.divide(1.0, 1 + k, out=np.ones_like(k), where=1 + k > LEAST_SIGNAL)
    return gain, np.where(1 + k > LEAST_SIGNAL, -m * gain, 0.0)


def _state_helps(moments: Moments) -> NDArray[np.bool_]:
    """[C] whether the state explains more of `d` on held-out folds than the output alone, by `MARGIN` standard errors.

    `e'` need not be closer to `e`: undoing an attenuation also amplifies the residual, but at the end of the chain the attenuation costs
    more.
    """
    folds = np.flatnonzero(moments.count)
    if len(folds) < 2:
        return np.zeros(moments.channels, bool)
    return borne_out(np.stack([_held_out_improvement(moments, int(fold)) for fold in folds]))


def _held_out_improvement(moments: Moments, fold: int) -> Float64:
    """[C] decrease of the sum of `(d - m x - k e - mu)^2` on a fold when the other folds' slopes on `x, e` replace their slope on `e`."""
    rest, held = moments.leave_out(fold), moments.only(fold)
    k = ratio(rest.covariance("d", "e"), rest.variance("e"))
    alone = np.stack([np.zeros_like(k), k], axis=1)
    return held.count * (held_out_square(rest, held, _residual(alone)) - held_out_square(rest, held, _residual(joint_slopes(rest))))


def _residual(slopes: Float64) -> Float64:
    """[C, 3] weights of `x, e, d` in `d - m x - k e`."""
    return np.concatenate([-slopes, np.ones((len(slopes), 1))], axis=1)
