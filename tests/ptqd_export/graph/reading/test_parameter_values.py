"""Parameters written over initializers, transposed where those are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from ptqd_export.graph.reading.parameter_values import ParameterValues, parameter_name

TEXT = """
    g (float[N,2,3] x) => (float[N,2,2] out)
    <float[2,2] fc = {1, 2, 3, 4}, float[2,1] scale = {5, 6}, float[3,2] linear = {1, 2, 3, 4, 5, 6}, float[2] other = {7, 8}>
    { a = Mul (x, scale) b = MatMul (a, linear) c = MatMul (b, fc) out = Add (c, other) }"""
NAMES = {"fc": "fc.weight", "scale": "norm.weight", "linear": "linear.weight.T", "other": "fc.bias"}


@pytest.fixture
def model(parse_graph: Callable[[str], ir.Model]) -> ir.Model:
    model = parse_graph(TEXT)
    for old, new in NAMES.items():
        model.graph.initializers[old].name = new
    return model


@pytest.mark.parametrize(
    ("initializer", "parameter"),
    [("fc.weight", "fc.weight"), ("fc.weight.T", "fc.weight"), ("a.T.weight", "a.T.weight")],
)
def test_name_of_the_parameter_that_an_initializer_holds(initializer: str, parameter: str) -> None:
    assert parameter_name(initializer) == parameter


def test_values_take_the_form_of_the_initializer(model: ir.Model) -> None:
    linear = np.arange(6, dtype=np.float32).reshape(2, 3)
    values = {"fc.weight": np.eye(2, dtype=np.float32), "norm.weight": np.array([[9], [10]], np.float32), "linear.weight": linear}
    assert ParameterValues({**values, "unknown": linear})(model).modified
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value is not None}
    np.testing.assert_array_equal(stored["fc.weight"], np.eye(2))
    np.testing.assert_array_equal(stored["norm.weight"], [[9], [10]])
    np.testing.assert_array_equal(stored["linear.weight.T"], linear.T)
    np.testing.assert_array_equal(stored["fc.bias"], [7, 8])


def test_nothing_to_write_changes_nothing(model: ir.Model) -> None:
    assert not ParameterValues({"unknown": np.zeros(1, np.float32)})(model).modified
