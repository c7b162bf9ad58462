"""Initializers are named as in the network's state dict."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ptqd_export.graph.passes.parameter_names import ParameterNames

Parse = Callable[[str], ir.Model]


def _model(parse: Parse) -> ir.Model:
    model = parse("""
        g (float[N,2] x) => (float[N,2] out) <float[2,2] w = {1, 2, 3, 4}, float[2] b = {5, 6}, float[2] other = {7, 8}>
        { h = MatMul (x, w) i = Add (h, b) out = Add (i, other) }""")
    for old, new in (("w", "network.fc.weight"), ("b", "network.fc.bias"), ("other", "my.network.scale")):
        model.graph.initializers[old].name = new
    return model


def test_prefix_is_stripped_and_nothing_else(parse_graph: Parse) -> None:
    model = _model(parse_graph)
    assert ParameterNames("network.")(model).modified
    assert set(model.graph.initializers) == {"fc.weight", "fc.bias", "my.network.scale"}
    assert {name: value.name for name, value in model.graph.initializers.items()} == {name: name for name in model.graph.initializers}


def test_nodes_read_the_renamed_initializers(parse_graph: Parse) -> None:
    model = _model(parse_graph)
    ParameterNames("network.")(model)
    read = [node.inputs[1].name for node in model.graph if node.inputs[1] is not None]
    assert read == ["fc.weight", "fc.bias", "my.network.scale"]


def test_graph_without_the_prefix_is_left_alone(parse_graph: Parse) -> None:
    model = _model(parse_graph)
    assert not ParameterNames("elsewhere.")(model).modified
    assert set(model.graph.initializers) == {"network.fc.weight", "network.fc.bias", "my.network.scale"}
