"""Rotations: orthogonal, undone by the weights, and worth it where inputs have outliers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.observers import observe_activations
from calib.quantizers.preparation.rotation import BLOCKS, rotate_inputs, rotated, rotation_block
from calib.quantizers.sharing_copy import sharing_copy
from engines.networks.lora.hadamard import hadamard


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _matrix(size: int) -> Tensor:
    return torch.from_numpy(hadamard(size))


@pytest.mark.parametrize("size", [2, *BLOCKS])
def test_matrix_is_symmetric_orthogonal_and_has_entries_of_one_magnitude(size: int) -> None:
    matrix = _matrix(size)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size))
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix.abs(), torch.full((size, size), size**-0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_entries_of_the_blocks_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    for size in BLOCKS:
        assert torch.equal(_matrix(size).to(dtype).float(), _matrix(size))


@pytest.mark.parametrize(("inputs", "size"), [(12288, 256), (3072, 64), (1152, 16), (128, 16), (48, 16), (16, 16), (20, None)])
def test_blocks_divide_the_inputs_and_are_large_in_wide_layers(inputs: int, size: int | None) -> None:
    assert rotation_block(inputs) == size


def test_blocks_are_rotated_one_by_one() -> None:
    x = _normal(2, 3, 32)
    expected = torch.cat([part @ _matrix(16) for part in x.split(16, dim=-1)], dim=-1)
    torch.testing.assert_close(rotated(x, 16), expected)


def test_layers_compute_the_same_from_rotated_inputs_without_their_outliers() -> None:
    network = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 4))
    x = _normal(200, 64)
    x[:, 5] *= 50
    prepared = sharing_copy(network)
    rotate_inputs(prepared, {"0": 64})
    with torch.no_grad(), observe_activations(prepared, ["0"], ["0"], 1) as seen:
        torch.testing.assert_close(copy.deepcopy(prepared)(x), network(x), atol=1e-4, rtol=0)
        prepared(x)
    assert seen["0.input"].high < 0.2 * float(x.max())
    assert not torch.equal(prepared.get_parameter("0.weight"), network.get_parameter("0.weight"))
