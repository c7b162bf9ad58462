"""All figures of one chain: against the formulas on the extractor's own arithmetic, and how much is held."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.apps.evaluate import scores as module
from engines.apps.evaluate.extractor import Extractor
from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate, block_edges
from engines.apps.evaluate.metrics.frechet import Gaussian
from engines.apps.evaluate.metrics.manifold import Manifold, precision, recall
from engines.apps.evaluate.reference import Reference
from engines.apps.evaluate.scores import SampleScores, unavailable, warnings_about
from engines.arrays import Float32, Float64

if TYPE_CHECKING:
    from tests.engines.apps.evaluate.conftest import TinyExtractor

RNG = np.random.default_rng(0)
REAL, FULL = ((scale * RNG.normal(size=(count, 1, 8, 8))).astype(np.float32) for scale, count in ((0.6, 300), (0.5, 203)))
QUANTIZED = FULL + (0.1 * RNG.normal(size=FULL.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def extractor(extractor_file: Path) -> Extractor:
    return Extractor(extractor_file, threads=1)


def gaussian(vectors: Float64) -> Gaussian:
    return Gaussian(vectors.mean(axis=0), np.cov(vectors, rowvar=False))


@pytest.fixture(scope="module")
def reference(network: TinyExtractor) -> Reference:
    features = network.features(REAL)
    return Reference(gaussian(features), gaussian(network.spatial(REAL)), Manifold.of(features), len(REAL))


def judged(reference: Reference, extractor: Extractor, states: Float32, full: Float32 | None = None, size: int = 32) -> dict[str, Estimate]:
    scores = SampleScores(len(states), reference, extractor)
    for begin in range(0, len(states), size):
        part = slice(begin, begin + size)
        scores.add(states[part], None if full is None else full[part])
    return scores.estimates()


def distance(one: Gaussian, other: Gaussian) -> float:
    """By the eigenvalues of a product that is not symmetric, as other programs do."""
    roots = np.sqrt(np.linalg.eigvals(one.covariance @ other.covariance).real.clip(0))
    return float(np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance) - 2 * roots.sum())


def test_every_figure_is_its_formula(network: TinyExtractor, extractor: Extractor, reference: Reference) -> None:
    found = judged(reference, extractor, QUANTIZED, FULL)
    features = network.features(QUANTIZED)
    errors = np.square(QUANTIZED.clip(-1, 1) - FULL.clip(-1, 1)).mean(axis=(1, 2, 3))
    p = np.exp(network.logits(QUANTIZED))
    p /= p.sum(axis=1, keepdims=True)
    splits = np.split(p, block_edges(203))
    assert reference.spatial is not None
    assert reference.manifold is not None
    expected = {
        "frechet_distance": distance(gaussian(features), reference.features),
        "spatial_frechet_distance": distance(gaussian(network.spatial(QUANTIZED)), reference.spatial),
        "inception_score": np.mean([np.exp((s * np.log(s / s.mean(axis=0))).sum(axis=1).mean()) for s in splits]),
        "precision": precision(reference.manifold, features, block_edges(203)).value,
        "recall": recall(reference.manifold, features, block_edges(203)).value,
        "mean": QUANTIZED.mean(dtype=np.float64),
        "variance": QUANTIZED.astype(np.float64).var(ddof=1),
        "pooled_psnr": 10 * np.log10(4 / errors.mean()),
        "median_psnr": np.median(10 * np.log10(4 / errors)),
        "relative_l2": np.linalg.norm((QUANTIZED - FULL).ravel()) / np.linalg.norm(FULL.ravel()),
    }
    assert list(found) == [*list(expected)[:-1], "ssim", "relative_l2"]
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-4), name
    assert 0 < found["ssim"].value < 1


def test_a_block_left_out_is_as_if_it_had_never_been_sampled(extractor: Extractor, reference: Reference) -> None:
    found = judged(reference, extractor, QUANTIZED[:200], FULL[:200])
    for block in (0, 7):
        quantized, full = (np.delete(states[:200], slice(20 * block, 20 * block + 20), axis=0) for states in (QUANTIZED, FULL))
        without = judged(reference, extractor, quantized, full)
        for name in found.keys() - {"inception_score"}:  # which is a mean over splits, and these are others
            assert found[name].without_block[block] == pytest.approx(without[name].value, rel=1e-5), name


@pytest.mark.parametrize("size", [1, 20, 21, 203])
def test_figures_do_not_depend_on_the_batch_size(extractor: Extractor, reference: Reference, size: int) -> None:
    found, other = judged(reference, extractor, QUANTIZED, FULL), judged(reference, extractor, QUANTIZED, FULL, size)
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(other[name].value, rel=1e-5), name
        np.testing.assert_allclose(estimate.without_block, other[name].without_block, rtol=1e-5, err_msg=name)


def held_bytes(thing: Any, seen: set[int]) -> int:
    """Bytes of all arrays that can be reached."""
    if id(thing) in seen or isinstance(thing, Extractor | Reference | type):
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return thing.nbytes if thing.base is None else held_bytes(thing.base, seen)
    inner = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else vars(thing).values()
    return sum(held_bytes(one, seen) for one in inner if isinstance(one, np.ndarray | dict | list | tuple) or hasattr(one, "__dict__"))


def test_memory_grows_by_one_number_per_pair(extractor: Extractor, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS_LIMIT", 60)
    held = []
    for num in (100, 1600):
        scores = SampleScores(num, reference, extractor)
        for _ in range(num // 50):
            scores.add(QUANTIZED[:50], FULL[:50])
        held.append(held_bytes(scores, set()))
    matrices = 8 * (4 * 4 + 4 + 32 * 32 + 32 + 5 + 2) * BLOCKS
    assert held == [matrices + 4 * 60 * 4 + 8 * num for num in (100, 1600)]


def test_unpaired_samples_have_no_paired_figures(extractor: Extractor, reference: Reference) -> None:
    assert not {"pooled_psnr", "median_psnr", "ssim", "relative_l2"} & judged(reference, extractor, FULL).keys()


def test_figures_that_cannot_be_had_have_reasons(network: TinyExtractor, reference: Reference, tmp_path: Path) -> None:
    bare = Extractor(network.save(tmp_path / "bare.onnx", outputs=("features",)), threads=1)
    distances = Reference(reference.features)
    assert list(judged(distances, bare, FULL)) == ["frechet_distance", "mean", "variance"]
    assert unavailable(distances, bare) == {
        "spatial_frechet_distance": "the extractor has no output called spatial",
        "inception_score": "the extractor has no output called logits",
        "precision": "the reference holds no features of individual images",
        "recall": "the reference holds no features of individual images",
    }


def test_spatial_distance_needs_a_spatial_reference(extractor: Extractor, reference: Reference) -> None:
    distances = Reference(reference.features)
    assert "spatial_frechet_distance" not in judged(distances, extractor, FULL)
    reasons = unavailable(distances, extractor)
    assert reasons["spatial_frechet_distance"] == "the reference holds no statistics of spatial features"
    assert unavailable(reference, extractor) == {}


def test_too_few_samples_for_their_features_are_warned_of(extractor: Extractor, reference: Reference) -> None:
    assert warnings_about(203, reference, extractor) == ()
    (warning,) = warnings_about(32, reference, extractor)
    assert warning.startswith("32 samples do not span 32 spatial features: their covariance is singular")


def test_scores_of_another_number_of_samples_are_a_bug(extractor: Extractor, reference: Reference) -> None:
    scores = SampleScores(60, reference, extractor)
    scores.add(FULL[:50])
    with pytest.raises(ValueError, match="50 of 60 samples were added"):
        scores.estimates()
    with pytest.raises(ValueError, match="49 samples"):
        SampleScores(49, reference, extractor)
