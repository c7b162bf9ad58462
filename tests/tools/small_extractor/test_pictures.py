"""Training pictures: degradations of known amounts, and what every picture is labelled with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tools.small_extractor.pictures import DIGIT, KINDS, Painter, add_noise, blur


def test_blur_is_a_gaussian_window() -> None:
    images = torch.zeros(2, 3, 15, 15)
    images[:, :, 7, 7] = 1
    blurred = blur(images, torch.tensor([0.0, 1.5]))
    torch.testing.assert_close(blurred[0], images[0])
    offsets = np.arange(-6, 7)
    window = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window /= window.sum()
    np.testing.assert_allclose(blurred[1, 2, 1:14, 1:14], np.outer(window, window), atol=1e-6)


def test_noise_has_the_standard_deviation_asked_for() -> None:
    torch.manual_seed(0)
    noise = add_noise(torch.zeros(2, 3, 64, 64), torch.tensor([0.1, 0.4]))
    assert noise.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.1, 0.4], rel=0.05)


def test_pictures_have_their_kinds_digits_and_amounts() -> None:
    torch.manual_seed(0)
    pictures = Painter()(400, 24)
    assert pictures.images.shape == (400, 3, 24, 24)
    assert -1 <= pictures.images.min() < -0.9 < 0.9 < pictures.images.max() <= 1
    assert set(pictures.kinds.tolist()) == set(range(len(KINDS)))
    shown = pictures.kinds == KINDS.index(DIGIT)
    assert ((pictures.digits >= 0) == shown).all()
    assert 0.4 < (pictures.amounts == 0).float().mean() < 0.6
    gray = (pictures.images == pictures.images[:, :1]).flatten(1).all(dim=1)
    assert 0.25 < gray.float().mean() < 0.42
