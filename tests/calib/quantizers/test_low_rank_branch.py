"""Branches of low rank against whole singular value decompositions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.low_rank_branch import LowRankBranch, LowRankBranches, low_rank_branch
from calib.quantizers.observers import ObservedActivations
from calib.quantizers.oracle import attach_branch


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _rows(loudness: Tensor) -> Tensor:
    """Rows [inputs, 1, inputs] whose mean squares are exactly the squares of the given values."""
    return torch.diag(loudness * len(loudness) ** 0.5)[:, None]


def test_weight_of_that_rank_leaves_nothing() -> None:
    weight = _normal(40, 3) @ _normal(3, 24, seed=1)
    branch = low_rank_branch(weight, 3, _normal(64, 1, 24))
    assert (branch.down.shape, branch.up.shape, branch.rank) == ((24, 3), (3, 40), 3)
    assert float(branch.rest_of(weight).abs().max()) < 1e-4


@pytest.mark.parametrize("rank", [4, 40])
def test_random_weight_leaves_its_smallest_singular_values(rank: int) -> None:
    weight = _normal(96, 160)
    branch = low_rank_branch(weight, rank, _rows(torch.ones(160)))
    least = torch.linalg.svdvals(weight)[rank:].square().sum()
    assert least <= branch.rest_of(weight).square().sum() * (1 + 1e-5) < 1.005 * least


def test_loud_inputs_lose_most_of_their_weights() -> None:
    weight, loudness = _normal(48, 32), torch.where(torch.arange(32) % 8 == 0, 20.0, 1.0)
    rest = low_rank_branch(weight, 4, _rows(loudness)).rest_of(weight)
    shrunk = (0.95 * loudness.square() + 0.05 * loudness.square().mean()).sqrt()
    least = torch.linalg.svdvals(weight * shrunk)[4:].square().sum()
    assert (rest * shrunk).square().sum() == pytest.approx(float(least), rel=1e-3)
    assert float(rest[:, ::8].abs().max()) < 0.1 * float(weight[:, ::8].abs().max())


def test_inputs_that_are_always_zero_still_give_a_branch() -> None:
    weight = _normal(8, 2) @ _normal(2, 8, seed=1)
    assert float(low_rank_branch(weight, 2, torch.zeros(32, 1, 8)).rest_of(weight).abs().max()) < 1e-5


def test_branch_and_rest_add_up_beside_a_module_that_computes_with_the_rest() -> None:
    layer, x = nn.Linear(6, 5), _normal(4, 7, 6)
    branch = LowRankBranch(_normal(6, 2, seed=1), _normal(2, 5, seed=2))
    with torch.no_grad():
        expected = layer(x)
        layer.weight.copy_(branch.rest_of(layer.weight))
        attach_branch(layer, branch)
        layer.register_forward_pre_hook(lambda _module, args: (args[0] + 0,))
        torch.testing.assert_close(layer(x), expected)


def test_branch_reads_the_input_before_it_is_quantized() -> None:
    layer, x = nn.Linear(6, 5), _normal(4, 6)
    branch = LowRankBranch(_normal(6, 2, seed=1), _normal(2, 5, seed=2))
    attach_branch(layer, branch)
    layer.register_forward_pre_hook(lambda _module, args: (0 * args[0],))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.bias + x @ branch.down @ branch.up)


def test_a_branch_is_found_once_for_all_precisions() -> None:
    network, seen = nn.Sequential(nn.Linear(12, 10)), {"0.output": ObservedActivations(drawn_rows=[_normal(32, 1, 12)])}
    branches = LowRankBranches(network, seen)
    assert branches.of("0", 2) is branches.of("0", 2)
    assert branches.of("0", 3).rank == 3
