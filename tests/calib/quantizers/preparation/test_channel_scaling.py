"""Factors in closed form, scaling that changes no output, and what it is worth where one channel sticks out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.observers import observe_activations
from calib.quantizers.oracle import fake_quantized
from calib.quantizers.preparation.channel_scaling import (
    LARGEST_FACTOR,
    ScalableChannels,
    observe_channels,
    scale_channels,
    scaled_parameters,
    scaling_factors,
    smoothing_factors,
)
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import PLACEMENTS
from calib.quantizers.rules.precision import Precision


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# Factors


def test_exponent_half_makes_ranges_of_inputs_and_weights_proportional() -> None:
    x, w = torch.tensor([1.0, 4.0, 16.0]), torch.tensor([1.0, 1.0, 4.0])
    s = smoothing_factors(x, w, 0.5)
    ratio = (x / s) / (w * s)
    torch.testing.assert_close(ratio, ratio[0].expand(3))
    torch.testing.assert_close(s, torch.tensor([1.0, 2.0, 2.0]) / 4 ** (1 / 3))


def test_exponent_one_equals_activations_and_zero_equals_weights() -> None:
    x, w = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2.0, 7.0, 1.0])
    even = x / smoothing_factors(x, w, 1.0)
    torch.testing.assert_close(even, even[0].expand(3))
    even = w * smoothing_factors(x, w, 0.0)
    torch.testing.assert_close(even, even[0].expand(3))


def test_geometric_mean_of_the_factors_is_one() -> None:
    x, w = (torch.rand(50) + 0.1 for _ in range(2))
    assert smoothing_factors(x, w, 0.7).log().mean().item() == pytest.approx(0, abs=1e-6)


def test_dead_channels_keep_their_scale_and_do_not_move_the_others() -> None:
    x, w = torch.tensor([1.0, 4.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    s = smoothing_factors(x, w, 0.5)
    assert s[2:].tolist() == [1.0, 1.0]
    torch.testing.assert_close(s[:2], smoothing_factors(x[:2], w[:2], 0.5))
    assert smoothing_factors(torch.zeros(2), torch.ones(2), 0.5).tolist() == [1.0, 1.0]


def test_factors_are_bounded() -> None:
    s = smoothing_factors(torch.tensor([1e-30, 1.0, 1e30]), torch.ones(3), 1.0)
    torch.testing.assert_close(s, torch.tensor([1 / LARGEST_FACTOR, 1.0, LARGEST_FACTOR]))


# Scaling


class Norms(nn.Module):
    """A norm before two linear layers, a group norm before a convolution, and a gated pair of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query, self.key = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(6, 8, bias=False)
        self.group, self.conv = nn.GroupNorm(2, 8), nn.Conv1d(8, 10, 3, padding=1)
        self.gated, self.last = nn.Linear(10, 2 * 4), nn.Linear(4, 3)
        for norm in (self.norm, self.group):
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.conv(self.group((self.query(h) + self.key(h)).mT)).mT
        left, gate = self.gated(h).chunk(2, dim=-1)
        out: Tensor = self.last(left * torch.sigmoid(gate))
        return out


CHANNELS = [
    (ScalableChannels("norm", 0, ("key", "query")), 6),
    (ScalableChannels("group", 0, ("conv",)), 8),
    (ScalableChannels("gated", 0, ("last",)), 4),
]


@pytest.mark.parametrize(("channels", "count"), CHANNELS, ids=[case[0].producer for case in CHANNELS])
def test_scaling_changes_parameters_and_no_output(channels: ScalableChannels, count: int) -> None:
    network = Norms().requires_grad_(False)
    x = torch.randn(3, 5, 6)
    expected, before = network(x), {name: value.clone() for name, value in network.named_parameters()}
    scale_channels(network, channels, torch.logspace(-1, 1, count))
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(scaled_parameters(network, [channels]))


def test_only_the_channels_from_the_first_on_are_divided() -> None:
    network = Norms().requires_grad_(False)
    before = network.gated.weight.clone()
    scale_channels(network, ScalableChannels("gated", 4, ("last",)), torch.full((4,), 2.0))
    torch.testing.assert_close(network.gated.weight[:4], before[:4], rtol=0, atol=0)
    torch.testing.assert_close(network.gated.weight[4:], before[4:] / 2, rtol=0, atol=0)


def test_factors_see_the_weights_of_all_readers() -> None:
    network = Norms()
    with torch.no_grad():
        network.query.weight.fill_(0.5)
        network.key.weight.fill_(0.25)
        network.key.weight[0, 2] = -8.0
    s = scaling_factors(network, CHANNELS[0][0], torch.ones(6), 0.5)
    expected = smoothing_factors(torch.ones(6), torch.tensor([0.5, 0.5, 8.0, 0.5, 0.5, 0.5]), 0.5)
    torch.testing.assert_close(s, expected)


@pytest.mark.parametrize("name", ["query", "conv"])
def test_largest_magnitude_of_every_channel_is_over_all_calls(name: str) -> None:
    network, inputs = Norms(), [torch.randn(3, 5, 6) * (1 + i) for i in range(3)]
    seen_inputs: list[Tensor] = []
    watch = network.get_submodule(name).register_forward_pre_hook(lambda _module, args: seen_inputs.append(args[0]))
    with observe_channels(network, [name]) as seen, torch.no_grad():
        for x in inputs:
            network(x)
    watch.remove()
    kept = (0, 2) if name == "conv" else (0, 1)
    torch.testing.assert_close(seen[name], torch.stack([x.abs().amax(kept) for x in seen_inputs]).amax(0), rtol=0, atol=0)
    assert not network.get_submodule(name)._forward_pre_hooks


# What it is worth


class Outlier(nn.Module):
    """Channel 3 behind the norm is fifty times the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(32), nn.Linear(32, 16)
        with torch.no_grad():
            self.norm.weight[3] = 50
            self.fc.weight[:, 3] /= 50

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(x))
        return out


def _snr_db(change: Callable[[nn.Module, Tensor], object], precision: str) -> float:
    torch.manual_seed(0)
    network, x = Outlier().requires_grad_(False), torch.randn(512, 32)
    expected = network(x)
    change(network, x)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    layers = [Layer("fc", "MatMul", "inner", (16, 32), 1, "fc")]
    with observe_activations(network, ["fc"], ["fc"], 1) as seen:
        network(x)
    quantizer = Quantizer(network, layers, seen, PLACEMENTS["onnxruntime"], QuantizationSettings())
    found = fake_quantized(network, quantizer.quantize(Precision.parse(precision)))(x)
    return float(10 * torch.log10(expected.square().mean() / (found - expected).square().mean()))


def _scale(network: nn.Module, x: Tensor) -> None:
    channels = ScalableChannels("norm", 0, ("fc",))
    with observe_channels(network, ["fc"]) as seen:
        network(x)
    scale_channels(network, channels, scaling_factors(network, channels, seen["fc"], 0.5))


@pytest.mark.parametrize("precision", ["w8a8", "w8a4"])
def test_outlier_channel_behind_a_norm_gains_ten_decibels(precision: str) -> None:
    assert _snr_db(_scale, precision) > _snr_db(lambda *_: None, precision) + 10
