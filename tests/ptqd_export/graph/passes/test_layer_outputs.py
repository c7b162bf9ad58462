"""Every weighted layer shows its output, and the runtime runs the graph as before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from calib.walk.activation_states import States
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine, run_outputs
from engines.backends.onnxruntime.onnxruntime_session import open_session, session_config
from ptqd_export.graph.checks.integer_kernels import INTEGER_OPS
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.layer_outputs import SHOWN, ShowLayerOutputs

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built, Feeds

KERNEL = "float[1, 1, 1, 1]"
CHAIN = f"""chain (float[1, 1, 4, 4] sample, {KERNEL} a_weight, {KERNEL} b_parts_0_weight, {KERNEL} b_parts_1_weight)
    => (float[1, 1, 4, 4] out) {{
    scale = Constant <value_float = 0.125> ()
    zero = Constant <value = int8 {{0}}> ()
    a = Conv(sample, a_weight)
    a_q = QuantizeLinear(a, scale, zero)
    a_dq = DequantizeLinear(a_q, scale, zero)
    b0 = Conv(a_dq, b_parts_0_weight)
    b1 = Conv(sample, b_parts_1_weight)
    b1_q = QuantizeLinear(b1, scale, zero)
    b1_dq = DequantizeLinear(b1_q, scale, zero)
    b = Add(b0, b1_dq)
    out = Neg(b)
}}"""
WEIGHTS = {"a.weight": 0.3, "b.parts.0.weight": 2.0, "b.parts.1.weight": -1.0}


@pytest.fixture
def chain(parse_graph: Callable[[str], ir.Model], tmp_path: Path) -> Path:
    """`out = -(2 Q(0.3 x) + Q(-x))`, saved with every layer shown."""
    model = parse_graph(CHAIN)
    for value in list(model.graph.inputs)[1:]:
        value.name = str(value.name).replace("_", ".")
        value.const_value = ir.tensor(np.full((1, 1, 1, 1), WEIGHTS[value.name], np.float32))
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    assert ShowLayerOutputs()(model).modified
    ir.save(model, tmp_path / "chain.onnx")
    return tmp_path / "chain.onnx"


def test_what_is_shown_is_what_the_next_layer_reads(chain: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1, 1, 4, 4)).astype(np.float32)
    found = run_outputs(chain, {"sample": x}, "exact")
    assert list(found) == ["out", "shown.a", "shown.b"]

    def grid(value: Array) -> Array:
        return np.round(value / 0.125) * 0.125

    np.testing.assert_allclose(found["shown.a"], grid(np.float32(0.3) * x), atol=1e-6)
    np.testing.assert_allclose(found["shown.b"], 2 * grid(np.float32(0.3) * x) + grid(-x), atol=1e-6)
    np.testing.assert_allclose(found["out"], -found["shown.b"], atol=1e-6)


@pytest.fixture
def class_feeds(class_build: Built) -> Feeds:
    """Two samples."""
    states = States.load(class_build.stage("states") / "states.npz").first(2)
    conditioning = class_build.context.model.conditioning
    assert conditioning is not None
    return {"sample": states.samples, "timestep": states.timesteps, **conditioning.feeds(states.rows, guided=False)}


def kernels(graph: Path, folder: Path) -> Counter[str]:
    """Operators with weights that the runtime really runs."""
    open_session(graph, session_config("fast"), optimized=folder / "optimized.onnx")
    ops = Counter(node.op_type for node in ir.load(folder / "optimized.onnx").graph)
    return Counter({op: ops[op] for op in (*INTEGER_OPS, "Conv", "FusedConv", "Gemm") if ops[op]})


@pytest.mark.parametrize("precision", ["w8a8", "w4a4", "fp32"])
def test_every_layer_of_a_network_is_shown_and_the_runtime_fuses_as_before(
    class_build: Built, class_feeds: Feeds, tmp_path: Path, precision: str
) -> None:
    model = ir.load(class_build.graph(precision))
    ShowLayerOutputs()(model)
    shown = tmp_path / "shown.onnx"
    save_graph(model, shown)
    outputs = run_outputs(shown, class_feeds)
    names = {name.partition(".parts.")[0] for name in (layer.name for layer in class_build.network.layers)}
    assert {name.removeprefix(SHOWN) for name in outputs if name.startswith(SHOWN)} == names
    assert kernels(shown, tmp_path) == kernels(class_build.graph(precision), tmp_path)
    whole = OnnxRuntimeEngine(class_build.graph(precision), threads=1).run(class_feeds)
    np.testing.assert_allclose(outputs["out"], whole, atol=1e-5)
