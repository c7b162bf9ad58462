"""Every operator against ONNX Runtime, in graphs of one node on inputs of two batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ptqd_export.models.onnx_graph.graph_module import GraphModule
from ptqd_export.models.onnx_graph.operators.fused_operators import PARTS
from ptqd_export.models.onnx_graph.operators.operator_table import OPERATORS
from ptqd_export.models.onnx_graph.reading.folded import folded
from ptqd_export.models.onnx_graph.reading.fused.fused_nodes import split_fused
from ptqd_export.models.onnx_graph.reading.group_norm_nodes import with_group_norms
from ptqd_export.models.onnx_graph.reading.onnx_file import read_onnx
from ptqd_export.models.onnx_graph.reading.transposes import without_undone_transposes
from tests.ptqd_export.models.onnx_graph.onnx_graphs import graph_file, node, random

MS = "com.microsoft"
I = np.int64  # noqa: E741
WEIGHT, BIAS = random(6, 4, 3, 3), random(6)


def module_of(path: Path) -> GraphModule:
    """The graph as a module, without the rest of a model."""
    graph = read_onnx(path)
    live, constants = folded(split_fused(graph), "out")
    nodes, added = with_group_norms(without_undone_transposes(live, "out"), constants, "out")
    return GraphModule(nodes, {**constants, **added}, [one.name for one in graph.inputs], "out")


def chain(*nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    return list(nodes)


def one(op: str, constants: Sequence[str] = (), domain: str = "", **attributes: Any) -> list[onnx.NodeProto]:
    return [node(op, ["x", *constants], ["out"], domain, **attributes)]


X = (4, 6, 8)
"""Shape of the input behind the batch."""

CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int]] = {
    **{
        op: (one(op), {}, 18)
        for op in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg", "Reciprocal", "Relu")
    },
    **{op: (one(op), {}, 18) for op in ("Round", "Sigmoid", "Sign", "Sin", "Softplus", "Tan", "Tanh", "HardSigmoid", "Elu", "LeakyRelu")},
    **{op: (one(op, ["c"]), {"c": random(6, 8)}, 18) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")},
    "Sqrt, Log, Pow": (
        chain(node("Mul", ["x", "x"], "a"), node("Sqrt", "a", "b"), node("Pow", ["b", "c"], "d"), node("Log", "d", ["out"])),
        {"c": np.float32(3)},
        18,
    ),
    "Mod": (one("Mod", ["c"], fmod=1), {"c": np.float32(0.7)}, 18),
    "PRelu": (one("PRelu", ["c"]), {"c": random(4, 1, 1)}, 18),
    "Gelu": (one("Gelu", approximate="tanh"), {}, 20),
    "Clip of attributes": (one("Clip", min=-0.5, max=0.7), {}, 7),
    "Clip of one end": (one("Clip", ["", "c"]), {"c": np.float32(0.2)}, 13),
    "Where and Greater": (chain(node("Greater", ["x", "c"], "m"), node("Where", ["m", "x", "c"], ["out"])), {"c": np.float32(0.1)}, 18),
    "Less, Not, And": (
        chain(node("Less", ["x", "c"], "m"), node("Not", "m", "n"), node("And", ["n", "n"], "k"), node("Cast", "k", ["out"], to=1)),
        {"c": np.float32(0.1)},
        18,
    ),
    "Cast to int and back": (chain(node("Cast", "x", "i", to=7), node("Cast", "i", ["out"], to=1)), {}, 18),
    "Softmax before 13": (one("Softmax", axis=2), {}, 11),
    "Softmax": (one("Softmax", axis=1), {}, 13),
    "LogSoftmax": (one("LogSoftmax"), {}, 13),
    "ReduceMean of attributes": (one("ReduceMean", axes=[2, -1], keepdims=0), {}, 13),
    "ReduceMean of an input": (one("ReduceMean", ["a"]), {"a": np.array([1], I)}, 18),
    "ReduceMean of nothing": (one("ReduceMean", noop_with_empty_axes=1), {}, 18),
    "ReduceSum": (one("ReduceSum", ["a"], keepdims=0), {"a": np.array([2, 3], I)}, 13),
    "ReduceMax": (one("ReduceMax", axes=[3]), {}, 13),
    "ReduceL2": (one("ReduceL2", axes=[1]), {}, 13),
    "ReduceProd": (one("ReduceProd", axes=[3]), {}, 13),
    "ReduceLogSumExp": (one("ReduceLogSumExp", axes=[3]), {}, 13),
    "ArgMax": (chain(node("ArgMax", "x", "i", axis=2), node("Cast", "i", ["out"], to=1)), {}, 13),
    "LayerNormalization": (one("LayerNormalization", ["s", "b"], axis=-1), {"s": random(8), "b": random(8, 1)[:, 0]}, 17),
    "InstanceNormalization": (one("InstanceNormalization", ["s", "b"]), {"s": random(4), "b": random(4, 1)[:, 0]}, 17),
    "GroupNormalization-18": (one("GroupNormalization", ["s", "b"], num_groups=2), {"s": random(2), "b": random(2, 1)[:, 0]}, 18),
    "GroupNormalization-21": (one("GroupNormalization", ["s", "b"], num_groups=2), {"s": random(4), "b": random(4, 1)[:, 0]}, 21),
    "RMSNormalization": (one("RMSNormalization", ["s"]), {"s": random(8)}, 23),
    "BatchNormalization": (
        one("BatchNormalization", ["s", "b", "m", "v"]),
        {"s": random(4), "b": random(4), "m": random(4), "v": np.abs(random(4)) + 1},
        15,
    ),
    "Conv with uneven pads": (one("Conv", ["w", "b"], pads=[0, 1, 1, 2]), {"w": WEIGHT, "b": BIAS}, 18),
    "Conv SAME_UPPER": (one("Conv", ["w"], auto_pad="SAME_UPPER", strides=[2, 2]), {"w": WEIGHT}, 18),
    "Conv SAME_LOWER": (one("Conv", ["w"], auto_pad="SAME_LOWER", strides=[1, 2], kernel_shape=[3, 3]), {"w": WEIGHT}, 18),
    "Conv of groups": (one("Conv", ["w"], group=2, dilations=[2, 1], pads=[2, 1, 2, 1]), {"w": random(6, 2, 3, 3)}, 18),
    "ConvTranspose": (
        one("ConvTranspose", ["w", "b"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]),
        {"w": random(4, 6, 3, 3), "b": BIAS},
        18,
    ),
    "ConvTranspose with uneven pads": (one("ConvTranspose", ["w"], strides=[2, 2], pads=[1, 1, 0, 0]), {"w": random(4, 6, 3, 3)}, 18),
    "AveragePool": (one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), {}, 18),
    "AveragePool with padding": (one("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1), {}, 18),
    "MaxPool": (one("MaxPool", kernel_shape=[3, 2], pads=[1, 0, 0, 1], strides=[2, 1]), {}, 18),
    "GlobalAveragePool": (one("GlobalAveragePool"), {}, 18),
    "Gemm": (
        chain(node("Flatten", "x", "f"), node("Gemm", ["f", "w", "b"], ["out"], transB=1, alpha=0.5, beta=2.0)),
        {"w": random(5, 192), "b": random(5)},
        18,
    ),
    "Gemm of a row": (
        chain(node("Flatten", "x", "f"), node("Gemm", ["f", "w", "b"], ["out"])),
        {"w": random(192, 5), "b": random(1, 5)},
        18,
    ),
    "MatMul and Add": (chain(node("MatMul", ["x", "w"], "m"), node("Add", ["b", "m"], ["out"])), {"w": random(8, 5), "b": random(5)}, 18),
    "MatMul of a constant on the left": ([node("MatMul", ["w", "x"], ["out"])], {"w": random(5, 6)}, 18),
    "Einsum": (one("Einsum", ["w"], equation="bchw,wk->bkch"), {"w": random(8, 5)}, 18),
    "Reshape with 0 and -1": (one("Reshape", ["s"]), {"s": np.array([0, 2, -1], I)}, 18),
    "Reshape to computed sizes": (
        chain(
            node("Shape", "x", "s"),
            node("Gather", ["s", "zero"], "b", axis=0),
            node("Unsqueeze", ["b", "axis"], "u"),
            node("Concat", ["u", "rest"], "t", axis=0),
            node("Reshape", ["x", "t"], ["out"]),
        ),
        {"zero": np.array(0, I), "axis": np.array([0], I), "rest": np.array([-1, 4], I)},
        18,
    ),
    "Shape with a part": (
        chain(
            node("Shape", "x", "s", start=1, end=3),
            node("ReduceProd", "s", "p", keepdims=1),
            node("Concat", ["minus", "p", "last"], "t", axis=0),
            node("Reshape", ["x", "t"], ["out"]),
        ),
        {"minus": np.array([-1], I), "last": np.array([8], I)},
        18,
    ),
    "Expand both ways": (one("Expand", ["s"]), {"s": np.array([3, 1, 1, 1, 1], I)}, 18),
    "Tile": (one("Tile", ["s"]), {"s": np.array([1, 2, 1, 3], I)}, 18),
    "Transpose": (one("Transpose", perm=[0, 2, 3, 1]), {}, 18),
    "Squeeze and Unsqueeze of attributes": (
        chain(node("Unsqueeze", "x", "u", axes=[2, -1]), node("Squeeze", "u", ["out"], axes=[2])),
        {},
        11,
    ),
    "Split by num_outputs": (chain(node("Split", "x", ["a", "b"], axis=1, num_outputs=2), node("Mul", ["a", "b"], ["out"])), {}, 18),
    "Split unevenly by num_outputs": (
        chain(
            node("Split", "x", ["a", "b", "c"], axis=3, num_outputs=3),
            node("Add", ["a", "b"], "p"),
            node("Concat", ["p", "c"], ["out"], axis=3),
        ),
        {},
        18,
    ),
    "Split of attributes": (chain(node("Split", "x", ["a", "b"], axis=1, split=[1, 3]), node("Add", ["a", "b"], ["out"])), {}, 11),
    "Split of an input": (
        chain(node("Split", ["x", "s"], ["a", "b"], axis=-1), node("Concat", ["b", "a"], ["out"], axis=-1)),
        {"s": np.array([3, 5], I)},
        13,
    ),
    "Slice of attributes": (one("Slice", starts=[1, -3], ends=[3, 2**31 - 1], axes=[1, 3]), {}, 9),
    "Slice of inputs": (
        one("Slice", ["s", "e", "a", "t"]),
        {"s": np.array([0, 1], I), "e": np.array([2**63 - 1, 7], I), "a": np.array([2, 3], I), "t": np.array([2, 3], I)},
        18,
    ),
    "Slice backwards": (
        one("Slice", ["s", "e", "a", "t"]),
        {"s": np.array([-1], I), "e": np.array([-(2**63)], I), "a": np.array([3], I), "t": np.array([-2], I)},
        18,
    ),
    "Gather": (one("Gather", ["i"], axis=2), {"i": np.array([[0, -1], [3, 2]], I)}, 18),
    "Gather of one": (one("Gather", ["i"], axis=1), {"i": np.array(-1, I)}, 18),
    "GatherElements": (
        chain(
            node("Slice", ["x", "s", "e"], "y"),
            node("Cast", ["y"], "k", to=1),
            node("Mul", ["k", "zero"], "z"),
            node("Cast", "z", "i", to=7),
            node("GatherElements", ["x", "i"], ["out"], axis=2),
        ),
        {"s": np.array([0], I), "e": np.array([9], I), "zero": np.float32(0)},
        13,
    ),
    "Pad of attributes": (one("Pad", pads=[0, 0, 1, 2, 0, 0, 0, 3], value=0.5), {}, 10),
    "Pad of inputs": (one("Pad", ["p", "v"]), {"p": np.array([0, 1, 0, 0, 0, 0, 2, 0], I), "v": np.float32(2)}, 18),
    "Pad by reflection": (one("Pad", ["p"], mode="reflect"), {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1], I)}, 18),
    "Pad of axes": (one("Pad", ["p", "", "a"], mode="edge"), {"p": np.array([1, 2], I), "a": np.array([-1], I)}, 18),
    "ConstantOfShape and Range": (
        chain(
            node("Shape", "x", "s"),
            node("ConstantOfShape", "s", "ones", value=onnx.numpy_helper.from_array(np.array([2.0], np.float32))),
            node("Range", ["zero", "eight", "step"], "r"),
            node("Cast", "r", "f", to=1),
            node("Mul", ["ones", "f"], "m"),
            node("Add", ["m", "x"], ["out"]),
        ),
        {"zero": np.array(0, I), "eight": np.array(8, I), "step": np.array(1, I)},
        18,
    ),
    "Trilu": (one("Trilu", ["k"], upper=0), {"k": np.array(1, I)}, 18),
    "CumSum": (one("CumSum", ["a"], reverse=1, exclusive=1), {"a": np.array(2, I)}, 18),
    "DepthToSpace": (one("DepthToSpace", blocksize=2), {}, 18),
    "DepthToSpace CRD": (one("DepthToSpace", blocksize=2, mode="CRD"), {}, 18),
    "SpaceToDepth": (one("SpaceToDepth", blocksize=2), {}, 18),
    "ScatterND": (
        one("ScatterND", ["i", "u"]),
        {"i": np.array([[0, 1], [0, 3]], I), "u": random(2, 6, 8)},
        18,
    ),
    "Resize by factors": (
        one("Resize", ["", "s"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        {"s": np.array([1, 1, 2, 3], np.float32)},
        18,
    ),
    "Resize to sizes": (
        one("Resize", ["", "", "s"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        {"s": np.array([2, 4, 9, 16], I)},
        18,
    ),
    "Resize, opset 10": (one("Resize", ["s"], mode="nearest"), {"s": np.array([1, 1, 2, 2], np.float32)}, 10),
    "Resize, linear": (
        one("Resize", ["", "s"], mode="linear", coordinate_transformation_mode="half_pixel"),
        {"s": np.array([1, 1, 2, 2], np.float32)},
        18,
    ),
    "Resize, aligned": (
        one("Resize", ["", "", "s"], mode="linear", coordinate_transformation_mode="align_corners"),
        {"s": np.array([2, 4, 11, 5], I)},
        18,
    ),
    "Resize of axes": (one("Resize", ["", "s"], mode="nearest", axes=[2, 3]), {"s": np.array([2, 2], np.float32)}, 18),
    "Upsample": (one("Upsample", ["s"], mode="nearest"), {"s": np.array([1, 1, 2, 2], np.float32)}, 9),
    "Attention": ([node("Attention", ["x", "x", "x"], ["out"], scale=0.3)], {}, 23),
    "DequantizeLinear of weights": (
        chain(node("DequantizeLinear", ["q", "s", "z"], "w", axis=0), node("Conv", ["x", "w"], ["out"])),
        {"q": np.arange(-12, 12, dtype=np.int8).reshape(6, 4, 1, 1), "s": np.abs(random(6)) + 0.1, "z": np.zeros(6, np.int8)},
        18,
    ),
    "a weight behind Transpose and Identity": (
        chain(node("Transpose", "w", "t", perm=[1, 0]), node("Identity", "t", "i"), node("MatMul", ["x", "i"], ["out"])),
        {"w": random(5, 8)},
        18,
    ),
    "comparisons": (
        chain(
            node("GreaterOrEqual", ["x", "c"], "a"),
            node("LessOrEqual", ["x", "zero"], "b"),
            node("Or", ["a", "b"], "o"),
            node("Xor", ["a", "o"], "e"),
            node("Equal", ["a", "e"], "q"),
            node("IsNaN", "x", "n"),
            node("Xor", ["q", "n"], "r"),
            node("CastLike", ["r", "x"], "f"),
            node("Dropout", "f", ["out"]),
        ),
        {"c": np.float32(0.1), "zero": np.float32(0)},
        19,
    ),
    "ArgMin": (chain(node("ArgMin", "x", "i", axis=-1, keepdims=0), node("Cast", "i", ["out"], to=1)), {}, 13),
    "GlobalMaxPool": (one("GlobalMaxPool"), {}, 18),
    "LpNormalization": (one("LpNormalization", axis=1), {}, 18),
    "ReduceL1": (one("ReduceL1", axes=[2]), {}, 13),
    "ReduceMin": (one("ReduceMin", ["a"]), {"a": np.array([1], I)}, 18),
    "ReduceSumSquare": (one("ReduceSumSquare", axes=[2, 3]), {}, 13),
    "ScatterElements": (one("ScatterElements", ["i", "u"], axis=0), {"i": np.zeros((1, 4, 6, 8), I), "u": random(1, 4, 6, 8)}, 18),
    "Size": (chain(node("Size", "x", "s"), node("Cast", "s", "f", to=1), node("Div", ["x", "f"], ["out"])), {}, 18),
    "EyeLike": (
        chain(
            node("Slice", ["x", "s", "e", "a"], "y"),
            node("Squeeze", ["y", "ones"], "m"),
            node("EyeLike", "m", "i"),
            node("MatMul", ["i", "x"], ["out"]),
        ),
        {"s": np.array([0, 0, 0], I), "e": np.array([1, 1, 6], I), "a": np.array([0, 1, 3], I), "ones": np.array([0, 1], I)},
        18,
    ),
    "FusedConv and a sum": (one("FusedConv", ["w", "", "x"], MS, activation="Tanh"), {"w": random(4, 4, 1, 1)}, 17),
    "FusedGemm": (
        chain(node("Flatten", "x", "f"), node("FusedGemm", ["f", "w", "b"], ["out"], MS, transB=1, activation="Relu")),
        {"w": random(5, 192), "b": random(5)},
        17,
    ),
    "Gelu of Microsoft": (one("Gelu", domain=MS), {}, 17),
    "FusedConv": (one("FusedConv", ["w", "b"], MS, activation="Relu"), {"w": WEIGHT, "b": BIAS}, 17),
    "FusedMatMul": (one("FusedMatMul", ["w"], MS, transB=1, alpha=0.5), {"w": random(5, 8)}, 17),
    "BiasGelu": (one("BiasGelu", ["b"], MS), {"b": random(8)}, 17),
    "FastGelu": (one("FastGelu", ["b"], MS), {"b": random(8)}, 17),
    "QuickGelu": (one("QuickGelu", domain=MS), {}, 17),
    "SkipLayerNormalization": (
        chain(
            node("Reshape", ["x", "t"], "y"),
            node("SkipLayerNormalization", ["y", "y", "s", "b"], ["z"], MS, epsilon=1e-5),
            node("Identity", "z", ["out"]),
        ),
        {"t": np.array([0, 24, 8], I), "s": random(8), "b": random(8)},
        17,
    ),
    "Attention of ONNX Runtime": (
        chain(
            node("Reshape", ["x", "t"], "y"),
            node("Attention", ["y", "w", "b"], ["z"], MS, num_heads=2, unidirectional=1),
            node("Identity", "z", ["out"]),
        ),
        {"t": np.array([0, 24, 8], I), "w": random(8, 24), "b": random(24)},
        17,
    ),
    "MultiHeadAttention": (
        chain(
            node("Reshape", ["x", "t"], "y"),
            node("MultiHeadAttention", ["y", "y", "y", "b"], ["z"], MS, num_heads=2),
            node("Identity", "z", ["out"]),
        ),
        {"t": np.array([0, 24, 8], I), "b": random(24)},
        17,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnx_runtime_computes(name: str, tmp_path: Path) -> None:
    nodes, constants, opset = CASES[name]
    path = graph_file(tmp_path / "graph.onnx", nodes, {"x": ("FLOAT", ["batch", *X])}, constants, opset=opset)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    module = module_of(path)
    for batch in (2, 3) if name not in ("Resize to sizes", "Resize, aligned") else (2,):
        x = random(batch, *X)
        (expected,) = session.run(["out"], {"x": x})
        with torch.no_grad():
            found = module(torch.from_numpy(x)).numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_every_operator_has_a_case() -> None:
    used = {(one.domain, one.op_type) for nodes, _, _ in CASES.values() for one in nodes}
    split = {(MS, "Attention"), (MS, "FusedConv"), (MS, "FusedGemm"), (MS, "FusedMatMul")}
    parts = {(domain, op) for domain, op in OPERATORS if domain == PARTS}
    assert used - split == OPERATORS.keys() - parts
    assert len(used) > 100


def test_layers_have_the_names_of_the_graph(tmp_path: Path) -> None:
    """Of the weight, of the scope that the exporter wrote into the node's name, or of the node; a name that is taken gets a number."""
    nodes = [
        node("Conv", ["x", "down.0.conv.weight"], "a"),
        node("Conv", ["a", "w"], "b"),
        node("MatMul", ["b", "onnx::MatMul_7"], "c"),
        node("Add", ["c", "to_q.bias"], "d"),
        node("MatMul", ["d", "onnx::MatMul_8"], "e"),
        node("MatMul", ["e", "onnx::MatMul_8"], "out"),
    ]
    nodes[1].name, nodes[4].name, nodes[5].name = "/mid/conv/Conv", "/forward/MatMul", "/forward/MatMul_1"
    weights = {
        "down.0.conv.weight": random(4, 4, 1, 1),
        "w": random(4, 4, 1, 1),
        "onnx::MatMul_7": random(8, 8),
        "onnx::MatMul_8": random(8, 8),
    }
    path = graph_file(tmp_path / "g.onnx", nodes, {"x": ("FLOAT", ["b", *X])}, {**weights, "to_q.bias": random(8)})
    layers = {name: type(part).__name__ for name, part in module_of(path).named_modules() if not list(part.children()) and name}
    assert layers == {"down.0.conv": "Conv2d", "mid.conv": "Conv2d", "to_q": "Linear", "forward_2": "Linear", "forward_3": "Linear"}


def test_a_group_norm_is_one_again(tmp_path: Path) -> None:
    nodes = [
        node("Reshape", ["x", "groups"], "g"),
        node("InstanceNormalization", ["g", "ones", "zeros"], "n"),
        node("Shape", "x", "s"),
        node("Reshape", ["n", "s"], "r"),
        node("Mul", ["r", "w"], "m"),
        node("Add", ["m", "b"], ["out"]),
    ]
    constants = {
        "groups": np.array([0, 2, -1]),
        "ones": np.ones(2, np.float32),
        "zeros": np.zeros(2, np.float32),
        "w": random(4, 1, 1),
        "b": random(1, 4, 1, 1),
    }
    path = graph_file(tmp_path / "g.onnx", nodes, {"x": ("FLOAT", ["b", *X])}, constants)
    module = module_of(path)
    assert [step.node.op for step in module.steps] == ["GroupNormalization"]
    x = random(2, *X)
    scale, bias = (torch.from_numpy(constants[name].reshape(4)) for name in "wb")
    expected = torch.nn.functional.group_norm(torch.from_numpy(x), 2, scale, bias)
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected.numpy(), atol=1e-6)
    assert module.double()(torch.from_numpy(x).double()).dtype == torch.float64
