"""The coloured model's loss: mean colour counts over again where it can be told."""

from __future__ import annotations

import pytest
import torch

from tools.coloured.data import coloured
from tools.coloured.train import COLOUR_VARIANCE, COLOUR_WEIGHT, colour_aware


def test_an_error_without_mean_costs_its_square() -> None:
    stripes = torch.tensor([0.3, -0.3]).repeat(16).expand(2, 3, 32, 32)
    assert colour_aware(stripes, torch.tensor([0.001, 0.9])).item() == pytest.approx(0.09)


@pytest.mark.parametrize("alpha_bar", [0.0, 0.02, 0.5, 0.999])
def test_a_constant_error_costs_more_the_more_of_the_mean_is_noise(alpha_bar: float) -> None:
    """Share of noise in the variance of `sqrt(a) x0 + sqrt(1 - a) n` averaged over 1,024 pixels."""
    signal, noise = alpha_bar * COLOUR_VARIANCE, (1 - alpha_bar) / 1024
    expected = 0.01 * (1 + COLOUR_WEIGHT * 1024 * noise / (signal + noise))
    assert colour_aware(torch.full((4, 3, 32, 32), 0.1), torch.full((4,), alpha_bar)).item() == pytest.approx(expected, rel=1e-4)


def test_colour_variance_is_that_of_the_images() -> None:
    images = coloured(2000, torch.Generator().manual_seed(0)).images
    assert images.mean(dim=(2, 3)).var(dim=0).mean().item() == pytest.approx(COLOUR_VARIANCE, rel=0.05)
