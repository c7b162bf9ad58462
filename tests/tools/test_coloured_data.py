"""Coloured digits: reproducible, two colours an image, drawn evenly from what the generator promises."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from tools.coloured import data
from tools.coloured.data import Coloured, coloured
from tools.digits.data import digits, split

COUNT = 1200


def drawn(seed: int, count: int = COUNT) -> Coloured:
    return coloured(count, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def real() -> Coloured:
    return drawn(0)


def hsv(colours: torch.Tensor) -> np.ndarray:
    """Hue, saturation and value in [0, 1] by Python's own conversion."""
    return np.array([colorsys.rgb_to_hsv(*colour) for colour in ((colours + 1) / 2).tolist()])


def test_a_generator_yields_the_same_stream_again(real: Coloured) -> None:
    again, other = drawn(0), drawn(1)
    assert torch.equal(real.images, again.images)
    assert torch.equal(real.labels, again.labels)
    assert not torch.equal(real.labels, other.labels)


def test_a_generator_does_not_repeat_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = coloured(8, generator), coloured(8, generator)
    assert (first.images - second.images).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_every_pixel_is_a_mixture_of_ink_and_ground(real: Coloured) -> None:
    """One share of ink for the three channels, none in the corners of nearly all images and much somewhere."""
    assert (real.images.dtype, real.images.shape) == (torch.float32, (COUNT, 3, 32, 32))
    contrast = real.ink - real.ground
    relative = real.images - real.ground[:, :, None, None]
    share = (relative * contrast[:, :, None, None]).sum(dim=1) / contrast.square().sum(dim=1)[:, None, None]
    torch.testing.assert_close(share[:, None] * contrast[:, :, None, None], relative, rtol=0, atol=1e-5)
    assert share.min() >= -1e-5
    assert share.max() <= 1 + 1e-5
    assert share.amax(dim=(1, 2)).min() > 0.6
    assert share[:, [0, 0, -1, -1], [0, -1, 0, -1]].abs().mean() < 1e-3


def test_ink_is_bright_and_ground_is_dark_and_both_are_of_any_hue(real: Coloured) -> None:
    ink, ground = hsv(real.ink), hsv(real.ground)
    slack = 1e-5
    assert ((ink[:, 1:] >= np.array([0.6, 0.75]) - slack) & (ink[:, 1:] <= 1 + slack)).all()
    assert ((ground[:, 1:] >= np.array([0.3, 0.1]) - slack) & (ground[:, 1:] <= np.array([1, 0.5]) + slack)).all()
    for hue in (ink[:, 0], ground[:, 0]):
        sextants = np.histogram(hue, bins=6, range=(0, 1))[0]
        assert np.abs(sextants - COUNT / 6).max() < 5 * np.sqrt(COUNT * 5 / 36)
    assert abs(np.corrcoef(ink[:, 2], ground[:, 2])[0, 1]) < 5 / np.sqrt(COUNT)


def test_mean_colour_is_continuous(real: Coloured) -> None:
    """No two images alike, and the widest gap between neighbours in its middle half a small part of its spread."""
    for channel in real.images.mean(dim=(2, 3)).double().T:
        ordered = channel.sort().values
        middle = ordered[COUNT // 4 : -COUNT // 4].diff()
        assert ordered.diff().min() > 0
        assert middle.max() < 0.1 * ordered.std()


def test_only_chosen_digits_are_drawn() -> None:
    labels = digits()[1]
    sevens = np.flatnonzero(labels.numpy() == 7)
    assert coloured(50, torch.Generator().manual_seed(0), sevens).labels.tolist() == [7] * 50
    held_out = split()[1]
    assert set(coloured(500, torch.Generator().manual_seed(0), held_out).labels.tolist()) == set(range(10))


def test_a_digit_as_wide_as_the_image_is_the_handwriting_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    """White on black, unmoved: averages of 2x2 pixels are the 16x16 original, a little smoothed."""
    monkeypatch.setattr(data, "WIDTH", (32.0, 32.0))
    monkeypatch.setattr(data, "SHIFT", 0.0)
    for index in range(20):
        image = coloured(1, torch.Generator().manual_seed(0), np.array([index]))
        share = (image.images - image.ground[:, :, None, None]) / (image.ink - image.ground)[:, :, None, None]
        small = torch.nn.functional.avg_pool2d(share.mean(dim=1), 2)
        assert torch.corrcoef(torch.stack([small.flatten(), digits()[0][index].flatten()]))[0, 1] > 0.97
