"""The correction of the network's output, the only place where it is applied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.arrays import Float32, Float64


def correct(out: Float32, gain: Sequence[float] | Float64, offset: Sequence[float] | Float64) -> Float32:
    """`e' = gain_c q + offset_c` for guided outputs [batch, channels, ...], in float32; gain and offset are [channels]."""
    per_channel = (-1, *(1,) * (out.ndim - 2))
    scale, shift = (np.asarray(part, dtype=np.float32).reshape(per_channel) for part in (gain, offset))
    return np.asarray(scale * out + shift)
