"""From a model folder with its own scheduler to samples, and at full precision the chain that diffusers walks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.networks.engine_bank import EngineBank
from engines.samplers import SAMPLERS
from ptqd_export.plan import Plan, PlanFile
from ptqd_export.stages.run_build import run_build

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

STEPS, SEED = 6, 5
SAMPLES = np.arange(3, dtype=np.int64)
SHAPE = (3, 8, 8)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}

# Diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")]


def _model(folder: Path, scheduler: Any) -> Any:
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(2)
    network = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return network.eval()


def _by_diffusers(network: Any, scheduler: Any, noise: NoiseSource, monkeypatch: pytest.MonkeyPatch) -> Array:
    import torch

    fresh = (torch.from_numpy(noise.step(i, SAMPLES)) for i in range(STEPS))
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", lambda *_, **__: next(fresh), raising=False)
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(noise.start(SAMPLES)) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:  # not as plain numbers, of which the network would only take the whole part
            out = network(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(out, t, x).prev_sample
    images: Array = x.numpy()
    return images


@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        ("plms", "PNDMScheduler", {"skip_prk_steps": True}),
        ("dpm++2m", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("dpm++2m-sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("euler-ancestral", "EulerAncestralDiscreteScheduler", {}),
        ("heun", "HeunDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("lcm", "LCMScheduler", {}),
        ("unipc2", "UniPCMultistepScheduler", {}),
    ],
)
def test_a_model_is_built_and_sampled_with_its_own_scheduler(
    name: str, scheduler: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    theirs = getattr(diffusers, scheduler)(**STABLE_DIFFUSION | options)
    network = _model(tmp_path / "model", theirs)
    plan = {
        "model": {"path": "model"}, "sampler": {"name": name, "steps": STEPS}, "precisions": ["w8a8"],
        "calibration": {"samples": 16, "batch_size": 8, "activation_samples": 32},
        "target": {"name": "onnxruntime", "threads": 1, "benchmark_batch": 2}, "output": "bundle",
    }  # fmt: skip
    run_build(PlanFile(Plan.model_validate(plan), tmp_path))
    bundle = Bundle.open(tmp_path / "bundle")
    schedule, noise = bundle.schedule(), NoiseSource(SEED, SHAPE)
    assert (schedule.sampler.steps, len(schedule.steps)) == (STEPS, SAMPLERS[name].rows(STEPS))
    bank, rows = EngineBank(bundle, schedule.sampler.guidance, threads=1), np.zeros_like(SAMPLES)
    exact = Chain(schedule, bank, "fp32").sample(noise, SAMPLES, rows)
    expected = _by_diffusers(network, theirs, noise, monkeypatch)
    assert np.max(np.abs(exact - expected) / np.maximum(1, np.abs(expected))) < 1e-3
    quantized = Chain(schedule, bank, "w8a8").sample(noise, SAMPLES, rows)
    assert 0 < np.abs(quantized - exact).max() < 0.2 * np.abs(exact).max()
