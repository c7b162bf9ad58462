"""References: from images, from statistics, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.apps.evaluate import reference as module
from engines.apps.evaluate.extractor import Extractor
from engines.apps.evaluate.reference import Reference
from engines.errors import UsageError

if TYPE_CHECKING:
    from tests.engines.apps.evaluate.conftest import TinyExtractor

SHAPE = (1, 8, 8)
IMAGES = (0.6 * np.random.default_rng(0).normal(size=(150, *SHAPE))).astype(np.float32)


@pytest.fixture(scope="module")
def extractor(extractor_file: Path) -> Extractor:
    return Extractor(extractor_file, threads=1)


def images_file(folder: Path, images: object = IMAGES) -> Path:
    np.savez(folder / "images.npz", samples=np.asarray(images))
    return folder / "images.npz"


def test_moments_and_points_of_images(network: TinyExtractor, extractor: Extractor, tmp_path: Path) -> None:
    reference = Reference.load(images_file(tmp_path), extractor, SHAPE)
    features, spatial = network.features(IMAGES), network.spatial(IMAGES)
    assert reference.spatial is not None
    assert reference.manifold is not None
    np.testing.assert_allclose(reference.features.mean, features.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(reference.features.covariance, np.cov(features, rowvar=False), atol=1e-6)
    np.testing.assert_allclose(reference.spatial.covariance, np.cov(spatial, rowvar=False), atol=1e-6)
    np.testing.assert_allclose(reference.manifold.points, features, atol=1e-6)
    assert reference.count == 150


def test_points_are_bounded(extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS_LIMIT", 40)
    reference = Reference.load(images_file(tmp_path), extractor, SHAPE)
    assert reference.manifold is not None
    assert reference.manifold.points.shape == (40, 4)


def test_statistics_that_were_saved_are_the_same_reference(extractor: Extractor, tmp_path: Path) -> None:
    made = Reference.load(images_file(tmp_path), extractor, SHAPE)
    made.save(tmp_path / "statistics.npz", extractor)
    read = Reference.load(tmp_path / "statistics.npz", extractor, SHAPE)
    assert made.spatial is not None
    assert read.spatial is not None
    assert made.manifold is not None
    assert read.manifold is not None
    for one, other in ((made.features, read.features), (made.spatial, read.spatial)):
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.covariance, other.covariance)
    np.testing.assert_array_equal(made.manifold.radii, read.manifold.radii)
    assert read.count == 150
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npz", "statistics.npz"]


def test_files_of_other_fid_programs_give_what_they_hold(extractor: Extractor, tmp_path: Path) -> None:
    arrays = {"mu": np.arange(4.0), "sigma": np.eye(4), "arr_0": np.zeros((2, 8, 8, 3), np.uint8), "features": np.zeros(7)}
    np.savez(tmp_path / "fid.npz", **arrays)  # type: ignore[arg-type]  # one could be called allow_pickle
    reference = Reference.load(tmp_path / "fid.npz", extractor, SHAPE)
    assert reference.features.mean.tolist() == [0, 1, 2, 3]
    assert (reference.spatial, reference.manifold, reference.count) == (None, None, None)
    with pytest.raises(ValueError, match="only a reference made from images can be saved"):
        reference.save(tmp_path / "again.npz", extractor)
    np.savez(tmp_path / "sfid.npz", mu_s=np.zeros(32), sigma_s=2 * np.eye(32), **arrays)  # type: ignore[arg-type]  # one could be called allow_pickle
    spatial = Reference.load(tmp_path / "sfid.npz", extractor, SHAPE).spatial
    assert spatial is not None
    assert np.trace(spatial.covariance) == 64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"mu": np.zeros(9), "sigma": np.eye(9)},
            r"(?s)do not have the dimension of the extractor's features.*found: .*mu \[9\], sigma \[9, 9\].*expected: mu \[4\]",
        ),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, "do not have the dimension of the extractor's features"),
        ({"mu": np.zeros(4), "sigma": np.full((4, 4), np.nan)}, "not finite"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "mu_s": np.zeros(5), "sigma_s": np.eye(5)}, r"mu_s \[5\]"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "extractor": np.array("0" * 64)}, "made with another feature extractor"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(4)}, "cannot be read"),
        ({"mu": np.zeros(4)}, "neither images nor statistics"),
        ({"samples": np.zeros((9, 3, 8, 8), np.float32)}, r"(?s)do not have the shape of the samples.*\[3, 8, 8\].*expected: \[1, 8, 8\]"),
        ({"samples": np.zeros((3, 1, 8, 8), np.float32)}, "(?s)too few images.*expected: more than 3"),
        ({"samples": np.zeros((0, 1, 8, 8), np.float32)}, "(?s)too few images.*found: .*: 0"),
        ({"samples": np.full((9, 1, 8, 8), 0.5)}, r"(?s)wrong units.*floats from 0.5 to 0.5.*2 \* images - 1"),
    ],
)
def test_reference_that_does_not_fit_is_an_error_of_usage(
    extractor: Extractor, tmp_path: Path, arrays: dict[str, object], message: str
) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)  # type: ignore[arg-type]  # one could be called allow_pickle
    with pytest.raises(UsageError, match=message):
        Reference.load(tmp_path / "wrong.npz", extractor, SHAPE)
