"""Group norms written with other operators, against the operator and against the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import torch

from ptqd_export.graph.passes.group_norm import GroupNormToInstanceNorm, normalized_input

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

    Parse = Callable[[str], ir.Model]
    Run = Callable[..., Array]

SCALE, BIAS = [1.0, -2.0, 0.5, 3.0, 0.1, 1.0], [0.0, 1.0, -1.0, 2.0, 0.0, 5.0]
PARAMETERS = f"float[6] scale = {{{str(SCALE)[1:-1]}}}, float[6] bias = {{{str(BIAS)[1:-1]}}}"


def _norm(parse: Parse, shape: str, attributes: str = "num_groups = 3, epsilon = 0.001") -> ir.Model:
    return parse(
        f"g (float[N,{shape}] x) => (float[N,{shape}] out) <{PARAMETERS}> {{ out = GroupNormalization <{attributes}> (x, scale, bias) }}"
    )


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _random(*shape: int) -> Array:
    return (3 * np.random.default_rng(0).standard_normal(shape) + 1).astype(np.float32)


@pytest.mark.parametrize("spatial", [(7,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_computes_what_the_operator_computes_at_every_rank(
    parse_graph: Parse, run_graph: Run, spatial: tuple[int, ...], batch: int
) -> None:
    model, x = _norm(parse_graph, ",".join(map(str, (6, *spatial)))), _random(batch, 6, *spatial)
    before = run_graph(model, {"x": x})
    assert GroupNormToInstanceNorm()(model).modified
    assert sorted(set(_ops(model))) == ["BatchNormalization", "InstanceNormalization", "Reshape"]
    after = run_graph(model, {"x": x})
    np.testing.assert_allclose(after, before, atol=1e-6 * np.abs(before).max(), rtol=0)
    formula = torch.group_norm(torch.from_numpy(x).double(), 3, torch.tensor(SCALE).double(), torch.tensor(BIAS).double(), 0.001)
    np.testing.assert_allclose(after, formula.numpy(), atol=2e-6 * np.abs(before).max(), rtol=0)


def test_epsilon_that_the_node_does_not_say_is_the_operators_own(parse_graph: Parse, run_graph: Run) -> None:
    model, x = _norm(parse_graph, "6,4,5", "num_groups = 3"), 1e-3 * _random(2, 6, 4, 5)
    before = run_graph(model, {"x": x})
    GroupNormToInstanceNorm()(model)
    np.testing.assert_allclose(run_graph(model, {"x": x}), before, atol=1e-5)


def test_output_keeps_its_name_type_and_shape(parse_graph: Parse) -> None:
    model = _norm(parse_graph, "6,4,5")
    before = model.graph.outputs[0]
    GroupNormToInstanceNorm()(model)
    after = model.graph.outputs[0]
    assert (after.name, after.dtype, str(after.shape)) == (before.name, before.dtype, str(before.shape))


def test_scale_shared_by_norms_of_different_rank_serves_both(parse_graph: Parse, run_graph: Run) -> None:
    model = parse_graph(f"""
        g (float[N,6,4,5] x) => (float[N,6,20] out) <{PARAMETERS}, int64[3] flat = {{0, 6, 20}}, float[N,6,4,5] a, float[N,6,20] b>
        {{
            a = GroupNormalization <num_groups = 3> (x, scale, bias)
            b = Reshape (a, flat)
            out = GroupNormalization <num_groups = 2> (b, scale, bias)
        }}""")
    x = _random(2, 6, 4, 5)
    before = run_graph(model, {"x": x})
    GroupNormToInstanceNorm()(model)
    np.testing.assert_allclose(run_graph(model, {"x": x}), before, atol=1e-5)


def test_constants_of_equal_norms_are_stored_once(parse_graph: Parse) -> None:
    model = parse_graph(f"""
        g (float[N,6,4,5] x) => (float[N,6,4,5] out) <{PARAMETERS}, float[N,6,4,5] a>
        {{
            a = GroupNormalization <num_groups = 3> (x, scale, bias)
            out = GroupNormalization <num_groups = 3> (a, scale, bias)
        }}""")
    GroupNormToInstanceNorm()(model)
    added = set(model.graph.initializers) - {"scale", "bias"}
    assert added == {"norm.ones.3", "norm.zeros.3", "norm.ones.6", "norm.zeros.6", "norm.shape.3.-1", "norm.shape.6.4.5"}


def test_graph_without_group_norms_is_left_alone(parse_graph: Parse) -> None:
    model = parse_graph("g (float[N,6] x) => (float[N,6] out) { out = Relu (x) }")
    assert not GroupNormToInstanceNorm()(model).modified
    assert _ops(model) == ["Relu"]


def test_rewritten_norm_leads_back_to_what_it_normalizes(parse_graph: Parse) -> None:
    model = _norm(parse_graph, "6,4,4")
    GroupNormToInstanceNorm()(model)
    found = [normalized_input(node) for node in model.graph]
    assert [value for value in found if value is not None] == [model.graph.inputs[0]]
    assert [node.op_type for node, value in zip(model.graph, found, strict=True) if value is not None] == ["Reshape"]
