"""Transposed weights of linear layers are stored as they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ptqd_export.graph.reading.transposed_weights import TransposedWeights, transposed

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

    Parse = Callable[[str], ir.Model]
    Run = Callable[..., Array]

WEIGHT = "float[2,3] w = {1, 2, 3, 4, 5, 6}"


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_weight_is_transposed_once_for_all_its_readers(parse_graph: Parse, run_graph: Run) -> None:
    model = parse_graph(f"""
        g (float[N,4,3] x) => (float[N,4,2] out) <{WEIGHT}>
        {{ t = Transpose <perm = [1, 0]> (w) a = MatMul (x, t) x2 = Neg (x) b = MatMul (x2, t) c = Relu (b) out = Add (a, c) }}""")
    x = np.random.default_rng(0).standard_normal((2, 4, 3), dtype=np.float32)
    before = run_graph(model, {"x": x})
    assert TransposedWeights()(model).modified
    assert "Transpose" not in _ops(model)
    stored = model.graph.initializers["w.T"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), [[1, 4], [2, 5], [3, 6]])
    assert [node.inputs[1].name for node in model.graph if node.op_type == "MatMul" and node.inputs[1]] == ["w.T", "w.T"]
    np.testing.assert_array_equal(run_graph(model, {"x": x}), before)


def test_two_transpositions_of_one_weight_share_the_initializer(parse_graph: Parse, run_graph: Run) -> None:
    model = parse_graph(f"""
        g (float[N,3] x) => (float[N,2] out) <{WEIGHT}>
        {{ t = Transpose (w) a = MatMul (x, t) u = Transpose <perm = [1, 0]> (w) b = MatMul (x, u) out = Add (a, b) }}""")
    x = np.ones((1, 3), dtype=np.float32)
    before = run_graph(model, {"x": x})
    TransposedWeights()(model)
    assert _ops(model) == ["MatMul", "MatMul", "Add"]
    assert list(model.graph.initializers) == ["w", "w.T"]
    np.testing.assert_array_equal(run_graph(model, {"x": x}), before)


def test_activations_and_weights_of_other_ranks_are_left_alone(parse_graph: Parse) -> None:
    model = parse_graph("""
        g (float[N,2,3] x) => (float[N,3,3] out) <float[1,2,3] w = {1, 2, 3, 4, 5, 6}>
        { t = Transpose <perm = [0, 2, 1]> (x) s = Add (x, w) out = MatMul (t, s) }""")
    assert not TransposedWeights()(model).modified
    assert _ops(model) == ["Transpose", "Add", "MatMul"]


def test_the_transpose_is_read_from_the_matrix_itself() -> None:
    """It is no copy: a change of the matrix shows."""
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = transposed(ir.tensor(matrix))
    matrix += 1
    np.testing.assert_array_equal(found.numpy(), matrix.T)
    assert found.tobytes() == np.ascontiguousarray(matrix.T).tobytes()
