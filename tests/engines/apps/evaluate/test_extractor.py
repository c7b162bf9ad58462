"""Feature extractors: outputs found by name, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto

from engines.apps.evaluate.extractor import SMALL, SPATIAL_LIMIT, Extractor, flat_maps
from engines.errors import PtqdError, UsageError
from engines.host.files import sha256

if TYPE_CHECKING:
    from tests.engines.apps.evaluate.conftest import TinyExtractor

IMAGES = (0.8 * np.random.default_rng(0).normal(size=(7, 1, 8, 8))).astype(np.float32)


def test_all_outputs_of_clipped_images(network: TinyExtractor, extractor_file: Path) -> None:
    assert np.abs(IMAGES).max() > 1.5
    extractor = Extractor(extractor_file, threads=1)
    found = extractor(IMAGES)
    assert found.spatial is not None
    assert found.logits is not None
    np.testing.assert_allclose(found.features, network.features(IMAGES), atol=1e-6)
    np.testing.assert_allclose(found.spatial, network.spatial(IMAGES), atol=1e-6)
    np.testing.assert_allclose(found.logits, network.logits(IMAGES), atol=1e-5)
    assert extractor.digest == sha256(extractor_file)


def test_features_under_another_name_are_the_only_vectors_besides_logits(network: TinyExtractor, tmp_path: Path) -> None:
    path = network.save(tmp_path / "e.onnx", outputs=("logits", "features"), names={"features": "pool_3"})
    extractor = Extractor(path, threads=1)
    found = extractor(IMAGES)
    np.testing.assert_allclose(found.features, network.features(IMAGES), atol=1e-6)
    assert found.logits is not None
    assert (found.spatial, extractor.gives_spatial, extractor.gives_logits) == (None, False, True)


def test_sfids_first_seven_channels_of_inception() -> None:
    maps = np.arange(2 * 768 * 17 * 17, dtype=np.float32).reshape(2, 768, 17, 17)
    flat = flat_maps(maps)
    assert flat.shape == (2, 2023)
    assert flat[1, :9].tolist() == [*maps[1, :7, 0, 0], *maps[1, :2, 0, 1]]


def test_small_maps_are_kept_whole() -> None:
    assert flat_maps(np.zeros((3, 32, 4, 4), np.float32)).shape == (3, 512)
    assert flat_maps(np.zeros((1, 99, 32, 32), np.float32)).shape == (1, SPATIAL_LIMIT)


def test_maps_without_room_for_one_channel_are_an_error_of_usage() -> None:
    with pytest.raises(UsageError, match=r"(?s)maps are too large.*64 x 64"):
        flat_maps(np.zeros((1, 8, 64, 64), np.float32))


def test_free_sides_take_any_image(network: TinyExtractor, tmp_path: Path) -> None:
    path = network.save(tmp_path / "f.onnx", shape=("N", "C", "H", "W"))
    assert Extractor(path, threads=1).check((1, 8, 8), "the samples").features.shape == (1, 4)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16), (1, 8), (8,)])
def test_images_of_another_shape_are_an_error_of_usage(extractor_file: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        Extractor(extractor_file, threads=1).check(shape, "the samples")
    assert "The feature extractor does not take the samples." in str(refused.value)
    assert f"found:    images of shape {list(shape)}\n  expected: [1, 8, 8], as in" in str(refused.value)


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 16, 16), (8, 8, 3), (16, 16, 4)])
def test_images_on_which_the_extractor_fails_are_an_error_of_usage(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        Extractor(SMALL, threads=1).check(shape, "the samples")
    assert f"found:    images of shape {list(shape)}\n  expected: [1 or 3, height, width]" in str(refused.value)


def test_input_that_is_no_image_is_an_error_of_usage(network: TinyExtractor, tmp_path: Path) -> None:
    for shape, kind in ((("N", 1, 8, 8), TensorProto.DOUBLE), ((1, 1, 8, 8), TensorProto.FLOAT)):
        path = network.save(tmp_path / "e.onnx", shape=shape, kind=kind, outputs=("logits", "features"))
        with pytest.raises(UsageError, match="does not take images"):
            Extractor(path)


def test_outputs_without_features_are_an_error_of_usage(network: TinyExtractor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)no output that can be identified as features.*logits \['N', 5\]"):
        Extractor(network.save(tmp_path / "e.onnx", outputs=("logits", "spatial")))
    with pytest.raises(UsageError, match="no output that can be identified"):
        Extractor(network.save(tmp_path / "e.onnx", outputs=("logits", "features"), names={"features": "a", "logits": "b"}))


def test_file_that_is_missing_or_no_graph_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no feature extractor"):
        Extractor(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(UsageError, match="The feature extractor cannot be read"):
        Extractor(tmp_path / "text.onnx")


def test_output_that_is_not_finite_is_an_error(network: TinyExtractor, tmp_path: Path) -> None:
    broken = type(network)(W=np.full_like(network.W, np.nan))
    with pytest.raises(PtqdError, match="output is not finite"):
        Extractor(broken.save(tmp_path / "e.onnx"), threads=1)(IMAGES)
