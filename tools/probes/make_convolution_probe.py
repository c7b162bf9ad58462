"""Write `convolution_probe.onnx`: one integer convolution that can be timed with plain and with shifted weights.

    python -m tools.probes.make_convolution_probe

The input `x`, float32 [1, 256, 16, 16], is quantized and convolved with a 3 x 3 kernel of 256 output channels, a common size in U-Nets. The
graph generates weights of all ones instead of storing them, because their values do not change the kernel's time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.backends.onnxruntime.weight_shift import SHIFT_BYTES, WEIGHT_SHIFT

OUTPUT = Path(__file__).parents[2] / "engines" / "backends" / "onnxruntime" / "convolution_probe.onnx"
CHANNELS, SIDE, KERNEL = 256, 16, 3


def probe() -> onnx.ModelProto:
    constants = {
        "scale": np.float32(0.5),
        "zero": np.uint8(0),
        "shape": np.array([CHANNELS, CHANNELS, KERNEL, KERNEL], dtype=np.int64),
        "w_scale": np.ones(CHANNELS, dtype=np.float32),
        "w_zero": np.zeros(CHANNELS, dtype=np.int8),
        "out_scale": np.float32(CHANNELS),
        WEIGHT_SHIFT: np.zeros(SHIFT_BYTES, dtype=np.int8),
        "first": np.int64(0),
    }
    ones = helper.make_tensor("ones", TensorProto.INT8, [1], [1])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_int"]),
        helper.make_node("DequantizeLinear", ["x_int", "scale", "zero"], ["x_float"]),
        helper.make_node("ConstantOfShape", ["shape"], ["w"], value=ones),
        helper.make_node("Gather", [WEIGHT_SHIFT, "first"], ["shift"]),
        helper.make_node("Sub", ["w", "shift"], ["w_shifted"]),
        helper.make_node("Sub", ["w_zero", "shift"], ["w_zero_shifted"]),
        helper.make_node("DequantizeLinear", ["w_shifted", "w_scale", "w_zero_shifted"], ["w_float"], axis=0),
        helper.make_node("Conv", ["x_float", "w_float"], ["y"], kernel_shape=[KERNEL] * 2, pads=[KERNEL // 2] * 4),
        helper.make_node("QuantizeLinear", ["y", "out_scale", "zero"], ["y_int"]),
        helper.make_node("DequantizeLinear", ["y_int", "out_scale", "zero"], ["out"]),
    ]
    image: list[str | int | None] = ["batch", CHANNELS, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "convolution_probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


if __name__ == "__main__":
    onnx.save(probe(), OUTPUT, save_as_external_data=True, location=f"{OUTPUT.name}.data", size_threshold=SHIFT_BYTES)
