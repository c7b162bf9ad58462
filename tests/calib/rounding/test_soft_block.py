"""A block while it is learned: where it starts, what it shares, and what it becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.low_rank_branch import low_rank_branch
from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule
from calib.quantizers.scale_search import weight_scale
from calib.rounding.adaround import SoftRounding
from calib.rounding.learned_scale import LearnedScale
from calib.rounding.soft_block import SoftBlock

INPUT = ActivationQuantizer(4, signed=False, scale=0.3, zero_point=7)
OUTPUT = ActivationQuantizer(8, signed=False, scale=0.02, zero_point=120)
RULE = Rule(3, 4, 8, "float")


class Gate(nn.Module):
    """Two layers that read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x) * self.b(x)
        return out


@pytest.fixture
def gate() -> Gate:
    torch.manual_seed(0)
    gate = Gate()
    gate.requires_grad_(False)
    return gate


@pytest.fixture
def layers(gate: Gate) -> dict[str, QuantizedLayer]:
    def layer(name: str, module: nn.Linear) -> QuantizedLayer:
        quantizer = weight_scale(module.weight, 3)
        described = Layer(f"gate.{name}", "Gemm", "inner", (4, 6), 24, source="gate.a")
        return QuantizedLayer(described, RULE, quantizer.integers(module.weight), quantizer, INPUT, OUTPUT, module.bias)

    return {"a": layer("a", gate.a), "b": layer("b", gate.b)}


@pytest.fixture
def soft(gate: Gate, layers: dict[str, QuantizedLayer]) -> SoftBlock:
    weights = {"a": gate.a.weight, "b": gate.b.weight}
    return SoftBlock(gate, layers, weights, SoftRounding, torch.device("cpu"))


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) / 4


def _scale_of_input(soft: SoftBlock) -> LearnedScale:
    found = soft.scales["gate.a.input"]
    assert isinstance(found, LearnedScale)
    return found


def test_it_starts_with_the_clipped_float_weights_between_fake_quantizers(
    gate: Gate, layers: dict[str, QuantizedLayer], soft: SoftBlock
) -> None:
    x = INPUT.fake(X)
    scales = {name: layer.weight.scale[:, None] for name, layer in layers.items()}
    with soft.attached():
        found = soft(((X,), {})).detach()
    a, b = (weight.clamp(-4 * scale, 3 * scale) for weight, scale in ((gate.a.weight, scales["a"]), (gate.b.weight, scales["b"])))
    torch.testing.assert_close(found, OUTPUT.fake(x @ a.T + gate.a.bias) * OUTPUT.fake(x @ b.T + gate.b.bias))


def test_layers_of_one_source_share_its_scale(soft: SoftBlock) -> None:
    assert set(soft.scales) == {"gate.a.input", "gate.a.output", "gate.b.output"}
    with torch.no_grad():
        _scale_of_input(soft).a.fill_(0.1)
    hardened = soft.hardened()
    assert hardened["a"].input == hardened["b"].input != INPUT
    assert hardened["a"].output == hardened["b"].output


def test_decided_block_computes_what_the_oracle_computes(gate: Gate, soft: SoftBlock) -> None:
    with torch.no_grad():
        for rounding in soft.weights.values():
            assert isinstance(rounding, SoftRounding)
            rounding.V.copy_(40 * torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).sign())
        _scale_of_input(soft).a.fill_(-0.2)
        with soft.attached():
            found = soft(((X,), {}))
        network = nn.ModuleDict({"gate": gate})
        expected = fake_quantized(network, soft.hardened().values()).get_submodule("gate")(X)
    torch.testing.assert_close(found, expected)


def test_rounding_of_the_rest_is_learned_beside_a_branch(gate: Gate, layers: dict[str, QuantizedLayer]) -> None:
    branch = low_rank_branch(gate.a.weight, 2, torch.randn(32, 1, 6, generator=torch.Generator().manual_seed(3)))
    rest = branch.rest_of(gate.a.weight)
    quantizer = weight_scale(rest, 3)
    layers["a"] = replace(layers["a"], branch=branch, weight=quantizer, integers=quantizer.integers(rest), output=None)
    soft = SoftBlock(gate, layers, {"a": rest, "b": gate.b.weight}, SoftRounding, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(soft.weights["a"](), rest.clamp(-4 * quantizer.scale[:, None], 3 * quantizer.scale[:, None]))
        for rounding in soft.weights.values():
            assert isinstance(rounding, SoftRounding)
            rounding.V.copy_(40 * torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).sign())
        with soft.attached():
            found = soft(((X,), {}))
        network = nn.ModuleDict({"gate": gate})
        hardened = soft.hardened()
        expected = fake_quantized(network, hardened.values()).get_submodule("gate")(X)
    assert hardened["a"].branch is branch
    torch.testing.assert_close(found, expected)
    assert not gate.a._forward_hooks


def test_module_is_lent(gate: Gate, soft: SoftBlock) -> None:
    before = gate(X)
    with soft.attached():
        assert not torch.equal(soft(((X,), {})), before)
    assert torch.equal(gate(X), before)
