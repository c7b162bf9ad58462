"""NVFP4 against its definition, and against the conversions of ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib.quantizers.floats.nvfp4 import BLOCK, Nvfp4ActivationQuantizer, e2m1
from calib.quantizers.outputs.output_error import RowsOfGroup
from calib.quantizers.scale_search import nvfp4_weight

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
"""Of the codes 0 to 7 (OCP Microscaling Formats 1.0, table 5)."""


def nearest(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """By search among all values; a tie goes to the even code."""
    size = np.minimum(np.abs(x), 6)
    code = np.abs(size[:, None] - MAGNITUDES).argmin(axis=1)
    above = np.minimum(code + 1, 7)
    tie = np.abs(MAGNITUDES[above] - size) == np.abs(MAGNITUDES[code] - size)
    return np.asarray(np.sign(x) * MAGNITUDES[np.where(tie & (code % 2 == 1), above, code)])


def _with_ties() -> NDArray[np.float64]:
    middles = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2
    ends = np.concatenate([np.nextafter(middles, 9, dtype=np.float32), np.nextafter(middles, -9, dtype=np.float32)])
    drawn = np.random.default_rng(0).normal(0, 3, 2000).astype(np.float32)
    one_side = np.concatenate([MAGNITUDES, middles, ends, [5.999, 6.5, 7, 1e9]])
    return np.concatenate([one_side, -one_side, drawn]).astype(np.float32).astype(np.float64)


def test_every_code_decodes_to_its_magnitude() -> None:
    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal(codes, np.concatenate([MAGNITUDES, -MAGNITUDES]))


def test_values_become_the_nearest_ones_and_ties_go_to_even_codes() -> None:
    x = _with_ties()
    found = e2m1(torch.from_numpy(x).float()).double().numpy()
    np.testing.assert_array_equal(found, nearest(x))
    np.testing.assert_array_equal(found, x.astype(ml_dtypes.float4_e2m1fn).astype(np.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_activations_have_scales_in_e4m3_that_take_their_largest_to_6(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 4 * BLOCK, generator=generator) * torch.logspace(-4, 1, 5)[:, None, None]
    x[0, 0, :BLOCK] = 0
    quantizer = Nvfp4ActivationQuantizer.of(float(x.abs().max()))
    found = quantizer.fake(x.to(dtype))
    assert found.dtype == dtype
    blocks = x.numpy().reshape(5, 3, 4, BLOCK)
    whole = np.float32(quantizer.scale)
    stored = (np.abs(blocks).max(-1, keepdims=True) / np.float32(6 * whole)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert stored.max() == 448
    scale = stored * whole
    codes = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal(found.double().numpy().reshape(blocks.shape), codes * scale.astype(np.float64) if dtype == torch.float64
                                  else (codes.astype(np.float32) * scale).astype(np.float64))  # fmt: skip
    assert (found[0, 0, :BLOCK] == 0).all()


def _layer() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 6 * BLOCK, generator=generator) ** 3
    rows = torch.randn(100, 5, generator=generator) @ torch.randn(5, 6 * BLOCK, generator=generator)
    return weight, (rows + 0.2 * torch.randn(100, 6 * BLOCK, generator=generator))[:, None]


def test_weight_is_stored_in_codes_block_scales_and_one_global_scale() -> None:
    weight, rows = _layer()
    quantizer = nvfp4_weight(weight, "mse", rows)
    codes, scale = quantizer.integers(weight), quantizer.block_scale
    assert (codes.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float8_e4m3fn, (24, 6))
    assert set(codes.float().abs().unique().tolist()) <= set(MAGNITUDES.tolist())
    assert torch.equal(scale.float() * quantizer.global_scale, quantizer.scale)
    decoded = codes.double() * quantizer.scale.double().repeat_interleave(BLOCK, dim=1)
    assert torch.equal(quantizer.dequantize(codes, torch.float64), decoded)


def test_search_takes_noise_away() -> None:
    weight, rows = _layer()
    errors = []
    for criterion in ("max", "mse"):
        quantizer = nvfp4_weight(weight, criterion, rows)
        errors.append(float(RowsOfGroup(rows[:, 0]).error(quantizer.dequantize(quantizer.integers(weight)) - weight).sum()))
    assert errors[1] < 0.6 * errors[0]


def test_channel_of_zeros_stays_zero() -> None:
    weight, rows = _layer()
    weight[3] = 0
    quantizer = nvfp4_weight(weight, "mse", rows)
    assert (quantizer.dequantize(quantizer.integers(weight))[3] == 0).all()
    assert (nvfp4_weight(torch.zeros_like(weight), "max").scale > 0).all()
