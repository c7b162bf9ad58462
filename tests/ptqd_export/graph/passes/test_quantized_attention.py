"""Q/DQ around the products of attention, traced from PyTorch's own function and held against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from calib.quantizers.attention.quantized_attention import QuantizedAttention, fake_attention, weights_quantizer
from calib.quantizers.quantizers import ActivationQuantizer, Float8ActivationQuantizer
from calib.quantizers.rules.precision import Form
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.graph.trace import trace_module
from tests.ptqd_export.graph.passes.quantized_networks import TRT
from tests.ptqd_export.graph.passes.test_attention import Attending, tokens

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

    Run = Callable[..., Array]

MASKS = {
    "none": None,
    "added": torch.linspace(-1, 1, 35).reshape(5, 7),
    "of tokens": torch.arange(35).reshape(5, 7) % 4 > 0,
}


@pytest.fixture(scope="module", params=list(MASKS))
def attending(request: pytest.FixtureRequest) -> tuple[Attending, ir.Model]:
    module = Attending(MASKS[request.param])
    return module, trace_module(module, tokens(2))


def _quantized(form: Form) -> QuantizedAttention:
    """Scales that clip a few of the values, so that they show in the output."""
    query, key, value = (_quantizer(form, largest) for largest in (3.0, 2.5, 4.0))
    return QuantizedAttention(0, "attn", query, key, value, weights_quantizer(form))


def _quantizer(form: Form, largest: float) -> ActivationQuantizer:
    return Float8ActivationQuantizer.of(largest) if form == "e4m3" else ActivationQuantizer(8, True, float(np.float32(largest / 127)), 0)


@pytest.mark.parametrize("form", ["integer", "e4m3"])
def test_graph_computes_what_the_oracle_computes(attending: tuple[Attending, ir.Model], run_graph: Run, form: Form) -> None:
    module, traced = attending
    model, one, feeds = traced.clone(), _quantized(form), tokens(3)
    assert InsertQuantization([], TRT, [one])(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    with fake_attention([one]):
        expected = module(**feeds).numpy()
    full = module(**feeds).numpy()
    found = run_graph(model, {name: value.numpy() for name, value in feeds.items()})
    noise = np.abs(expected - full).mean()
    assert noise > 1e-3 * np.abs(full).mean()
    assert np.abs(found - expected).mean() < 0.01 * noise


@pytest.mark.parametrize("form", ["integer", "e4m3"])
def test_nothing_lies_between_a_pair_and_its_product(attending: tuple[Attending, ir.Model], form: Form) -> None:
    model, one = attending[1].clone(), _quantized(form)
    InsertQuantization([], TRT, [one])(model)
    dequantized = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(dequantized) == 4
    for node in dequantized:
        assert [use.node.op_type for use in node.outputs[0].uses()] == ["MatMul"]
        quantize = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert quantize is not None
        assert quantize.op_type == "QuantizeLinear"
