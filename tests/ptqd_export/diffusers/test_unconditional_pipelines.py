"""DDIMPipeline and DDPMPipeline of a real, tiny UNet2DModel, with and without the bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import diffusers.pipelines.ddim.pipeline_ddim
import diffusers.pipelines.ddpm.pipeline_ddpm
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, LDMPipeline, VQModel
from diffusers.pipelines.deprecated.latent_diffusion_uncond import pipeline_latent_diffusion_uncond

from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from ptqd_export.diffusers import PtqdDenoiser, PtqdScheduler, use_bundle

if TYPE_CHECKING:
    from tests.conftest import TinyBundle
    from tests.ptqd_export.conftest import Built
    from tests.ptqd_export.diffusers.conftest import OwnNoise, PlainModel

Quiet = Callable[[Any], Any]
SHAPE = (3, 8, 8)


def pipeline(plain: PlainModel, schedule: str) -> Any:
    if schedule == "default":
        return DDIMPipeline.from_pretrained(plain.folder)
    return DDPMPipeline.from_pretrained(plain.folder, scheduler=DDPMScheduler.from_pretrained(plain.folder / "scheduler"))


def images(pipe: Any, schedule: str, batch: int = 3) -> torch.Tensor:
    eta = {"eta": 1.0} if schedule == "default" else {}
    generator = torch.Generator().manual_seed(0)
    drawn: torch.Tensor = pipe(batch_size=batch, num_inference_steps=10, generator=generator, output_type="pt", **eta).images
    return drawn


@pytest.mark.parametrize("schedule", ["default", "ddpm"])
def test_full_precision_draws_the_images_of_the_pipeline(plain: PlainModel, quiet: Quiet, schedule: str) -> None:
    pipe = quiet(pipeline(plain, schedule))
    expected = images(pipe, schedule)
    found = images(use_bundle(pipe, plain.bundle, schedule=schedule, precision="fp32"), schedule)
    assert isinstance(pipe.unet, PtqdDenoiser)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("schedule", ["default", "ddpm"])
@pytest.mark.parametrize(("precision", "correction"), [("auto", "on"), ("w8a8", "on"), ("w8a8", "off")])
def test_quantized_images_are_those_of_the_run_time(
    plain: PlainModel, quiet: Quiet, own_noise: Callable[..., OwnNoise], schedule: str, precision: str, correction: Any
) -> None:
    pipe = quiet(pipeline(plain, schedule))
    module = diffusers.pipelines.ddim.pipeline_ddim if schedule == "default" else diffusers.pipelines.ddpm.pipeline_ddpm
    noise = own_noise(SHAPE, module)
    use_bundle(pipe, plain.bundle, schedule=schedule, precision=precision, correction=correction)
    states = noise.chain(plain.bundle, ChainChoice(schedule, precision, correction))
    torch.testing.assert_close(images(pipe, schedule), (states / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_the_correction_and_the_quantization_make_a_difference(plain: PlainModel, quiet: Quiet) -> None:
    """Otherwise the test above would prove little."""
    pipe = quiet(pipeline(plain, "default"))
    corrected = images(use_bundle(pipe, plain.bundle, precision="w8a8"), "default")
    plainly = images(use_bundle(pipe, plain.bundle, precision="w8a8", correction="off"), "default")
    exact = images(use_bundle(pipe, plain.bundle, precision="fp32"), "default")
    assert (corrected - plainly).abs().max() > 1e-4
    assert (plainly - exact).abs().max() > 1e-4


def test_engines_alone_are_the_uncorrected_chain(plain: PlainModel, quiet: Quiet) -> None:
    """Two schedulers round differently, so in a few samples the tie of a quantized activation falls the other way."""
    pipe = quiet(pipeline(plain, "default"))
    pipe.unet = PtqdDenoiser.from_bundle(plain.bundle)
    alone = images(pipe, "default", batch=16)
    pipe.scheduler = PtqdScheduler.from_bundle(plain.bundle, correction="off")
    difference = (images(pipe, "default", batch=16) - alone).abs().amax(dim=(1, 2, 3))
    assert (difference < 1e-5).sum() >= 12
    assert difference.max() < 0.1


def test_latents_of_a_pipeline_with_a_first_stage_are_those_of_the_run_time(
    tiny_unconditional: TinyBundle, quiet: Quiet, own_noise: Callable[..., OwnNoise]
) -> None:
    """LDMPipeline passes no generator on, and asks for eta 0 unless told."""
    torch.manual_seed(0)
    stage = VQModel(block_out_channels=(4,), norm_num_groups=2, latent_channels=3, num_vq_embeddings=16)
    folder = tiny_unconditional.folder
    pipe = quiet(LDMPipeline(stage, PtqdDenoiser.from_bundle(folder), PtqdScheduler.from_bundle(folder)))
    noise = own_noise(SHAPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_latent_diffusion_uncond, "randn_tensor", lambda *_, **__: noise.latents())
        (found,) = pipe(batch_size=3, num_inference_steps=4, eta=1.0, output_type="np", return_dict=False)
    with torch.no_grad():
        expected = stage.decode(noise.chain(folder, ChainChoice()) / stage.config.scaling_factor).sample
    np.testing.assert_allclose(found, (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), rtol=0, atol=1e-5)


def test_a_pipeline_is_loaded_without_its_own_network(plain: PlainModel, quiet: Quiet) -> None:
    denoiser, scheduler = PtqdDenoiser.from_bundle(plain.bundle), PtqdScheduler.from_bundle(plain.bundle, schedule="ddpm")
    pipe = quiet(DDPMPipeline.from_pretrained(plain.folder, unet=denoiser, scheduler=scheduler))
    assert pipe.unet is denoiser
    assert pipe.scheduler is scheduler
    assert images(pipe, "ddpm").shape == (3, 3, 8, 8)


def test_each_sample_may_have_a_generator_of_its_own(plain: PlainModel, quiet: Quiet) -> None:
    pipe = quiet(use_bundle(pipeline(plain, "default"), plain.bundle, precision="fp32"))
    together = pipe(
        batch_size=2, num_inference_steps=10, eta=1.0, output_type="pt", generator=[torch.Generator().manual_seed(n) for n in (5, 6)]
    ).images
    second = pipe(batch_size=1, num_inference_steps=10, eta=1.0, output_type="pt", generator=torch.Generator().manual_seed(6)).images
    torch.testing.assert_close(together[1:], second, rtol=0, atol=1e-5)


def test_a_pipeline_in_half_precision_stays_in_it(plain: PlainModel, quiet: Quiet, own_noise: Callable[..., OwnNoise]) -> None:
    noise = own_noise(SHAPE, diffusers.pipelines.ddim.pipeline_ddim)
    pipe = quiet(pipeline(plain, "default")).to(dtype=torch.float16)
    use_bundle(pipe, plain.bundle, precision="fp32")
    assert (pipe.unet.dtype, pipe.unet.device) == (torch.float16, torch.device("cpu"))
    found = images(pipe, "default")
    assert found.dtype == torch.float16
    states = noise.chain(plain.bundle, ChainChoice(precision="fp32"))
    torch.testing.assert_close(found.float(), (states / 2 + 0.5).clamp(0, 1), rtol=0, atol=0.02)
    assert pipe.to(dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_a_bundle_of_another_network_is_refused_before_the_pipeline_changes(plain: PlainModel, class_build: Built) -> None:
    pipe = pipeline(plain, "default")
    before = pipe.unet, pipe.scheduler
    with pytest.raises(UsageError, match=r"(?s)of another network than the pipeline's.*with parameters \d+\n"):
        use_bundle(pipe, class_build.folder)
    pipe.unet.register_to_config(sample_size=[16, 16])
    with pytest.raises(UsageError, match=r"(?s)with sample_size 8\n.*with sample_size \[16, 16\]\n"):
        use_bundle(pipe, plain.bundle)
    assert (pipe.unet, pipe.scheduler) == before
    pipe.unet.register_to_config(sample_size=[8, 8])
    assert use_bundle(pipe, plain.bundle) is pipe
