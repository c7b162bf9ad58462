"""Counts the integer kernels in the graph that ONNX Runtime actually runs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from calib.quantizers.quantized_layer import QuantizedLayer
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.errors import PtqdError
from engines.host.heap import release_free_pages

INTEGER_OPS = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat"})


def check_integer_kernels(path: Path, layers: Sequence[QuantizedLayer]) -> int:
    """Return the number of integer kernels in the optimized graph.

    Raises:
        PtqdError: there are fewer kernels than layers with integer weights and activations, so the runtime left some layers in float.
    """
    expected = sum(layer.input is not None for layer in layers)
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        OnnxRuntimeEngine(path, optimized=optimized)
        release_free_pages()  # the C library would keep the memory of the session
        ops = Counter(node.op_type for node in ir.load(optimized).graph)
    found = sum(ops[op] for op in INTEGER_OPS)
    if found < expected:
        raise PtqdError(
            "The runtime does not run every quantized layer in integers.",
            found=f"{found} integer kernels in {path.name}",
            expected=f"{expected}",
            mend="this onnxruntime fuses other patterns: use a version listed in the project's constraints",
        )
    return found
