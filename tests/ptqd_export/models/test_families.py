"""Every family from its folder to images: the chain is the one of diffusers' own pipeline, given the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from engines.apps.pictures.images import to_pixels
from engines.apps.sample.sample_command import SampleRequest, sample_bundle
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.networks.chain_choice import ChainChoice
from engines.networks.decoder import open_decoder
from ptqd_export.commands.starter import starter_plan
from ptqd_export.models.load import declare_model

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

NUM, SEED = 3, 5
CLASSES = (7, 0, 999)
MODULES = {
    "pixel": "ddim.pipeline_ddim",
    "latent": "deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond",
    "super-resolution": "latent_diffusion.pipeline_latent_diffusion_superresolution",
    "dit": "dit.pipeline_dit",
}
SHAPES = {
    "pixel": ((3, 4, 4), (3, 4, 4)),
    "latent": ((3, 4, 4), (3, 8, 8)),
    "super-resolution": ((3, 4, 4), (3, 8, 8)),
    "dit": ((4, 4, 4), (3, 8, 8)),
}
INPUTS = {
    "pixel": [],
    "latent": [],
    "super-resolution": ["image: float32 [rows, 3, 4, 4]"],
    "dit": ["class_labels: int64 [rows]"],
}

Images = NDArray[np.float32]


def _pipeline(family: str, folder: Path, start: Images, rows: NDArray[np.int64], patch: pytest.MonkeyPatch) -> Images:
    """Images [N, 3, H, W] in [0, 1] of diffusers' pipeline from our noise."""
    import diffusers

    patch.setattr(f"diffusers.pipelines.{MODULES[family]}.randn_tensor", lambda *_, **__: torch.from_numpy(start))
    name = {"pixel": "DDIMPipeline"}.get(family, json.loads((folder / "model_index.json").read_text())["_class_name"])
    pipeline = getattr(diffusers, name).from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"batch_size": NUM}
    if family == "dit":
        arguments = {"class_labels": rows.tolist(), "guidance_scale": 1.5}
    elif family == "super-resolution":
        with np.load(folder.parent / "conditions.npz") as archive:
            arguments = {"image": torch.from_numpy(archive["image"][rows]), "batch_size": NUM}
    return np.moveaxis(pipeline(**arguments, num_inference_steps=3, output_type="np").images, -1, 1)


@pytest.fixture
def rows(family: str) -> NDArray[np.int64]:
    return np.array(CLASSES if family == "dit" else (2, 0, 1), dtype=np.int64)


def test_full_precision_draws_the_images_of_the_pipeline(
    family: str, family_model: Path, family_build: Built, rows: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(family_build.folder)
    noise, numbers = NoiseSource(SEED, bundle.manifest.model.sample_shape), np.arange(NUM, dtype=np.int64)
    chain = ChainChoice(precision="fp32", correction="off").open(bundle, NUM)
    images = open_decoder(bundle, "target")(chain.sample(noise, numbers, rows))
    expected = _pipeline(family, family_model, noise.start(numbers), rows, monkeypatch)
    assert expected.std() > 0.05
    np.testing.assert_allclose((images / 2 + 0.5).clip(0, 1), expected, atol=1e-3)


def test_pictures_and_archives_of_the_quantized_chain(family: str, family_build: Built, tmp_path: Path) -> None:
    classes = None if family in ("pixel", "latent") else (2, 0, 1)
    pictures = sample_bundle(SampleRequest(family_build.folder, tmp_path / "png", NUM, SEED, classes=classes))
    archive = sample_bundle(SampleRequest(family_build.folder, tmp_path / "npz", NUM, SEED, classes=classes, format="npz"))
    assert pictures.record.precision_steps == archive.record.precision_steps == {"w8a8": 3}
    states, images = SHAPES[family]
    with np.load(archive.output / "samples.npz") as arrays, Image.open(pictures.output / "00000002.png") as picture:
        assert arrays["samples"].shape == (NUM, *states)
        shown = to_pixels(arrays["samples"]) if states == images else np.moveaxis(arrays["images"], 1, -1)
        assert ("images" in arrays.files) is (states != images)
        np.testing.assert_array_equal(np.asarray(picture), shown[2])
    assert (pictures.output / "grid.png").is_file()


def test_manifest_says_what_the_model_takes_and_gives(family: str, family_build: Built) -> None:
    model = Bundle.open(family_build.folder).manifest.model
    assert (model.sample_shape, model.image_shape) == SHAPES[family]
    assert (model.decoder is None) is (family == "pixel")
    assert ("decoder.onnx" in Bundle.open(family_build.folder).manifest.files) is (family != "pixel")
    inputs = [] if model.conditioning is None else [f"{one.name}: {one.dtype}" for one in model.conditioning.inputs]
    assert inputs == [one.partition(" [")[0] for one in INPUTS[family]]


@pytest.mark.parametrize("family", list(SHAPES), indirect=True, scope="session")
def test_configuration_alone_says_what_the_model_is(family: str, family_model: Path) -> None:
    declared = declare_model(family_model)
    assert declared.sample_shape == SHAPES[family][0]
    assert [str(one) for one in declared.inputs] == INPUTS[family]
    assert declared.null_class == (1000 if family == "dit" else None)
    assert starter_plan(family_model, "onnxruntime", family_model.parent).sampler.guidance == (1.5 if family == "dit" else 1.0)
