"""Integer weights that are shifted when a graph is loaded.

ONNX Runtime has two kernels for integer convolutions, and takes the one for zero points of 0 wherever all are 0. On processors with AMX it
is the slower one: 0.36 ms against 0.18 for 256 channels of 16 x 16; on others the faster one, by 1.1 to 1.25 times. Weights and zero points
that are shifted by the same number are the same weights. So graphs subtract a constant from both, 0 as it is stored, and whoever loads a
graph may put another in its place, which the runtime computes with once, when it loads.
"""

from __future__ import annotations

from pathlib import Path

from engines.untrusted.external_data import external_tensors

WEIGHT_SHIFT = "weight_shift"
"""The constant's name: an int8 [`SHIFT_BYTES`] of zeros, of which the first counts. It must lie outside of the graph's file, as the runtime
replaces no other, and its size is what puts it there.
"""

SHIFT_BYTES = 1024

SHIFTED = 1
"""Weights of 8 bits are at least -127, so that this can be subtracted."""


def takes_shift(graph: Path) -> bool:
    """Whether the weights of a graph can be shifted; not those of a file that is no graph, which the runtime refuses with a reason."""
    try:
        return WEIGHT_SHIFT in external_tensors(graph)
    except (OSError, ValueError):
        return False
