"""Groups of steps: how steps are divided, and what a network gains whose activations shrink with the timestep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.observers import ObservedActivations, observe_activations
from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import PLACEMENTS
from calib.quantizers.rules.precision import Precision
from calib.quantizers.step_groups import StepGroup, equal_groups, with_activations

TIMESTEPS = np.array([900.0, 700.0, 500.0, 300.0, 100.0])
LAYER = Layer("linear", "Gemm", "inner", (8, 16), 128, "linear")


@pytest.mark.parametrize(
    ("steps", "count", "groups"),
    [
        (range(5), 1, [((0, 1, 2, 3, 4), math.inf)]),
        (range(5), 2, [((0, 1), math.inf), ((2, 3, 4), 600.0)]),
        (range(5), 5, [((0,), math.inf), ((1,), 800.0), ((2,), 600.0), ((3,), 400.0), ((4,), 200.0)]),
        ([0, 3, 4], 2, [((0,), math.inf), ((3, 4), 600.0)]),
        ([1, 2], 8, [((1,), math.inf), ((2,), 600.0)]),
    ],
)
def test_steps_are_divided_evenly_and_bounds_lie_halfway(
    steps: Sequence[int], count: int, groups: list[tuple[tuple[int, ...], float]]
) -> None:
    assert equal_groups(steps, count, TIMESTEPS) == [StepGroup(*group) for group in groups]


class Shrinking(nn.Module):
    """A layer whose input is normal with a standard deviation of `scale`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return torch.as_tensor(self.linear(scale * x))


def observed(network: nn.Module, scales: Sequence[float]) -> dict[str, ObservedActivations]:
    generator = torch.Generator().manual_seed(1)
    with observe_activations(network, ["linear"], ["linear"], len(scales)) as seen, torch.no_grad():
        for scale in scales:
            network(torch.randn(512, 16, generator=generator), scale)
    return seen


def test_a_network_whose_activations_shrink_with_the_timestep_gains_and_keeps_its_weights() -> None:
    torch.manual_seed(0)
    network, scales = Shrinking(), (1.0, 0.03)
    seen = [observed(network, [scale]) for scale in scales]
    together = {name: ObservedActivations.together(one[name] for one in seen) for name in seen[0]}
    whole, *groups = (
        Quantizer(network, [LAYER], of_states, PLACEMENTS["onnxruntime"], QuantizationSettings()) for of_states in (together, *seen)
    )
    layers = whole.quantize(Precision.parse("w8a4"), others=groups)
    x = torch.randn(2048, 16, generator=torch.Generator().manual_seed(2))
    for scale, quantizer, gain in zip(scales, groups, (0.0, 15.0), strict=True):
        own = [with_activations(layer, quantizer) for layer in layers]
        assert [(one.integers, one.weight) for one in own] == [(one.integers, one.weight) for one in layers]
        assert _snr_db(network, own, x, scale) >= _snr_db(network, layers, x, scale) + gain - 0.1


def _snr_db(network: nn.Module, layers: Sequence[object], x: Tensor, scale: float) -> float:
    with torch.no_grad():
        expected, found = network(x, scale), fake_quantized(network, layers)(x, scale)  # type: ignore[arg-type]  # layers of the test
    return float(10 * torch.log10(expected.var() / (found - expected).square().mean()))


def test_weights_leave_room_for_the_int32_bias_of_every_group() -> None:
    """A bias of 1e6 in units of the second group's smallest scale would overflow with the first group's weights alone."""
    network = Shrinking()
    with torch.no_grad():
        network.linear.bias.fill_(1e6)
        network.linear.weight.mul_(1e-3)
    seen = [observed(network, [scale]) for scale in (1.0, 1e-3)]
    whole, *groups = (Quantizer(network, [LAYER], one, PLACEMENTS["onnxruntime"], QuantizationSettings()) for one in (seen[0], *seen))
    (layer,) = whole.quantize(Precision.parse("w8a8"), others=groups)
    for quantizer in groups:
        own = with_activations(layer, quantizer)
        assert own.bias_integers().abs().max() <= 2**30
        bias = own.dequantized_bias(torch.float64)
        assert bias is not None
        np.testing.assert_allclose(bias.numpy(), 1e6, rtol=1e-6)
