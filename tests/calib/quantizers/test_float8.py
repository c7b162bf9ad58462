"""8-bit floats against their definition: sign, 4 exponent bits with bias 7, 3 mantissa bits, no infinities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calib.quantizers.quantizers import Float8ActivationQuantizer, Float8WeightQuantizer

POSITIVE = np.array(
    [mantissa * 2.0**-9 for mantissa in range(8)]
    + [(8 + mantissa) * 2.0 ** (exponent - 10) for exponent in range(1, 16) for mantissa in range(8) if (exponent, mantissa) != (15, 7)]
)


def nearest(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """By search; a tie goes to the even mantissa, which has the even place."""
    places = np.abs(np.abs(x)[:, None] - POSITIVE).argmin(axis=1)
    above = np.minimum(places + 1, len(POSITIVE) - 1)
    tie = np.abs(POSITIVE[above] - np.abs(x)) == np.abs(POSITIVE[places] - np.abs(x))
    return np.asarray(np.sign(x) * POSITIVE[np.where(tie & (places % 2 == 1), above, places)])


def test_values_are_127_of_each_sign() -> None:
    assert (len(POSITIVE), POSITIVE[1], POSITIVE[-1]) == (127, 2.0**-9, 448.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_become_the_nearest_values(dtype: torch.dtype) -> None:
    quantizer = Float8ActivationQuantizer.of(448 * 0.25)
    assert (quantizer.scale, quantizer.bits, quantizer.zero_point) == (0.25, 8, 0)
    middles = (POSITIVE[1:] + POSITIVE[:-1]) / 2
    drawn = np.random.default_rng(0).normal(0, 100, 2000).astype(np.float32)
    x = np.concatenate([POSITIVE, middles, -middles, drawn, [448, 460, 1e9, -1e9, 0]])
    found = quantizer.fake(torch.from_numpy(0.25 * x).to(dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.double().numpy(), 0.25 * nearest(np.clip(x, -448, 448)))


def test_weights_have_a_scale_a_channel_that_takes_their_largest_to_the_largest() -> None:
    weight = (
        torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1e-2, 1, 100, 0])[:, None, None, None]
    )
    quantizer = Float8WeightQuantizer.of(weight)
    stored = quantizer.integers(weight)
    assert (stored.dtype, stored.shape) == (torch.float8_e4m3fn, weight.shape)
    assert torch.equal(stored.float().abs().amax(dim=(1, 2, 3)), torch.tensor([448.0, 448, 448, 448, 0]))
    scaled = (weight / quantizer.scale[:, None, None, None]).double().numpy().reshape(-1)
    np.testing.assert_array_equal(stored.double().numpy().reshape(-1), nearest(scaled))
    error = (quantizer.dequantize(stored) - weight).abs()
    assert (error <= weight.abs() / 16 + quantizer.scale[:, None, None, None] * 2.0**-10).all()
