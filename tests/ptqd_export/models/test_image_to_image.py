"""Chains that start from images, against diffusers' own image-to-image and inpainting pipelines with the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from engines.apps.pictures.picture_files import mask_state, picture_state
from engines.chain.late_start import LateStart
from engines.chain.noise import NoiseSource
from engines.chain.origin import Origin
from engines.chain.sampling import Chain
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from engines.errors import UsageError
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.load import load_model
from tests.ptqd_export.models.conftest import FIRST_STAGE
from tests.ptqd_export.models.pipelines import plan_of

Array = NDArray[Any]

STEPS, SIDE, TOKENS, WIDTH, SEED, NUM = 5, 16, 5, 12, 3, 2
GUIDANCE = 3.0
NONE = Correction(
    gain=(1.0,) * 4, offset=(0.0,) * 4, state_gain=(0.0,) * 4, sigma_corrected=0.0, residual_variance=0.0, unabsorbed_variance=0.0
)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """The parts of a small Stable Diffusion without text encoders: a first stage that halves the sides, and a U-Net of four channels."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16,), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=8, cross_attention_dim=WIDTH,
    )  # fmt: skip
    vae = AutoencoderKL(**FIRST_STAGE, latent_channels=4, scaling_factor=0.5)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False, set_alpha_to_one=False
    )
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return {"vae": vae.eval(), "unet": unet.eval(), "scheduler": scheduler, **absent, "requires_safety_checker": False}


@pytest.fixture(scope="module")
def table() -> dict[str, Array]:
    rows = np.random.default_rng(0).standard_normal((NUM + 1, TOKENS, WIDTH), dtype=np.float32)
    return {"encoder_hidden_states": rows[:NUM], "null.encoder_hidden_states": rows[NUM]}


@dataclass(frozen=True)
class Guided:
    """The model's own network as a `Denoiser`."""

    model: LoadedModel

    @torch.no_grad()
    def __call__(self, x: Array, timestep: float, rows: Array) -> Array:
        assert self.model.conditioning is not None
        feeds = self.model.conditioning.feeds(rows, guided=True)
        conditions = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.model.adapter.conditions]
        out = self.model.adapter(torch.from_numpy(np.concatenate([x, x])), torch.full((2 * len(x),), timestep), *conditions)
        return np.asarray(out.numpy().reshape(2, *x.shape))


@pytest.fixture(scope="module")
def model(parts: dict[str, Any], table: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    from diffusers import StableDiffusionImg2ImgPipeline

    folder = tmp_path_factory.mktemp("img2img")
    StableDiffusionImg2ImgPipeline(**parts).save_pretrained(folder / "model")
    np.savez(folder / "conditions.npz", allow_pickle=False, **table)
    return load_model(plan_of(folder / "model", prompts=None, conditions="conditions.npz", encoder=True))


def _chain(model: LoadedModel, image: Array, strength: float, mask: Array | None = None) -> tuple[Chain, Array]:
    """The chain at full precision that starts from an image, and the image's clean state [1, 4, h, w]."""
    assert model.encoder is not None
    sampler = SamplerRecord(name="ddim", steps=STEPS, eta=0.0, guidance=GUIDANCE)
    rows = sampler.table(model.noise_schedule)
    steps = tuple(
        Step.model_validate(
            {"step": i, "precision": "fp32", "corrections": {"fp32": NONE}}
            | {name: getattr(rows.step(i), name) for name in Step.model_fields if hasattr(rows.step(i), name)}
        )
        for i in range(rows.steps)
    )
    correction = CorrectionRecord(mode="none", variance="none")
    schedule = Schedule(sampler=sampler, correction=correction, policy="fixed", init_sigma=rows.init_sigma, steps=steps)
    late = LateStart.of(schedule, model.noise_schedule, strength)
    with torch.no_grad():
        clean = model.encoder(torch.from_numpy(picture_state(image, (3, SIDE, SIDE))[None])).numpy()
    kept = None if mask is None else mask_state(mask, (3, SIDE, SIDE), clean.shape[2:])
    origin = Origin(late.levels, lambda _: clean, kept, from_noise=mask is not None and strength == 1)
    return Chain(late.schedule, {"fp32": Guided(model)}, levels=late.levels, origin=origin), clean


def _latents(chain: Chain) -> Array:
    return chain.sample(NoiseSource(SEED, (4, SIDE // 2, SIDE // 2)), np.arange(NUM), np.arange(NUM))


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give diffusers' pipelines the mean of the latents, and the noise of the samples 0, 1, ..."""
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as to_image
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint

    eps = torch.from_numpy(NoiseSource(SEED, (4, SIDE // 2, SIDE // 2)).start(np.arange(NUM)))
    for module in (to_image, inpaint):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: eps)
        monkeypatch.setattr(module, "retrieve_latents", lambda output, **_: output.latent_dist.mode())


def _arguments(table: dict[str, Array], image: Array, strength: float) -> dict[str, Any]:
    null = torch.from_numpy(table["null.encoder_hidden_states"]).expand(NUM, -1, -1)
    return {
        "prompt_embeds": torch.from_numpy(table["encoder_hidden_states"]), "negative_prompt_embeds": null,
        "image": [Image.fromarray(image)] * NUM,
        "strength": strength, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "eta": 0.0, "output_type": "latent",
    }  # fmt: skip


@pytest.fixture
def image() -> Array:
    return np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> Array:
    """An image whose pixels at odd rows and columns differ from those that the nearest pixel of a latent is."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[4:13, 3:9] = 255
    mask[0, 0], mask[2, 2], mask[1::2, 15] = 128, 127, 255
    return mask


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_is_that_of_diffusers(
    model: LoadedModel, parts: dict[str, Any], table: dict[str, Array], image: Array, strength: float
) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipeline = StableDiffusionImg2ImgPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(**_arguments(table, image, strength)).images.numpy()
    chain, clean = _chain(model, image, strength)
    np.testing.assert_allclose(_latents(chain), expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected - clean).max() > 0.1
    assert len(chain.schedule.steps) == (2 if strength == 0.5 else STEPS)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_is_that_of_diffusers(
    model: LoadedModel, parts: dict[str, Any], table: dict[str, Array], image: Array, mask: Array, strength: float
) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {**_arguments(table, image, strength), "mask_image": Image.fromarray(mask), "height": SIDE, "width": SIDE}
    expected = pipeline(**arguments).images.numpy()
    chain, clean = _chain(model, image, strength, mask)
    found = _latents(chain)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    kept = np.broadcast_to(mask[::2, ::2] < 128, found.shape)
    np.testing.assert_array_equal(found[kept], np.broadcast_to(clean, found.shape)[kept])
    assert np.abs(found - clean)[~kept].max() > 0.1


def test_an_encoder_needs_a_pipeline_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'"path" together with "encoder"'):
        plan_of(tmp_path / "model", prompts=None, path=None, factory="package.module:function", encoder=True)
