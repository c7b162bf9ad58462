"""Applies the correction to the network's output. Nothing else applies it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.arrays import Float32, Float64

PerChannel = Sequence[float] | Float64


def correct(out: Float32, x: Float32, gain: PerChannel, offset: PerChannel, state_gain: PerChannel) -> Float32:
    """Return `e' = gain_c q + offset_c + state_gain_c x`, in float32.

    Args:
        out: `q` [batch, channels, ...], after guidance.
        x: state that `out` was predicted from, same shape, before the sampler's input scale.
        gain, offset, state_gain: coefficients of the correction, [channels].
    """
    per_channel = (-1, *(1,) * (out.ndim - 2))
    corrected = np.asarray(np.asarray(gain, dtype=np.float32).reshape(per_channel) * out)
    corrected += np.asarray(offset, dtype=np.float32).reshape(per_channel)
    if any(state_gain):  # only a few numbers: converting them to an array takes longer, especially after an engine has flushed the cache
        corrected += np.asarray(state_gain, dtype=np.float32).reshape(per_channel) * x
    return corrected
