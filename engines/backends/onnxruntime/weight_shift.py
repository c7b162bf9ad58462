"""Shift the integer weights of a graph when it is loaded.

ONNX Runtime has two kernels for integer convolutions, and uses the one for zero points of 0 if all zero points are 0. That kernel is slower
on processors with AMX (0.36 ms instead of 0.18 for 256 channels of 16 x 16), and 1.1 to 1.25 times as fast on others. Shifting weights and
zero points by the same number leaves the weights' values unchanged. So graphs subtract a constant from both. It is stored as 0, and the
loader may replace it; the runtime applies it once, at load time.
"""

from __future__ import annotations

from pathlib import Path

from engines.untrusted.external_data import external_tensors

WEIGHT_SHIFT = "weight_shift"
"""Name of the constant: an int8 tensor [`SHIFT_BYTES`] of zeros, of which only the first is used. It must lie outside the graph's file,
because the runtime only replaces external constants; its size ensures that.
"""

SHIFT_BYTES = 1024

SHIFTED = 1
"""8-bit weights are at least -127, so this can be subtracted."""


def takes_shift(graph: Path) -> bool:
    """Whether the weights of a graph can be shifted. False for a file that is not a graph, which the runtime then refuses with a reason."""
    try:
        return WEIGHT_SHIFT in external_tensors(graph)
    except (OSError, ValueError):
        return False
