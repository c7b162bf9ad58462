"""The means are those of the states that a chain visits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, rows_of
from engines.networks.engine_bank import EngineBank
from tools.studies.mean_drift import channel_means, drift

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

SAMPLES = np.arange(4, dtype=np.int64)


def test_the_last_mean_is_that_of_the_samples(digits: Digits) -> None:
    bundle, noise = Bundle.open(digits.folder), NoiseSource(0, (1, 16, 16))
    bank = EngineBank(bundle, bundle.schedule().sampler.guidance, batch=4)
    samples = Chain(bundle.schedule(), bank).sample(noise, SAMPLES, rows_of(SAMPLES, noise, 10, None))
    means = channel_means(bundle, "default", SAMPLES, precision=None, corrected=True)
    assert means.shape == (len(bundle.schedule().steps), 1)
    assert means[-1, 0] == pytest.approx(float(samples.mean(dtype=np.float64)), abs=1e-9)


def test_drift_is_the_distance_to_full_precisions_mean(digits: Digits) -> None:
    bundle = Bundle.open(digits.folder)
    exact = channel_means(bundle, "default", SAMPLES, precision="fp32", corrected=False)
    apart = channel_means(bundle, "default", SAMPLES, precision=None, corrected=False)
    np.testing.assert_array_equal(drift(bundle, "default", SAMPLES, corrected=False), (apart - exact)[:, 0])
