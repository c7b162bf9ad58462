"""Write `saturation_probe.onnx`: one integer product that overflows where a CPU sums pairs of products in 16 bits.

    python -m tools.probes.make_saturation_probe

The graph multiplies `x`, float32 [1, 64], by a weight of ones. Both are quantized, to uint8 255 and int8 127, so that a pair sums to
64,770. With `x` all ones the result is 64 on a CPU whose kernels are exact.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OUTPUT = Path(__file__).parents[2] / "engines" / "backends" / "onnxruntime" / "saturation_probe.onnx"
LENGTH = 64


def probe() -> onnx.ModelProto:
    constants = {
        "x_scale": np.float32(1 / 255),
        "x_zero": np.uint8(0),
        "w": np.full((LENGTH, 4), 127, dtype=np.int8),
        "w_scale": np.float32(1 / 127),
        "w_zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_int"]),
        helper.make_node("DequantizeLinear", ["x_int", "x_scale", "x_zero"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"]),
        helper.make_node("MatMul", ["x_float", "w_float"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturation_probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", LENGTH])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


if __name__ == "__main__":
    onnx.save(probe(), OUTPUT)
