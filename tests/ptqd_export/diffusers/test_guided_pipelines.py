"""Pipelines that guide: Stable Diffusion with a real network, SDXL and DiT with the tiny one of the run time's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers.pipelines.dit.pipeline_dit
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.chain.sampling import Chain
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from engines.networks.engine_bank import EngineBank
from ptqd_export.diffusers import PtqdDenoiser, PtqdScheduler, use_bundle

if TYPE_CHECKING:
    from tests.conftest import TinyBundle
    from tests.ptqd_export.conftest import Built
    from tests.ptqd_export.diffusers.conftest import OwnNoise

Noise = Callable[..., "OwnNoise"]
Quiet = Callable[[Any], Any]
ROWS = np.array([0, 2, 1])

# Stable Diffusion


@pytest.fixture
def text_pipeline(cross_model: Path, quiet: Quiet) -> Any:
    """Without text encoder and decoder: prompts are given embedded, and latents are what comes out."""
    return quiet(
        StableDiffusionPipeline(
            vae=None, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
            unet=UNet2DConditionModel.from_pretrained(cross_model / "unet"),
            scheduler=DDPMScheduler.from_pretrained(cross_model / "scheduler", steps_offset=1),
        )
    )  # fmt: skip


def prompted(pipe: Any, conditions: Path, noise: OwnNoise, **options: Any) -> torch.Tensor:
    with np.load(conditions) as table:
        prompts, null = (torch.from_numpy(table[name]) for name in ("encoder_hidden_states", "null.encoder_hidden_states"))
    guided = {"guidance_scale": 2.0, "num_inference_steps": 3, "output_type": "latent"} | options
    latents: torch.Tensor = pipe(
        prompt_embeds=prompts[ROWS], negative_prompt_embeds=null.expand(3, -1, -1), latents=noise.latents(), **guided
    ).images
    return latents


@pytest.mark.parametrize("precision", ["auto", "w8a8"])
def test_guided_latents_are_those_of_the_run_time(cross_build: Built, text_pipeline: Any, own_noise: Noise, precision: str) -> None:
    noise = own_noise((2, 8, 8))
    use_bundle(text_pipeline, cross_build.folder, precision=precision)
    found = prompted(text_pipeline, cross_build.plan_file.folder / "conditions.npz", noise)
    expected = noise.chain(cross_build.folder, ChainChoice(precision=precision), ROWS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_guided_full_precision_is_that_of_the_network(cross_build: Built, text_pipeline: Any, own_noise: Noise) -> None:
    noise, conditions = own_noise((2, 8, 8)), cross_build.plan_file.folder / "conditions.npz"
    text_pipeline.scheduler = PtqdScheduler.from_bundle(cross_build.folder, precision="fp32")
    expected = prompted(text_pipeline, conditions, noise)
    again = own_noise((2, 8, 8))
    found = prompted(use_bundle(text_pipeline, cross_build.folder, precision="fp32"), conditions, again)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("scale", "seen"), [(7.5, "7.5"), (1.0, "1")])
def test_another_guidance_is_refused_unless_it_is_accepted(
    cross_build: Built, text_pipeline: Any, own_noise: Noise, scale: float, seen: str
) -> None:
    noise, conditions = own_noise((2, 8, 8)), cross_build.plan_file.folder / "conditions.npz"
    with pytest.raises(UsageError, match=rf"another guidance scale[^|]*found: +guidance {seen}\n +expected: 2, "):
        prompted(use_bundle(text_pipeline, cross_build.folder), conditions, noise, guidance_scale=scale)
    accepted = use_bundle(text_pipeline, cross_build.folder, accept_guidance=True)
    found = prompted(accepted, conditions, own_noise((2, 8, 8)), guidance_scale=scale)
    expected = noise.chain(cross_build.folder, ChainChoice(guidance=scale, accept_guidance=True), ROWS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_rescaled_guidance_is_refused(cross_build: Built, text_pipeline: Any, own_noise: Noise) -> None:
    conditions = cross_build.plan_file.folder / "conditions.npz"
    with pytest.raises(UsageError, match="did not get the guided output"):
        prompted(use_bundle(text_pipeline, cross_build.folder), conditions, own_noise((2, 8, 8)), guidance_rescale=0.7)


def test_attention_arguments_are_refused(cross_build: Built, text_pipeline: Any, own_noise: Noise) -> None:
    conditions = cross_build.plan_file.folder / "conditions.npz"
    with pytest.raises(UsageError, match="cannot honour cross_attention_kwargs"):
        prompted(use_bundle(text_pipeline, cross_build.folder), conditions, own_noise((2, 8, 8)), cross_attention_kwargs={"gligen": 1})


def test_another_size_is_refused(cross_build: Built, text_pipeline: Any) -> None:
    pipe = use_bundle(text_pipeline, cross_build.folder)
    embedded = torch.zeros(1, 5, 12)
    with pytest.raises(UsageError, match=r"another shape.\n +found: +samples of shape \[2, 16, 8\]\n +expected: \[2, 8, 8\]"):
        pipe(prompt_embeds=embedded, negative_prompt_embeds=embedded, num_inference_steps=3, guidance_scale=2.0, height=128, width=64)


# Engines that stand in for networks that no tiny bundle holds


class StandInBackend(Engine):
    """An engine around a function of its feeds."""

    def __init__(self, inputs: Mapping[str, tuple[str, tuple[int, ...]]], shape: tuple[int, ...], run: Callable[[Any], Float32]) -> None:
        specs = {"sample": ("float32", shape), "timestep": ("float32", ())} | dict(inputs)
        inner = tuple(TensorSpec(name, np.dtype(dtype), size) for name, (dtype, size) in specs.items())
        super().__init__("stand-in", inner, TensorSpec("out", np.dtype("float32"), shape))
        self._function = run

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        return [self._function(feeds)]


class LabelledBackend:
    """The tiny network with ImageNet's label for no class, 1000, in place of its own."""

    def open(self, graph: Path, rows: int) -> Engine:
        engine = OnnxRuntimeEngine(graph, batch=rows)

        def run(feeds: Mapping[str, NDArray[Any]]) -> Float32:
            labels = feeds["class_labels"]
            return engine.run({**feeds, "class_labels": np.where(labels == 1000, 3, labels)})

        return StandInBackend({"class_labels": ("int64", ())}, (4, 8, 8), run)


