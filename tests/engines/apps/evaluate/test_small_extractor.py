"""The extractor that ships: any picture, and distances that order known degradations of pictures that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from engines.apps.evaluate.extractor import SMALL, Extractor
from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics
from engines.apps.evaluate.metrics.frechet import Gaussian, frechet_distance
from tools.digits.data import digits
from tools.small_extractor.pictures import Painter, add_noise, blur

COUNT = 300


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor(SMALL, threads=1)


def gaussian(extractor: Extractor, images: Tensor) -> Gaussian:
    return FeatureStatistics.of(extractor(np.asarray(images, dtype=np.float32)).features).gaussian()


@pytest.fixture(scope="module", params=[32, 48])
def held_out(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Two sets of pictures with another photo and other digits than in training."""
    torch.manual_seed(0)
    painter = Painter("flower.jpg", held_out=True)
    return painter.clean(COUNT, request.param), painter.clean(COUNT, request.param)


def every(value: float) -> Tensor:
    return torch.full((COUNT,), value)


DEGRADATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "noise": lambda images, amount: add_noise(images, every(0.4 * amount)),
    "blur": lambda images, amount: blur(images, every(2 * amount)),
    "contrast": lambda images, amount: (1 - 0.6 * amount) * images,
    "colour": lambda images, amount: images + 0.4 * amount * torch.tensor([1.0, 0.0, -1.0])[:, None, None],
    "brightness": lambda images, amount: images + 0.4 * amount,
    "levels": lambda images, amount: (images / amount).round() * amount,
}
"""Degradations by an amount between 0 and 1."""


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_distances_order_degradations(extractor: Extractor, held_out: tuple[Tensor, Tensor], name: str) -> None:
    """Each amount is farther from the same pictures than the one before; large amounts also from other pictures, for which sets of 300
    that are not degraded have a distance too."""
    torch.manual_seed(0)
    same, other = (gaussian(extractor, images) for images in held_out)
    changed = [gaussian(extractor, DEGRADATIONS[name](held_out[0], amount).clamp(-1, 1)) for amount in (0.125, 0.25, 0.5, 1.0)]
    from_same = [frechet_distance(one, same) for one in changed]
    assert [0.0, *from_same] == sorted([0.0, *from_same])
    from_other = [frechet_distance(one, other) for one in (same, *changed[2:])]
    assert from_other == sorted(from_other)
    assert from_other[-1] > 1.2 * from_other[0]


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 3, 33, 50), (1, 3, 256, 256)])
def test_any_picture_gives_64_features(extractor: Extractor, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    assert extractor.check(shape[1:], "the samples").features.shape == (1, 64)
    features = extractor(images).features
    np.testing.assert_allclose(features, extractor(np.broadcast_to(images, (shape[0], 3, *shape[2:]))).features, atol=1e-5)
    assert features.std() > 0.1


def test_clean_pictures_have_about_unit_covariance(extractor: Extractor, held_out: tuple[Tensor, Tensor]) -> None:
    deviations = np.sqrt(np.diag(gaussian(extractor, torch.cat(held_out)).covariance))
    assert 0.5 < deviations.min() < deviations.max() < 2


def test_distances_of_digits_are_ordered_as_the_digit_classifier_orders_them(extractor: Extractor) -> None:
    """The classifier of the demo knows digits and nothing else, as Inception knows photos."""
    torch.manual_seed(0)
    images = digits()[0][: 2 * COUNT].expand(-1, 3, -1, -1)
    known, changed = images[:COUNT], images[COUNT:]
    sets = [changed, *(DEGRADATIONS[name](changed, amount) for name in ("noise", "blur", "contrast") for amount in (0.1, 0.25, 0.5, 1.0))]

    def distances(judge: Extractor) -> list[float]:
        gray = [one.mean(dim=1, keepdim=True).clamp(-1, 1) for one in (known, *sets)]
        reference, *others = (gaussian(judge, one) for one in gray)
        return [frechet_distance(one, reference) for one in others]

    ours, theirs = distances(extractor), distances(Extractor(Path("tools/digits/classifier.onnx"), threads=1))
    assert spearmanr(ours, theirs).statistic > 0.8
