"""The Inception Score against its bounds and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from engines.apps.evaluate.metrics.inception_score import ClassSums

CLASSES = 7


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save")
@pytest.mark.parametrize("splits", [2, 10])
def test_torchmetrics_gives_the_same(splits: int) -> None:
    """It shuffles before it splits, and so do we, for once."""
    logits = 2 * np.random.default_rng(0).normal(size=(500, CLASSES))
    metric = InceptionScore(feature=torch.nn.Identity(), splits=splits, normalize=False)
    metric.update(torch.from_numpy(logits))
    torch.manual_seed(0)
    shuffled = logits[torch.randperm(500).numpy()]
    torch.manual_seed(0)
    expected, _ = metric.compute()
    ours = np.mean([ClassSums.of(split).score() for split in np.split(shuffled, splits)])
    assert ours == pytest.approx(float(expected), rel=1e-9)


def test_it_goes_from_one_to_the_number_of_classes() -> None:
    sure = 1e4 * np.eye(CLASSES)[np.arange(70) % CLASSES]
    assert ClassSums.of(sure).score() == pytest.approx(CLASSES, rel=1e-12)
    assert ClassSums.of(sure[::CLASSES]).score() == pytest.approx(1, rel=1e-12)
    assert ClassSums.of(np.zeros((70, CLASSES))).score() == pytest.approx(1, rel=1e-12)


def test_streaming_is_one_pass() -> None:
    logits = np.random.default_rng(1).normal(size=(200, CLASSES)).astype(np.float32)
    streamed = ClassSums.of(logits[:13]).merge(ClassSums.of(logits[13:150])).merge(ClassSums.of(logits[150:]))
    assert streamed.count == 200
    assert streamed.score() == pytest.approx(ClassSums.of(logits).score(), rel=1e-12)
