"""U-Nets with further channels for a mask and a masked picture, against diffusers' own inpainting pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import engines
from engines.chain.noise import NoiseSource
from engines.cli import main
from engines.errors import UsageError
from ptqd_export.commands.starter import starter_plan
from ptqd_export.diffusers import use_bundle
from ptqd_export.models.load import load_model
from tests.ptqd_export.models.conftest import FIRST_STAGE
from tests.ptqd_export.models.control.control_parts import NUM, SEED, SIDE, of_conditions, parts, pixels, save_model, settings, table
from tests.ptqd_export.models.pipelines import plan_of
from tests.ptqd_export.models.text import tiny_text

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

PIXELS = 2 * SIDE
IMAGE = pixels(1, PIXELS)
MASK = np.zeros((PIXELS, PIXELS), dtype=np.uint8)
MASK[4:13, 3:9] = 255


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    from diffusers import AutoencoderKL

    alone = {"block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return {
        **parts(in_channels=9, mid_block_type=None, **alone),
        "vae": AutoencoderKL(**FIRST_STAGE, latent_channels=4, scaling_factor=0.5).eval(),
    }


@pytest.fixture(scope="module")
def built(own: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, build_in: Callable[..., Built]) -> Built:
    folder = save_model(own, tmp_path_factory.mktemp("inpainting"))
    images = np.random.default_rng(2).standard_normal((NUM, 5, SIDE, SIDE), dtype=np.float32)
    np.savez(folder / "conditions.npz", allow_pickle=False, **table(), image=images)
    return build_in(folder, **settings(None))


@pytest.fixture
def pipe(own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline, which takes the mean of the encoder's distribution."""
    from diffusers import StableDiffusionInpaintPipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint

    monkeypatch.setattr(inpaint, "retrieve_latents", lambda output, **_: output.latent_dist.mode())
    found = StableDiffusionInpaintPipeline(**own)
    found.set_progress_bar_config(disable=True)
    return found


def _painted(pipe: Any, images: list[NDArray[np.uint8]], **others: Any) -> NDArray[np.float32]:
    start = NoiseSource(SEED, (4, SIDE, SIDE)).start(np.arange(NUM))
    given = {"image": [Image.fromarray(one) for one in images], "mask_image": Image.fromarray(MASK), "height": PIXELS, "width": PIXELS}
    return np.asarray(pipe(**given, **of_conditions(start), strength=1.0, **others).images)


def test_pipelines_keep_their_latents(built: Built, pipe: Any) -> None:
    expected = _painted(pipe, [IMAGE] * NUM)
    np.testing.assert_allclose(_painted(use_bundle(pipe, built.folder, precision="fp32"), [IMAGE] * NUM), expected, atol=1e-3)
    quantized = _painted(use_bundle(pipe, built.folder), [IMAGE] * NUM)
    assert 0 < np.abs(quantized - expected).max() < 1


def test_samples_are_those_of_the_pipeline(built: Built, pipe: Any, tmp_path: Path) -> None:
    two = [IMAGE, pixels(2, PIXELS)]
    expected, of_two = _painted(pipe, [IMAGE] * NUM), _painted(pipe, two)
    assert np.abs(expected[1] - of_two[1]).max() > 0.01
    asked: dict[str, Any] = {"num": NUM, "seed": SEED, "classes": "all", "precision": "fp32", "latents": True}
    with engines.open_bundle(built.folder) as bundle:
        np.testing.assert_allclose(bundle.sample(**asked, image=IMAGE, mask=MASK), expected, atol=1e-3)
        np.testing.assert_allclose(bundle.sample(**asked, image=np.stack(two), mask=MASK), of_two, atol=1e-3)
        late = bundle.sample(**asked, image=IMAGE, mask=MASK, strength=0.5)
        assert np.abs(late - expected).max() > 0.1
        with pytest.raises(UsageError, match=r"An inpainting network needs[^|]*an image without a mask"):
            bundle.sample(**asked, image=IMAGE)
        with pytest.raises(UsageError, match="The mask has the wrong size"):
            bundle.sample(**asked, image=IMAGE, mask=MASK[:SIDE])
        with pytest.raises(UsageError, match="takes no residuals of a control network"):
            bundle.sample(**asked, control_image=IMAGE)
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    arguments = ["--num", "2", "--seed", str(SEED), "--classes", "all", "--precision", "fp32", "--format", "npz"]
    files = ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["sample", str(built.folder), *arguments, *files])
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        np.testing.assert_allclose(archive["samples"], expected, atol=1e-3)
    assert '"strength": 1.0' in (tmp_path / "out" / "samples.json").read_text()


def test_prompts_come_with_pictures(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    folder = tiny_text.write_sd1(tmp_path / "model")
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
    started = starter_plan(folder, "onnxruntime", tmp_path)
    assert started.model.prompts is not None
    assert any("model.inpaint" in note for note in started.comments)
    model = load_model(plan_of(folder))
    assert model.conditioning is not None
    assert model.encoder is not None
    image = model.conditioning.feeds(np.array([1]), guided=True)["image"]
    assert (image[:, 0] == 1).all()
    with torch.no_grad():
        np.testing.assert_array_equal(image[0, 1:], model.encoder(torch.zeros(1, 3, PIXELS, PIXELS))[0].numpy())
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    model = load_model(plan_of(folder, inpaint={"images": "image.png", "masks": "mask.png"}))
    assert model.conditioning is not None
    image = model.conditioning.feeds(np.array([1]), guided=True)["image"]
    np.testing.assert_array_equal(image[:, 0], [MASK[::2, ::2] / 255] * 2)
    assert len({*image[:, 1].std(axis=(1, 2)).tolist()}) == 1  # both branches of guidance see the same picture


def test_other_networks_take_no_pictures_to_calibrate_with(sd1: Path) -> None:
    with pytest.raises(UsageError, match="The network takes no mask"):
        load_model(plan_of(sd1, inpaint={"images": "image.png", "masks": "mask.png"}))
