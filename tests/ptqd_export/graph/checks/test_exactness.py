"""The claim that everything rests on: exported graphs compute what the torch oracle computes, layer by layer and as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.walk.activation_states import States
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.onnxruntime.onnxruntime_session import Mode

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built

CASES = [
    ("class_build", "w8a8"), ("class_build", "w4a8"), ("class_build", "w4a4"), ("class_build", "w3a8"),
    ("cross_build", "w8a8"), ("cross_build", "w4a8"), ("cross_build", "w4a16"),
    ("class_trt_build", "w8a8"), ("class_trt_build", "w4a8"), ("class_trt_build", "w4a4"),
]  # fmt: skip
LAYER_STATES = 16


@dataclass(frozen=True, eq=False)
class Case:
    """One precision of one build, and the states that its activation ranges were found on."""

    built: Built
    precision: str
    layers: list[QuantizedLayer]
    states: States

    def feeds(self, count: int | None = None) -> dict[str, Array]:
        """Of so many of the states, or of all."""
        states = self.states if count is None else self.states.first(count)
        conditioning = self.built.context.model.conditioning
        assert conditioning is not None
        return {"sample": states.samples, "timestep": states.timesteps, **conditioning.feeds(states.rows, guided=False)}

    def oracle(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return fake_quantized(self.built.context.model.adapter.network, self.layers, dtype)

    def torch_out(self, network: nn.Module, count: int | None = None) -> Array:
        """float64 [states, ...]"""
        traced = self.built.context.model.adapter
        dtype = next(network.parameters()).dtype
        inputs = (torch.from_numpy(value) for value in self.feeds(count).values())
        with torch.no_grad():
            out: Tensor = type(traced)(network, traced.conditions)(*(x.to(dtype) if x.is_floating_point() else x for x in inputs))
        return out.double().numpy()

    @cached_property
    def full(self) -> Array:
        """Output in full precision, float64 [states, ...]."""
        return self.torch_out(self.built.context.model.adapter.network)

    @cached_property
    def single(self) -> Array:
        """Output of the oracle in float32, float64 [states, ...]."""
        return self.torch_out(self.oracle())

    @cached_property
    def double(self) -> Array:
        """Output of the oracle in float64, float64 [states, ...]."""
        return self.torch_out(self.oracle(torch.float64))

    @cached_property
    def exact(self) -> Array:
        """Output of the graph as written, float64 [states, ...]."""
        return self._graph_out("exact")

    @cached_property
    def fast(self) -> Array:
        """Output of the graph as it runs, float64 [states, ...]."""
        return self._graph_out("fast")

    def _graph_out(self, mode: Mode) -> Array:
        return OnnxRuntimeEngine(self.built.graph(self.precision), mode=mode, threads=1).run(self.feeds()).astype(np.float64)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    name, precision = request.param
    built: Built = request.getfixturevalue(name)
    return Case(built, precision, built.quantize(precision), States.load(built.stage("states") / "states.npz"))


# Layer by layer, each on its real input


@dataclass
class Seen:
    """What a layer of the oracle was given, before its quantizer, and what it returned, behind its quantizer."""

    x: Array | None = None
    out: Array | None = None


def _watch(oracle: nn.Module, layers: list[QuantizedLayer]) -> dict[str, Seen]:
    seen = {layer.layer.name: Seen() for layer in layers}
    for name, one in seen.items():

        def before(_module: nn.Module, args: tuple[Tensor, ...], one: Seen = one) -> None:
            assert one.x is None, "called twice"
            one.x = args[0].numpy()

        def after(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor, one: Seen = one) -> None:
            one.out = out.numpy()

        module = oracle.get_submodule(name)
        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_hook(after)
    return seen


class Cutter:
    """Cuts layers out of a quantized graph by following names, without the exporter's help."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producer = {name: node for node in model.graph.node for name in node.output}

    def cut(self, layer: QuantizedLayer) -> bytes:
        """A model from the float input of a layer to its output."""
        name = layer.layer.name
        op = self._behind(f"{name}.weight.int", "Cast", "Sub", "DequantizeLinear", "Mul")
        x = op.input[0] if layer.input is None else self._before_pair(op.input[0])
        end = op
        if op.op_type == "MatMul" and f"{name}.bias" in self._initializers:
            (end,) = (node for node in self._users(op.output[0]) if f"{name}.bias" in node.input)
        y = end.output[0] if layer.output is None else self._behind_pair(end.output[0])
        nodes = self._between(x, y)
        read = {value for node in nodes for value in node.input} & set(self._initializers)
        values = (helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in (x, y))
        graph = helper.make_graph(nodes, name, [next(values)], [next(values)], [self._initializers[value] for value in sorted(read)])
        return bytes(helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=10).SerializeToString())

    def _behind(self, value: str, *skipped: str) -> onnx.NodeProto:
        (node,) = self._users(value)
        return self._behind(node.output[0], *skipped) if node.op_type in skipped else node

    def _before_pair(self, value: str) -> str:
        dequantize = self._producer[value]
        quantize = self._producer[dequantize.input[0]]
        assert (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
        clip = self._producer.get(quantize.input[0])
        return str(clip.input[0] if clip is not None and clip.op_type == "Clip" else quantize.input[0])

    def _behind_pair(self, value: str) -> str:
        (quantize,) = self._users(value)
        (dequantize,) = self._users(quantize.output[0])
        assert (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
        return str(dequantize.output[0])

    def _users(self, value: str) -> list[onnx.NodeProto]:
        return [node for node in self._model.graph.node if value in node.input]

    def _between(self, begin: str, end: str) -> list[onnx.NodeProto]:
        needed, kept = {end}, []
        for node in reversed(self._model.graph.node):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input) - {begin}
        return kept[::-1]


def _run_exact(model: bytes, x: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    (out,) = session.run(None, {name: x})
    return np.asarray(out)


def test_every_layer_computes_what_its_oracle_computes(case: Case) -> None:
    oracle = case.oracle()
    seen = _watch(oracle, case.layers)
    case.torch_out(oracle, LAYER_STATES)
    cutter = Cutter(onnx.load(case.built.graph(case.precision)))
    moved, elements = 0, 0
    for layer in case.layers:
        x, expected = seen[layer.layer.name].x, seen[layer.layer.name].out
        assert x is not None
        assert expected is not None
        found = _run_exact(cutter.cut(layer), x)
        assert found.shape == expected.shape
        if layer.output is None:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=layer.layer.name)
            continue
        steps = np.abs(found.astype(np.float64) - expected) / layer.output.scale
        assert steps.max() < 1.001, layer.layer.name
        moved, elements = moved + int((steps > 1e-3).sum()), elements + steps.size
    assert moved <= 1e-3 * elements
    assert elements > (100_000 if any(layer.rule.output_bits for layer in case.layers) else -1)


# The whole network


def _power(difference: Array) -> Array:
    """[states]"""
    return np.asarray(np.mean(difference**2, axis=(1, 2, 3)))


def test_whole_network_is_as_far_from_double_precision_as_torch_is(case: Case) -> None:
    """Compared state by state, within 1 dB: a value at a tie that falls the other way carries nearly all of a mean over states."""
    floats = 1e-8 * _power(case.double)  # 80 dB below: nothing fell the other way
    graph, rounding = (np.maximum(_power(out - case.double), floats) for out in (case.exact, case.single))
    states = len(case.double)
    assert states >= 60
    assert (graph > 10**0.1 * rounding).sum() <= states / 2 + 2 * np.sqrt(states)  # four standard deviations of a fair coin
    assert (graph == floats).sum() >= (rounding == floats).sum() - 2 * np.sqrt(states)


def test_quantization_noise_is_that_of_the_oracle(case: Case) -> None:
    noise = _power(case.double - case.full).mean()
    for out in (case.exact, case.fast):
        assert abs(10 * np.log10(_power(out - case.full).mean() / noise)) < 0.5
        assert _power(out - case.double).mean() < 0.2 * noise


def test_statistics_of_the_fast_graph_are_those_of_the_oracle_within_sampling_error(case: Case) -> None:
    (k, log_s2), errors = _split(case.full, case.single), _jackknife(case.full, case.single)
    k_fast, log_s2_fast = _split(case.full, case.fast)
    assert abs(k_fast - k) < 2 * errors[0]
    assert abs(log_s2_fast - log_s2) < 2 * errors[1]


def _split(e: Array, q: Array) -> Array:
    """`k` of `q - e = k e + r`, and the logarithm of the variance of `r`, each channel about its mean."""
    d, e = (value - value.mean(axis=(0, 2, 3), keepdims=True) for value in (q - e, e))
    k = (d * e).mean() / (e**2).mean()
    return np.array([k, np.log(np.mean((d - k * e) ** 2))])


def _jackknife(e: Array, q: Array) -> Array:
    """Standard errors of `_split`: leave one state out at a time."""
    n = len(e)
    left_out = np.stack([_split(np.delete(e, i, axis=0), np.delete(q, i, axis=0)) for i in range(n)])
    return np.asarray(np.sqrt((n - 1) * left_out.var(axis=0)))
