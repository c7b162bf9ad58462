"""The correction of the network's output, the only place where it is applied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.arrays import Float32, Float64

PerChannel = Sequence[float] | Float64


def correct(out: Float32, x: Float32, gain: PerChannel, offset: PerChannel, state_gain: PerChannel) -> Float32:
    """`e' = gain_c q + offset_c + state_gain_c x`, in float32.

    Args:
        out: `q` [batch, channels, ...], guided.
        x: the state that it was predicted from, same shape, not scaled for the network.
        gain, offset, state_gain: [channels].
    """
    per_channel = (-1, *(1,) * (out.ndim - 2))
    corrected = np.asarray(np.asarray(gain, dtype=np.float32).reshape(per_channel) * out)
    corrected += np.asarray(offset, dtype=np.float32).reshape(per_channel)
    if any(state_gain):  # few numbers: an array of them takes longer, most of all after an engine's run, when nothing is in cache
        corrected += np.asarray(state_gain, dtype=np.float32).reshape(per_channel) * x
    return corrected