@pytest.fixture
def imagenet(tiny_latent: TinyBundle) -> Bundle:
    tiny_latent.edit_json("manifest.json", lambda manifest: manifest["model"]["conditioning"].update(null_class=1000))
    return Bundle.open(tiny_latent.folder)


@pytest.fixture
def decoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)


@pytest.mark.parametrize("guidance", [1.5, 1.0])
def test_dit_images_are_those_of_the_run_time(
    imagenet: Bundle, decoder: AutoencoderKL, quiet: Quiet, own_noise: Noise, guidance: float
) -> None:
    denoiser = PtqdDenoiser(imagenet, imagenet.schedule(), None, LabelledBackend())
    watched = denoiser if guidance == 1.5 else None
    scheduler = PtqdScheduler.from_bundle(imagenet.folder, watched=watched)
    pipe = quiet(DiTPipeline(transformer=denoiser, vae=decoder, scheduler=scheduler))
    noise = own_noise((4, 8, 8), diffusers.pipelines.dit.pipeline_dit)
    found = pipe(class_labels=ROWS.tolist(), guidance_scale=guidance, num_inference_steps=4, output_type="pt").images
    bank = EngineBank(imagenet, guidance, batch=3, backend=LabelledBackend())
    states = torch.from_numpy(Chain(imagenet.schedule(), bank, guidance=guidance).sample(noise.source, np.array([4, 0, 9]), ROWS))
    with torch.no_grad():
        expected = decoder.decode(states / decoder.config.scaling_factor).sample
    torch.testing.assert_close(found, (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


def test_dit_refuses_another_guidance(imagenet: Bundle, decoder: AutoencoderKL, quiet: Quiet) -> None:
    denoiser = PtqdDenoiser(imagenet, imagenet.schedule(), None, LabelledBackend())
    pipe = quiet(DiTPipeline(denoiser, decoder, PtqdScheduler.from_bundle(imagenet.folder, watched=denoiser)))
    with pytest.raises(UsageError, match="The corrections were fitted at another guidance scale"):
        pipe(class_labels=[1, 2], guidance_scale=4.0, num_inference_steps=4)


def test_dit_tells_a_model_without_its_null_label(tiny_latent: TinyBundle, decoder: AutoencoderKL, quiet: Quiet) -> None:
    pipe = quiet(DiTPipeline(PtqdDenoiser.from_bundle(tiny_latent.folder), decoder, PtqdScheduler.from_bundle(tiny_latent.folder)))
    with pytest.raises(UsageError, match=r"found: +1000, 1000\n +expected: 0 to 2, and 3 for no class"):
        pipe(class_labels=[1, 2], guidance_scale=1.5, num_inference_steps=4)


class EmbeddingBackend:
    """A network that takes embeddings: the sample, and the mean of the embeddings on top. It keeps what it was fed."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.inputs = {name: ("float32", shape) for name, shape in inputs.items()}
        self.seen: list[Mapping[str, NDArray[Any]]] = []

    def denoiser(self, tiny: TinyBundle) -> PtqdDenoiser:
        """It in place of a tiny bundle's network."""
        records = [{"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in self.inputs.items()]
        conditioning = {"inputs": records, "rows": 1, "null_class": None, "file": None}
        tiny.edit_json("manifest.json", lambda manifest: manifest["model"].update(conditioning=conditioning))
        bundle = Bundle.open(tiny.folder)
        return PtqdDenoiser(bundle, bundle.schedule(), None, self)

    def open(self, _graph: Path, _rows: int) -> Engine:
        return StandInBackend(self.inputs, (4, 8, 8), self._run)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        self.seen.append(feeds)
        return np.asarray(feeds["sample"] + feeds["encoder_hidden_states"].mean((1, 2))[:, None, None, None])


def test_sdxl_gives_its_added_conditions(tiny_latent: TinyBundle, quiet: Quiet) -> None:
    backend = EmbeddingBackend(encoder_hidden_states=(5, 12), text_embeds=(7,), time_ids=(6,))
    denoiser = backend.denoiser(tiny_latent)
    scheduler = PtqdScheduler.from_bundle(tiny_latent.folder, watched=denoiser)
    pipe = quiet(StableDiffusionXLPipeline(None, None, None, None, None, denoiser, scheduler, add_watermarker=False))
    embedded, pooled = torch.randn(2, 1, 5, 12), torch.randn(2, 1, 7)
    latents = pipe(
        prompt_embeds=embedded[0], negative_prompt_embeds=embedded[1], pooled_prompt_embeds=pooled[0],
        negative_pooled_prompt_embeds=pooled[1], num_inference_steps=4, guidance_scale=1.5, eta=1.0, output_type="latent",
    ).images  # fmt: skip
    assert latents.shape == (1, 4, 8, 8)
    assert len(backend.seen) == 4
    np.testing.assert_array_equal(backend.seen[0]["text_embeds"], pooled.flip(0)[:, 0])
    np.testing.assert_array_equal(backend.seen[0]["time_ids"], [[64, 64, 0, 0, 64, 64]] * 2)


def test_a_chain_from_an_image_is_that_of_diffusers(tiny_latent: TinyBundle, quiet: Quiet) -> None:
    """From step 2 of 4, uncorrected, beside DDIMScheduler of the same timesteps."""
    backend = EmbeddingBackend(encoder_hidden_states=(5, 12))
    denoiser = backend.denoiser(tiny_latent)
    scheduler = PtqdScheduler.from_bundle(tiny_latent.folder, correction="off")
    pipe = quiet(StableDiffusionImg2ImgPipeline(None, None, None, denoiser, None, None, None, requires_safety_checker=False))
    image, embedded = torch.randn(3, 4, 8, 8), torch.randn(2, 3, 5, 12)

    def drawn(of: Any) -> torch.Tensor:
        pipe.scheduler = of
        latents: torch.Tensor = pipe(
            prompt_embeds=embedded[0], negative_prompt_embeds=embedded[1], image=image, strength=0.5, num_inference_steps=4,
            guidance_scale=2.5, eta=1.0, output_type="latent", generator=torch.Generator().manual_seed(2),
        ).images  # fmt: skip
        return latents

    expected = drawn(DDIMScheduler(clip_sample=False))
    assert len(backend.seen) == 2
    torch.testing.assert_close(drawn(scheduler), expected, rtol=0, atol=1e-4)
