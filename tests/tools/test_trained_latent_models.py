"""The committed latent models and their first stage are what their documents say, and good enough to prove something on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import PARITY, check_parity, trace
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.load import load_model
from ptqd_export.plan import PlanFile, load_plan
from tools.coloured.data import coloured
from tools.digits.data import split
from tools.latent.first_stage import decode, encode, load_first_stage
from tools.training import recognise
from tools.training.recognise import recognised
from tools.training.training import Predict, sample

TOOLS = Path(recognise.__file__).parents[1]


@dataclass(frozen=True)
class Committed:
    """One of the models: its folder under `tools/`, the name and class of its denoiser, and how diffusers loads it."""

    name: str
    denoiser: str
    kind: str
    from_pretrained: Callable[..., Any]

    @property
    def folder(self) -> Path:
        return TOOLS / self.name

    @property
    def log(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "training_log.json").read_text())
        return content

    @cached_property
    def plan(self) -> PlanFile:
        return load_plan(self.folder / "plan.json")

    @cached_property
    def model(self) -> LoadedModel:
        return load_model(self.plan)


DIT = Committed("dit", "transformer", "DiTTransformer2DModel", DiTPipeline.from_pretrained)
LATENT = Committed(
    "latent", "unet", "UNet2DConditionModel", partial(StableDiffusionPipeline.from_pretrained, text_encoder=None, tokenizer=None)
)

each_model = pytest.mark.parametrize("committed", [DIT, LATENT], ids=lambda committed: committed.name)


def guided(model: LoadedModel, rows: torch.Tensor, guidance: float) -> Predict:
    """By classifier-free guidance, one sample of each row of the conditioning table."""
    assert model.conditioning is not None
    assert model.conditioning.null is not None
    values = [torch.from_numpy(table)[rows] for table in model.conditioning.tables.values()]
    null = [
        torch.from_numpy(np.broadcast_to(model.conditioning.null[name], table[rows].shape).copy())
        for name, table in model.conditioning.tables.items()
    ]

    def predict(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        conditional, unconditional = (model.adapter(x, timestep.float().expand(len(x)), *inputs) for inputs in (values, null))
        out: torch.Tensor = unconditional + guidance * (conditional - unconditional)
        return out

    return predict


@each_model
def test_model_folder_is_small_and_holds_no_pickles(committed: Committed) -> None:
    files = [path for path in (committed.folder / "model").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= 8e6


@each_model
def test_weights_are_stored_in_half_precision(committed: Committed) -> None:
    for part in (committed.denoiser, "vae"):
        stored = load_file(committed.folder / "model" / part / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


@each_model
def test_diffusers_loads_the_model_folder(committed: Committed) -> None:
    """The schedule is that of the training: 1000 linear betas, and latents that are not clipped."""
    pipeline = committed.from_pretrained(committed.folder / "model", local_files_only=True, use_safetensors=True)
    assert type(getattr(pipeline, committed.denoiser)).__name__ == committed.kind
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    betas = pipeline.scheduler.betas
    assert (len(betas), betas[0].item(), betas[-1].item()) == (1000, pytest.approx(1e-4), pytest.approx(0.02))
    assert (pipeline.scheduler.config.prediction_type, pipeline.scheduler.config.clip_sample) == ("epsilon", False)


@each_model
def test_training_log_holds_the_figures_of_the_training(committed: Committed) -> None:
    log = committed.log
    losses = [row["loss"] for row in log["log"]]
    assert losses[-1] < 0.6 * losses[0]
    assert log["steps"] == log["log"][-1]["step"]
    assert (log["samples"], log["guidance"]) == (1000, 2.0)
    assert 0.9 <= log["samples_recognised"] <= 1


@each_model
def test_plan_loads_the_model_with_one_condition_a_digit_and_the_first_stage(committed: Committed) -> None:
    model, sampler = committed.model, committed.plan.plan.sampler
    assert committed.plan.model_path == committed.folder / "model"
    assert (sampler.name, sampler.steps, sampler.eta, sampler.guidance) == ("ddim", 20, 1.0, 2.0)
    assert model.family == f"diffusers {committed.kind}"
    assert model.sample_shape == (4, 8, 8)
    assert model.conditioning is not None
    assert model.conditioning.rows == 10
    assert model.conditioning.null is not None
    assert model.decoder is not None
    assert model.decoder(torch.zeros(2, 4, 8, 8)).shape == (2, 3, 32, 32)


def test_class_embeddings_beside_the_latent_model_are_its_parameters_too() -> None:
    """Eleven of 64 values, the last for no class: the log counts what was trained."""
    conditioning = LATENT.model.conditioning
    assert conditioning is not None
    assert conditioning.null is not None
    (table,), (null,) = conditioning.tables.values(), conditioning.null.values()
    assert (table.shape, null.shape) == ((10, 1, 64), (1, 64))
    assert LATENT.model.parameters + table.size + null.size == LATENT.log["parameters"]


def test_log_of_the_transformer_counts_its_parameters() -> None:
    assert DIT.model.parameters == DIT.log["parameters"]


@pytest.mark.slow
@each_model
def test_traced_network_computes_what_torch_does(committed: Committed, tmp_path: Path) -> None:
    save_graph(trace(committed.model), tmp_path / "network.onnx")
    assert check_parity(committed.model, tmp_path / "network.onnx") < PARITY


@each_model
def test_samples_in_full_precision_show_the_digit_asked_for(committed: Committed) -> None:
    torch.manual_seed(0)
    model, labels = committed.model, torch.arange(40) % 10
    assert model.decoder is not None
    with torch.no_grad():
        scheduler = DDPMScheduler.from_pretrained(committed.folder / "model" / "scheduler", local_files_only=True)
        images = sample(guided(model, labels, 2.0), scheduler, (40, 4, 8, 8), decode=model.decoder).numpy()
    assert recognised(images, labels.numpy()) >= 0.85
    assert recognised(images, (labels.numpy() + 1) % 10) <= 0.1


# The first stage


def test_both_models_have_the_same_first_stage() -> None:
    one, other = (load_file(each.folder / "model" / "vae" / "diffusion_pytorch_model.safetensors") for each in (DIT, LATENT))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_first_stage_keeps_the_digits_that_it_was_not_trained_on() -> None:
    real = coloured(200, torch.Generator().manual_seed(3), split()[1])
    torch.manual_seed(0)
    first_stage = load_first_stage()
    latents = encode(first_stage, real.images)
    assert latents.shape == (200, 4, 8, 8)
    assert latents.std().item() == pytest.approx(1, abs=0.05)
    decoded = decode(first_stage, latents).clamp(-1, 1)
    assert recognised(decoded.numpy(), real.labels.numpy()) >= 0.95
    assert 10 * np.log10(4 / (decoded - real.images).square().mean().item()) >= 28
