"""Whether the runtime really runs integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.errors import PtqdError
from ptqd_export.graph.checks.integer_kernels import check_integer_kernels

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a4", "w3a8"])
def test_every_layer_with_integer_activations_becomes_an_integer_kernel(class_build: Built, precision: str) -> None:
    layers = class_build.quantize(precision)
    expected = sum(layer.input is not None for layer in layers)
    assert 30 < expected < len(layers)
    assert check_integer_kernels(class_build.graph(precision), layers) == expected


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_runtime_adds_no_transpositions(class_build: Built, tmp_path: Path, precision: str) -> None:
    OnnxRuntimeEngine(class_build.graph(precision), optimized=tmp_path / "optimized.onnx")
    written, run = (
        Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
        for path in (class_build.graph(precision), tmp_path / "optimized.onnx")
    )
    assert 0 < run["Transpose"] <= written["Transpose"]


def test_weight_only_precision_needs_none(cross_build: Built) -> None:
    assert check_integer_kernels(cross_build.graph("w4a16"), cross_build.quantize("w4a16")) == 0


def test_float_graph_in_the_place_of_a_quantized_one_is_refused(class_build: Built) -> None:
    with pytest.raises(PtqdError, match="does not run every quantized layer in integers") as error:
        check_integer_kernels(class_build.graph("fp32"), class_build.quantize("w8a8"))
    assert "0 integer kernels in fp32.onnx" in str(error.value)


def test_convolution_whose_output_stays_in_float_is_noticed(class_build: Built, tmp_path: Path) -> None:
    """ONNX Runtime fuses a convolution only between two pairs."""
    model = onnx.load(class_build.graph("w8a8"))
    conv = next(node for node in model.graph.node if node.op_type == "Conv" and _quantized(model, node))
    (quantize,) = (node for node in model.graph.node if conv.output[0] in node.input)
    (dequantize,) = (node for node in model.graph.node if quantize.output[0] in node.input)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == dequantize.output[0]:
                node.input[index] = conv.output[0]
    onnx.save(model, tmp_path / "w8a8.onnx")
    with pytest.raises(PtqdError, match="integer kernels"):
        check_integer_kernels(tmp_path / "w8a8.onnx", class_build.quantize("w8a8"))


def _quantized(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    return any(node.output[0] in other.input and other.op_type == "QuantizeLinear" for other in model.graph.node)
