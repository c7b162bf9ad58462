"""The figures are Polygraphy's, but of any number of batches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engines.apps.compare.agreement import Agreement
from engines.arrays import Float32


def outputs(noise: float, shift: float = 0.0) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(3)
    e = (rng.standard_normal((12, 3, 4, 4)) + shift).astype(np.float32)
    return e, e + (noise * rng.standard_normal(e.shape)).astype(np.float32)


def agreement(*batches: tuple[Float32, Float32]) -> Agreement:
    found = Agreement()
    for e, q in batches:
        found.add(e, q)
    return found


@pytest.mark.parametrize("noise", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("shift", [0.0, -20.0])
def test_figures_of_one_batch_are_those_of_polygraphy(noise: float, shift: float) -> None:
    polygraphy = pytest.importorskip("polygraphy.comparator", reason="Polygraphy is not installed")
    from polygraphy.logger import G_LOGGER

    e, q = outputs(noise, shift)
    found = agreement((e, q))
    for func, figure in (
        (polygraphy.SnrCompareFunc(), found.snr_db),
        (polygraphy.PsnrCompareFunc(), found.psnr_db),
        (polygraphy.CosineSimilarityCompareFunc(), found.cosine_similarity),
    ):
        with G_LOGGER.verbosity():
            (result,) = func(polygraphy.IterationResult({"out": e}), polygraphy.IterationResult({"out": q})).values()
        (value,) = result.metric_values().values() if callable(result.metric_values) else result.metric_values.values()
        assert figure == pytest.approx(value, rel=1e-6)


def test_batches_add_up_to_the_whole() -> None:
    e, q = outputs(0.1)
    pieces = agreement((e[:5], q[:5]), (e[5:], q[5:]))
    whole = agreement((e, q))
    for name in ("snr_db", "psnr_db", "cosine_similarity", "max_absolute_error"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    assert whole.max_absolute_error == pytest.approx(float(np.abs(q.astype(float) - e).max()))


def test_literal_values() -> None:
    found = agreement((np.array([3, -4], np.float32), np.array([3, -3], np.float32)))
    assert found.snr_db == pytest.approx(10 * math.log10(25))
    assert found.psnr_db == pytest.approx(10 * math.log10(9 / 0.5))
    assert found.cosine_similarity == pytest.approx(21 / math.sqrt(25 * 18))
    assert found.max_absolute_error == 1


def test_ends_of_the_scale() -> None:
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    assert (agreement((one, one)).snr_db, agreement((one, one)).cosine_similarity) == (math.inf, 1)
    assert (agreement((zero, one)).snr_db, agreement((zero, one)).cosine_similarity) == (-math.inf, 0)
    assert agreement((zero, zero)).cosine_similarity == 1
