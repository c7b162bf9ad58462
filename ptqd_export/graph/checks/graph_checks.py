"""Checks that a graph must pass before it leaves the build, by placement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.placement import Placement
from ptqd_export.graph.checks.integer_kernels import check_integer_kernels
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph

Check = Callable[[Path, Sequence[QuantizedLayer]], object]

CHECKS: Mapping[str, Check] = {
    "onnxruntime": check_integer_kernels,
    "tensorrt": lambda path, _layers: check_tensorrt_graph(path),
}


def check_graph(placement: Placement, path: Path, layers: Sequence[QuantizedLayer]) -> None:
    """Check that the runtime of the placement accepts a graph.

    Raises:
        PtqdError: the runtime would refuse the graph, or run it differently from what the build says.
    """
    CHECKS[placement.name](path, layers)
