"""MXFP8 against its definition, and against the conversions of ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

from calib.quantizers.floats.mxfp8 import BLOCK, EXPONENTS, Mxfp8ActivationQuantizer, Mxfp8WeightQuantizer, scale_of, stored_exponent


def test_every_stored_scale_is_its_power_of_two() -> None:
    stored = torch.arange(EXPONENTS[0], EXPONENTS[1] + 1).to(torch.uint8)
    expected = stored.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(scale_of(stored).numpy(), expected)
    np.testing.assert_array_equal(expected, 2.0 ** (np.arange(1, 255) - 127))


def test_scale_is_the_smallest_power_of_two_at_which_nothing_is_clipped() -> None:
    powers = 2.0 ** np.arange(-100.0, 100)
    around = [
        np.float32(448 * powers),
        np.nextafter(np.float32(448 * powers), np.float32(1e38)),
        np.nextafter(np.float32(448 * powers), np.float32(0)),
    ]
    largest = np.concatenate([*around, np.abs(np.random.default_rng(0).normal(size=500)).astype(np.float32)])
    scale = scale_of(stored_exponent(torch.from_numpy(largest))).numpy().astype(np.float64)
    ratio = np.float32(largest / np.float32(448)).astype(np.float64)
    assert (scale >= ratio).all()
    assert (scale / 2 < ratio).all()
    assert scale_of(stored_exponent(torch.zeros(1))).item() > 0


def test_activations_and_weights_are_e4m3_in_units_of_their_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3 * BLOCK, generator=generator) * torch.logspace(-6, 4, 6)[:, None]
    x[2, BLOCK : 2 * BLOCK] = 0
    blocks = x.numpy().reshape(6, 3, BLOCK)
    scale = scale_of(stored_exponent(torch.from_numpy(np.abs(blocks).max(-1, keepdims=True)))).numpy()
    expected = ((blocks / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale).reshape(x.shape)
    np.testing.assert_array_equal(Mxfp8ActivationQuantizer.dynamic().fake(x).numpy(), expected)
    quantizer = Mxfp8WeightQuantizer.of(x)
    stored = quantizer.integers(x)
    assert (stored.dtype, quantizer.block_scale.dtype, quantizer.block_scale.shape) == (torch.float8_e4m3fn, torch.uint8, (6, 3))
    np.testing.assert_array_equal(quantizer.dequantize(stored).numpy(), expected)
    assert torch.equal(scale_of(quantizer.block_scale), quantizer.scale)
