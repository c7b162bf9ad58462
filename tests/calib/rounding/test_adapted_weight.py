"""A weight with an adapter: where it starts, which way it moves, and what it becomes."""

from __future__ import annotations

import pytest
import torch

from calib.quantizers.floats.nvfp4 import Nvfp4WeightQuantizer
from calib.quantizers.quantizers import WeightQuantizer
from calib.quantizers.scale_search import nvfp4_weight
from calib.rounding.adapted_weight import AdaptedWeight

WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
SCALE = torch.linspace(0.2, 0.7, 6)
QUANTIZER = WeightQuantizer(4, SCALE)


def test_it_starts_as_the_nearest_integers() -> None:
    adapted = AdaptedWeight(WEIGHT, QUANTIZER, 2)
    assert torch.equal(adapted.unrounded(), WEIGHT)
    assert torch.equal(adapted.integers(), QUANTIZER.integers(WEIGHT))
    torch.testing.assert_close(adapted().detach(), QUANTIZER.dequantize(QUANTIZER.integers(WEIGHT)))


def test_the_change_has_the_rank_and_counts_in_steps_of_the_channel() -> None:
    adapted = AdaptedWeight(WEIGHT, QUANTIZER, 2)
    with torch.no_grad():
        adapted.B.copy_(torch.randn(6, 2, generator=torch.Generator().manual_seed(1)))
        change = ((adapted.unrounded() - WEIGHT) / SCALE[:, None, None, None]).flatten(1)
        assert int(torch.linalg.matrix_rank(change)) == 2
        torch.testing.assert_close(change, adapted.B @ adapted.A, rtol=1e-4, atol=1e-5)
        assert torch.equal(adapted.integers(), QUANTIZER.integers(adapted.unrounded()))


def test_gradients_pass_the_rounding() -> None:
    """The gradient of `sum(w)` by B is that of the merged weight: steps times rows of A."""
    adapted = AdaptedWeight(WEIGHT, QUANTIZER, 2)
    adapted().sum().backward()
    torch.testing.assert_close(adapted.B.grad, SCALE[:, None] * adapted.A.detach().sum(dim=1))


@pytest.mark.parametrize("rank", [3, 40])
def test_floats_in_blocks_have_adapters_too(rank: int) -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    quantizer = nvfp4_weight(weight, "max", torch.zeros(1, 1, 32))
    assert isinstance(quantizer, Nvfp4WeightQuantizer)
    adapted = AdaptedWeight(weight, quantizer, rank)
    assert adapted.B.shape == (8, min(rank, 8))
    assert adapted.integers().dtype == torch.float8_e4m3fn
    torch.testing.assert_close(adapted().detach(), quantizer.dequantize(quantizer.integers(weight)))
