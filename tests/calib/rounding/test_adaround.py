"""Soft rounding: where it starts, where it can go, and what drives it there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calib.quantizers.quantizers import WeightQuantizer
from calib.rounding.adaround import SoftRounding, annealed_beta

SCALE = torch.tensor([0.1, 0.25])
WEIGHT = torch.tensor([[0.13, -0.02, 0.3], [0.6, -0.55, 0.0]])


def _rounding(bits: int = 4, weight: Tensor = WEIGHT) -> SoftRounding:
    return SoftRounding(weight, WeightQuantizer(bits, SCALE))


def test_it_starts_as_the_weight_itself() -> None:
    torch.testing.assert_close(_rounding()().detach(), WEIGHT)
    assert not torch.equal(_rounding().integers() * SCALE[:, None], WEIGHT)


def test_undecided_weights_round_as_the_nearest_does() -> None:
    assert _rounding().integers().tolist() == [[1, 0, 3], [2, -2, 0]]
    assert _rounding().integers().dtype == torch.int8


@pytest.mark.parametrize(("decision", "integers"), [(50.0, [[2, 0, 4], [3, -2, 1]]), (-50.0, [[1, -1, 3], [2, -3, 0]])])
def test_decided_weights_are_up_or_down(decision: float, integers: list[list[int]]) -> None:
    rounding = _rounding(weight=WEIGHT + 1e-4)  # 0.3 / 0.1 is 3, or just below it
    with torch.no_grad():
        rounding.V.fill_(decision)
    assert rounding.integers().tolist() == integers
    torch.testing.assert_close(rounding().detach(), torch.tensor(integers) * SCALE[:, None])
    assert rounding.undecided(2.0).item() == 0.0


def test_clipped_weights_stay_at_the_end_of_the_range() -> None:
    for bits, low, high in ((2, -2, 1), (8, -127, 127)):
        rounding = _rounding(bits, torch.tensor([[99.0], [-99.0]]))
        for decision in (50.0, -50.0):
            with torch.no_grad():
                rounding.V.fill_(decision)
            assert rounding.integers().tolist() == [[high], [low]]


def test_regulariser_is_that_of_the_paper() -> None:
    rounding = _rounding()
    h = (WEIGHT / SCALE[:, None]) % 1
    torch.testing.assert_close(rounding.h().detach(), h, rtol=0, atol=1e-5)
    for beta in (2.0, 20.0):
        torch.testing.assert_close(rounding.undecided(beta).detach(), (1 - (2 * h - 1).abs() ** beta).sum(), rtol=0, atol=1e-3)


def test_regulariser_drives_to_the_nearer_integer() -> None:
    rounding = _rounding(weight=torch.tensor([[0.13], [0.6]]))  # 1.3 and 2.4 steps
    rounding.undecided(2.0).backward()
    assert rounding.V.grad is not None
    assert (rounding.V.grad > 0).all()


def test_beta_is_annealed_behind_the_warm_up() -> None:
    assert annealed_beta(0.0) is None
    assert annealed_beta(0.19) is None
    assert annealed_beta(0.2) == 20.0
    assert annealed_beta(0.6) == pytest.approx(11.0)
    assert annealed_beta(1.0) == 2.0
