"""A latent consistency model, which takes its guidance as an embedding, against `LatentConsistencyModelPipeline`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from ptqd_export.commands.starter import starter_plan
from ptqd_export.diffusers import PtqdScheduler, use_bundle
from ptqd_export.models.conditions import embedded_guidance, guidance_of
from tests.shared import shared_folder

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built
    from tests.ptqd_export.diffusers.conftest import OwnNoise

# diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

ROWS, GUIDANCE, STEPS = np.array([2, 0, 1]), 6.0, 3
ABSENT = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline without encoders, with embeddings beside it."""
    from diffusers import AutoencoderKL, LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

    torch.manual_seed(1)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16,), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=8, cross_attention_dim=12,
        time_cond_proj_dim=32,
    )  # fmt: skip
    torch.nn.init.normal_(network.time_embedding.cond_proj.weight, std=0.5)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    parts = {"unet": network, "vae": vae, "scheduler": LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)}
    pipe = LatentConsistencyModelPipeline(**parts, **ABSENT, requires_safety_checker=False)

    def fill(to: Path) -> None:
        pipe.save_pretrained(to / "model")
        np.savez(to / "conditions.npz", encoder_hidden_states=np.random.default_rng(0).standard_normal((3, 5, 12), dtype=np.float32))

    return shared_folder(tmp_path_factory, "consistency", fill)


@pytest.fixture(scope="module")
def built(folder: Path, build_in: Callable[..., Built], tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_in(
        shutil.copytree(folder, tmp_path_factory.mktemp("consistency") / "own"),
        model={"path": "model", "conditions": "conditions.npz"},
        sampler={"name": "lcm", "steps": STEPS, "eta": 1.0, "guidance": GUIDANCE},
        precisions=["w8a8"],
    )


@pytest.fixture
def pipe(folder: Path, quiet: Callable[[Any], Any]) -> Any:
    from diffusers import LatentConsistencyModelPipeline

    return quiet(LatentConsistencyModelPipeline.from_pretrained(folder / "model", **ABSENT, local_files_only=True))


def walked(pipe: Any, built: Built, noise: OwnNoise, guidance: float = GUIDANCE, **options: Any) -> torch.Tensor:
    with np.load(built.plan_file.folder / "conditions.npz") as table:
        embeddings = torch.from_numpy(table["encoder_hidden_states"][ROWS])
    asked = {"guidance_scale": guidance, "num_inference_steps": STEPS, "output_type": "latent"} | options
    latents: torch.Tensor = pipe(prompt_embeds=embeddings, latents=noise.latents(), **asked).images
    return latents


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_full_precision_is_the_pipeline_itself(
    built: Built, pipe: Any, own_noise: Callable[..., OwnNoise], monkeypatch: pytest.MonkeyPatch
) -> None:
    def own() -> OwnNoise:
        noise = own_noise((4, 8, 8))
        monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", PtqdScheduler.step.__globals__["randn_tensor"])
        return noise

    expected = walked(pipe, built, own())
    assert not torch.allclose(expected, walked(pipe, built, own(), guidance=3.0), atol=1e-2), "guidance has a say"
    close(own().chain(built.folder, ChainChoice(precision="fp32", correction="off"), ROWS), expected, 1e-3)
    close(walked(use_bundle(pipe, built.folder, precision="fp32"), built, own()), expected, 1e-3)


def test_quantized_chains_are_those_of_the_run_time(built: Built, pipe: Any, own_noise: Callable[..., OwnNoise]) -> None:
    noise = own_noise((4, 8, 8))
    found = walked(use_bundle(pipe, built.folder), built, noise)
    close(found, noise.chain(built.folder, ChainChoice(), ROWS), 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 8.0}, r"another guidance scale.*guidance 8\n +expected: 6, .*build a bundle with this guidance"),
        ({"original_inference_steps": 20}, "another distillation.*original_inference_steps=20\n +expected: 50"),
    ],
)
def test_another_guidance_or_distillation_is_refused(
    options: dict[str, Any], message: str, built: Built, pipe: Any, own_noise: Callable[..., OwnNoise]
) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        walked(use_bundle(pipe, built.folder), built, own_noise((4, 8, 8)), **options)


@pytest.mark.parametrize("width", [32, 33, 256])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 8.5, 30.0])
def test_guidance_is_embedded_as_in_diffusers_and_read_back(width: int, guidance: float, pipe: Any) -> None:
    found = embedded_guidance(guidance, width)
    expected = pipe.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=width)[0]
    np.testing.assert_array_equal(found, expected.numpy())
    assert guidance_of(found) == pytest.approx(guidance, abs=1e-4)


def test_init_writes_few_steps_and_the_guidance_of_the_pipeline(folder: Path, built: Built) -> None:
    plan = starter_plan(folder / "model", "onnxruntime", folder)
    assert (plan.sampler.name, plan.sampler.steps, plan.sampler.guidance) == ("lcm", 4, 8.5)
    assert any("guidance 8.5, an input of the network" in comment for comment in plan.comments)
    assert not any("null." in comment for comment in plan.comments)
    assert Bundle.open(built.folder).manifest.guidance == 1.0
