"""From states to images, a few at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import engines
from engines.apps.pictures.images import to_pixels
from engines.apps.sample.sample_command import SampleRequest, sample_bundle
from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.backends.tensorrt.building.build_spec import BatchProfile
from engines.backends.tensorrt.tensorrt_backend import EngineSettings
from engines.bundle.bundle import Bundle
from engines.errors import BundleError
from engines.networks.decoder import decoder_settings, open_decoder
from engines.networks.image_decoder import Decoder
from ptqd_export.cli import main
from ptqd_export.stages.summary import _beside

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

MIXTURE = (0.5, -1.0, 0.25, 2.0)
"""Of the channels, in the decoder of `tiny_decoded`."""


class Negative(Engine):
    """Gives `-sample`, and remembers how many rows it was given."""

    def __init__(self) -> None:
        spec = TensorSpec("sample", np.dtype(np.float32), (2,))
        super().__init__("negative", (spec,), spec)
        self.rows: list[int] = []

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        self.rows.append(len(feeds["sample"]))
        return [np.asarray(-feeds["sample"])]


@pytest.mark.parametrize(("count", "calls"), [(7, [3, 3, 1]), (3, [3]), (1, [1])])
def test_no_more_are_decoded_at_a_time_than_the_manifest_says(count: int, calls: list[int]) -> None:
    engine, states = Negative(), np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    np.testing.assert_array_equal(Decoder(engine, 3)(states), -states)
    assert engine.rows == calls


def test_states_that_are_images_stay_as_they_are(tiny: TinyBundle) -> None:
    states = np.ones((2, 1, 8, 8), dtype=np.float32)
    assert open_decoder(Bundle.open(tiny.folder), "target")(states) is states


def test_decoder_of_a_bundle_computes_its_graph(tiny_decoded: TinyBundle) -> None:
    states = np.random.default_rng(0).normal(size=(6, 4, 8, 8)).astype(np.float32)
    images = open_decoder(Bundle.open(tiny_decoded.folder), "target")(states)
    np.testing.assert_allclose(images, np.tanh(np.einsum("nchw,c->nhw", states, MIXTURE))[:, None], atol=1e-5)


def test_pictures_of_latents_are_the_decoded_states(tiny_decoded: TinyBundle, tmp_path: Path) -> None:
    sample_bundle(SampleRequest(tiny_decoded.folder, tmp_path / "png", num=6, seed=1))
    sample_bundle(SampleRequest(tiny_decoded.folder, tmp_path / "npz", num=6, seed=1, format="npz"))
    with np.load(tmp_path / "npz" / "samples.npz") as archive:
        states, images = archive["samples"], archive["images"]
    assert (states.shape, images.shape) == ((6, 4, 8, 8), (6, 1, 8, 8))
    expected = to_pixels(np.tanh(np.einsum("nchw,c->nhw", states, MIXTURE))[:, None])
    with Image.open(tmp_path / "png" / "00000005.png") as picture:
        assert np.abs(np.asarray(picture).astype(int) - expected[5]).max() <= 1
        np.testing.assert_array_equal(np.asarray(picture), images[5, 0])
    assert (tmp_path / "png" / "grid.png").is_file()


def test_a_bundle_with_tiles_draws_the_pictures_of_whole_states(tiny_decoded: TinyBundle, tmp_path: Path) -> None:
    """The decoder mixes the channels of each element alone, so tiles change nothing."""
    tiled = replace(tiny_decoded, folder=Path(shutil.copytree(tiny_decoded.folder, tmp_path / "bundle")))
    graph = onnx.load(tiled.folder / "decoder.onnx")
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[2].dim_value, value.type.tensor_type.shape.dim[3].dim_value = 4, 5
    onnx.save(graph, tiled.folder / "decoder.onnx")
    tile = {"sides": [4, 5], "overlap": 1}
    tiled.edit_json("manifest.json", lambda manifest: manifest["model"]["decoder"].update(tile=tile))
    tiled.rehash("decoder.onnx")
    found, expected = (engines.open_bundle(one.folder).sample(num=6) for one in (tiled, tiny_decoded))
    np.testing.assert_array_equal(found, expected)
    done = CliRunner().invoke(main, ["inspect", str(tiled.folder)])
    assert "decoded in tiles of 4 x 5 in fp32" in done.output
    model = Bundle.open(tiled.folder).manifest.model
    assert _beside(model) == "decoder: images of 8x8 in tiles of 4x5; model.decoder_tile null decodes them whole\n"
    tiled.edit_json("manifest.json", lambda manifest: manifest["model"]["decoder"].update(tile={"sides": [9, 5], "overlap": 1}))
    with pytest.raises(BundleError, match=r"tiles of \[9, 5\]"):
        Bundle.open(tiled.folder)


def test_damaged_decoder_is_told_before_any_work_is_done(tiny_decoded: TinyBundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_decoded.folder, tmp_path / "bundle"))
    (folder / "decoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="changed or damaged"):
        sample_bundle(SampleRequest(folder, tmp_path / "out", num=1, seed=1))
    assert not (tmp_path / "out").exists()


def test_tensorrt_builds_the_decoder_for_its_own_batch() -> None:
    settings = EngineSettings("tensorrt-rtx", BatchProfile(1, 16, 128), 2.0)
    assert decoder_settings(settings, 4) == EngineSettings("tensorrt-rtx", BatchProfile(1, 4, 4), 2.0)
