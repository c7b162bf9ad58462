"""Gains of the `bounded` correction: between `signed` and `joint`, as far as undoing the attenuation is worth its noise.

`joint` inverts `d = k_c e + m_c x + r`, whatever that costs: a quantizer that loses 95 % of a component is corrected by a gain of 20, which
amplifies `r` 20 times. `signed` leaves an attenuation. With the weights of `signed` at t = 0 and of `joint` at t = 1, an attenuation
`(1 - t) b` and a residual `g(t) r` with `g(t) = g_s + t (g_j - g_s)` are left. The attenuations of the n steps from here to the end add up,
and so their variance counts n times in the end sample; residuals are independent from step to step, and count once. The least of

    n (1 - t)^2 Var(b) + g(t)^2 Var(r)

lies at `t = (n Var(b) - g_s (g_j - g_s) Var(r)) / (n Var(b) + (g_j - g_s)^2 Var(r))`. At the last step this is the least error of the step.
"""

from __future__ import annotations

import numpy as np

from calib.correction.joint_gain import D, joint_gains, joint_slopes
from calib.correction.moments import Moments
from calib.correction.signed_gain import signed_gain
from engines.arrays import Float64


def bounded_gains(moments: Moments, steps_left: int) -> tuple[Float64, Float64]:
    """[C] gain and [C] state gain.

    Args:
        moments: moments of `x, e, d`.
        steps_left: steps of the chain from this one to its end, itself included.
    """
    signed, (joint, joint_state) = signed_gain(moments), joint_gains(moments)
    t = _share(moments, steps_left, signed, joint, joint_state)
    return signed + t * (joint - signed), t * joint_state


def _share(moments: Moments, steps_left: int, signed: Float64, joint: Float64, joint_state: Float64) -> Float64:
    """[C] how far to go from `signed` to `joint`, 0 to 1; 1 where the two are the same or nothing is left over."""
    slopes, covariance, step = joint_slopes(moments), moments.covariance_matrix(), joint - signed
    removed = np.stack([joint_state, step], axis=1) + step[:, None] * slopes
    attenuation = steps_left * _variance(removed, covariance[:, :D, :D])
    residual = _variance(np.concatenate([-slopes, np.ones((len(slopes), 1))], axis=1), covariance)
    whole = attenuation + step**2 * residual
    share = np.divide(attenuation - signed * step * residual, whole, out=np.ones_like(whole), where=whole > 0)
    return np.clip(share, 0.0, 1.0)


def _variance(weights: Float64, covariance: Float64) -> Float64:
    """[C] variance of the combination with weights [C, V]."""
    variance: Float64 = np.maximum(np.einsum("ci,cij,cj->c", weights, covariance, weights), 0.0)
    return variance
